"""Random numbers as a function of what they are for, a whole batch at a time.

Every sample has its own stream, named by (seed, epoch, purpose, sample): SplitMix64 (Steele, Lea and Flood 2014)
in vectorised form. What a sample draws therefore does not depend on the batch, process or worker that draws it,
and thousands of streams cost one NumPy pass where thousands of `Generator` objects would cost most of a step.
"""

import numpy as np

from lsvcr.schema import Split
from lsvcr.utils.seeding import generator

_SAMPLES = 0
"""Purpose of a random stream."""

_GAMMA = np.uint64(0x9E3779B97F4A7C15)
_MIX_A = np.uint64(0xBF58476D1CE4E5B9)
_MIX_B = np.uint64(0x94D049BB133111EB)


def uniforms(keys: tuple[int, ...], rows: np.ndarray, slots: int) -> np.ndarray:
    """Uniform numbers in [0, 1).

    Args:
        keys: non-negative integers, such as (seed, epoch, purpose).
        rows: (B,) sample numbers, each naming its own stream.
        slots: S, numbers a stream.

    Returns:
        (B, S) float64 with 53 random bits.
    """
    base = np.random.SeedSequence(keys).generate_state(1, np.uint64)[0]
    with np.errstate(over="ignore"):
        starts = _mix(base + (rows.astype(np.uint64) + np.uint64(1)) * _GAMMA)
        steps = (np.arange(slots, dtype=np.uint64) + np.uint64(1)) * _GAMMA
        bits = _mix(starts[:, None] + steps)
    return (bits >> np.uint64(11)).astype(np.float64) * 2.0**-53


def integers(keys: tuple[int, ...], rows: np.ndarray, slots: int, below: np.ndarray | int) -> np.ndarray:
    """Whole numbers uniform in [0, below): (B, S) int64; `below` broadcasts against (B, S), 0 gives 0."""
    limit = np.asarray(below, dtype=np.int64)
    return np.minimum((uniforms(keys, rows, slots) * limit).astype(np.int64), np.maximum(limit - 1, 0))


def drawn_rows(rows: np.ndarray, limit: int, seed: int, split: Split) -> np.ndarray:
    """`limit` of `rows` (n,), rising, the same for the same seed and split; 0, or no fewer than there are: all."""
    if not 0 < limit < len(rows):
        return rows
    rng = generator(seed, _SAMPLES, list(Split).index(split))
    return np.sort(rng.choice(rows, size=limit, replace=False))


def _mix(x: np.ndarray) -> np.ndarray:
    x = (x ^ (x >> np.uint64(30))) * _MIX_A
    x = (x ^ (x >> np.uint64(27))) * _MIX_B
    return x ^ (x >> np.uint64(31))
