"""What everyone likes: the row every other row of a table must beat."""

from typing import Literal

import numpy as np
import torch
from torch import Tensor

from lsvcr.data.rank import RankBatch, RankData
from lsvcr.data.store import Dataset
from lsvcr.evaluation.evaluator import evaluate
from lsvcr.evaluation.metrics import DEFAULT_METRICS
from lsvcr.evaluation.protocol import FULL, Protocol
from lsvcr.evaluation.result import Result
from lsvcr.schema import LIKES, Split, Task
from lsvcr.utils.errors import UserError

By = Literal["train", "likes"]


class Popularity:
    """Scores an item by how often it was interacted with, the same for every user.

    Args:
        scores: (N + 1,) by item index.
    """

    def __init__(self, scores: np.ndarray) -> None:
        self._items = torch.from_numpy(scores.astype(np.float32))[:, None]

    def user_vectors(self, batch: RankBatch) -> Tensor:
        """(B, 1) ones."""
        return torch.ones(len(batch), 1)

    def item_vectors(self) -> Tensor:
        """(N + 1, 1): the popularity. Equal counts tie, which the metrics take at their expectation."""
        return self._items


def popularity(dataset: Dataset, task: Task, by: By = "train") -> Popularity:
    """The baseline for a task.

    Args:
        dataset: gives the counts.
        task: Rec or CommRank.
        by: `train`: interactions that training may know of. `likes` (CommRank): likes the platform shows, which
            include those of people outside the dataset and may include later ones.

    Raises:
        UserError: `likes` for Rec, or a dataset without like counts.
    """
    if by == "train":
        return Popularity(dataset.train_counts() if task is Task.REC else dataset.comment_train_counts())
    if task is Task.REC:
        raise UserError("videos have no like counts of their own; use popularity by training interactions")
    column = dataset.column("comments", LIKES)
    if len(column) and column.is_null().all():
        raise UserError(f"{dataset.root} has no like counts; use popularity by training interactions")
    likes = column.fill_null(0).to_numpy()
    return Popularity(np.concatenate([[0], likes]))


def evaluate_popularity(
    dataset: Dataset,
    task: Task,
    split: Split = Split.TEST,
    by: By = "train",
    protocols: dict[str, Protocol] | None = None,
    metrics: tuple[str, ...] = DEFAULT_METRICS,
) -> dict[str, Result]:
    """Results of the baseline, one a protocol; None = full catalogue and stored candidates."""
    chosen = {"full": FULL, "sampled": Protocol("sampled")} if protocols is None else protocols
    return evaluate(popularity(dataset, task, by), RankData(dataset, task, split), chosen, metrics=metrics)
