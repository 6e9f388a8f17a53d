"""Evaluation shared among processes: one, two and three give the same figures to the last digit."""

import socket
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist

from lsvcr.data.rank import RankData
from lsvcr.data.store import open_dataset
from lsvcr.evaluation import evaluator
from lsvcr.evaluation.evaluator import evaluate
from lsvcr.evaluation.lists import LIST_METRICS
from lsvcr.evaluation.metrics import METRICS
from lsvcr.evaluation.protocol import FULL, Protocol
from lsvcr.evaluation.result import load_rows, save_rows
from lsvcr.schema import Split, Task
from tests.evaluation.eval_world import Blurred, Coarse, Constant, N, write_world
from tests.processes import run_together

SCORERS = {"blurred": Blurred(N), "coarse": Coarse(N), "constant": Constant(N)}
RANKED = tuple(f"{word}@{k}" for word in METRICS for k in (1, 3, 10))
LISTED = tuple(f"{word}@{k}" for word in LIST_METRICS for k in (1, 7))
SHAPES = {1: (512, None), 2: (4, 7), 3: (8, 3)}
"""Batch size and chunk by number of processes: they differ too."""


def worker(number: int, processes: int, port: int, data: str, out: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=number, world_size=processes)
    evaluator.BLOCK = 4  # 30 rows in 8 blocks: unequal shares
    batch_size, chunk = SHAPES[processes]
    dataset = open_dataset(data)
    for name, scorer in SCORERS.items():
        protocols = {"full": FULL, "seen": Protocol("full", filter_seen=True), "sampled": Protocol("sampled")}
        rec = RankData(dataset, Task.REC, Split.TEST)
        results = evaluate(
            scorer, rec, protocols, metrics=RANKED + LISTED, batch_size=batch_size, chunk=chunk
        )
        for protocol, result in results.items():
            save_rows(f"{out}/{processes}.{number}.{name}.{protocol}", result)
    comments = RankData(dataset, Task.COMM_RANK, Split.TEST)
    result = evaluate(Constant(3 * N), comments, metrics=RANKED, batch_size=batch_size, chunk=chunk)["full"]
    save_rows(f"{out}/{processes}.{number}.comments.full", result)
    dist.destroy_process_group()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.mark.slow
def test_any_number_of_processes_gives_every_metric_of_every_row_to_the_last_digit(tmp_path: Path) -> None:
    """Values of rows, slices, and what all rows have together, bit by bit."""
    data = write_world(tmp_path / "data").root
    for processes in (1, 2, 3):
        run_together(worker, (processes, free_port(), str(data), str(tmp_path)), processes)
    kinds = [f"{name}.{protocol}" for name in SCORERS for protocol in ("full", "seen", "sampled")]
    for kind in [*kinds, "comments.full"]:
        files = [tmp_path / f"{n}.{number}.{kind}" for n in (1, 2, 3) for number in range(n)]
        first, *others = (load_rows(file) for file in files)
        assert len(others) == 5
        for other in others:
            assert all(np.array_equal(first.values[name], other.values[name]) for name in first.values), kind
            assert all(np.array_equal(first.slices[name], other.slices[name]) for name in first.slices), kind
            assert (first.overall, first.rows.tolist()) == (other.overall, other.rows.tolist()), kind
            assert first.rows_without_positives == other.rows_without_positives, kind
        whole = kind.endswith((".full", ".seen")) and not kind.startswith("comments")
        assert {*first.values, *first.overall} == set(RANKED + LISTED if whole else RANKED), kind
