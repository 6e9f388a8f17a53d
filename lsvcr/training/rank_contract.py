"""What the training loop asks of what it trains. It knows no recommender by name."""

from collections.abc import Mapping
from typing import Any, Protocol

import torch

from lsvcr.baselines.gpsd_settings import ClickSettings
from lsvcr.data.rank import RankData
from lsvcr.data.rank_rows import TrainingRows
from lsvcr.data.store import Dataset
from lsvcr.schema import Split, Task
from lsvcr.settings import BaselineSettings, FittedSettings, RankSettings

LoopSettings = RankSettings | BaselineSettings | ClickSettings
"""Settings of a run with epochs. All have the fields of `EpochSettings` under the same names."""


class Kept(Protocol):
    """What a run folder can keep: a model on a dataset."""

    @property
    def settings(self) -> RankSettings | FittedSettings | ClickSettings:
        """As given, or as the manifest has them."""
        ...

    @property
    def dataset(self) -> Dataset:
        """Open."""
        ...

    @property
    def model(self) -> Any:
        """A module; on the CPU at first."""
        ...

    def about(self, processes: int) -> dict[str, Any]:
        """The part of every manifest that says where the weights come from."""
        ...

    def identity(self, about: Mapping[str, Any]) -> dict[str, Any]:
        """What a run and its continuation must share beside settings, data, processes and precision.

        Args:
            about: what `about` gave.
        """
        ...


class Evaluated(Kept, Protocol):
    """A recommender on a dataset, as far as measuring it goes.

    Its model is a `Recommender` or an `evaluator.CatalogueScorer`.
    """

    @property
    def settings(self) -> RankSettings | FittedSettings:
        """As given, or as the manifest has them."""
        ...

    @property
    def task(self) -> Task:
        """What it ranks."""
        ...

    def data(self, split: Split) -> RankData:
        """Evaluation batches of a split."""
        ...


class Looped(Kept, Protocol):
    """What the loop trains; its model gives a `training_loss` when it is called."""

    @property
    def settings(self) -> LoopSettings:
        """As given, or as the manifest has them."""
        ...

    @property
    def label(self) -> str:
        """How progress bars call it."""
        ...

    @property
    def negatives(self) -> int:
        """Sampled negatives that training rows are asked for."""
        ...

    def training(self) -> TrainingRows:
        """The training rows."""
        ...


class Trainable(Looped, Evaluated, Protocol):
    """A recommender that the loop trains."""

    @property
    def settings(self) -> RankSettings | BaselineSettings:
        """As given, or as the manifest has them."""
        ...


class Judge(Protocol):
    """Measures a model between epochs."""

    def figures(self, model: Any, device: torch.device) -> dict[str, float]:
        """Figures by their names in the log, the same on every process.

        `val/NAME` is there for every NAME that can pick the best epoch, and more is better.

        Args:
            model: in evaluation mode.
            device: its own.
        """
        ...
