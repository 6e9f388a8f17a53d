"""Parts of the rows that figures are given for apart from the whole: cold targets, short and long histories."""

import numpy as np

from lsvcr.data.rank import RankData
from lsvcr.schema import COLD_BELOW, Task

MEDIUM_FROM, LONG_FROM = 10, 20
"""Liked videos before the cut, all of them, not only the latest that a model is shown (stage one: 20)."""

RICH_FROM = 10
"""A user with so many comment interactions before the cut is rich in comments."""

NAMES = ("cold", "history_short", "history_medium", "history_long", "comments_poor", "comments_rich")
"""All parts, in the order they are shown."""


def slices(data: RankData) -> dict[str, np.ndarray]:
    """Which rows belong to which part.

    Returns:
        By name (n,) bool: `cold` (every positive has fewer than COLD_BELOW training interactions), `history_short`,
        `history_medium` and `history_long` (which share out all rows), `comments_poor` and `comments_rich` (likewise).
    """
    rows = np.arange(len(data))
    watched = data.seen_videos(rows).counts
    commented = data.samples.comment_end - data.dataset.comment_events.offsets[data.samples.user]
    masks = (
        _cold(data, rows),
        watched < MEDIUM_FROM,
        (watched >= MEDIUM_FROM) & (watched < LONG_FROM),
        watched >= LONG_FROM,
        commented < RICH_FROM,
        commented >= RICH_FROM,
    )
    return dict(zip(NAMES, masks, strict=True))


def _cold(data: RankData, rows: np.ndarray) -> np.ndarray:
    counts = data.dataset.train_counts() if data.task is Task.REC else data.dataset.comment_train_counts()
    positives = data.positives(rows)
    warm = counts[positives.flat()] >= COLD_BELOW
    return np.bincount(positives.owner()[warm], minlength=len(rows)) == 0
