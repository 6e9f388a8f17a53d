"""Negatives of a batch, drawn for all its samples in one NumPy pass."""

import numpy as np

from lsvcr.data.draws import integers, uniforms
from lsvcr.data.spans import Spans
from lsvcr.schema import PAD

_WIDTH = 64
"""At least this many of a video's comments are looked at in search of a row's negatives."""


def comment_negatives(
    keys: tuple[int, ...], rows: np.ndarray, positives: Spans, own: Spans, k: int, n_comments: int
) -> np.ndarray:
    """K distinct comments a row that are none of its positives: of its video, then of any video.

    Args:
        keys: (seed, epoch, purpose); with `rows` (B,) they name each row's random stream.
        positives: comments a row must not get.
        own: comments of the row's video.
        k: K.
        n_comments: comments are 1 .. n_comments.

    Returns:
        (B, K) int64; 0 where the whole dataset has too few.
    """
    ids, usable = _local(keys, rows, own, max(_WIDTH, 4 * k))
    anywhere = integers((*keys, 1), rows, 2 * k + 8, n_comments) + 1
    ids = np.concatenate([ids, anywhere], axis=1)
    usable = np.concatenate([usable, np.ones_like(anywhere, dtype=bool)], axis=1)
    usable &= ~positives.contains(np.arange(len(ids))[:, None], ids)
    usable &= ~_repeated(np.where(usable, ids, PAD))
    first = np.argsort(~usable, axis=1, kind="stable")[:, :k]
    return np.where(np.take_along_axis(usable, first, 1), np.take_along_axis(ids, first, 1), PAD)


def _local(keys: tuple[int, ...], rows: np.ndarray, own: Spans, width: int) -> tuple[np.ndarray, np.ndarray]:
    """Comments of each row's video in random order, (B, width), and which of them are real.

    A video with at most `width` comments shows all of them; one with more a draw with replacement.
    """
    counts = own.counts[:, None]
    numbers = uniforms((*keys, 0), rows, width)
    column = np.arange(width)
    in_order = np.argsort(np.where(column < counts, numbers, 2.0), axis=1)
    place = np.where(counts <= width, in_order, (numbers * counts).astype(np.int64))
    real = (counts > width) | (column < counts)
    index = np.where(real, own.starts[:, None] + np.minimum(place, np.maximum(counts - 1, 0)), 0)
    ids = own.items[index].astype(np.int64) if len(own.items) else np.zeros(index.shape, dtype=np.int64)
    return ids, real


def _repeated(ids: np.ndarray) -> np.ndarray:
    """(B, W) bool: entries that stand further left in the same row too."""
    order = np.argsort(ids, axis=1, kind="stable")
    ranked = np.take_along_axis(ids, order, 1)
    repeats = np.zeros(ids.shape, dtype=bool)
    np.put_along_axis(repeats, order[:, 1:], ranked[:, 1:] == ranked[:, :-1], 1)
    return repeats
