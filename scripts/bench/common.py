"""What every benchmark needs: a description of the machine, a measured child process, and one way to report."""

import argparse
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from lsvcr.utils.memory import peak_bytes

ROOT = Path(__file__).resolve().parents[2]
GB = 1e9


@dataclass(frozen=True)
class Child:
    """How a child process ended: seconds from start to end, its largest resident memory, what it printed."""

    seconds: float
    rss_gb: float
    stdout: str


def run_child(words: Sequence[str], **variables: str) -> Child:
    """Run a command of this Python, `-m lsvcr ...` or `-c CODE ...`, and measure it.

    Args:
        words: the command's arguments.
        variables: of its environment, besides those of this process.

    Raises:
        SystemExit: it failed; its messages have been printed.
    """
    environment = {**os.environ, "PYTHONPATH": str(ROOT), **variables}
    start = time.perf_counter()
    with subprocess.Popen(
        [sys.executable, *words], stdout=subprocess.PIPE, text=True, env=environment
    ) as child:
        assert child.stdout is not None
        text = child.stdout.read()
        _, status, usage = os.wait4(child.pid, 0)
        child.returncode = os.waitstatus_to_exitcode(status)
    seconds = time.perf_counter() - start
    if child.returncode:
        raise SystemExit(f"{' '.join(words[:4])} ... ended with code {child.returncode}")
    return Child(seconds, usage.ru_maxrss * 1024 / GB, text)


def arguments(about: str, quick: str) -> argparse.ArgumentParser:
    """The flags of every benchmark; `quick` says what its --quick does."""
    parser = argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="one JSON object as the last line")
    parser.add_argument("--quick", action="store_true", help=quick)
    parser.add_argument("--work", type=Path, default=Path("build/bench"), help="where logs and datasets lie")
    return parser


def simulated(preset: str, work: Path) -> Path:
    """Raw logs of a simulated world; made once."""
    raw = work / preset
    if not raw.exists():
        tell(f"simulating the {preset} world into {raw} ...")
        run_child(["-m", "lsvcr", "simulate", "--preset", preset, "--out", str(raw)])
    return raw


def prepared(preset: str, work: Path) -> Path:
    """The prepared dataset of a simulated world; made once."""
    data = work / f"{preset}-data"
    if not data.exists():
        prepare(simulated(preset, work), data)
    return data


def prepare(raw: Path, out: Path, *flags: str) -> Child:
    """`lsvcr prepare kuaicomt` as a process of its own."""
    return run_child(["-m", "lsvcr", "prepare", "kuaicomt", "--raw", str(raw), "--out", str(out), *flags])


def own_peak_gb() -> float:
    """The largest resident memory of this process."""
    return peak_bytes() / GB


def machine() -> dict[str, Any]:
    """Cores, memory and versions, for the report."""
    from importlib.metadata import version

    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / GB
    return {
        "cores": len(os.sched_getaffinity(0)),
        "memory_gb": round(memory, 1),
        "processor": _processor(),
        "python": platform.python_version(),
        **{name: version(name) for name in ("torch", "numpy", "polars")},
    }


def tell(text: str) -> None:
    """Progress, for a person: to stderr, so that stdout is the report alone."""
    sys.stderr.write(text + "\n")


def report(name: str, figures: dict[str, float], as_json: bool) -> None:
    """Print the figures; with `as_json` one object as the last line."""
    described = machine()
    if as_json:
        print(json.dumps({"bench": name, "machine": described, "figures": figures}))
        return
    print(", ".join(f"{key} {value}" for key, value in described.items()))
    for key, value in figures.items():
        print(f"{key:<42} {value:,.4g}" if value < 10_000 else f"{key:<42} {value:,.0f}")


def middle(values: Sequence[float]) -> float:
    """The median."""
    return float(median(values))


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []:
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor() or "unknown"
