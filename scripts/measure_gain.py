"""What stage one adds over the untuned LLM's text, measured fairly: seeds, equal tuning, intervals.

    python scripts/measure_gain.py --data demo/data --aligned demo/align --out demo/gain \
        --config config/finetune/demo.yaml

Both arms get the same grid of learning rates, the same epochs and the same early stopping on validation; each arm
and task keeps the rate that is best on validation (mean over seeds), and only that one is read on the test split. The
control trains the text head on the untuned LLM's states. Runs that are already finished in --out are used again.
`--aligned A --aligned B` uses one stage-one run a seed, in turn.
"""

import argparse
import dataclasses
import sys
from pathlib import Path
from typing import Any

from lsvcr.schema import Task
from lsvcr.settings import RankSettings
from lsvcr.utils.arguments import parse_settings
from lsvcr.utils.errors import exit_code
from lsvcr.utils.io import write_json


def parse() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--data", required=True, help="prepared dataset, with photo_full_embs.npy of the untuned LLM"
    )
    parser.add_argument("--aligned", required=True, action="append", help="stage-one run folder; repeatable")
    parser.add_argument("--out", required=True, help="folder of all runs and of gain.json")
    parser.add_argument("--untuned", default="", help="folder of the untuned vectors, if not the dataset")
    parser.add_argument(
        "--full",
        action="store_true",
        help="aligned arm: train the stage-one head further on the "
        "tuned LLM's own states (*_full_embs.npy) instead of freezing its output",
    )
    parser.add_argument("--tasks", nargs="+", default=["Rec", "CommRank"])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument(
        "--rates", nargs="+", type=float, default=[1e-3, 2e-3], help="learning rates of the grid"
    )
    parser.add_argument("--config", default="", help="YAML file of stage-two settings, for both arms")
    return parser.parse_args()


def main() -> None:
    """Run what is missing, then compare."""
    options = parse()
    report: dict[str, Any] = {"options": vars(options), "tasks": {}}
    for task in options.tasks:
        report["tasks"][task] = measure(options, task)
        write_json(Path(options.out) / "gain.json", report)
        show(task, report["tasks"][task])


def measure(options: argparse.Namespace, task: str) -> dict[str, Any]:
    """Both arms of a task: tuned on validation, read on test."""
    rates = {}
    for arm in ("control", "aligned"):
        scores = {
            rate: [train(options, task, arm, rate, seed) for seed in range(options.seeds)]
            for rate in options.rates
        }
        rates[arm] = max(scores, key=lambda rate: sum(scores[rate]))
    gains = compare(options, task, rates, "full")
    if Task.parse(task) is Task.REC:  # CommRank: the video's comments under both, up to 100
        gains |= compare(options, task, rates, "sampled")
    return {"rates": rates, "gains": gains}


def compare(options: argparse.Namespace, task: str, rates: dict[str, float], protocol: str) -> dict[str, Any]:
    """Gains of the arms at their rates, under one protocol: all test rows, and those of cold videos."""
    from lsvcr.data.store import open_dataset
    from lsvcr.experiments.gain import measure_gain
    from lsvcr.experiments.runs import load_run, with_users

    dataset = open_dataset(options.data)
    arms = {
        arm: [
            with_users(load_run(folder(options, task, arm, rate, seed), protocol), dataset)
            for seed in range(options.seeds)
        ]
        for arm, rate in rates.items()
    }
    parts: dict[str, str | None] = {"all": None}
    if Task.parse(task) is Task.REC and arms["control"][0].slices["cold"].any():
        parts["cold"] = "cold"
    return {
        f"{protocol} {metric}, {name}": dataclasses.asdict(
            measure_gain(arms["aligned"], arms["control"], metric, part)
        )
        for name, part in parts.items()
        for metric in ("recall@10", "ndcg@10", "mrr@10")
    }


def folder(options: argparse.Namespace, task: str, arm: str, rate: float, seed: int) -> Path:
    """Where a run lies."""
    return Path(options.out) / task / f"{arm}-{rate:g}-{seed}"


def settings(options: argparse.Namespace) -> RankSettings:
    """What both arms share."""
    given = ["--config", options.config] if options.config else []
    return parse_settings(RankSettings, given, "measure_gain.py")


def train(options: argparse.Namespace, task: str, arm: str, rate: float, seed: int) -> float:
    """Train one model unless that is done, and give its best validation value."""
    from lsvcr.training.rank import run
    from lsvcr.utils.io import read_json

    out = folder(options, task, arm, rate, seed)
    vectors = Path(options.untuned or options.data)
    pretrained = "none"
    name = "{}_full_embs.npy"
    if arm == "aligned":
        pretrained = options.aligned[seed % len(options.aligned)]
        vectors = Path(pretrained) / "best"
        name = name if options.full else "{}_embs.npy"
    run(
        dataclasses.replace(
            settings(options),
            finetune_task=task,
            data_path=options.data,
            output_dir=str(out),
            pretrain_checkpoint=pretrained,
            photo_emb_file=str(vectors / name.format("photo")),
            comment_emb_file=str(vectors / name.format("comment")),
            seed=seed,
            learning_rate=rate,
            report_to="none",
        )
    )
    return float(read_json(out / "best" / "manifest.json")["progress"]["best"])


def show(task: str, found: dict[str, Any]) -> None:
    """Print one task's gains."""
    sys.stdout.write(
        f"{task}: learning rate {found['rates']['control']:g} (control), {found['rates']['aligned']:g} (aligned)\n"
    )
    for name, gain in found["gains"].items():
        low, high = gain["interval"]
        seeds = ", ".join(f"{value:+.4f}" for value in gain["by_seed"])
        sys.stdout.write(
            f"  {name:<23} control {gain['control']:.4f}  aligned {gain['aligned']:.4f}  gain {gain['gain']:+.4f} "
            f"({low:+.4f} to {high:+.4f})  by seed {seeds}\n"
        )
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(exit_code(main))
