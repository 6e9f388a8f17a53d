"""run_lora.sh on two machines, which are two processes of this one: the files of one machine with two processes."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from lsvcr.utils.io import read_json, sha256_file
from tests.guards.source import ROOT
from tests.ports import free_port

KEYS = [
    "BASE_MODEL_PATH=tiny-random", "DEV_BATCH_SIZE=2", "GRAD_CKPT=False", "--hidden", "16", "--max_phis_len", "4",
    "--max_chis_len", "4", "--max_source_length", "900", "--eval_pool", "4", "--max_steps", "2",
    "--report_to", "none",
]  # fmt: skip
FILES = [
    "last/trainer.safetensors", "last/sr.safetensors", "best/sr.safetensors", "best/adapter/adapter_model.safetensors",
    "best/photo_embs.npy", "best/comment_embs.npy",
]  # fmt: skip


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    """The repository with the environment of the tests."""
    root = tmp_path / "clone"
    shutil.copytree(ROOT / "scripts", root / "scripts")
    (root / "scripts" / "setup.sh").write_text("exit 0\n")
    binaries = root / ".venv" / "bin"
    binaries.mkdir(parents=True)
    (binaries / "activate").write_text(
        f'PATH="{Path(sys.executable).parent}:$PATH"\nexport PYTHONPATH="{ROOT}"\n'
    )
    for name in ("lsvcr", "config", "train.py"):
        (root / name).symlink_to(ROOT / name)
    return root


def start(clone: Path, data: Path, out: Path, *words: str) -> subprocess.Popen:
    """run_lora.sh with one thread a process: sums then have one order."""
    command = ["bash", str(clone / "scripts" / "run_lora.sh"), f"DATASET_PATH={data}", f"OUTPUT_DIR={out}"]
    return subprocess.Popen(
        [*command, *KEYS, *words],
        env={**os.environ, "OMP_NUM_THREADS": "1"}, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip


def end(process: subprocess.Popen) -> None:
    told, _ = process.communicate(timeout=240)
    assert process.returncode == 0, told


def test_two_machines_make_the_files_of_one(clone: Path, tiny_data: Path, tmp_path: Path) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    end(start(clone, tiny_data, one, "NUM_GPUS=2"))
    shared = ["NNODES=2", "MASTER_ADDR=127.0.0.1", f"MASTER_PORT={free_port()}", "NUM_GPUS=1"]
    machines = [start(clone, tiny_data, two, *shared, f"NODE_RANK={rank}") for rank in range(2)]
    for machine in machines:
        end(machine)
    assert {name: sha256_file(two / name) for name in FILES} == {
        name: sha256_file(one / name) for name in FILES
    }
    assert read_json(two / "last" / "manifest.json")["processes"] == 2
    assert np.load(two / "best" / "photo_embs.npy").std() > 0
