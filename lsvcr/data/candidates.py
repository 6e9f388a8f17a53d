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

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_CHOICE = np.uint64(1 << 32)
_PLACE = np.uint64(2 << 32)
"""Draw numbers: from 0 which numbers are drawn, from `_CHOICE` which of them stay, from `_PLACE` their order."""


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
        place = _below(_hash(key, rows, _PLACE), width)
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
    if samples.positives is None:
        raise ValueError("comm_rank samples have positives")
    key = _key(seed, Task.COMM_RANK, split)
    lengths, items = [np.zeros(1, np.int64)], [np.zeros(0, np.int32)]
    for start in range(0, len(samples), _ROWS):
        rows = np.arange(start, min(start + _ROWS, len(samples)))
        block_lengths, block = _comment_block(
            key, rows, samples.video[rows], samples.positives, video_comments, candidates
        )
        lengths.append(block_lengths)
        items.append(block)
    return Csr(np.cumsum(np.concatenate(lengths)), np.concatenate(items))


def _comment_block(
    key: np.uint64,
    rows: np.ndarray,
    videos: np.ndarray,
    positives: Csr,
    video_comments: Csr,
    candidates: int,
) -> tuple[np.ndarray, np.ndarray]:
    """(lengths, comments) of a block of rows."""
    local, comments = _drawn_comments(key, rows, videos, video_comments, candidates)
    positions, starts = expand(positives.offsets, rows)
    n_positive = np.diff(starts)
    own_local, own = np.repeat(np.arange(len(rows)), n_positive), positives.items[positions]
    is_other = ~_contains(np.sort(_pairs(own_local, own)), _pairs(local, comments))
    local, comments = local[is_other], comments[is_other]
    # Of the drawn comments that are no positives, as many stay as there is room for.
    order = _order(local, _hash(key, rows[local], _CHOICE + comments.astype(np.uint64)))
    local, comments = local[order], comments[order]
    first = np.searchsorted(local, np.arange(len(rows)))
    stays = np.arange(len(local)) - first[local] < (candidates - n_positive)[local]
    local = np.concatenate([local[stays], own_local])
    comments = np.concatenate([comments[stays], own])
    order = _order(local, _hash(key, rows[local], _PLACE + comments.astype(np.uint64)))
    return np.bincount(local, minlength=len(rows)), comments[order]


def _drawn_comments(
    key: np.uint64, rows: np.ndarray, videos: np.ndarray, video_comments: Csr, candidates: int
) -> tuple[np.ndarray, np.ndarray]:
    """(row in the block, comment): all comments of short lists, `candidates` distinct ones of long lists."""
    starts = video_comments.offsets[videos]
    sizes = video_comments.offsets[videos + 1] - starts
    is_long = sizes > candidates
    short, long = np.flatnonzero(~is_long), np.flatnonzero(is_long)
    positions, bounds = expand(video_comments.offsets, videos[short])
    drawn = starts[long, None] + _distinct(key, rows[long], candidates, sizes[long])
    local = np.concatenate([np.repeat(short, np.diff(bounds)), np.repeat(long, candidates)])
    return local, video_comments.items[np.concatenate([positions, drawn.reshape(-1)])]


def _pairs(local: np.ndarray, comments: np.ndarray) -> np.ndarray:
    """One int64 for each (row, comment)."""
    return local.astype(np.int64) << 32 | comments


def _contains(ascending: np.ndarray, values: np.ndarray) -> np.ndarray:
    """bool (n,): whether each value is in `ascending` (not empty)."""
    found = np.searchsorted(ascending, values)
    return ascending[np.minimum(found, len(ascending) - 1)] == values


def _order(local: np.ndarray, bits: np.ndarray) -> np.ndarray:
    """Stable order by (row in the block, random bits); 48 bits are random enough inside a row."""
    return np.argsort(local.astype(np.uint64) << np.uint64(48) | bits >> np.uint64(16), kind="stable")


def _distinct(key: np.uint64, rows: np.ndarray, k: int, n: np.ndarray | int) -> np.ndarray:
    """int32 (len(rows), k): k distinct numbers below n, every subset as likely (Floyd's method)."""
    if not len(rows):
        # k may be any number that was asked for where no list is as long.
        return np.empty((0, 0), np.int32)
    chosen = np.empty((k, len(rows)), np.int32)
    for step in range(k):
        top = n - k + step
        drawn = _below(_hash(key, rows, np.uint64(step)), top + 1).astype(np.int32)
        again = (chosen[:step] == drawn).any(axis=0)
        chosen[step] = np.where(again, top, drawn)
    return chosen.T


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


def _below(bits: np.ndarray, n: np.ndarray | int) -> np.ndarray:
    """Random bits to int64 numbers below n (n < 2**31; uneven by less than n / 2**32)."""
    high = bits >> np.uint64(32)
    return (high * np.asarray(n, np.uint64) >> np.uint64(32)).astype(np.int64)
