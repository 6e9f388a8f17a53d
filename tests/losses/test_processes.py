"""Two processes give the loss and the gradient of one process on the joined batch."""

import socket
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist

from lsvcr.losses.alignment import (
    behaviour_contrast,
    joined_rows,
    preference_contrast,
    recommendation_contrast,
)
from tests.processes import run_together

ROWS, WIDTH, TAU = 6, 5, 0.2
KEYS = torch.tensor([3, 8, 3, 4, 8, 9])


def inputs() -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(ROWS, WIDTH, generator=generator, dtype=torch.float64) for _ in range(4)]


def total(tensors: list[torch.Tensor], weight: torch.Tensor, keys: torch.Tensor) -> torch.Tensor:
    """All contrasts on one process's rows; `weight` stands for the shared parameters."""
    sr, llm, other, targets = (x @ weight for x in tensors)
    parts = (
        recommendation_contrast(sr, targets, keys, temperature=TAU),
        behaviour_contrast(llm, sr, other, TAU),
        preference_contrast(sr, llm, TAU),
    )
    return torch.stack(parts).sum()


def work(rank: int, sizes: list[int], port: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=len(sizes))
    start = sum(sizes[:rank])
    mine = slice(start, start + sizes[rank])
    weight = torch.eye(WIDTH, dtype=torch.float64).requires_grad_()
    tensors = [x[mine] for x in inputs()]
    assert joined_rows(tensors[0]).tolist() == list(range(start, start + sizes[rank]))
    loss = total(tensors, weight, KEYS[mine])
    (loss * sizes[rank]).backward()
    summed = torch.stack([(loss * sizes[rank]).detach()])
    dist.all_reduce(summed)
    dist.all_reduce(weight.grad)
    if rank == 0:
        np.save(f"{folder}/loss.npy", summed.numpy() / ROWS)
        np.save(f"{folder}/grad.npy", weight.grad.numpy() / ROWS)
    dist.destroy_process_group()


@pytest.mark.parametrize("sizes", [[3, 3], [4, 2], [6, 0]])
def test_two_processes_equal_one_on_the_joined_batch(sizes, tmp_path: Path):
    """Also for unequal shares, when each process's loss counts by its rows."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    run_together(work, (sizes, port, str(tmp_path)), 2)
    weight = torch.eye(WIDTH, dtype=torch.float64).requires_grad_()
    loss = total(inputs(), weight, KEYS)
    loss.backward()
    np.testing.assert_allclose(np.load(tmp_path / "loss.npy"), [loss.item()], rtol=1e-10)
    np.testing.assert_allclose(np.load(tmp_path / "grad.npy"), weight.grad.numpy(), rtol=1e-9, atol=1e-12)
