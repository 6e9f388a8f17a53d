"""What everyone likes: the row every other row of a table must beat."""

from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn

from lsvcr.baselines.registry import Entry
from lsvcr.data.rank import RankBatch, RankData
from lsvcr.data.rank_sequences import known_events
from lsvcr.data.store import Dataset
from lsvcr.evaluation.evaluator import evaluate
from lsvcr.evaluation.metrics import DEFAULT_METRICS
from lsvcr.evaluation.protocol import FULL, Protocol
from lsvcr.evaluation.result import Result
from lsvcr.schema import LIKES, Split, Task
from lsvcr.settings import FittedSettings, option
from lsvcr.utils.errors import UserError

By = Literal["train", "likes"]

_DAY_MS = 86_400_000


@dataclass
class RecentPopularitySettings(FittedSettings):
    """Settings of `lsvcr train recent_popularity`."""

    days: float = option(30.0, "window: how long is recent; decay: after how long an event counts half")
    fading: Literal["window", "decay"] = option(
        "decay", "window: events of the last days count, all alike; decay: all count, the later the more"
    )


class Popularity(nn.Module):
    """Scores an item by how often it was interacted with, the same for every user.

    Args:
        scores: (N + 1,) by item index.
    """

    scores: Tensor

    def __init__(self, scores: np.ndarray) -> None:
        super().__init__()
        self.register_buffer("scores", torch.from_numpy(scores.astype(np.float32)))

    def user_vectors(self, batch: RankBatch) -> Tensor:
        """(B, 1) ones."""
        return torch.ones(len(batch), 1, device=self.scores.device)

    def item_vectors(self) -> Tensor:
        """(N + 1, 1): the popularity. Equal counts tie, which the metrics take at their expectation."""
        return self.scores[:, None]


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


def build(settings: FittedSettings, dataset: Dataset) -> Popularity:
    """Popularity by interactions that training may know of."""
    return popularity(dataset, Task.REC)


def build_recent(settings: RecentPopularitySettings, dataset: Dataset) -> Popularity:
    """Popularity in which what happened long before the end of training counts less.

    Raises:
        UserError: a length of time that is none.
    """
    if settings.days <= 0:
        raise UserError(f"--days {settings.days} must be above 0")
    known = known_events(dataset)
    times, items = dataset.video_events.times[known], dataset.video_events.items[known]
    age = (times.max(initial=0) - times) / (settings.days * _DAY_MS)
    weights = (age < 1).astype(np.float64) if settings.fading == "window" else 0.5**age
    return Popularity(np.bincount(items, weights, minlength=dataset.n_videos + 1))


ENTRIES = (
    Entry("popularity", "What most people like, the same for everybody; not trained.", FittedSettings, build),
    Entry(
        "recent_popularity",
        "What most people have liked lately, the same for everybody; not trained.",
        RecentPopularitySettings,
        build_recent,
        needs=frozenset({"times"}),
        instead="popularity",
    ),
)
