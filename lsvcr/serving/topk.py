"""The k best of many scores, exactly: equal scores in the order of their rows."""

import numpy as np

_BLOCK = 256
"""Scores whose maximum stands for them while the others are ruled out."""


def best(scores: np.ndarray, k: int) -> np.ndarray:
    """Places of the k highest of scores (n,), best first, equal ones in ascending place; (at most k,) int64.

    Scores of -inf never come out. The k-th highest of all block maxima is a bound that the k best reach, so two
    passes over the scores leave a few hundred to sort.
    """
    blocks = len(scores) // _BLOCK
    if k < blocks:
        maxima = scores[: blocks * _BLOCK].reshape(blocks, _BLOCK).max(axis=1)
        bound = np.partition(maxima, blocks - k)[blocks - k]
        places = np.flatnonzero(scores >= bound)
    else:
        places = np.arange(len(scores))
    found = scores[places]
    order = np.argsort(-found, kind="stable")[:k]
    return places[order[found[order] > -np.inf]]
