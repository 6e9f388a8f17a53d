"""Negatives of a batch, drawn for all its samples in one NumPy pass."""

import numpy as np

from lsvcr.data.draws import uniforms
from lsvcr.data.spans import Spans
from lsvcr.schema import PAD

_WIDTH = 64
"""At least this many of a video's comments are looked at in search of a row's negatives."""


def comment_negatives(
    keys: tuple[int, ...], rows: np.ndarray, positives: Spans, own: Spans, k: int, n_comments: int
) -> np.ndarray:
    """K distinct comments a row that are none of its positives: of its video, then of any video or of none.

    Args:
        keys: (seed, epoch, purpose); with `rows` (B,) they name each row's random stream.
        positives: comments a row must not get.
        own: comments of the row's video.
        k: K.
        n_comments: comments are 1 .. n_comments; 0 = no row gets comments of other videos.

    Returns:
        (B, K) int64; 0 where there are too few.
    """
    place, near = _places((*keys, 0), rows, own.counts, max(_WIDTH, 4 * k))
    nearby = np.zeros_like(place)
    nearby[near] = own.items[(own.starts[:, None] + place)[near]]
    anywhere, far = _places((*keys, 1), rows, np.full(len(rows), n_comments), max(_WIDTH, 4 * k) // 2)
    ids = np.concatenate([nearby, anywhere + 1], axis=1)
    usable = np.concatenate([near, far], axis=1)
    usable &= ~positives.contains(np.arange(len(ids))[:, None], ids)
    usable &= ~_repeated(np.where(usable, ids, PAD))
    first = np.argsort(~usable, axis=1, kind="stable")[:, :k]
    return np.where(np.take_along_axis(usable, first, 1), np.take_along_axis(ids, first, 1), PAD)


def _places(
    keys: tuple[int, ...], rows: np.ndarray, counts: np.ndarray, width: int
) -> tuple[np.ndarray, np.ndarray]:
    """Random places in lists of `counts` (B,) elements, (B, width) int64, and which of them are real.

    Of a list with at most `width` elements all, in random order; of a longer one a draw with replacement.
    """
    numbers, size, column = uniforms(keys, rows, width), counts[:, None], np.arange(width)
    in_order = np.argsort(np.where(column < size, numbers, 2.0), axis=1)
    place = np.where(size <= width, in_order, (numbers * size).astype(np.int64))
    return place, (size > width) | (column < size)


def _repeated(ids: np.ndarray) -> np.ndarray:
    """(B, W) bool: entries that stand further left in the same row too."""
    order = np.argsort(ids, axis=1, kind="stable")
    ranked = np.take_along_axis(ids, order, 1)
    repeats = np.zeros(ids.shape, dtype=bool)
    np.put_along_axis(repeats, order[:, 1:], ranked[:, 1:] == ranked[:, :-1], 1)
    return repeats
