"""How fast the data side is: prepare, open, and the batches of stage two.

    python scripts/bench/data.py [--json] [--quick] [--kuaicomt] [--work build/bench] [--repeats 3]

Raw logs come from the simulator: the `large` preset (10 M likes, 1 M comment interactions, 200 k users, 100 k videos;
--quick: `demo`), made once under --work, which takes about 4 minutes. `--kuaicomt` also prepares logs with KuaiComt's
own counts (kuaicomt_logs.py; 12 GB of disk). What is compared stands in one run, taken in turns:

- prepare, against Polars alone that reads the same files, keeps the likes and sorts them;
- a batch of 512 samples with histories 50 + 50, against a loop over samples that slices and pads lists;
- memory of a process that reads batches and of its loader workers, against history length and their number.
"""

import time
from pathlib import Path

import numpy as np
import torch
from common import arguments, middle, prepare, report, run_child, simulated, tell
from kuaicomt_logs import fold

from lsvcr.data.align_samples import latest_groups
from lsvcr.data.rank import RankData
from lsvcr.data.store import open_dataset
from lsvcr.schema import Split, Task

BATCH = 512
NEGATIVES = 19

POLARS_ALONE = """
import sys
import polars as pl
raw = sys.argv[1]
rows = pl.scan_csv(f"{raw}/user_video_inter.csv").select("user_id", "video_id", "time_ms", "is_like")
likes = rows.filter(pl.col("is_like") == 1).collect(engine="streaming").sort("user_id", "time_ms")
rest = [pl.read_csv(f"{raw}/{name}.csv") for name in
        ("user_comment_inter", "user_features", "video_features", "comment_features")]
"""

OPEN = """
import sys, time
from lsvcr.data.store import open_dataset
def memory():
    lines = open("/proc/self/smaps_rollup").read().splitlines()
    return [sum(int(line.split()[1]) for line in lines if line.startswith(kind)) / 1e3 for kind in ("Rss", "Anonymous")]
before, start = memory(), time.perf_counter()
data = open_dataset(sys.argv[1])
seconds, opened = time.perf_counter() - start, memory()
samples = data.samples("rec", "train")
[samples.video_end[row] for row in range(0, len(samples), max(1, len(samples) // 1000))]
print(seconds, opened[0] - before[0], memory()[1] - before[1])
"""

WORKERS = """
import sys
import numpy as np
import psutil
from lsvcr.data.rank import RankData
from lsvcr.data.store import open_dataset
from lsvcr.schema import Split, Task
from lsvcr.training.rank_batches import EpochBatches
root, length, workers = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
data = RankData(open_dataset(root), Task.REC, Split.TRAIN, max_videos=length, max_entries=length)
batches = EpochBatches(data, batch=512, accumulation=1, seed=0, epoch=0, negatives=0)
me = psutil.Process()
most = 0.0
for number, _ in enumerate(batches.loader(workers)):
    if number % 25 == 24:
        family = [me, *me.children(recursive=True)]
        most = max(most, sum(process.memory_full_info().pss for process in family) / 1e6)
    if number == 100:
        break
print(most)
"""


def main() -> None:
    """Measure and report."""
    parser = arguments(__doc__, "the demo preset: seconds, for a look")
    parser.add_argument("--kuaicomt", action="store_true", help="also prepare logs of KuaiComt's own size")
    parser.add_argument("--repeats", type=int, default=3, help="runs of each; medians are reported")
    options = parser.parse_args()
    preset = "demo" if options.quick else "large"
    raw = simulated(preset, options.work)
    data = options.work / f"{preset}-data"
    figures = prepare_figures(raw, data, options.repeats, "quick" if options.quick else "10m")
    figures |= open_figures(data, options.repeats)
    figures |= batch_figures(data, options.repeats)
    figures |= worker_figures(data)
    if options.kuaicomt:
        figures |= kuaicomt_figures(simulated("large", options.work), options.work)
    report("data", figures, options.json)


def prepare_figures(raw: Path, out: Path, repeats: int, size: str) -> dict[str, float]:
    """Seconds and peak memory of prepare with and without impressions, and how many times Polars' own reading it is."""
    runs, without, floors = [], [], []
    for number in range(repeats):
        tell(f"prepare {size}, run {number + 1} of {repeats} ...")
        floors.append(run_child(["-c", POLARS_ALONE, str(raw)]).seconds)
        without.append(prepare(raw, out, "--impressions", "false"))
        runs.append(prepare(raw, out))
    seconds = middle([run.seconds for run in runs])
    return {
        f"prepare_{size}_s": seconds,
        f"prepare_{size}_rss_gb": max(run.rss_gb for run in runs),
        f"prepare_{size}_without_impressions_s": middle([run.seconds for run in without]),
        f"prepare_{size}_without_impressions_rss_gb": max(run.rss_gb for run in without),
        f"prepare_{size}_over_polars_alone": seconds / middle(floors),
    }


def kuaicomt_figures(large: Path, work: Path) -> dict[str, float]:
    """Runs on logs of KuaiComt's size: with likes, the same without impressions, with likes and long views."""
    tell("folding the large world onto KuaiComt's counts ...")
    raw = fold(large, work / "kuaicomt")
    figures = {}
    every = {
        "likes": ["--signals", "is_like"],
        "likes_without_impressions": ["--signals", "is_like", "--impressions", "false"],
        "long_views": ["--signals", "is_like,long_view"],
    }
    for name, flags in every.items():
        tell(f"prepare kuaicomt, {name} ...")
        run = prepare(raw, work / "kuaicomt-data", *flags)
        figures |= {f"prepare_kuaicomt_{name}_s": run.seconds, f"prepare_kuaicomt_{name}_rss_gb": run.rss_gb}
    return figures


def open_figures(data: Path, repeats: int) -> dict[str, float]:
    """Seconds and resident memory (MB) that `open_dataset` takes; anonymous memory once 1,000 samples were looked at.

    The system may map more of a file than what was touched, as long as memory is free; anonymous memory is all that
    it cannot take back.
    """
    runs = [run_child(["-c", OPEN, str(data)]).stdout.split() for _ in range(repeats)]
    return {
        "open_s": middle([float(run[0]) for run in runs]),
        "open_rss_mb": middle([float(run[1]) for run in runs]),
        "open_anonymous_mb": middle([float(run[2]) for run in runs]),
    }


def batch_figures(data: Path, repeats: int) -> dict[str, float]:
    """Samples a second of batch assembly in one process with one thread, and over a loop per sample."""
    torch.set_num_threads(1)
    dataset = open_dataset(data)
    figures = {}
    for task, name, negatives in ((Task.REC, "", 0), (Task.COMM_RANK, "commrank_", NEGATIVES)):
        samples = RankData(dataset, task, Split.TRAIN, max_videos=50, max_entries=50)
        order = np.random.default_rng(0).permutation(len(samples))
        blocks = [order[start : start + BATCH] for start in range(0, len(order) - BATCH + 1, BATCH)]
        ours, loops = [], []
        for number in range(10 * repeats):
            chosen = [blocks[(5 * number + i) % len(blocks)] for i in range(5)]
            start = time.perf_counter()
            for rows in chosen:
                samples.training(rows, (0, 0), negatives)
            ours.append(len(chosen) * BATCH / (time.perf_counter() - start))
            if task is Task.REC:
                start = time.perf_counter()
                loop_batch(samples, chosen[0], np.random.default_rng(number))
                loops.append(BATCH / (time.perf_counter() - start))
        figures[f"{name}batches_samples_per_s"] = middle(ours)
        if loops:
            figures["batches_over_loop"] = middle(ours) / middle(loops)
    return figures


def loop_batch(data: RankData, rows: np.ndarray, rng: np.random.Generator) -> dict[str, np.ndarray]:
    """A Rec batch of the same content, sample by sample: what a `Dataset` and a collating function usually do."""
    dataset, samples = data.dataset, data.samples
    built = []
    for row in rows:
        user = int(samples["user"][row])
        start, end = int(dataset.video_events.offsets[user]), int(samples["video_end"][row])
        videos = dataset.video_events.items[max(start, end - data.max_videos) : end].tolist()
        shown = []
        for video in videos:
            popular = dataset.video_comments.row(video)[:3]
            shown.append(int(popular[rng.integers(len(popular))]) if len(popular) else 0)
        entries = latest_groups(dataset, user, int(samples["comment_end"][row]), data.max_entries)
        built.append((videos, shown, entries, int(samples["video"][row])))
    width = max(len(videos) for videos, *_ in built)
    deep = max(1, *(len(entries) for _, _, entries, _ in built))
    batch = {
        "video_ids": np.zeros((len(rows), width), np.int64),
        "video_comments": np.zeros((len(rows), width), np.int64),
        "entry_videos": np.zeros((len(rows), deep), np.int64),
        "videos": np.array([target for *_, target in built]),
    }
    for i, (videos, shown, entries, _) in enumerate(built):
        batch["video_ids"][i, : len(videos)] = videos
        batch["video_comments"][i, : len(shown)] = shown
        batch["entry_videos"][i, : len(entries)] = [video for video, _ in entries]
    return batch


def worker_figures(data: Path) -> dict[str, float]:
    """Memory (MB) of a training process and its loader workers together, shared pages counted once (PSS)."""
    figures = {}
    for length, workers in ((10, 0), (50, 0), (200, 0), (50, 1), (50, 2), (50, 4)):
        tell(f"memory with histories of {length} and {workers} workers ...")
        child = run_child(["-W", "ignore", "-c", WORKERS, str(data), str(length), str(workers)])
        figures[f"memory_mb_history_{length}_workers_{workers}"] = float(child.stdout)
    return figures


if __name__ == "__main__":
    main()
