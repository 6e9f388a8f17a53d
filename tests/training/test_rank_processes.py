"""Stage two on several processes, and after kill -9: the same figures."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from safetensors.torch import load_file
from torch.testing._internal.distributed.fake_pg import FakeStore

from lsvcr.data.rank import RankData
from lsvcr.data.store import open_dataset
from lsvcr.evaluation import evaluator
from lsvcr.schema import Split, Task
from lsvcr.training.rank import run
from lsvcr.training.rank_batches import EpochBatches
from lsvcr.training.rank_evaluate import evaluate_checkpoint
from lsvcr.training.rank_setup import set_up
from tests.processes import run_together
from tests.training.rank_runs import settings, write_planted

ROOT = Path(__file__).parents[2]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def train_worker(rank: int, processes: int, port: int, data: str, out: str, changes: dict) -> None:
    """One process of a run, as a launcher would start it."""
    torch.set_num_threads(1)
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(processes)}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "LOCAL_WORLD_SIZE": str(processes)}
    run(settings(Path(data), Path(out), **changes))
    dist.destroy_process_group()


def evaluate_worker(rank: int, processes: int, port: int, data: str, out: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=processes)
    evaluator.BLOCK = 8  # so that there is something to share
    report = evaluate_checkpoint(out, data)
    Path(f"{out}/report{processes}.{rank}.json").write_text(json.dumps(report))
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_planted(tmp_path_factory.mktemp("planted"))


@pytest.fixture(scope="module")
def trained(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run, made by a process of its own so that Accelerate's state stays out of this one."""
    out = tmp_path_factory.mktemp("run") / "one"
    changes = {"num_train_epochs": 3, "id_text_loss_weight": 0.0, "per_device_train_batch_size": 24}
    run_together(train_worker, (1, free_port(), str(data), str(out), changes), 1)
    return out


@pytest.mark.slow
@pytest.mark.parametrize("task", ["Rec", "CommRank"])
def test_any_number_of_processes_gives_the_same_metrics_to_the_last_digit(
    data: Path, trained: Path, tmp_path: Path, task: str
) -> None:
    """40 test rows in blocks of 8: two and three processes get unequal shares, none is padded."""
    out = trained
    if task == "CommRank":
        out = tmp_path / "comments"
        changes = {"finetune_task": task, "num_train_epochs": 1}
        run_together(train_worker, (1, free_port(), str(data), str(out), changes), 1)
    for processes in (1, 2, 3):
        run_together(evaluate_worker, (processes, free_port(), str(data), str(out)), processes)
    reports = [
        json.loads((out / f"report{n}.{rank}.json").read_text()) for n in (1, 2, 3) for rank in range(n)
    ]
    assert all(report == reports[0] for report in reports)


@pytest.mark.slow
def test_two_processes_train_as_one_on_the_joined_batch(data: Path, trained: Path, tmp_path: Path) -> None:
    """Twice 12 samples a step against 24; the last step of an epoch has 8."""
    changes = {"num_train_epochs": 3, "id_text_loss_weight": 0.0, "per_device_train_batch_size": 12}
    run_together(train_worker, (2, free_port(), str(data), str(tmp_path / "two"), changes), 2)
    one, two = (load_file(path / "last" / "sr.safetensors") for path in (trained, tmp_path / "two"))
    for name in one:
        if not name.endswith(("score.bias", "key.bias")):  # gradients that are rounding noise
            torch.testing.assert_close(
                one[name], two[name], rtol=0, atol=2e-3, msg=lambda m, n=name: f"{n}: {m}"
            )
    curves = [
        [json.loads(line)["train/loss"] for line in (path / "metrics.jsonl").read_text().splitlines()]
        for path in (trained, tmp_path / "two")
    ]
    assert curves[0] == pytest.approx(curves[1], rel=1e-3)


@pytest.mark.slow
def test_two_processes_leave_frozen_parts_alone(data: Path, tmp_path: Path) -> None:
    """The reduction of gradients knows nothing of parameters that want none."""
    changes = {"num_train_epochs": 2, "id_text_loss_weight": 0.0, "freeze": "text,encoders"}
    found = []
    for processes, batch in ((1, 24), (2, 12)):
        out = tmp_path / str(processes)
        own = {**changes, "per_device_train_batch_size": batch}
        run_together(train_worker, (processes, free_port(), str(data), str(out), own), processes)
        found.append(load_file(out / "last" / "sr.safetensors"))
    fresh = set_up(settings(data, tmp_path)).model.state_dict()
    for name, value in found[0].items():
        if name.startswith(("sr.video_id", "sr.gate")):
            assert not torch.equal(value, fresh[name]), name
            torch.testing.assert_close(found[1][name], value, rtol=0, atol=2e-3)
        else:
            assert torch.equal(value, fresh[name]) and torch.equal(found[1][name], fresh[name]), name


@pytest.mark.slow
@pytest.mark.parametrize(
    "sampling",
    [
        {"neg_video_num": 10},
        {"neg_video_num": 10, "negative_sampler": "log_uniform"},
        {"negative_sampler": "in_batch"},
        {"neg_video_num": 10, "rec_loss": "gbce"},
    ],
    ids=str,
)
def test_two_processes_draw_as_one_that_accumulates_twice(data: Path, tmp_path: Path, sampling: dict) -> None:
    """80 samples in steps of twice 20: every step is full, so that both cut it alike."""
    changes = {
        "num_train_epochs": 2,
        "id_text_loss_weight": 0.0,
        "per_device_train_batch_size": 20,
        **sampling,
    }
    for processes, accumulation in ((1, 2), (2, 1)):
        named = {**changes, "gradient_accumulation_steps": accumulation}
        arguments = (processes, free_port(), str(data), str(tmp_path / str(processes)), named)
        run_together(train_worker, arguments, processes)
    curves = [
        [
            json.loads(line)["train/ranking"]
            for line in (tmp_path / n / "metrics.jsonl").read_text().splitlines()
        ]
        for n in "12"
    ]
    assert curves[0] == pytest.approx(curves[1], rel=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("number", [0, 1])
def test_a_data_worker_knows_its_process(data: Path, number: int) -> None:
    """One that is not forked has no process group; a batch made after its end is one made in such a worker."""
    samples = RankData(open_dataset(data), Task.REC, Split.TRAIN)
    dist.init_process_group("fake", store=FakeStore(), rank=number, world_size=2)
    try:
        batches = EpochBatches(samples, batch=4, accumulation=1, seed=1, epoch=0, negatives=0)
        expected = batches[0]
    finally:
        dist.destroy_process_group()
    found = batches[0]
    assert len(expected.batch.rows) == 4 and expected.rows == 8
    assert found.batch.rows.tolist() == expected.batch.rows.tolist() and found.weight == expected.weight


def test_a_process_without_a_row_still_takes_part(data: Path, tmp_path: Path) -> None:
    """80 samples in steps of 3 x 26 leave two rows for three processes."""
    changes = {"num_train_epochs": 1, "per_device_train_batch_size": 26}
    run_together(train_worker, (3, free_port(), str(data), str(tmp_path), changes), 3)
    assert (tmp_path / "metrics.json").is_file()


@pytest.mark.slow
def test_kill_minus_nine_and_go_on(data: Path, tmp_path: Path) -> None:
    """The real entry, killed once the first epoch is on disk; what it leaves is continued to the same end."""
    flags = {
        "data_path": data,
        "hidden": 16,
        "layers": 1,
        "inner": 32,
        "text_width": 8,
        "num_train_epochs": 8,
        "per_device_train_batch_size": 8,
        "max_position": 8,
        "max_phis_len": 8,
        "max_chis_len": 8,
        "report_to": "none",
    }

    def command(out: Path) -> list[str]:
        named = {**flags, "output_dir": out}
        return [
            sys.executable,
            str(ROOT / "finetune.py"),
            *(f"--{name}={value}" for name, value in named.items()),
        ]

    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, "cwd": ROOT}
    victim = subprocess.Popen(command(tmp_path / "cut"), **quiet)
    while not (tmp_path / "cut" / "last" / "manifest.json").exists():
        assert victim.poll() is None
        time.sleep(0.01)
    victim.send_signal(signal.SIGKILL)
    victim.wait()
    for name in ("cut", "whole"):
        assert subprocess.run(command(tmp_path / name), **quiet).returncode == 0
    cut, whole = (load_file(tmp_path / name / "last" / "sr.safetensors") for name in ("cut", "whole"))
    assert all(torch.equal(cut[name], whole[name]) for name in whole)
    reports = [json.loads((tmp_path / name / "metrics.json").read_text()) for name in ("cut", "whole")]
    assert reports[0] == reports[1]
    assert [path.name for path in (tmp_path / "cut").iterdir() if path.name.startswith(".")] == [".lock"]
