"""Our SASRec and BERT4Rec beside those of RecTools, RePlay, torch-rechub and RecBole: the same events, one evaluator.

    python scripts/bench/peers.py [--json] [--quick] [--work build/bench] [--data data/ml-latest-small]
        [--peers ours rectools ...] [--models sasrec ...] [--seeds 1 2 3] [--turns 3]

Every system trains with its own loop and stopping (patience 15) on the same leave-last split (peers_data.py), at width
64, 2 layers, 2 heads, histories of 50, and hands back a score for every user and item; our evaluator ranks them.
Ours go through `lsvcr prepare`, `train` and `evaluate`. The sets are the ml-100k that RecBole's package holds (left out
where that cannot be installed), and, with `--data`, a MovieLens folder with ratings.csv; all ratings count.

Speed is measured apart, a few epochs without validation, the systems in turns: targets (positions with a loss) a second
of the clock, and a second of the processor, which other work on the machine changes less; and how many users get their
first ten unseen items a second. The systems get an environment of their own under --work, in which their versions are
pinned (peers_constraints.txt). A system that cannot be installed or run is a row that says why. What has been run stays
under --work and is not run again.
"""

import argparse
import json
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from common import arguments, middle, report, run_child, tell
from peers_child import Job
from peers_data import METRICS, PROTOCOLS, figures_of, judge, made_up, read_movielens, read_recbole, split
from peers_env import INSTALLS, Environment

from lsvcr.data.store import open_dataset
from lsvcr.evaluation.result import Result
from lsvcr.evaluation.significance import paired
from lsvcr.experiments.compare_figures import averaged
from lsvcr.training.rank_evaluate import evaluate_rows

HERE = Path(__file__).parent
PEERS = ("ours", *INSTALLS)
FILES = {
    "rectools": "peers_rectools.py",
    "replay": "peers_replay.py",
    "rechub": "peers_rechub.py",
    "recbole": "peers_recbole.py",
}


@dataclass(frozen=True)
class Model:
    """A model as all systems are asked for it: its name and loss, and who has it."""

    model: str
    loss: str
    peers: tuple[str, ...]
    negatives: int = 1


MODELS = {
    "sasrec": Model("sasrec", "softmax", ("ours", "rectools", "replay", "recbole")),
    "sasrec_windows": Model("sasrec", "softmax", ("ours",)),
    "sasrec_bce": Model("sasrec", "bce", ("ours", "rectools", "replay", "rechub")),
    "gsasrec": Model("sasrec", "gbce", ("ours", "rectools"), negatives=256),
    "bert4rec": Model("bert4rec", "softmax", ("ours", "rectools", "replay", "recbole")),
    "bert4rec_windows": Model("bert4rec", "softmax", ("ours",)),
}

OURS = {
    "sasrec": "",
    "sasrec_windows": "--windows True",
    "sasrec_bce": "",
    "gsasrec": "--gbce_t 0.75 --share_negatives sequence",
    "bert4rec": "--windows False",
    "bert4rec_windows": "--windows True",
}
"""Flags of `lsvcr train` by model, besides those of `our_words`."""

SLOW = {"recbole": 5}
"""Epochs of systems that are too slow to be trained to the end: one sample a prefix."""

TIMED_EPOCHS = 4
BATCH, TIMED_BATCH = 32, 128
"""Users together: few where quality counts, for ml-100k has but 943; as many as the literature has where speed does."""
QUICK_NEGATIVES = 16


@dataclass(frozen=True)
class Row:
    """What is known of a system's model on a set: figures by name, or why there are none.

    `results` are those of the test rows by protocol, each row's values averaged over the seeds.
    """

    peer: str
    model: str
    results: dict[str, Result]
    figures: dict[str, float]
    note: str


class Bench:
    """Runs jobs and keeps what they found."""

    def __init__(self, options: argparse.Namespace, environment: Environment) -> None:
        self.options, self.environment = options, environment
        self.runs = options.work / "peers-runs"
        self._broken: dict[str, str] = {}

    def job(self, peer: str, model: str, folder: Path, seed: int, turn: int = 0) -> Job:
        """What is asked; `turn` 0 asks for quality, others for speed."""
        asked = MODELS[model]
        name = f"{folder.name}-{peer}-{model}-{seed}" + (f"-turn{turn}" if turn else "")
        epochs = TIMED_EPOCHS if turn else SLOW.get(peer, self.options.epochs)
        return Job(
            peer=peer,
            model=asked.model,
            loss=asked.loss,
            folder=str(folder),
            out=str(self.runs / name),
            timed=turn > 0,
            epochs=epochs,
            patience=15,
            seed=seed,
            batch=TIMED_BATCH if turn else BATCH,
            negatives=min(asked.negatives, QUICK_NEGATIVES) if self.options.quick else asked.negatives,
        )

    def run(self, job: Job, model: str) -> tuple[dict[str, Any], str]:
        """What a job has found, or the reason why it has found nothing; done before: as it was then."""
        out = Path(job.out)
        file, result = out / "job.json", out / "result.json"
        text = json.dumps(asdict(job))
        if result.is_file() and file.read_text() == text:
            return json.loads(result.read_text()), ""
        if job.peer not in self._broken:
            self._broken[job.peer] = "" if job.peer == "ours" else self.environment.add(job.peer)
        if self._broken[job.peer]:
            return {}, self._broken[job.peer]
        tell(f"{out.name} ...")
        if not file.is_file() or file.read_text() != text:
            shutil.rmtree(out, ignore_errors=True)
        out.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
        failure = self._ours(job, model) if job.peer == "ours" else self._theirs(job)
        return (json.loads(result.read_text()), "") if not failure else ({}, failure)

    def _theirs(self, job: Job) -> str:
        words = [str(self.environment.python), str(HERE / FILES[job.peer]), str(Path(job.out) / "job.json")]
        with (Path(job.out) / "log.txt").open("w") as log:
            done = subprocess.run(words, stdout=log, stderr=subprocess.STDOUT, cwd=job.out)
        lines = (Path(job.out) / "log.txt").read_text().splitlines()
        return (
            f"ended with code {done.returncode}: {lines[-1] if lines else 'no message'}"
            if done.returncode
            else ""
        )

    def _ours(self, job: Job, model: str) -> str:
        """Ours: quality by the public commands, speed by a clock around the same loop."""
        words = our_words(job, model)
        if job.timed:
            run_child([str(HERE / "peers_ours.py"), str(Path(job.out) / "job.json"), *words])
            return ""
        run_child(["-m", "lsvcr", "train", job.model, *words])
        epochs = sum("train/loss" in line for line in (Path(job.out) / "run/metrics.jsonl").open())
        best = json.loads((Path(job.out) / "run/best/manifest.json").read_text())["progress"]["epoch"]
        found = {"epochs": epochs, "best_epoch": best, "version": "", "note": ""}
        (Path(job.out) / "result.json").write_text(json.dumps(found))
        return ""

    def quality(self, job: Job, model: str) -> tuple[dict[str, Result], str]:
        """Test results of a job by our evaluator, and what must be said of it."""
        found, failure = self.run(job, model)
        if failure:
            return {}, f"not run: {failure}"
        told = f"{found['epochs']} epochs, best {found['best_epoch'] or 'the last'}"
        return results_of(job), "; ".join(filter(None, [told, found["note"]]))


def results_of(job: Job) -> dict[str, Result]:
    """What our evaluator says of the test rows of a job that has run, by protocol."""
    data = Path(job.folder) / "prepared"
    if job.peer != "ours":
        return judge(np.load(Path(job.out) / "scores.npy"), open_dataset(data))
    asked = (f"{job.out}/run", str(data), "test", "full", METRICS)
    return {
        behind: evaluate_rows(*asked, protocol.filter_seen)[2]["full"]
        for behind, protocol in PROTOCOLS.items()
    }


def our_words(job: Job, model: str) -> list[str]:
    """Flags of `lsvcr train` for a job."""
    flags: dict[str, Any] = {
        "data_path": f"{job.folder}/prepared",
        "output_dir": f"{job.out}/run",
        "max_his": job.length,
        "hidden": job.width,
        "layers": job.layers,
        "heads": job.heads,
        "inner": job.width,
        "dropout": job.dropout,
        "attention_dropout": job.dropout,
        "per_device_train_batch_size": job.batch,
        "learning_rate": job.learning_rate,
        "num_train_epochs": job.epochs,
        "patience": job.patience,
        "seed": job.seed,
        "report_to": "none",
        "evaluation_strategy": "no" if job.timed else "epoch",
    }
    if job.model == "bert4rec":
        flags["inner"] = 4 * job.width
    if job.loss != "softmax":
        flags |= {"loss": job.loss, "neg_video_num": job.negatives}
    return [f"--{name}={value}" for name, value in flags.items()] + OURS[model].split()


def speeds(results: list[dict[str, Any]]) -> dict[str, float]:
    """Medians over the turns of the medians over their epochs, the first left out, which warms up."""

    def rate(result: dict[str, Any], clock: str) -> float:
        pairs = list(zip(result["targets"], result[clock], strict=True))
        return middle([targets / seconds for targets, seconds in pairs[1:] or pairs if seconds])

    return {
        "targets_per_s": middle([rate(result, "wall") for result in results]),
        "targets_per_cpu_s": middle([rate(result, "cpu") for result in results]),
        "users_per_s": middle([result["users_per_s"] for result in results]),
    }


def timed(bench: Bench, folder: Path) -> dict[tuple[str, str], dict[str, float]]:
    """Speeds by (peer, model), the systems in turns; where a system fails there is none."""
    found: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for turn in range(1, bench.options.turns + 1):
        for peer, model in chosen(bench.options):
            if peer in SLOW:
                continue
            result, failure = bench.run(bench.job(peer, model, folder, 1, turn), model)
            if failure:
                tell(f"{peer}, {model}: no speed: {failure}")
            else:
                found.setdefault((peer, model), []).append(result)
    return {key: speeds(results) for key, results in found.items()}


def rows_of(bench: Bench, folder: Path) -> list[Row]:
    """Everything about a set."""
    rows = []
    seeds = bench.options.seeds
    quality = {
        (peer, model): [bench.quality(bench.job(peer, model, folder, seed), model) for seed in seeds]
        for peer, model in chosen(bench.options)
    }
    speed = timed(bench, folder)
    for (peer, model), found in quality.items():
        measured = [results for results, _ in found if results]
        means = {behind: averaged([one[behind] for one in measured]) for behind in PROTOCOLS if measured}
        if measured and peer in SLOW and bench.options.turns:
            result, _ = bench.run(bench.job(peer, model, folder, seeds[0]), model)
            speed[peer, model] = speeds([result])
        figures = figures_of(means) | speed.get((peer, model), {})
        rows.append(Row(peer, model, means, figures, "".join(note for _, note in found[:1])))
    for row in rows:
        row.figures.update(lead(row, [own for own in rows if own.peer == "ours"]))
    return rows


def lead(row: Row, ours: list[Row]) -> dict[str, float]:
    """By how much our NDCG@10 of the same model is above a system's on the same rows; its 95 % interval over users."""
    own = next((mine for mine in ours if mine.model == row.model and mine.results), None)
    if row.peer == "ours" or not row.results or own is None:
        return {}
    figures = {}
    for behind, result in row.results.items():
        found = paired(own.results[behind], result, METRICS[0])
        low, high = found.interval
        figures |= {f"lead{behind}": found.difference, f"lead{behind}_low": low, f"lead{behind}_high": high}
    return figures


def chosen(options: argparse.Namespace) -> Iterator[tuple[str, str]]:
    """(peer, model) of what is to be run, the models one after the other."""
    for model in options.models:
        yield from ((peer, model) for peer in MODELS[model].peers if peer in options.peers)


def folders(options: argparse.Namespace, environment: Environment) -> dict[str, Path]:
    """The sets by what their figures' names begin with."""
    root = options.work / "peers-data"
    if options.quick:
        return {"": split(made_up(), root / "made-up")}
    found = {}
    reason = environment.add("recbole")
    if reason:
        tell(f"ml-100k is left out, for it comes with RecBole's package: {reason}")
    else:
        file = environment.site_packages() / "recbole/dataset_example/ml-100k/ml-100k.inter"
        found[""] = split(read_recbole(file), root / "ml-100k")
    if not options.data:
        tell("no --data: a MovieLens folder with ratings.csv, such as ml-latest-small, would be a second set")
    elif not (options.data / "ratings.csv").is_file():
        tell(f"{options.data} is left out: it holds no ratings.csv")
    else:
        found[f"{options.data.name}_"] = split(read_movielens(options.data), root / options.data.name)
    return found


def table(rows: list[Row]) -> str:
    """The rows in Markdown: quality unfiltered / filtered, speed."""
    lines = [
        "| model | system | NDCG@10 | Recall@10 | MRR@10 | NDCG@10, ours less it (95 %) | targets/s | targets/cpu s "
        "| users/s | |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        pairs = [
            " / ".join(_shown(row.figures.get(name.replace("@", "") + behind), 4) for behind in PROTOCOLS)
            for name in METRICS
        ]
        rates = [
            _shown(row.figures.get(name), 0) for name in ("targets_per_s", "targets_per_cpu_s", "users_per_s")
        ]
        ahead = " / ".join(_interval(row.figures, f"lead{behind}") for behind in PROTOCOLS)
        lines.append(f"| {row.model} | {row.peer} | " + " | ".join([*pairs, ahead, *rates, row.note]) + " |")
    return "\n".join(lines)


def _interval(figures: dict[str, float], name: str) -> str:
    if name not in figures:
        return "-"
    return f"{figures[name]:+.4f} ({figures[f'{name}_low']:+.4f} to {figures[f'{name}_high']:+.4f})"


def _shown(value: float | None, digits: int) -> str:
    return "-" if value is None else f"{value:,.{digits}f}"


def read_options() -> argparse.Namespace:
    """What the command line says."""
    parser = arguments(__doc__ or "", "a made-up set of 60 users, one epoch, one turn, ours alone")
    parser.add_argument("--peers", nargs="+", choices=PEERS, default=PEERS, help="whose")
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS), help="which")
    parser.add_argument("--data", type=Path, help="a MovieLens folder with ratings.csv, as a second set")
    parser.add_argument(
        "--seeds", type=int, nargs="*", default=[1], help="quality is the mean over these; none: speed alone"
    )
    parser.add_argument("--turns", type=int, default=3, help="of the measurement of speed; 0 = none")
    parser.add_argument("--epochs", type=int, default=200, help="at most; patience ends most runs before")
    parser.add_argument("--cuda", action="store_true", help="GPU libraries may be fetched along with torch")
    options = parser.parse_args()
    options.work = options.work.resolve()
    if options.quick:
        options.peers, options.seeds, options.turns, options.epochs = ("ours",), [1], 1, 1
    return options


def main() -> None:
    """Measure and report."""
    options = read_options()
    environment = Environment(options.work / "peers-env", options.cuda)
    bench = Bench(options, environment)
    figures: dict[str, float] = {}
    for prefix, folder in folders(options, environment).items():
        rows = rows_of(bench, folder)
        tell(f"\n{folder.name}\n\n{table(rows)}\n")
        figures |= {
            f"{prefix}{row.peer}_{row.model}_{name}": value
            for row in rows
            for name, value in row.figures.items()
        }
    report("peers", figures, options.json)


if __name__ == "__main__":
    main()
