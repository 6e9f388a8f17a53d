"""Micro-batches whose users are shared out among the processes, while each process knows the videos of all of them.

So every distinct video of a micro-step can be read by one process, and be a negative on all.
"""

from collections.abc import Iterator
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader
from torch.utils.data import Dataset as TorchDataset

from lsvcr.data.rank_sequences import SequenceBatch, SequenceData
from lsvcr.schema import PAD
from lsvcr.utils.seeding import generator

_ORDER_STREAM = 51


@dataclass
class JoinedBatch:
    """B of a micro-step's users, those of this process, and what all its users have in common; tensors are int64.

    Attributes:
        number: of the micro-step, from the start of the run.
        video_ids: (B, L) what is read, oldest first, padded with 0 on the right.
        targets: (B, L) the video that comes after each, 0 where there is none.
        items: (N,) every distinct video that any process's users read, have as target or draw; rising, without 0.
        keys: (M,) distinct targets of all processes' users, rising.
        negatives: (K,) sampled for all users together, of which any may be a target; (0,) without.
        weight: factor of the mean over this process's targets. The mean of the products over the micro-steps and
            processes of an optimiser step is the mean over all its targets.
    """

    number: int
    video_ids: Tensor
    targets: Tensor
    items: Tensor
    keys: Tensor
    negatives: Tensor
    weight: float

    def __len__(self) -> int:
        return len(self.video_ids)

    def to(self, device: torch.device) -> "JoinedBatch":
        """The same batch on another device."""
        moved: dict[str, Any] = {
            field.name: value.to(device, non_blocking=True)
            for field in fields(self)
            if isinstance(value := getattr(self, field.name), Tensor)
        }
        return replace(self, **moved)


class JoinedStream(TorchDataset[JoinedBatch]):
    """The micro-steps of a run by number; each is a function of its number, the seed and how a step is cut.

    The users go by in an order of their own in every epoch; a step reaches into the next epoch where one ends in it.

    Args:
        data: rows; draws of negatives are shared by a batch (`share="batch"`).
        seed: of order and draws.
        batch: rows a process and micro-step.
        accumulation: micro-steps of an optimiser step.
        negatives: sampled negatives of a micro-step; 0 = none.
        place: (number of this process, how many there are).
        micro_steps: of the whole run.
    """

    def __init__(
        self,
        data: SequenceData,
        *,
        seed: int,
        batch: int,
        accumulation: int,
        negatives: int,
        place: tuple[int, int],
        micro_steps: int,
    ) -> None:
        self._data, self._seed, self._negatives = data, seed, negatives
        self._batch, self._accumulation, self._micro_steps = batch, accumulation, micro_steps
        self._rank, self._world = place
        self._orders: dict[int, np.ndarray] = {}

    def __len__(self) -> int:
        return self._micro_steps

    def __getitem__(self, number: int) -> JoinedBatch:
        together = self._batch * self._world
        epoch = number * together // len(self._data)
        rows = self._rows(number, 1)
        joined = self._data.training(rows, (self._seed, epoch), self._negatives)
        own = slice(self._rank * self._batch, (self._rank + 1) * self._batch)
        targets = joined.targets[own]
        first = number - number % self._accumulation
        terms = self._data.terms(self._rows(first, self._accumulation), (self._seed, epoch))
        count = int((targets != PAD).sum())
        return JoinedBatch(
            number=number,
            video_ids=joined.video_ids[own],
            targets=targets,
            items=_distinct(torch.cat([*_videos(joined), joined.negatives])),
            keys=_distinct(joined.targets),
            negatives=joined.negatives,
            weight=count * self._world * self._accumulation / terms,
        )

    def loader(self, first: int, workers: int) -> Iterator[JoinedBatch]:
        """Micro-steps from number `first` on; `workers` processes build them ahead."""
        numbers = range(first, len(self))
        return iter(DataLoader(self, batch_size=None, sampler=numbers, num_workers=workers))

    def _rows(self, first: int, count: int) -> np.ndarray:
        """Rows of all processes in `count` micro-steps."""
        together, size = self._batch * self._world, len(self._data)
        places = np.arange(first * together, (first + count) * together)
        epochs = places // size
        return np.concatenate(
            [self._order(epoch)[places[epochs == epoch] % size] for epoch in np.unique(epochs).tolist()]
        )

    def _order(self, epoch: int) -> np.ndarray:
        if epoch not in self._orders:
            if len(self._orders) > 2:
                self._orders.clear()
            self._orders[epoch] = generator(self._seed, epoch, _ORDER_STREAM).permutation(len(self._data))
        return self._orders[epoch]


def _videos(batch: SequenceBatch) -> tuple[Tensor, Tensor]:
    return batch.video_ids.flatten(), batch.targets.flatten()


def _distinct(videos: Tensor) -> Tensor:
    found = videos.unique()
    return found[found != PAD]
