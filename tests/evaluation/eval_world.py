"""A hand-made dataset to evaluate on, and scorers whose figures are known or at least repeatable."""

from pathlib import Path

import numpy as np
import torch

from lsvcr.data.rank import RankBatch
from lsvcr.data.store import Dataset
from lsvcr.schema import Split, Task
from tests.rank_world import World

N, USERS = 40, 30
IDENTITY = np.arange(N + 1)


class Constant:
    """Scores everything alike."""

    def __init__(self, items: int) -> None:
        self.items = items

    def user_vectors(self, batch: RankBatch) -> torch.Tensor:
        return torch.ones(len(batch), 1)

    def item_vectors(self) -> torch.Tensor:
        return torch.ones(self.items + 1, 1)


class Oracle:
    """Knows each row's best item: item vectors are one-hot."""

    def __init__(self, best: np.ndarray, items: int) -> None:
        self.best, self.items = best, items

    def user_vectors(self, batch: RankBatch) -> torch.Tensor:
        return torch.eye(self.items + 1)[self.best[batch.rows]]

    def item_vectors(self) -> torch.Tensor:
        return torch.eye(self.items + 1)


class Blurred:
    """Random vectors by user history and item, through a network whose rounding depends on the batch's shape.

    Args:
        items: how many there are.
        names: (items + 1,), what an item was called before it was given another number; the scores go by that.
    """

    def __init__(self, items: int, names: np.ndarray | None = None) -> None:
        generator = torch.Generator().manual_seed(0)
        table = torch.randn(items + 1, 24, generator=generator)
        self.layer = torch.randn(24, 24, generator=generator)
        self.table = table if names is None else table[torch.from_numpy(names)]

    def user_vectors(self, batch: RankBatch) -> torch.Tensor:
        return torch.tanh(self.table[batch.video_ids] @ self.layer).mean(1)

    def item_vectors(self) -> torch.Tensor:
        return self.table


class Coarse(Blurred):
    """As Blurred, but every score is a small whole number, so that most are shared by several items."""

    def user_vectors(self, batch: RankBatch) -> torch.Tensor:
        return self.table[batch.video_ids].sum(1).sign()[:, :5]

    def item_vectors(self) -> torch.Tensor:
        return self.table.round().clamp(-1, 1)[:, :5]


def write_world(folder: Path, numbers: np.ndarray = IDENTITY, order: int = 0) -> Dataset:
    """USERS users with 4 videos each; test targets spread over the catalogue; 3 comments a video, some rows bare.

    Args:
        folder: where.
        numbers: (N + 1,), the number that video i gets.
        order: seed of the order of stored candidates; 0 = as drawn.
    """
    rng = np.random.default_rng(0)
    videos = [[int(v) for v in rng.choice(N, 4, replace=False) + 1] for _ in range(USERS)]
    comments = [[(1, 0), (4, 1)] if u % 2 else [] for u in range(USERS)]
    video_of = [v for v in range(1, N + 1) for _ in range(3)]
    targets = [videos[u][3] for u in range(USERS)]
    rec = [(u + 1, 3, 0, int(numbers[targets[u]])) for u in range(USERS)]
    watched = [(u + 1, 4, len(comments[u]), u + 1) for u in range(USERS)]
    positives = [
        [] if u == 7 else [3 * u + 1, 3 * u + 3] if u % 3 == 0 else [3 * u + 2] for u in range(USERS)
    ]
    others = [list(range(3 * u + 1, 3 * u + 4)) for u in range(USERS)]
    others[4] = [13, 15]  # the positive, 14, is not among them
    others[5] = []
    stored = [
        [t, *(int(v) for v in rng.permutation([v for v in range(1, N + 1) if v != t])[:9])] for t in targets
    ]
    stored = [[int(numbers[v]) for v in row] for row in stored]
    if order:
        shuffle = np.random.default_rng(order)
        stored = [shuffle.permutation(row).tolist() for row in stored]
        others = [shuffle.permutation(row).tolist() for row in others]
    counts = np.zeros(N + 1, dtype=np.int64)
    counts[numbers] = np.arange(N + 1) % 10
    return World(
        N,
        [[int(numbers[v]) for v in row] for row in videos],
        comments,
        video_of,
        rec={Split.TEST: rec},
        comm_rank={Split.TEST: watched},
        positives={Split.TEST: positives},
        candidates={(Task.REC, Split.TEST): stored, (Task.COMM_RANK, Split.TEST): others},
        counts=counts[1:].tolist(),
        options={"candidates": 10},
    ).write(folder)
