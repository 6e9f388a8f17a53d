"""Every family of LLM through train.py under DeepSpeed ZeRO-2: it learns, and what it saved is what it learned."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.guards.source import ROOT
from tests.llm.test_families_matrix import FAMILIES

PROJECTIONS = {"q_proj", "k_proj", "v_proj", "o_proj", "down_proj"}
FUSED = {"glm", "glm4", "chatglm"}
"""Families whose gate and up projection are one matrix."""


@pytest.fixture(scope="module")
def found(tiny_data: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict]:
    """What each family's run found; one process under torchrun goes through all."""
    folder = tmp_path_factory.mktemp("families")
    script = ROOT / "tests" / "training" / "family_runs.py"
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc_per_node=1",
        str(script),
    ]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [*command, str(folder), str(tiny_data)],
        cwd=folder, env=environment, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return json.loads((folder / "found.json").read_text())


@pytest.mark.parametrize("family", FAMILIES)
def test_three_steps_under_zero_2_are_saved_and_come_back(found: dict[str, dict], family: str) -> None:
    run = found[family]
    assert (run["stage"], run["steps"]) == (2, 3)
    assert run["delta"] > 0 and run["unmoved"] == []
    gates = {"gate_up_proj"} if family in FUSED else {"gate_proj", "up_proj"}
    assert set(run["adapted"]) == PROJECTIONS | gates
    assert run["moved"] > 1e-3
    assert run["reloaded"] < 1e-5
