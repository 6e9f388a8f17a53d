"""Formulas that find the videos a generated title means; pure functions of numpy arrays.

BIGRec (arXiv 2308.08434) ranks by the distance between the generated text's vector and each title's, and adjusts it by
popularity or by another recommender's scores. As its code stands, the nearest title has the normalised distance 0,
which no factor changes: it stays first for any gamma. The additive forms here can move it.

D (B, N) are distances of B rows to N videos, Dn their `minmax` by row, gamma >= 0.
"""

import numpy as np

BIGREC_GAMMAS = tuple(float(number) for number in range(100))
"""BIGRec's grid for popularity."""
FINE_GAMMAS = (*(number / 100 for number in range(100)), *(float(number) for number in range(1, 100)))
"""BIGRec's grid for collaborative scores, and ours for the additive forms."""


def minmax(values: np.ndarray) -> np.ndarray:
    """(v - min) / (max - min) along the last axis, float64; 0 where all values are the same (BIGRec: NaN).

    >>> minmax(np.array([[2.0, 4.0, 3.0], [5.0, 5.0, 5.0]])).tolist()
    [[0.0, 1.0, 0.5], [0.0, 0.0, 0.0]]
    """
    values = np.asarray(values, dtype=np.float64)
    low, high = values.min(axis=-1, keepdims=True), values.max(axis=-1, keepdims=True)
    return (values - low) / np.where(high > low, high - low, 1.0)


def popularity(counts: np.ndarray) -> np.ndarray:
    """Pn: training interactions over their sum, min-max normalised over the videos: (N,) -> (N,) float64.

    >>> popularity(np.array([1, 5, 3])).tolist()
    [0.0, 1.0, 0.5]
    """
    return minmax(counts / max(counts.sum(), 1))


def log_popularity(counts: np.ndarray) -> np.ndarray:
    """log(1 + interactions), min-max normalised over the videos: (N,) -> (N,) float64.

    >>> log_popularity(np.array([0, 3, 1])).round(6).tolist()
    [0.0, 1.0, 0.5]
    """
    return minmax(np.log1p(counts))


def reweighted(dn: np.ndarray, weight: np.ndarray, gamma: float) -> np.ndarray:
    """BIGRec's adjustment, -(1 + w) ** -gamma * Dn; the higher the better.

    Args:
        dn: (B, N) float64 in [0, 1].
        weight: Pn (N,), or Cn (B, N): another recommender's scores, min-max normalised by row.
        gamma: 0 leaves the order of Dn.

    >>> reweighted(np.array([[0.0, 0.5, 1.0]]), np.array([0.0, 0.0, 1.0]), 2.0).tolist()
    [[-0.0, -0.5, -0.25]]
    """
    # The power by way of exp and log: numpy has fast ones of these.
    return -np.exp(-gamma * np.log(1.0 + weight)) * dn


def added(dn: np.ndarray, weight: np.ndarray, gamma: float) -> np.ndarray:
    """The additive form, gamma * w - Dn; the higher the better, and any video can come first.

    Args:
        dn: (B, N) float64 in [0, 1].
        weight: `log_popularity` (N,), or Cn (B, N).
        gamma: 0 leaves the order of Dn; as it grows, the order becomes that of w.

    >>> added(np.array([[0.0, 0.5, 1.0]]), np.array([0.0, 0.0, 1.0]), 2.0).tolist()
    [[0.0, -0.5, 1.0]]
    """
    return gamma * weight - dn


def ranks(scores: np.ndarray) -> np.ndarray:
    """Expected ranks, 1 for the highest score, ties sharing the mean of their places: (B, N) -> (B, N) float64.

    >>> ranks(np.array([[3.0, 1.0, 3.0, 2.0]])).tolist()
    [[1.5, 4.0, 1.5, 3.0]]
    """
    found = np.empty(scores.shape, dtype=np.float64)
    for own, row in zip(found, scores, strict=True):
        _, inverse, counts = np.unique(-row, return_inverse=True, return_counts=True)
        own[:] = (np.cumsum(counts) - (counts - 1) / 2)[inverse]
    return found


def fused(parts: list[np.ndarray], k: float) -> np.ndarray:
    """Reciprocal-rank fusion (Cormack et al. 2009): sum over recommenders of 1 / (k + rank); the higher the better.

    Args:
        parts: expected ranks (B, N) of each recommender; infinity = it does not know the video.
        k: the larger, the less the first places count.

    >>> fused([np.array([[1.0, 2.0]]), np.array([[2.0, np.inf]])], 1.0).round(4).tolist()
    [[0.8333, 0.3333]]
    """
    return np.sum([1.0 / (k + part) for part in parts], axis=0)
