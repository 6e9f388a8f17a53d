"""Axes of a picture: which stretch of the numbers it shows, on which scale, with which marks."""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

LOG_ABOVE = 20.0
"""A logarithmic scale where the largest value is this many times the median: a linear one would press half of the
points into its lowest twentieth."""

MARKS = 5
"""About this many marks on an axis."""

_LARGEST = 1e300
"""Beyond it the arithmetic of an axis could overflow."""


@dataclass(frozen=True)
class Axis:
    """A stretch of the numbers.

    Attributes:
        low, high: its ends, low < high; both above 0 on a logarithmic scale.
        marks: values inside it that get a line and a label, rising.
        log: whether the scale is logarithmic.
    """

    low: float
    high: float
    marks: tuple[float, ...]
    log: bool = False

    def place(self, value: float) -> float:
        """Where a value stands, 0 at the low end and 1 at the high one; values outside are put at the ends."""
        low, high, at = self.low, self.high, min(max(value, self.low), self.high)
        if self.log:
            low, high, at = math.log10(low), math.log10(high), math.log10(at)
        return (at - low) / (high - low)


def value_axis(values: Sequence[float]) -> Axis:
    """An axis that shows all of `values` (finite, at least one), with round numbers at its ends."""
    bounded = [min(max(value, -_LARGEST), _LARGEST) for value in values]
    low, high = min(bounded), max(bounded)
    if low > 1 / _LARGEST and high > LOG_ABOVE * statistics.median(bounded):
        return _log_axis(low, high)
    if high - low <= 1e-9 * max(abs(low), abs(high)) or high - low < 1 / _LARGEST:
        room = abs(high) / 10 or 1.0  # a line that does not move stands in the middle
        low, high = low - room, high + room
    return _linear_axis(low, high)


def step_axis(last: int) -> Axis:
    """From 0 to the last step, marked at whole steps."""
    high = float(max(last, 1))
    step = max(_round_up(high / MARKS), 1.0)
    return Axis(0.0, high, tuple(step * number for number in range(int(high / step) + 1)))


def size_axis(values: Sequence[float]) -> Axis:
    """A logarithmic axis over all of `values` (above 0, at least one), from power of ten to power of ten."""
    return _log_axis(min(values), max(values))


def _linear_axis(low: float, high: float) -> Axis:
    step = _round_up((high - low) / MARKS)
    first, last = math.floor(low / step), math.ceil(high / step)
    return Axis(first * step, last * step, tuple(number * step for number in range(first, last + 1)))


def _log_axis(low: float, high: float) -> Axis:
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
    last = max(last, first + 1)
    every = math.ceil((last - first) / MARKS)
    marks = [10.0**power for power in range(first, last + 1, every)]
    # 10 ** log10(x) may miss x by a rounding error.
    return Axis(min(10.0**first, low), max(10.0**last, high), tuple(marks), log=True)


def _round_up(size: float) -> float:
    """The next 1, 2 or 5 times a power of ten at or above `size`."""
    power = 10.0 ** math.floor(math.log10(size))
    return next((factor * power for factor in (1, 2, 5) if factor * power >= size), 10 * power)
