"""Learning-rate schedules of both stages, as pure functions of the step."""

import math
from typing import Literal

Kind = Literal["cosine", "cosine_tenth", "linear", "constant"]

_FLOOR = 0.1
"""Of the peak, where `cosine_tenth` ends."""


def learning_rate_factor(step: int, total: int, warmup_ratio: float, kind: Kind) -> float:
    """What the peak learning rate is multiplied by at one optimiser step.

    Warm-up rises linearly over the first `ceil(warmup_ratio * total)` steps, from 1 / warm-up (never 0, so that
    no step is wasted) to 1. Then: constant stays, linear falls to 0 and cosine falls along half a wave to 0, both
    just after the last step; cosine_tenth falls as cosine does, to a tenth.

    Args:
        step: 0-based optimiser step.
        total: optimiser steps of the whole run.
        warmup_ratio: share of steps with rising rate.
        kind: "cosine", "cosine_tenth", "linear" or "constant".

    Returns:
        A number in (0, 1] for 0 <= step < total.

    >>> [round(learning_rate_factor(s, 4, 0.5, "linear"), 3) for s in range(4)]
    [0.5, 1.0, 1.0, 0.5]
    """
    warmup = math.ceil(warmup_ratio * total)
    if step < warmup:
        return (step + 1) / warmup
    if kind == "constant":
        return 1.0
    done = (step - warmup) / max(1, total - warmup)
    if kind == "linear":
        return max(0.0, 1.0 - done)
    wave = 0.5 * (1.0 + math.cos(math.pi * min(1.0, done)))
    return _FLOOR + (1.0 - _FLOOR) * wave if kind == "cosine_tenth" else wave
