"""One process on one core that answers from a bundle, for serve.py; prints one JSON object.

OMP_NUM_THREADS=1 python scripts/bench/serve_inproc.py BUNDLE --bodies bodies.jsonl --requests 2000
OMP_NUM_THREADS=1 python scripts/bench/serve_inproc.py floors
"""

import argparse
import json
import os
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

BIG = 1 << 26
"""float32 numbers of the arrays that are read for the memory's speed: 256 MiB, beyond every cache."""

TIMES = 9
BETWEEN = 10
"""Requests between two readings of as many bytes as the item vectors have: its time moves with the machine."""


def floors() -> dict[str, float]:
    """What one core of this machine can do: bytes read and copied, operations of a matrix product."""
    numbers = np.ones(BIG, dtype=np.float32)
    copy = np.empty_like(numbers)
    left = np.random.default_rng(0).standard_normal((1024, 1024), dtype=np.float32)
    sum_s = fastest(lambda: numbers.sum())
    dot_s = fastest(lambda: numbers @ numbers)
    copy_s = fastest(lambda: np.copyto(copy, numbers))
    return {
        "memory_sum_gb_per_s": numbers.nbytes / sum_s / 1e9,
        "memory_dot_gb_per_s": numbers.nbytes / dot_s / 1e9,
        "memory_copy_gb_per_s": 2 * numbers.nbytes / copy_s / 1e9,
        "memory_gb_per_s": max(numbers.nbytes / sum_s, numbers.nbytes / dot_s) / 1e9,
        "product_gflop_per_s": 2 * 1024**3 / fastest(lambda: left @ left) / 1e9,
    }


def fastest(work: Callable[[], object]) -> float:
    """Seconds of the fastest of several runs: a floor is what is possible."""
    seconds = []
    for _ in range(TIMES):
        start = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - start)
    return min(seconds)


def answers(bundle: Path, bodies: Path, requests: int, item_bytes: int = 0) -> dict[str, float]:
    """Latency of single requests on raw ids with full histories, and memory after them.

    Args:
        item_bytes: of the item vectors; with them `read_ms` is the median time to read as many, between the requests.
    """
    from lsvcr.serving.runtime import Recommender

    start = time.perf_counter()
    recommender = Recommender.load(bundle)
    loaded = time.perf_counter() - start
    queries = [json.loads(line) for line in bodies.read_text().splitlines()]
    beside = np.ones(item_bytes // 4, dtype=np.float32)
    found = quantiles(
        "", lambda i: recommender.recommend(**queries[i % len(queries)], k=10), requests, beside
    )
    if "comm_rank" in recommender.tasks:
        asked = [{**query, "video": query["video_history"][0]} for query in queries]
        found |= quantiles(
            "comments_", lambda i: recommender.rank_comments(**asked[i % len(asked)]), requests
        )
    own = resident(os.getpid()) - beside.nbytes
    return {"load_s": loaded, **found, "rss_mb": own / 1e6, "rss_over_bundle": own / size(bundle)}


def quantiles(
    name: str, work: Callable[[int], object], count: int, beside: np.ndarray | None = None
) -> dict[str, float]:
    """Median and 99th percentile of single calls, in milliseconds; a twentieth before them warms up.

    `fastest_ms`, the fastest, and `cpu_ms`, processor time of a call, depend less on what else the machine does.
    `read_ms` is the median time to read the numbers `beside` (n,), once in `BETWEEN` calls.
    """
    reads = []
    for number in range(count // 20 + 1):
        work(number)
    took = []
    used = time.process_time()
    for number in range(count):
        start = time.perf_counter()
        work(number)
        took.append(time.perf_counter() - start)
        if beside is not None and number % BETWEEN == 0:
            start, before = time.perf_counter(), time.process_time()
            np.dot(beside, beside)
            reads.append(time.perf_counter() - start)
            used += time.process_time() - before
    used = time.process_time() - used
    p50, p99 = 1e3 * np.quantile(took, [0.5, 0.99])
    read = {} if beside is None else {f"{name}read_ms": 1e3 * float(np.median(reads))}
    return {
        **read,
        f"{name}p50_ms": float(p50),
        f"{name}p99_ms": float(p99),
        f"{name}fastest_ms": 1e3 * min(took),
        f"{name}cpu_ms": 1e3 * used / count,
    }


def resident(process: int) -> int:
    """Resident memory of a process in bytes, pages of mapped files among it."""
    for line in Path(f"/proc/{process}/status").read_text().splitlines():
        if line.startswith("VmRSS"):
            return int(line.split()[1]) * 1024
    raise SystemExit(f"process {process} has ended")


def size(bundle: Path) -> int:
    """Bytes of all its files."""
    return sum(path.stat().st_size for path in bundle.rglob("*") if path.is_file())


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("bundle", help="bundle folder; or `floors`")
    parser.add_argument("--bodies", type=Path)
    parser.add_argument("--requests", type=int, default=2000)
    parser.add_argument(
        "--item_bytes", type=int, default=0, help="of the item vectors, read between the requests"
    )
    options = parser.parse_args()
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    if options.bundle == "floors":
        print(json.dumps(floors()))
    else:
        print(json.dumps(answers(Path(options.bundle), options.bodies, options.requests, options.item_bytes)))


if __name__ == "__main__":
    main()
