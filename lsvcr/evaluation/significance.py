"""Is one model better than another on the same rows? Paired, because rows differ more than models do.

What is drawn anew is users, with all of their rows: several rows of one user say much the same, and to count them as
independent finds differences where there are none.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np

from lsvcr.evaluation.result import CONFIDENCE, Result, bootstrap_means, by_user, same_protocol
from lsvcr.utils.errors import UserError


@dataclass(frozen=True)
class Comparison:
    """A metric's difference between two models over the same rows.

    Attributes:
        metric: its name.
        rows: number of rows.
        users: how many users they are of; as many as rows where that is not known.
        difference: mean of (a - b) over the rows.
        interval: 95 % percentile bootstrap interval of the difference.
        bootstrap_p: two-sided p-value: how often resampled differences fall on the other side of zero.
        t_p: two-sided p-value of the paired t-test over users.
    """

    metric: str
    rows: int
    users: int
    difference: float
    interval: tuple[float, float]
    bootstrap_p: float
    t_p: float


def paired(a: Result, b: Result, metric: str, part: str | None = None) -> Comparison:
    """Compare two results of one protocol row by row.

    Raises:
        UserError: different protocols or rows, or rows of fewer than two users.
    """
    return paired_all(a, b, (metric,), part)[0]


def paired_all(a: Result, b: Result, metrics: Sequence[str], part: str | None = None) -> list[Comparison]:
    """As `paired` for several metrics, which share the resampled users.

    Raises:
        UserError: different protocols or rows, or rows of fewer than two users.
    """
    same_protocol({"the first": a, "the second": b})
    if not np.array_equal(a.rows, b.rows):
        raise UserError("the two results do not cover the same rows; evaluate both on the whole split")
    gaps = np.stack([a.values[metric] - b.values[metric] for metric in metrics], axis=1)
    users = b.users if a.users is None else a.users
    if part is not None:
        gaps, users = gaps[a.slices[part]], None if users is None else users[a.slices[part]]
    count = len(gaps) if users is None else len(np.unique(users))
    if count < 2:
        raise UserError(f"{len(gaps)} rows of {count} users are too few for a paired test")
    means = bootstrap_means(gaps, users)
    return [
        _comparison(metric, gaps[:, i].copy(), users, count, means[:, i].copy())
        for i, metric in enumerate(metrics)
    ]


def _comparison(
    metric: str, gap: np.ndarray, users: np.ndarray | None, count: int, means: np.ndarray
) -> Comparison:
    """From the gaps of the rows (n,), which are of `count` users, and the means of their resamples (R,)."""
    tail = (1 - CONFIDENCE) / 2
    low, high = np.quantile(means, [tail, 1 - tail])
    # One is added to both counts so that a finite number of resamples never claims p = 0.
    below, above = (means <= 0).sum() + 1, (means >= 0).sum() + 1
    bootstrap_p = min(1.0, 2.0 * float(min(below, above)) / (len(means) + 1))
    interval = (float(low), float(high))
    t_p = paired_t_test(gap, users)
    return Comparison(metric, len(gap), count, float(gap.mean()), interval, bootstrap_p, t_p)


def paired_t_test(gap: np.ndarray, users: np.ndarray | None = None) -> float:
    """Two-sided p-value of "the mean of `gap` (n,) is zero", Student's t with one degree of freedom less than users.

    The mean's error is the cluster-robust one (Liang and Zeger 1986, with the factor U / (U - 1) for U users): from the
    sums over each user's rows of what they differ from the mean. With one row a user this is the plain paired t-test. A
    gap that is the same everywhere gives 1.0 when it is zero and 0.0 when it is not.

    Args:
        gap: a - b of each row.
        users: (n,), whose row it is; None = nobody has two.
    """
    mean = gap.mean()
    sums = by_user((gap - mean)[:, None], users)[0][:, 0]
    count = len(sums)
    deviation = np.sqrt((sums * sums).sum() / (count - 1))
    if deviation == 0:
        return 1.0 if mean == 0 else 0.0
    statistic = mean / (deviation / np.sqrt(count) * (count / len(gap)))
    return float(2 * _t_tail(abs(float(statistic)), count - 1))


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's step-down correction (1979): p-values that hold for all tests together, in the order given.

    The i-th smallest of m is multiplied by m - i + 1; none comes out below a smaller one, or above 1.

    >>> holm([0.01, 0.04, 0.03])
    [0.03, 0.06, 0.06]
    """
    order = sorted(range(len(p_values)), key=lambda i: p_values[i])
    corrected, largest = [0.0] * len(p_values), 0.0
    for place, i in enumerate(order):
        largest = max(largest, min(1.0, (len(p_values) - place) * p_values[i]))
        corrected[i] = largest
    return corrected


def _t_tail(t: float, freedom: int) -> float:
    """P(T > t), t >= 0, by integration over the angle: T = sqrt(freedom) tan(angle).

    The density becomes proportional to cos(angle) ** (freedom - 1), smooth and bounded, for which
    Gauss-Legendre quadrature is exact to about 1e-12; it saves a dependency on scipy.
    """
    scale = min(np.pi / 2, 12.0 / np.sqrt(freedom))
    start = np.arctan(t / np.sqrt(freedom))
    return _cosine_power(start, max(start, scale), freedom) / (2 * _cosine_power(0.0, scale, freedom))


def _cosine_power(low: float, high: float, freedom: int) -> float:
    nodes, weights = _quadrature()
    angle = (high - low) / 2 * nodes + (high + low) / 2
    return float((high - low) / 2 * (weights * np.cos(angle) ** (freedom - 1)).sum())


@cache
def _quadrature() -> tuple[np.ndarray, np.ndarray]:
    """Nodes and weights, kept: to find them takes longer than all else of a test."""
    return np.polynomial.legendre.leggauss(200)
