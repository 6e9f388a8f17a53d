"""What stage one adds over the untuned LLM's text: several seeds, equal tuning, one interval.

The question has two sources of noise: which users are in the test, and which seed trained the models. The
estimate averages each test row's gap over seeds; its interval resamples users, each with all of its rows, and seeds
together.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from lsvcr.evaluation.result import CONFIDENCE, Result, by_user, same_protocol
from lsvcr.utils.errors import UserError

RESAMPLES = 2000
_SEED = 2024


@dataclass(frozen=True)
class Gain:
    """A metric's gain of one arm over another across seeds.

    Attributes:
        metric: its name.
        rows: test rows.
        users: how many users they are of; as many as rows where that is not known.
        aligned, control: means of both arms over rows and seeds.
        gain: their difference.
        interval: 95 % percentile bootstrap interval of the gain, users and seeds resampled.
        by_seed: the gain of each seed.
    """

    metric: str
    rows: int
    users: int
    aligned: float
    control: float
    gain: float
    interval: tuple[float, float]
    by_seed: tuple[float, ...]


def measure_gain(
    aligned: Sequence[Result], control: Sequence[Result], metric: str, part: str | None = None
) -> Gain:
    """Compare two arms, seed i of one with seed i of the other.

    Args:
        aligned, control: test results, one a seed, all under one protocol over the same rows.
        metric: such as `ndcg@10`.
        part: a slice, such as `cold`; None = all rows.

    Raises:
        UserError: no or unequal numbers of seeds, different protocols or rows, or an empty slice.
    """
    if not aligned or len(aligned) != len(control):
        raise UserError(f"{len(aligned)} aligned and {len(control)} control runs: give one of each a seed")
    every = {f"aligned run {i + 1}": result for i, result in enumerate(aligned)}
    every |= {f"control run {i + 1}": result for i, result in enumerate(control)}
    same_protocol(every)
    if any(not np.array_equal(result.rows, aligned[0].rows) for result in every.values()):
        raise UserError("the runs do not cover the same test rows; evaluate all on the whole split")
    a, b = (
        np.stack([_column(result, metric, part) for result in arm]) for arm in (aligned, control)
    )  # (S, n)
    if a.shape[1] == 0:
        raise UserError(f"no test row is in the slice {part}")
    gap = a - b
    first = aligned[0]
    users = first.users if part is None or first.users is None else first.users[first.slices[part]]
    means = _resampled(gap, users)
    tail = (1 - CONFIDENCE) / 2
    low, high = np.quantile(means, [tail, 1 - tail])
    return Gain(
        metric=metric,
        rows=a.shape[1],
        users=first.count_users(part),
        aligned=float(a.mean()),
        control=float(b.mean()),
        gain=float(gap.mean()),
        interval=(float(low), float(high)),
        by_seed=tuple(float(value) for value in gap.mean(axis=1)),
    )


def _resampled(gap: np.ndarray, users: np.ndarray | None) -> np.ndarray:
    """Means of (S, n) with seeds and users (n,) drawn with replacement: (RESAMPLES,)."""
    table, sizes = by_user(gap.T, users)
    sums = np.ascontiguousarray(table.T)
    seeds, people = sums.shape
    rng = np.random.default_rng((_SEED, seeds, people))
    means = np.empty(RESAMPLES)
    for number in range(RESAMPLES):
        drawn = sums[rng.integers(0, seeds, seeds)].mean(axis=0)
        counts = np.bincount(rng.integers(0, people, people), minlength=people)
        means[number] = drawn @ counts / (counts @ sizes)
    return means


def _column(result: Result, metric: str, part: str | None) -> np.ndarray:
    values = result.values[metric]
    return values if part is None else values[result.slices[part]]
