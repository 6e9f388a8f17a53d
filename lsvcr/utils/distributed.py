"""The same code on one process and on many.

Without an initialised process group every function here is the identity of a world of size one, so a loss
or a metric is written once. Works with plain `torch.distributed` on gloo and nccl.
"""

from collections.abc import Callable
from typing import Any, TypeVar

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from lsvcr.utils.errors import UserError

T = TypeVar("T")


def rank() -> int:
    """Number of this process in the group; 0 without one."""
    return dist.get_rank() if dist.is_available() and dist.is_initialized() else 0


def world_size() -> int:
    """Processes in the group; 1 without one."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def is_main() -> bool:
    """True on the one process that writes files and talks."""
    return rank() == 0


def barrier() -> None:
    """Wait for all processes."""
    if world_size() > 1:
        dist.barrier()


def _device() -> torch.device:
    """Where the group's backend wants its tensors."""
    if dist.get_backend() == "nccl":
        return torch.device("cuda", torch.cuda.current_device())
    return torch.device("cpu")


def _gather_sizes(rows: int) -> list[int]:
    mine = torch.tensor([rows], dtype=torch.int64, device=_device())
    sizes = [torch.zeros_like(mine) for _ in range(world_size())]
    dist.all_gather(sizes, mine)
    return [int(size) for size in torch.cat(sizes).tolist()]


def _gather_padded(x: Tensor, sizes: list[int]) -> list[Tensor]:
    """Every rank's rows of `x` (n_r, ...), in rank order; ranks may hold different numbers of rows."""
    longest = max(sizes)
    padded = x.new_zeros((longest, *x.shape[1:]))
    padded[: x.shape[0]] = x
    parts = [torch.empty_like(padded) for _ in sizes]
    dist.all_gather(parts, padded)
    return [part[:size] for part, size in zip(parts, sizes, strict=True)]


class _Gather(torch.autograd.Function):
    """Concatenation over ranks whose backward returns the sum of all ranks' gradients for the own rows."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.sizes = _gather_sizes(x.shape[0])
        return torch.cat(_gather_padded(x.contiguous(), ctx.sizes))

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        total = grads[0].contiguous().clone()
        dist.all_reduce(total)
        start = sum(ctx.sizes[: rank()])
        return total[start : start + ctx.sizes[rank()]]


def gather_with_gradient(x: Tensor) -> Tensor:
    """Concatenate the rows of all ranks, in rank order, with gradient.

    Args:
        x: (n_r, ...) of any dtype; ranks may hold different numbers of rows, also none.

    Returns:
        (sum of n_r, ...). Every rank must call it, in the same order, and run the backward pass. A rank's rows
        receive the gradient of the *sum* of all ranks' losses; averaging parameter gradients over ranks, as
        DDP and ZeRO do, then gives the gradient of the mean of the ranks' losses.
    """
    return x if world_size() == 1 else _Gather.apply(x)


def gather_values(x: Tensor) -> Tensor:
    """As `gather_with_gradient`, for tensors that need no gradient (ids, masks)."""
    if world_size() == 1:
        return x
    return torch.cat(_gather_padded(x.detach().contiguous(), _gather_sizes(x.shape[0])))


def gather_rows(row_ids: np.ndarray, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """All ranks' rows on all ranks, each row once, sorted by row id.

    Args:
        row_ids: (n_r,) integers naming the rows this rank computed; a row may come from several ranks.
        values: (n_r, ...) one entry a row; same trailing shape and dtype on all ranks.

    Returns:
        Sorted distinct row ids (n,) int64 and their values (n, ...); of duplicates the first in rank order.

    Raises:
        ValueError: if the two arguments differ in length.
    """
    if len(row_ids) != len(values):
        raise ValueError(f"{len(row_ids)} row ids for {len(values)} values")
    ids, rows = np.asarray(row_ids, dtype=np.int64), np.ascontiguousarray(values)
    if world_size() > 1:
        device = _device()
        ids = gather_values(torch.from_numpy(ids).to(device)).cpu().numpy()
        rows = gather_values(torch.from_numpy(rows).to(device)).cpu().numpy()
    distinct, first = np.unique(ids, return_index=True)
    return distinct, rows[first]


def reduce_sum(x: Tensor) -> Tensor:
    """Element-wise sum over ranks, without gradient."""
    if world_size() == 1:
        return x
    total = x.detach().clone()
    dist.all_reduce(total)
    return total


def broadcast_object(value: Any) -> Any:
    """The main process's `value` (plain Python data) on every process."""
    if world_size() == 1:
        return value
    box = [value]
    dist.broadcast_object_list(box, src=0, device=_device())
    return box[0]


def from_main(work: Callable[[], T]) -> T:
    """What `work` returns (plain Python data) on the main process, on every process; the others do not call it.

    Raises:
        UserError: `work` raised it; on every process, so that none waits for the others.
    """
    done: T | None = None
    told = None
    if is_main():
        try:
            done = work()
        except UserError as error:
            told = str(error)
    done, told = broadcast_object((done, told))
    if told is not None:
        raise UserError(told)
    return done
