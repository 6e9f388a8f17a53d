"""Stored evaluation candidates, the same on every machine.

Every random number is a hash of (seed, task, split, row, draw), so that a row's candidates depend neither on
the rows around it nor on how the work is cut into chunks.
"""

import numpy as np

from lsvcr.data.histories import expand
from lsvcr.data.store import Csr, Samples
from lsvcr.schema import Split, Task

_ROWS = 16_384
"""Rows worked on together; bounds the memory of the duplicate search."""
_ENTRIES = 4_000_000
"""Comments laid out together when rows are drawn from long comment lists."""

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_LAYOUT_DRAW = 1 << 32
"""Draw numbers from here on place what was drawn, so that they never repeat a drawing's number."""


def rec_candidates(samples: Samples, n_videos: int, candidates: int, seed: int, split: Split) -> np.ndarray:
    """The target and uniform distinct other videos, in random order.

    Only the target and padding are excluded from the negatives: the user's history is not (LSVCR's protocol).

    Returns:
        int32 (n, min(candidates, n_videos)).
    """
    width = min(candidates, n_videos)
    key = _key(seed, Task.REC, split)
    out = np.empty((len(samples), width), np.int32)
    for start in range(0, len(samples), _ROWS):
        rows = np.arange(start, min(start + _ROWS, len(samples)))
        targets = samples.video[rows]
        negatives = 1 + _distinct(key, rows, width - 1, n_videos - 1)
        negatives += negatives >= targets[:, None]
        block = np.concatenate([negatives, targets[:, None]], axis=1)
        place = _below(_hash(key, rows, np.uint64(_LAYOUT_DRAW)), width)
        # The target changes places with whatever stands where it is to go.
        block[:, -1] = block[np.arange(len(rows)), place]
        block[np.arange(len(rows)), place] = targets
        out[rows] = block
    return out


def comm_rank_candidates(
    samples: Samples, video_comments: Csr, candidates: int, seed: int, split: Split
) -> Csr:
    """All comments of the watched video, or its positives and random others, in random order.

    A row holds at most `candidates` comments, unless it has more positives than that: they all stay.
    """
    key = _key(seed, Task.COMM_RANK, split)
    sizes = (video_comments.offsets[samples.video + 1] - video_comments.offsets[samples.video]).astype(
        np.int64
    )
    lengths, items = [np.zeros(1, np.int64)], [np.zeros(0, np.int32)]
    start = 0
    totals = np.cumsum(sizes)
    while start < len(samples):
        done = totals[start - 1] if start else 0
        stop = max(start + 1, int(np.searchsorted(totals, done + _ENTRIES, side="right")))
        rows = np.arange(start, stop)
        block_lengths, block = _draw_comments(key, rows, samples, video_comments, candidates)
        lengths.append(block_lengths)
        items.append(block)
        start = stop
    return Csr(np.cumsum(np.concatenate(lengths)), np.concatenate(items))


def _draw_comments(
    key: np.uint64, rows: np.ndarray, samples: Samples, video_comments: Csr, candidates: int
) -> tuple[np.ndarray, np.ndarray]:
    """(lengths, comments) of a block of rows."""
    positions, starts = expand(video_comments.offsets, samples.video[rows].astype(np.int64))
    lengths = np.diff(starts)
    inside = np.arange(starts[-1]) - np.repeat(starts[:-1], lengths)
    local = np.repeat(np.arange(len(rows)), lengths)
    comments = video_comments.items[positions]
    positive = _is_positive(rows, samples, local, comments)
    draw = _hash(key, rows[local], inside.astype(np.uint64))
    # Positives come first in the drawing; the others by their random number.
    order = np.lexsort((draw, ~positive, local))
    rank = np.empty(len(order), np.int64)
    rank[order] = inside
    taken = positive | (rank < candidates)
    place = _hash(key, rows[local], inside.astype(np.uint64) + np.uint64(_LAYOUT_DRAW))
    order = np.lexsort((place[taken], local[taken]))
    return np.bincount(local[taken], minlength=len(rows)), comments[taken][order]


def _is_positive(rows: np.ndarray, samples: Samples, local: np.ndarray, comments: np.ndarray) -> np.ndarray:
    """bool (n_entries,): whether a comment is among its row's positives."""
    if samples.positives is None:
        raise ValueError("comm_rank samples have positives")
    positions, starts = expand(samples.positives.offsets, rows)
    owners = np.repeat(np.arange(len(rows)), np.diff(starts))
    shift = np.int64(1) << 32
    wanted = owners * shift + samples.positives.items[positions]
    return np.isin(local * shift + comments, wanted)


def _distinct(key: np.uint64, rows: np.ndarray, k: int, n: int) -> np.ndarray:
    """int64 (len(rows), k): k distinct numbers below n, every subset as likely (Floyd's method)."""
    chosen = np.empty((len(rows), k), np.int64)
    for step in range(k):
        top = n - k + step
        drawn = _below(_hash(key, rows, np.uint64(step)), top + 1)
        again = (chosen[:, :step] == drawn[:, None]).any(axis=1)
        chosen[:, step] = np.where(again, top, drawn)
    return chosen


def _key(seed: int, task: Task, split: Split) -> np.uint64:
    numbers = (seed, list(Task).index(task), list(Split).index(split))
    return np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0]


def _hash(key: np.uint64, rows: np.ndarray, draws: np.ndarray | np.uint64) -> np.ndarray:
    """uint64 random bits for each (row, draw): two rounds of splitmix64, which wraps around by design."""
    with np.errstate(over="ignore"):
        return _mix(_mix(key + rows.astype(np.uint64) * _GOLDEN) + (draws + np.uint64(1)) * _GOLDEN)


def _mix(bits: np.ndarray) -> np.ndarray:
    bits = (bits ^ (bits >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    bits = (bits ^ (bits >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return bits ^ (bits >> np.uint64(31))


def _below(bits: np.ndarray, n: int) -> np.ndarray:
    """Random bits to int64 numbers below n (n < 2**31; uneven by less than n / 2**32)."""
    return ((bits >> np.uint64(32)) * np.uint64(n) >> np.uint64(32)).astype(np.int64)
