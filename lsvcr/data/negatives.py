"""Negatives of a batch, drawn for all its samples in one NumPy pass."""

from collections.abc import Iterator

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
    for banned in _columns(positives):
        usable &= ids != banned[:, None]
    usable &= ~_repeated(np.where(usable, ids, PAD))
    first = np.argsort(~usable, axis=1, kind="stable")[:, :k]
    return np.where(np.take_along_axis(usable, first, 1), np.take_along_axis(ids, first, 1), PAD)


def _columns(spans: Spans) -> Iterator[np.ndarray]:
    """The first element of each row, the second, ...: (B,) each, 0 where a row has no more."""
    for place in range(int(spans.counts.max(initial=0))):
        column = np.zeros(len(spans.counts), dtype=np.int64)
        there = place < spans.counts
        column[there] = spans.items[spans.starts[there] + place]
        yield column


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
    width = ids.shape[1]
    # Sorting (id, column) as one number is several times as fast as a stable argsort of the ids.
    ranked = np.sort(ids * width + np.arange(width), axis=1)
    again = ranked[:, 1:] // width == ranked[:, :-1] // width
    repeats = np.zeros(ids.shape, dtype=bool)
    np.put_along_axis(repeats, ranked[:, 1:] % width, again, 1)
    return repeats
