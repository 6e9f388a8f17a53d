"""Answers of a bundle: in process on one core, over HTTP, over a long time; beside what the machine could do at best.

    python scripts/bench/serve.py [--json] [--quick] [--http] [--seconds 10] [--work build/bench]

Bundles hold the exporter's encoder of a random model of the published shape (d = 64, histories 50 + 50) and random
tables of 10,000, 100,000 and 1,000,000 videos (the last for Rec alone); every request has full histories of raw ids.
Floors: a catalogue must be read once a request (bytes of its item vectors / bytes a second that one core reads), the
encoder's operations must be done (/ those a second of a large matrix product on one core). HTTP is measured on loopback
by a generator in a process of its own (serve_load.py): closed loops with several numbers of connections, then 1,500
requests a second at even intervals whatever the server does. Servers of one process and of two take turns.
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
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.error import URLError
from urllib.request import urlopen

from common import ROOT, arguments, report, run_child, tell
from serve_bundles import bodies, bundle, encoder_gflop
from serve_inproc import resident, size

RATE = 1_500
"""Requests a second aimed at."""
P99_MS = 50.0
"""Of the rate that counts, 99 of 100 requests are answered within so many milliseconds."""
CONNECTIONS = (1, 8, 32, 48, 64)
ARRANGEMENTS = {"http": (), "http_two": ("--processes", "2", "--workers", "1")}
"""Flags of the servers that are measured over HTTP, by the name that their figures begin with."""
SOAK_CONNECTIONS = 32
HERE = Path(__file__).parent

Figures = dict[str, float]


@dataclass(frozen=True)
class Server:
    """A running `lsvcr serve`: where it listens, its process, seconds from its start until it was ready."""

    port: int
    process: subprocess.Popen[bytes]
    ready_s: float

    def pids(self) -> list[int]:
        """Its process, and those that it started."""
        pid = self.process.pid
        return [pid, *map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split())]

    def cpu_seconds(self) -> float:
        """Processor time that all of them have used."""
        ticks = 0
        for pid in self.pids():
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
            ticks += int(fields[11]) + int(fields[12])
        return ticks / os.sysconf("SC_CLK_TCK")

    def memory_mb(self) -> float:
        """Resident memory of all of them, with a share of each page that several have."""
        kib = 0
        for pid in self.pids():
            lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
            kib += next(int(line.split()[1]) for line in lines if line.startswith("Pss:"))
        return kib * 1024 / 1e6


@contextmanager
def serving(folder: Path, *flags: str) -> Iterator[Server]:
    """`lsvcr serve` of a bundle as a person starts it, without a line a request; ended gracefully."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    words = ["-m", "lsvcr", "serve", str(folder), "--port", str(port), "--access_log", "False", *flags]
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
    words = [str(HERE / "serve_inproc.py"), str(folder), "--bodies", str(queries)]
    words += ["--requests", str(requests), "--item_bytes", str(item_bytes(folder))]
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


def item_bytes(folder: Path) -> int:
    """Bytes of the item vectors of a bundle, scales of int8 rows among them."""
    return sum(path.stat().st_size for path in (folder / "rec").glob("items*.npy"))


def inproc_figures(name: str, folder: Path, queries: Path, requests: int, machine: Figures) -> Figures:
    """One catalogue in process, beside its floor: to read the item vectors and to compute the encoder.

    The reading is a median of the same process, between its requests; `best_floor_ms` has the fastest there was.
    """
    found = inproc(folder, queries, requests)
    encoder = machine["encoder_floor_ms"]
    floor = found["read_ms"] + encoder
    return {
        **{f"inproc_{name}_{key}": value for key, value in found.items()},
        f"inproc_{name}_floor_ms": floor,
        f"inproc_{name}_best_floor_ms": item_bytes(folder) / machine["memory_gb_per_s"] / 1e6 + encoder,
        f"inproc_{name}_over_floor": found["p50_ms"] / floor,
        f"bundle_{name}_mb": size(folder) / 1e6,
    }


def catalogue_figures(name: str, videos: int, options: argparse.Namespace, machine: Figures) -> Figures:
    """A catalogue of float32 rows."""
    folder = bundle(videos, "float32", options.work)
    requests = 100 if options.quick else 2000
    return inproc_figures(name, folder, bodies(videos, 500, options.work), requests, machine)


def million_figures(options: argparse.Namespace, machine: Figures) -> Figures:
    """A million videos: exact search in float32, float16 and int8 rows, against reading them once."""
    videos, figures = 1_000_000, {}
    queries = bodies(videos, 500, options.work)
    for kind, name in (("float32", "1m"), ("float16", "float16_1m"), ("int8", "int8_1m")):
        folder = bundle(videos, kind, options.work)
        figures |= inproc_figures(name, folder, queries, 200, machine)
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


def http_figures(servers: dict[str, Server], queries: Path, seconds: float) -> Figures:
    """Closed loops at several numbers of connections, then an even rate; the servers in turns, as machines change."""
    for server in servers.values():
        load(server, queries, connections=8, count=500)
    tell("over HTTP ...")
    figures: Figures = {}
    loops: list[tuple[str, Figures]] = []
    kept = ("rps", "p50_ms", "p99_ms", "errors", "server_cpu_ms")
    for connections in CONNECTIONS:
        for name, server in servers.items():
            if connections > 1 or name == "http":
                tell(f"{' '.join(ARRANGEMENTS[name]) or 'one process'}:")
                found = load(server, queries, connections=connections, seconds=seconds)
                figures |= {f"{name}_{connections}_{key}": found[key] for key in kept}
                loops.append((name, found))
    for name, server in servers.items():
        tell(f"{' '.join(ARRANGEMENTS[name]) or 'one process'}:")
        even = load(server, queries, connections=256, seconds=seconds, rate=RATE)
        figures |= {f"{name}_even_{RATE}_{key}": even[key] for key in (*kept[:4], "cpu_share")}
    return {**best_figures(loops), **figures}


def best_figures(loops: list[tuple[str, Figures]]) -> Figures:
    """The most answers a second within the time that counts, by whichever server, and whether that is enough."""
    good = [each for each in loops if each[1]["p99_ms"] <= P99_MS and not each[1]["errors"]]
    name, best = max(good or loops, key=lambda each: each[1]["rps"])
    met = "met" if good and best["rps"] >= RATE else "missed"
    tell(f"the aim of {RATE:,} a second, 99 % within {P99_MS:.0f} ms, is {met}: {best['rps']:,.0f} ({name})")
    return {
        "http_rps": best["rps"],
        "http_p99_ms": best["p99_ms"],
        "http_aim_met": float(met == "met"),
        "http_load_cpu_share": best["cpu_share"],
        "http_server_cpu_share": best["server_cpu_share"],
        "http_server_cpu_ms": best["server_cpu_ms"],
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


def over_http(options: argparse.Namespace) -> Figures:
    """10,000 videos over HTTP, from one process and from two; then the soak of one."""
    folder, queries = bundle(10_000, "float32", options.work), bodies(10_000, 2000, options.work)
    figures: Figures = {}
    for name, flags in ARRANGEMENTS.items():
        with serving(folder, *flags) as server:  # alone, as what servers share is counted in parts
            load(server, queries, connections=8, count=500)
            figures[f"{name}_memory_mb"] = server.memory_mb()
    with ExitStack() as stack:
        servers = {name: stack.enter_context(serving(folder, *flags)) for name, flags in ARRANGEMENTS.items()}
        figures |= http_figures(servers, queries, 2.0 if options.quick else options.seconds)
        if not options.http:
            figures |= soak_figures(
                servers["http"], queries, 2000 if options.quick else options.soak_requests
            )
    return figures


def main() -> None:
    """Measure and report."""
    parser = arguments(__doc__, "10,000 and 100,000 videos alone, short loads: a minute")
    parser.add_argument("--soak_requests", type=int, default=200_000, help="requests of the soak")
    parser.add_argument("--seconds", type=float, default=10.0, help="of each load over HTTP")
    parser.add_argument("--http", action="store_true", help="the loads over HTTP alone, without the soak")
    options = parser.parse_args()
    figures: Figures = {"load_average_before": os.getloadavg()[0]}
    if options.http:
        report("serve", figures | over_http(options), options.json)
        return
    machine = floors()
    figures |= machine
    sizes = {"10k": 10_000} if options.quick else {"10k": 10_000, "100k": 100_000}
    for name, videos in sizes.items():
        figures |= catalogue_figures(name, videos, options, machine)
    if not options.quick:
        figures |= million_figures(options, machine)
    figures |= startup_figures(options)
    figures |= over_http(options)
    report("serve", figures, options.json)


if __name__ == "__main__":
    main()
