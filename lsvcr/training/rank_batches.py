"""Which sample numbers each process trains on in each micro-step of an epoch."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch.utils.data import DataLoader
from torch.utils.data import Dataset as TorchDataset

from lsvcr.data.rank_rows import TrainingRows
from lsvcr.utils.distributed import rank, world_size
from lsvcr.utils.seeding import generator

_ORDER_STREAM = 2


@dataclass
class MicroBatch:
    """One forward and backward pass of this process.

    Attributes:
        batch: its rows, a `TrainingBatch`.
        weight: factor of its mean loss. The sum over the micro-batches of a step, averaged over processes, is then
            the mean over all terms (samples, or targets of sequences) of the step, however unevenly they are spread.
        last: the optimiser steps after it.
        rows: rows of the whole micro-step on all processes, for counting samples.
    """

    batch: Any
    weight: float
    last: bool
    rows: int


class EpochBatches(TorchDataset[MicroBatch]):
    """The micro-batches of one epoch on this process, by number.

    The order is a function of (seed, epoch) alone, and an optimiser step takes the next
    `batch * processes * accumulation` samples of it, so that processes times accumulation can be cut either way.
    The last step of an epoch is smaller. A process that gets no row of a micro-step computes one with weight 0,
    because all processes must take part in the reduction of gradients.
    """

    def __init__(
        self, data: TrainingRows, *, batch: int, accumulation: int, seed: int, epoch: int, negatives: int
    ) -> None:
        self._data, self._keys, self._negatives = data, (seed, epoch), negatives
        # Kept: a data worker that is not forked has no process group to ask.
        self._rank, self._processes = rank(), world_size()
        order = generator(seed, epoch, _ORDER_STREAM).permutation(len(data))
        self._micro_steps = list(_cut(order, batch * self._processes, accumulation))
        self.steps = sum(last for _, _, last in self._micro_steps)
        self.terms = data.terms(order, self._keys)

    def __len__(self) -> int:
        return len(self._micro_steps)

    def __getitem__(self, index: int) -> MicroBatch:
        together, step, last = self._micro_steps[index]
        mine = np.array_split(together, self._processes)[self._rank]
        rows = mine if len(mine) else together[:1]
        batch = self._data.training(rows, self._keys, self._negatives)
        own = self._data.terms(mine, self._keys) if len(mine) else 0
        weight = self._processes * own / self._data.terms(step, self._keys)
        return MicroBatch(batch, weight, last, len(together))

    def loader(self, workers: int) -> "DataLoader[MicroBatch]":
        """Walks through the epoch in order; `workers` processes build batches ahead."""
        return DataLoader(self, batch_size=None, shuffle=False, num_workers=workers)


def optimiser_steps(samples: int, batch: int, accumulation: int) -> int:
    """Optimiser steps of an epoch."""
    return -(-samples // (batch * world_size() * accumulation))


def _cut(
    order: np.ndarray, together: int, accumulation: int
) -> Iterator[tuple[np.ndarray, np.ndarray, bool]]:
    """(rows of a micro-step, rows of its optimiser step, is it the step's last), in order."""
    for start in range(0, len(order), together * accumulation):
        step = order[start : start + together * accumulation]
        for first in range(0, len(step), together):
            yield step[first : first + together], step, first + together >= len(step)
