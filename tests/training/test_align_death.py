"""A process of stage one that dies, fails or hangs: the others stop, and what is said names the one and the reason."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from lsvcr.utils.errors import LOST_CODE, USER_ERROR_CODE
from tests.guards.source import ROOT

MINUTE = 60.0


def run(kind: str, data: Path, out: Path, *flags: str) -> tuple[subprocess.CompletedProcess, float]:
    """Two processes of which number 1 comes to grief after a step; and the seconds since its first checkpoint."""
    words = [
        sys.executable, "-m", "lsvcr.utils.launch", "torchrun", "--standalone", "--nproc_per_node=2",
        str(ROOT / "tests" / "training" / "death_runs.py"), kind, "--model_name_or_path", "tiny-random",
        "--data_path", str(data), "--output_dir", str(out), "--hidden", "16", "--max_phis_len", "4",
        "--max_chis_len", "4", "--max_source_length", "900", "--eval_pool", "4", "--max_steps", "4",
        "--save_steps", "1", "--report_to", "none", "--gradient_checkpointing", "False", *flags,
    ]  # fmt: skip
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(words, env=environment, cwd=out.parent, capture_output=True, text=True, timeout=240)
    return done, time.time() - (out / "last" / "manifest.json").stat().st_mtime


@pytest.mark.parametrize(
    ("kind", "code", "parts"),
    [
        ("kill", 128 + signal.SIGKILL, ["error: process 1 was ended by signal 9 (SIGKILL)", "memory", "run the same"]),
        ("raise", 1, ["[rank1]: ArithmeticError: a defect of ours", "error: process 1 failed with exit code 1"]),
        ("refuse", USER_ERROR_CODE, ["process 1: error: what a user can mend"]),
        ("hang", LOST_CODE, ["error: another process has not answered for too long", "--ddp_timeout"]),
    ],
)  # fmt: skip
def test_one_of_two(tiny_data: Path, tmp_path: Path, kind: str, code: int, parts: list[str]) -> None:
    done, seconds = run(
        kind, tiny_data, tmp_path / "run", *(["--ddp_timeout", "15"] if kind == "hang" else [])
    )
    assert done.returncode == code, done.stderr
    assert seconds < MINUTE
    for part in parts:
        assert part.lower() in done.stderr.lower()
    # Nothing of the process that only lost the other, and no page of the launcher's.
    for noise in ("[rank0]", "closed by peer", "Root Cause"):
        assert noise not in done.stderr
    assert done.stderr.count("Traceback") == (1 if kind == "raise" else 0)
    assert done.stderr.rstrip().splitlines()[-1].count("error: ") == 1
