"""The distributed helpers: one process is the identity, two processes of unequal size are the joined rows."""

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist

from lsvcr.utils.distributed import (
    broadcast_object,
    gather_rows,
    gather_values,
    gather_with_gradient,
    is_main,
    rank,
    reduce_sum,
    world_size,
)
from lsvcr.utils.seeding import derived_seed, generator, seed_everything
from tests.processes import run_together

ROWS = ((0.5, -1.0), (2.0, 0.25), (-0.75, 1.5))
SHARES = ((0, 1), (1, 3))
"""Process 0 has the first row, process 1 the other two."""


def test_one_process_needs_no_group() -> None:
    x = torch.tensor(ROWS, requires_grad=True)
    assert (rank(), world_size(), is_main()) == (0, 1, True)
    assert gather_with_gradient(x) is x
    assert reduce_sum(x) is x
    assert broadcast_object({"a": 1}) == {"a": 1}


def test_gather_rows_keeps_each_row_once_and_in_order() -> None:
    ids, values = gather_rows(np.array([5, 2, 5, 9]), np.array([[50.0], [20.0], [50.0], [90.0]]))
    assert ids.tolist() == [2, 5, 9]
    assert values.tolist() == [[20.0], [50.0], [90.0]]


def test_gather_rows_refuses_other_lengths() -> None:
    with pytest.raises(ValueError, match="2 row ids for 1 values"):
        gather_rows(np.array([1, 2]), np.zeros((1, 3)))


def _loss(own: torch.Tensor, everyone: torch.Tensor) -> torch.Tensor:
    """Any loss that lets every row see every other."""
    return torch.logsumexp(own @ everyone.T, dim=1).mean()


def _process(number: int, rendezvous: str, out: str) -> None:
    dist.init_process_group("gloo", init_method=f"file://{rendezvous}", rank=number, world_size=2)
    start, stop = SHARES[number]
    own = torch.tensor(ROWS[start:stop], requires_grad=True)
    gathered = gather_with_gradient(own)
    (_loss(own, gathered) * (stop - start)).backward()
    flags = gather_values(torch.tensor([number == 1] * (stop - start)))
    ids, values = gather_rows(np.array([2, 7][: number + 1]), np.array([20 + number, 70][: number + 1]))
    none = gather_with_gradient(torch.zeros(0, 2))
    told = broadcast_object("from 0" if number == 0 else None)
    torch.save(
        {
            "gathered": gathered.detach(), "grad": own.grad, "flags": flags, "ids": ids.tolist(),
            "values": values.tolist(), "none": none, "told": told, "sum": reduce_sum(torch.tensor([1.0 + number])),
        },
        f"{out}/{number}.pt",
    )  # fmt: skip
    dist.destroy_process_group()


def test_two_processes_of_unequal_size_are_the_joined_rows(tmp_path: Path) -> None:
    run_together(_process, (str(tmp_path / "meet"), str(tmp_path)), 2)
    found = [torch.load(tmp_path / f"{number}.pt") for number in (0, 1)]
    joined = torch.tensor(ROWS, requires_grad=True)
    # The sum over processes of (mean over own rows x own rows) is the sum over all rows.
    (_loss(joined, joined) * 3).backward()
    for result in found:
        assert torch.equal(result["gathered"], joined.detach())
        assert result["flags"].tolist() == [False, True, True]
        assert (result["ids"], result["values"]) == ([2, 7], [20, 70])  # of the duplicate row 2 the first
        assert result["none"].shape == (0, 2)
        assert result["told"] == "from 0"
        assert result["sum"].tolist() == [3.0]
    grads = torch.cat([result["grad"] for result in found])
    torch.testing.assert_close(grads, joined.grad)


def test_random_streams_are_functions_of_their_keys() -> None:
    assert generator(1, 2).integers(1 << 30) == generator(1, 2).integers(1 << 30)
    assert generator(1, 2).integers(1 << 30) != generator(2, 1).integers(1 << 30)
    assert derived_seed(1, 2) != derived_seed(1, 3)


def test_seed_everything_reaches_every_global_generator() -> None:
    def draw() -> tuple:
        import random

        return random.random(), float(np.random.rand()), float(torch.rand(()))

    seed_everything(7, 1)
    first = draw()
    seed_everything(7, 1)
    assert draw() == first
    seed_everything(7, 2)
    assert all(a != b for a, b in zip(draw(), first, strict=True))
