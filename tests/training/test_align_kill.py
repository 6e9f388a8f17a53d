"""Stage one killed with SIGKILL at all kinds of moments ends with the bits of a run that nobody disturbed."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from lsvcr.training.align_keep import check_intact
from lsvcr.utils.io import read_json
from tests.guards.source import ROOT
from tests.training.test_align import ENDS, logged, same_tensors


@pytest.fixture(scope="module")
def killed(tiny_data: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict]:
    """The folder of all runs, and what was found."""
    folder = tmp_path_factory.mktemp("killed")
    done = subprocess.run(
        [sys.executable, str(ROOT / "tests" / "training" / "kill_runs.py"), str(folder), str(tiny_data)],
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
        cwd=folder, capture_output=True, text=True, timeout=400,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr + "".join(
        path.read_text()[-2000:] for path in folder.glob("*.txt")
    )
    return folder, json.loads((folder / "found.json").read_text())


@pytest.mark.parametrize("processes", [1, 2])
def test_kill_9_at_any_moment_costs_nothing_but_time(killed: tuple[Path, dict], processes: int) -> None:
    folder, found = killed[0], killed[1][str(processes)]
    straight, cut = folder / f"straight{processes}", folder / f"cut{processes}"
    assert found["straight"] == found["end"] == [0] * processes
    assert [kill["codes"] for kill in found["kills"]] == [[-signal.SIGKILL] * processes] * (5 - processes)
    for name in ENDS:
        same_tensors(straight / name, cut / name)
    assert logged(straight) == logged(cut)
    steps = ["step-000005", "step-000006"]
    assert sorted(path.name for path in cut.glob("step-*")) == steps
    for kept in (*steps, "best", "last"):
        check_intact(cut / kept)
    assert read_json(cut / "last" / "trainer.json") | {"seconds": 0} == read_json(
        straight / "last" / "trainer.json"
    ) | {"seconds": 0}


@pytest.mark.parametrize("processes", [1, 2])
def test_some_kills_fell_into_the_writing_of_a_checkpoint(killed: tuple[Path, dict], processes: int) -> None:
    """Each leaves an unfinished folder behind, which the next run removes."""
    folder, found = killed[0], killed[1][str(processes)]
    unfinished = [any(name.startswith(".tmp-") for name in kill["left"]) for kill in found["kills"]]
    assert sum(unfinished) >= 2
    hidden = {path.name for path in (folder / f"cut{processes}").iterdir() if path.name.startswith(".")}
    assert hidden == {".lock"}
