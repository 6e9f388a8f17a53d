"""Answers of a bundle: in process on one core, over HTTP, over a long time; beside what the machine could do at best.

    python scripts/bench/serve.py [--json] [--quick] [--work build/bench] [--soak_requests 200000]

Bundles hold the exporter's encoder of a random model of the published shape (d = 64, histories 50 + 50) and random
tables of 10,000, 100,000 and 1,000,000 videos (the last for Rec alone); every request has full histories of raw ids.
Floors: a catalogue must be read once a request (bytes of its item vectors / bytes a second that one core reads), the
encoder's operations must be done (/ those a second of a large matrix product on one core). HTTP is measured on loopback
by a generator in a process of its own (serve_load.py), so that on 2 cores server and generator have one each: closed
loops with several numbers of connections, then 1,500 requests a second at even intervals whatever the server does.
"""

import argparse
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.error import URLError
from urllib.request import urlopen

from common import ROOT, arguments, report, run_child, tell
from serve_bundles import HIDDEN, bodies, bundle, encoder_gflop
from serve_inproc import resident, size

RATE = 1_500
"""Requests a second aimed at."""
P99_MS = 50.0
"""Of the rate that counts, 99 of 100 requests are answered within so many milliseconds."""
CONNECTIONS = (1, 8, 32, 64)
SOAK_CONNECTIONS = 32
HERE = Path(__file__).parent

Figures = dict[str, float]


@dataclass(frozen=True)
class Server:
    """A running `lsvcr serve`: where it listens, its process, seconds from its start until it was ready."""

    port: int
    process: subprocess.Popen[bytes]
    ready_s: float

    def cpu_seconds(self) -> float:
        """Processor time that it has used."""
        fields = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


@contextmanager
def serving(folder: Path) -> Iterator[Server]:
    """`lsvcr serve` of a bundle as a person starts it, without a line a request; ended gracefully."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    words = ["-m", "lsvcr", "serve", str(folder), "--port", str(port), "--access_log", "False"]
    start = time.perf_counter()
    process = subprocess.Popen([sys.executable, *words], env={**os.environ, "PYTHONPATH": str(ROOT)})
    try:
        while not _ready(port):
            if process.poll() is not None:
                raise SystemExit(f"lsvcr serve ended with code {process.returncode} before it was ready")
            time.sleep(0.01)
        yield Server(port, process, time.perf_counter() - start)
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(60)


def _ready(port: int) -> bool:
    try:
        with urlopen(f"http://127.0.0.1:{port}/readyz", timeout=5) as answer:
            return bool(answer.status == 200)
    except (URLError, OSError):
        return False


def inproc(folder: Path, queries: Path, requests: int) -> Figures:
    """Single requests in a process of one core."""
    words = [
        str(HERE / "serve_inproc.py"),
        str(folder),
        "--bodies",
        str(queries),
        "--requests",
        str(requests),
    ]
    tell(f"{folder.name}: {requests} requests in process ...")
    found: Figures = json.loads(run_child(words, OMP_NUM_THREADS="1").stdout.splitlines()[-1])
    return found


def floors() -> Figures:
    """What one core can do, and what the encoder needs of it."""
    tell("what one core can do ...")
    words = [str(HERE / "serve_inproc.py"), "floors"]
    found: Figures = json.loads(run_child(words, OMP_NUM_THREADS="1").stdout.splitlines()[-1])
    gflop = encoder_gflop()
    return {
        **found,
        "encoder_gflop": gflop,
        "encoder_floor_ms": 1e3 * gflop / found["product_gflop_per_s"],
    }


def catalogue_floor_ms(videos: int, row_bytes: int, machine: Figures) -> float:
    """Milliseconds that one core needs to read the item vectors of a catalogue."""
    return videos * HIDDEN * row_bytes / machine["memory_gb_per_s"] / 1e6


def inproc_figures(name: str, videos: int, options: argparse.Namespace, machine: Figures) -> Figures:
    """One catalogue in process, float32 rows."""
    folder = bundle(videos, "float32", options.work)
    found = inproc(folder, bodies(videos, 500, options.work), 100 if options.quick else 2000)
    memory = catalogue_floor_ms(videos, 4, machine)
    return {
        **{f"inproc_{name}_{key}": value for key, value in found.items()},
        f"inproc_{name}_memory_floor_ms": memory,
        f"inproc_{name}_over_floors": found["p50_ms"] / (memory + machine["encoder_floor_ms"]),
        f"bundle_{name}_mb": size(folder) / 1e6,
    }


def million_figures(options: argparse.Namespace, machine: Figures) -> Figures:
    """A million videos: exact search in float32, float16 and int8 rows, against reading them once."""
    videos, figures = 1_000_000, {}
    queries = bodies(videos, 500, options.work)
    for kind, row_bytes, name in (("float32", 4, "1m"), ("float16", 2, "float16_1m"), ("int8", 1, "int8_1m")):
        folder = bundle(videos, kind, options.work)
        found = inproc(folder, queries, 200)
        floor = catalogue_floor_ms(videos, row_bytes, machine)
        over = "inproc_1m_over_floor" if name == "1m" else f"{name}_over_floor"
        figures |= {f"inproc_{name}_{key}": value for key, value in found.items()}
        figures |= {f"inproc_{name}_floor_ms": floor, over: found["p50_ms"] / floor}
        figures |= {f"bundle_{name}_mb": size(folder) / 1e6}
    figures["resident_over_bundle"] = figures["inproc_1m_rss_over_bundle"]
    return figures


def load(server: Server, queries: Path, **flags: float) -> Figures:
    """One load from a process of its own, with the server's share of a core."""
    words = [str(HERE / "serve_load.py"), "--port", str(server.port), "--bodies", str(queries)]
    for name, value in flags.items():
        words += [f"--{name}", str(value)]
    before = server.cpu_seconds()
    found: Figures = json.loads(run_child(words).stdout.splitlines()[-1])
    used = server.cpu_seconds() - before
    tell(
        f"   {flags}: {found['rps']:,.0f} a second, p50 {found['p50_ms']:.1f} ms, p99 {found['p99_ms']:.1f} ms, "
        f"{found['errors']:.0f} errors; cores: generator {found['cpu_share']:.2f}, "
        f"server {used / found['seconds']:.2f}"
    )
    found |= {"server_cpu_share": used / found["seconds"], "server_cpu_ms": 1e3 * used / found["requests"]}
    return found


def http_figures(server: Server, queries: Path, seconds: float) -> Figures:
    """Closed loops at several numbers of connections, then an even rate."""
    tell("over HTTP ...")
    load(server, queries, connections=8, seconds=1)
    figures: Figures = {}
    loops = {n: load(server, queries, connections=n, seconds=seconds) for n in CONNECTIONS}
    for connections, found in loops.items():
        kept = ("rps", "p50_ms", "p99_ms", "errors", "server_cpu_ms")
        figures |= {f"http_{connections}_{key}": found[key] for key in kept}
    good = [found for found in loops.values() if found["p99_ms"] <= P99_MS and not found["errors"]]
    best = max(good or loops.values(), key=lambda found: found["rps"])
    even = load(server, queries, connections=256, seconds=seconds, rate=RATE)
    return {
        "http_rps": best["rps"],
        "http_p99_ms": best["p99_ms"],
        "http_load_cpu_share": best["cpu_share"],
        "http_server_cpu_share": best["server_cpu_share"],
        "http_server_cpu_ms": best["server_cpu_ms"],
        **figures,
        **{
            f"http_even_{RATE}_{key}": even[key] for key in ("rps", "p50_ms", "p99_ms", "errors", "cpu_share")
        },
    }


def soak_figures(server: Server, queries: Path, requests: int) -> Figures:
    """Many requests, and the server's memory before, in the middle and after."""
    tell(f"soak: {requests:,} requests ...")
    memory = [resident(server.process.pid)]
    halves = []
    for _ in range(2):
        halves.append(load(server, queries, connections=SOAK_CONNECTIONS, seconds=3600, count=requests // 2))
        memory.append(resident(server.process.pid))
    start, middle, end = (bytes_ / 1e6 for bytes_ in memory)
    return {
        "soak_requests": sum(half["requests"] for half in halves),
        "soak_errors": sum(half["errors"] for half in halves),
        "soak_rps": sum(half["requests"] for half in halves) / sum(half["seconds"] for half in halves),
        "soak_p99_ms": max(half["p99_ms"] for half in halves),
        "soak_rss_start_mb": start,
        "soak_rss_middle_mb": middle,
        "soak_rss_end_mb": end,
    }


def startup_figures(options: argparse.Namespace) -> Figures:
    """From the start of `lsvcr serve` until it is ready, 100,000 videos, checksums compared; and its memory."""
    folder = bundle(100_000, "float32", options.work)
    tell("starting a server of 100,000 videos ...")
    seconds = []
    for _ in range(1 if options.quick else 3):
        with serving(folder) as server:
            seconds.append(server.ready_s)
            load(server, bodies(100_000, 500, options.work), connections=8, count=500)
            memory = resident(server.process.pid)
    return {
        "startup_100k_s": min(seconds),
        "server_100k_rss_mb": memory / 1e6,
        "server_100k_rss_over_bundle": memory / size(folder),
    }


def main() -> None:
    """Measure and report."""
    parser = arguments(__doc__, "10,000 and 100,000 videos alone, short loads: a minute")
    parser.add_argument("--soak_requests", type=int, default=200_000, help="requests of the soak")
    options = parser.parse_args()
    busy = os.getloadavg()[0]
    machine = floors()
    figures = {"load_average_before": busy, **machine}
    sizes = {"10k": 10_000} if options.quick else {"10k": 10_000, "100k": 100_000}
    for name, videos in sizes.items():
        figures |= inproc_figures(name, videos, options, machine)
    if not options.quick:
        figures |= million_figures(options, machine)
    figures |= startup_figures(options)
    queries = bodies(10_000, 2000, options.work)
    with serving(bundle(10_000, "float32", options.work)) as server:
        figures |= http_figures(server, queries, 2 if options.quick else 10)
        figures |= soak_figures(server, queries, 2000 if options.quick else options.soak_requests)
    report("serve", figures, options.json)


if __name__ == "__main__":
    main()
