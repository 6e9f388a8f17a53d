"""A power law through measured points: L = a N^-b + c."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from lsvcr.utils.errors import UserError

FEWEST_POINTS = 3
"""Sizes that a law without a floor needs, so that it can be wrong; one with a floor needs one more."""

_SLOWEST, _FASTEST, _STEPS, _ROUNDS = 1e-3, 4.0, 400, 6


@dataclass(frozen=True)
class PowerLaw:
    """L = a N^-b + c with a, b > 0 and c >= 0.

    Attributes:
        a, b, c: of the law.
        r2: share of the variance of L that it explains; below 0 where the mean does better.
        points: how many it was fitted to.
    """

    a: float
    b: float
    c: float
    r2: float
    points: int

    def at(self, size: float) -> float:
        """L of a size N."""
        return float(self.a * size**-self.b + self.c)

    def told(self) -> str:
        """The law in one line."""
        floor = f" + {self.c:.4g}" if self.c else ""
        return f"L = {self.a:.4g} N^-{self.b:.3g}{floor} (R^2 {self.r2:.3f}, {self.points} points)"


def fit_power_law(sizes: Sequence[float], losses: Sequence[float]) -> PowerLaw:
    """The law of the least squares of L, among those that fall with N.

    For each b the best a and c are known, so that only b is searched: on a grid, which is made finer around its best
    point. With as few sizes as `FEWEST_POINTS` the floor c is 0, because three numbers would go through three points.

    Args:
        sizes: N > 0.
        losses: finite; as many.

    Raises:
        UserError: too few different sizes.
    """
    n, loss = np.asarray(sizes, dtype=np.float64), np.asarray(losses, dtype=np.float64)
    distinct = len(np.unique(n))
    if distinct < FEWEST_POINTS:
        raise UserError(f"a power law needs {FEWEST_POINTS} different sizes or more, not {distinct}")
    floor = distinct > FEWEST_POINTS
    scale = np.exp(np.log(n).mean())  # so that N^-b is near 1
    low, high = np.log(_SLOWEST), np.log(_FASTEST)
    best = (np.inf, 0.0, 0.0, 0.0)
    for _ in range(_ROUNDS):
        grid = np.linspace(low, high, _STEPS)
        best = min([best, *(_linear(n / scale, loss, float(np.exp(place)), floor) for place in grid)])
        step = grid[1] - grid[0]
        low, high = np.log(best[3]) - step, np.log(best[3]) + step
    squares, a, c, b = best
    spread = float(((loss - loss.mean()) ** 2).sum())
    r2 = 1.0 - squares / spread if spread > 0 else 1.0
    return PowerLaw(a * scale**b, b, c, r2, len(loss))


def _linear(n: np.ndarray, loss: np.ndarray, b: float, floor: bool) -> tuple[float, float, float, float]:
    """(sum of squares, a, c, b) of the best a, c >= 0 for a given b."""
    x = n**-b
    a = c = 0.0
    if floor and np.ptp(x) > 0:
        a = float(((x - x.mean()) * (loss - loss.mean())).sum() / ((x - x.mean()) ** 2).sum())
        c = float(loss.mean() - a * x.mean())
    if not floor or c < 0 or a < 0:
        # Where a negative one would be best, one of them is zero.
        a, c = max(0.0, float((x * loss).sum() / (x * x).sum())), 0.0
        if floor and ((loss - loss.mean()) ** 2).sum() < ((loss - a * x) ** 2).sum():
            a, c = 0.0, float(loss.mean())
    return float(((a * x + c - loss) ** 2).sum()), a, c, b
