"""What the training loop asks of training rows, whatever recommender they are for."""

from typing import Protocol, TypeVar

import numpy as np
import torch

Self = TypeVar("Self", bound="TrainingBatch")


class TrainingBatch(Protocol):
    """What a model's `training_loss` takes."""

    def __len__(self) -> int:
        """Rows."""
        ...

    def to(self: Self, device: torch.device) -> Self:
        """The same batch on another device."""
        ...


class TrainingRows(Protocol):
    """Numbered training rows."""

    def __len__(self) -> int:
        """How many there are."""
        ...

    def training(self, rows: np.ndarray, keys: tuple[int, int], negatives: int = 0) -> TrainingBatch:
        """The batch of some rows.

        Args:
            rows: (B,) int64 row numbers.
            keys: (seed, epoch): what is drawn at random is a function of them and a row's number, so that it does not
                depend on which rows make a batch.
            negatives: sampled negatives, see the rows.
        """
        ...

    def terms(self, rows: np.ndarray, keys: tuple[int, int]) -> int:
        """Terms whose mean the loss of a batch of these rows is: samples, or targets of sequences.

        A step of several micro-batches or processes weighs their losses by it, and then does not depend on how it is
        cut.
        """
        ...
