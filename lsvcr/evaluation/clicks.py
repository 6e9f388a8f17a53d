"""Figures of click models as pure functions of scores and labels, exact under ties."""

from typing import NamedTuple

import numpy as np


class Grouped(NamedTuple):
    """An AUC within users.

    Attributes:
        value: None where no user counts.
        users: who have both a click and a pass, and count.
        left_out: who have one of them alone.
    """

    value: float | None
    users: int
    left_out: int


def auc(scores: np.ndarray, labels: np.ndarray) -> float | None:
    """Share of (click, pass) pairs in which the click has the higher score; a pair of equal scores is half a pair.

    Args:
        scores: (n,) floats, finite; any rising function of them gives the same.
        labels: (n,) 1 = clicked, 0 = passed over.

    Returns:
        0 to 1; None where there are clicks alone, or none.

    >>> auc(np.array([0.1, 0.4, 0.35, 0.8]), np.array([0, 0, 1, 1]))
    0.75
    >>> auc(np.array([1.0, 1.0]), np.array([0, 1]))
    0.5
    """
    return grouped_auc(scores, labels, np.zeros(len(labels), dtype=np.int64)).value


def grouped_auc(scores: np.ndarray, labels: np.ndarray, users: np.ndarray) -> Grouped:
    """GAUC: the mean of the users' own AUCs, weighted by their impressions (Zhou et al. 2018, DIN).

    Users without a click, or without a pass, have no AUC: they are left out of sum and weights, and counted.

    Args:
        scores, labels: as of `auc`.
        users: (n,) integers, who each row belongs to.

    >>> grouped_auc(np.array([1, 2, 3, 9, 9]), np.array([1, 0, 1, 0, 1]), np.array([7, 7, 7, 8, 8]))
    Grouped(value=0.5, users=2, left_out=0)
    """
    order = np.lexsort((scores, users))
    user, score, clicked = users[order], scores[order], labels[order].astype(np.int64)
    new_user = np.diff(user, prepend=user[:1] - 1) != 0
    new_tie = new_user | (np.concatenate([[True], score[1:] != score[:-1]])[: len(score)])
    number, tie = np.cumsum(new_user) - 1, np.cumsum(new_tie) - 1
    passes = _sums(1 - clicked, tie)
    # Passes of the user with a lower score: all before this tie, less those of the users before.
    before = np.cumsum(passes) - passes
    first = before[tie[new_user]]
    owner = number[new_tie]
    # Twice the number of pairs that are won, a tie counting one: whole numbers, so that nothing is rounded.
    won = _sums(_sums(clicked, tie) * (2 * (before - first[owner]) + passes), owner)
    clicks, rows = _sums(clicked, number), np.bincount(number)
    pairs = clicks * (rows - clicks)
    both = pairs > 0
    if not both.any():
        return Grouped(None, 0, len(rows))
    own = won[both] / (2 * pairs[both])
    value = float((own * rows[both]).sum() / rows[both].sum())
    return Grouped(value, int(both.sum()), int((~both).sum()))


def log_loss(logits: np.ndarray, labels: np.ndarray) -> float | None:
    """Mean of -log of the probability that sigmoid(logit) gives to what happened, in nats; None without rows.

    Args:
        logits: (n,) floats.
        labels: (n,) 0 or 1.

    >>> round(log_loss(np.array([0.0, 0.0]), np.array([0, 1])), 6)
    0.693147
    """
    if not len(labels):
        return None
    exact = logits.astype(np.float64)
    return float(np.mean(np.logaddexp(0.0, exact) - exact * labels))


def _sums(values: np.ndarray, groups: np.ndarray) -> np.ndarray:
    """int64 sums of whole numbers a group, the groups being 0, 1, ... in rising order."""
    starts = np.flatnonzero(np.diff(groups, prepend=-1))
    return np.add.reduceat(values, starts) if len(values) else np.zeros(0, dtype=np.int64)
