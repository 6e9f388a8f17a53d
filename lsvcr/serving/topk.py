"""The k best of many scores, exactly: equal scores in the order of their places."""

from collections.abc import Sequence

import numpy as np

_GROUP = 64
"""Scores of a group, whose maximum stands for them while most others are ruled out."""


_FEW = 512
"""Scores that are sorted without a look at groups."""


def best(scores: np.ndarray, k: int) -> np.ndarray:
    """Places of the k highest of scores (n,), best first, equal ones in ascending place; (at most k,) int64.

    Scores of -inf never come out. Two passes over the scores leave a few hundred to sort.
    """
    if len(scores) <= _FEW:
        order = np.argsort(-scores, kind="stable")[:k]
        return order[scores[order] > -np.inf]
    places = at_least(scores, reached_by(scores, k))
    found = scores[places]
    order = np.argsort(-found, kind="stable")[:k]
    return places[order[found[order] > -np.inf]]


def best_of_each(scores: np.ndarray, owners: np.ndarray, ks: Sequence[int]) -> list[np.ndarray]:
    """Places of the highest scores of each of B owners, as `best` gives them, by one sort.

    Args:
        scores: (n,) of all owners.
        owners: (n,), whose each is, 0 .. B - 1.
        ks: how many for each owner.
    """
    order = np.lexsort((-scores, owners))
    ends = np.cumsum(np.bincount(owners, minlength=len(ks))).tolist()
    return [order[start : min(start + k, end)] for start, end, k in zip([0, *ends], ends, ks, strict=False)]


def dots(vectors: np.ndarray, user: np.ndarray) -> np.ndarray:
    """Products of vectors (n, d) with a user (d,), or with one each (n, d), as (n,) float32: the same for a vector
    wherever it stands.

    A matrix product rounds a row in another way at the end of the matrix than in its middle, and equal rows would come
    in any order.
    """
    products: np.ndarray = (vectors * user).sum(axis=1, dtype=np.float32)
    return products


def reached_by(scores: np.ndarray, k: int) -> float:
    """A bound that at least k of the scores (n,) reach, close to the k-th highest; -inf where there are fewer.

    The k-th highest of the maxima of groups is one: k groups hold a score that high. Group g holds the scores g, g + m,
    g + 2 m and so on, so that the maxima of all are found by comparing rows of m.
    """
    if k >= len(scores):
        return -np.inf
    groups = len(scores) // _GROUP
    if k * 4 > groups:
        return float(np.partition(scores, len(scores) - k)[len(scores) - k])
    maxima = scores[: groups * _GROUP].reshape(_GROUP, groups).max(axis=0)
    return float(np.partition(maxima, groups - k)[groups - k])


def reached_by_each(scores: np.ndarray, ks: Sequence[int]) -> np.ndarray:
    """`reached_by` of each row of scores (B, n) with its own k, (B,) float32."""
    groups = scores.shape[1] // _GROUP
    if max(ks) * 4 > groups:
        return np.array([reached_by(own, k) for own, k in zip(scores, ks, strict=True)], dtype=np.float32)
    maxima = scores[:, : groups * _GROUP].reshape(len(scores), _GROUP, groups).max(axis=1)
    wanted = [groups - k for k in ks]
    ordered: np.ndarray = np.partition(maxima, sorted(set(wanted)), axis=1)[range(len(ks)), wanted]
    return ordered


def at_least(scores: np.ndarray, bound: float) -> np.ndarray:
    """Places of the scores (n,) that reach a bound, ascending."""
    return np.flatnonzero(scores >= bound)
