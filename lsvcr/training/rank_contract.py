"""What the training loop asks of what it trains. It knows no recommender by name."""

from collections.abc import Mapping
from typing import Any, Protocol

from lsvcr.data.rank import RankData
from lsvcr.data.rank_rows import TrainingRows
from lsvcr.data.store import Dataset
from lsvcr.schema import Split, Task
from lsvcr.settings import BaselineSettings, FittedSettings, RankSettings

LoopSettings = RankSettings | BaselineSettings
"""Settings of a run with epochs. Both have these fields under the same names."""


class Evaluated(Protocol):
    """A recommender on a dataset, as far as measuring it goes."""

    @property
    def settings(self) -> RankSettings | FittedSettings:
        """As given, or as the manifest has them."""
        ...

    @property
    def task(self) -> Task:
        """What it ranks."""
        ...

    @property
    def dataset(self) -> Dataset:
        """Open."""
        ...

    @property
    def model(self) -> Any:
        """A module that is a `Recommender` or an `evaluator.CatalogueScorer`; on the CPU at first."""
        ...

    def data(self, split: Split) -> RankData:
        """Evaluation batches of a split."""
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


class Trainable(Evaluated, Protocol):
    """A recommender that the loop trains."""

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
