"""Events as flat arrays with offsets, and searches inside every user's slice at once."""

from collections.abc import Iterator

import numpy as np

from lsvcr.data.store import Csr


def offsets_of(owners: np.ndarray, n: int) -> np.ndarray:
    """int64 (n + 2,): where the slice of each owner 0..n starts, in arrays sorted by owner (0 is padding)."""
    counts = np.bincount(owners, minlength=n + 1)
    return np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)


def first_of_ties(owners: np.ndarray, times: np.ndarray) -> np.ndarray:
    """int64 (n,): position of the first event with the same owner and time; what lies before it is earlier.

    Args:
        owners, times: (n,) sorted by (owner, time).
    """
    starts = _changes(owners) | _changes(times)
    return np.maximum.accumulate(np.where(starts, np.arange(len(owners)), 0))


def entry_numbers(owners: np.ndarray, videos: np.ndarray, offsets: np.ndarray) -> np.ndarray:
    """int32 (n,): number of the history entry each comment event is part of, from 0 in every user.

    Consecutive events of a user under the same video are one entry.
    """
    total = np.cumsum(_changes(owners) | _changes(videos))
    first = offsets[owners]
    return (total - total[first]).astype(np.int32)


def count_before(times: np.ndarray, offsets: np.ndarray, owners: np.ndarray, cuts: np.ndarray) -> np.ndarray:
    """Exclusive end, in `times`, of each owner's events that are strictly earlier than a cut time.

    Args:
        times: (n_events,) ascending inside each owner's slice `offsets[o] : offsets[o + 1]`.
        owners, cuts: (n,) whose slice and which cut.

    Returns:
        int64 (n,) positions p with `times[offsets[o] : p] < cut <= times[p : offsets[o + 1]]`.
    """
    low = offsets[owners]
    high = offsets[owners + 1]
    # A binary search of all rows side by side: as many rounds as the longest slice has bits.
    longest = int((high - low).max(initial=0))
    for _ in range(longest.bit_length()):
        middle = (low + high) // 2
        is_open = low < high
        earlier = is_open.copy()
        earlier[is_open] = times[middle[is_open]] < cuts[is_open]
        low = np.where(earlier, middle + 1, low)
        high = np.where(is_open & ~earlier, middle, high)
    return low


def comments_by_video(videos: np.ndarray, likes: np.ndarray, n_videos: int) -> Csr:
    """Comments of each video, most liked first, ties by comment index.

    Args:
        videos: (n_comments,) video index of comment i + 1.
        likes: (n_comments,) like counts.
    """
    order = np.lexsort((-likes, videos))
    return Csr(offsets_of(videos, n_videos), (order + 1).astype(np.int32))


def expand(offsets: np.ndarray, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Positions of all entries of the slices `rows`, one slice after the other.

    Returns:
        positions int64 (total,) in the flat array, and starts int64 (len(rows) + 1,) of each slice in it.
    """
    lengths = offsets[rows + 1] - offsets[rows]
    starts = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    inside = np.arange(starts[-1]) - np.repeat(starts[:-1], lengths)
    return np.repeat(offsets[rows], lengths) + inside, starts


def owners_between(offsets: np.ndarray, first: int, last: int) -> np.ndarray:
    """int64: the owner of each element of the slices `first` ... `last - 1`."""
    return np.repeat(np.arange(first, last), np.diff(offsets[first : last + 1]))


def blocks(offsets: np.ndarray, size: int) -> Iterator[tuple[int, int]]:
    """(first, last) of consecutive runs of slices that hold about `size` elements together, at least one slice."""
    total, first = len(offsets) - 1, 0
    while first < total:
        last = int(np.searchsorted(offsets, offsets[first] + size, side="right")) - 1
        last = min(max(last, first + 1), total)
        yield first, last
        first = last


def _changes(values: np.ndarray) -> np.ndarray:
    """bool (n,): True where a value differs from the one before it, and at the start."""
    changed = np.ones(len(values), bool)
    changed[1:] = values[1:] != values[:-1]
    return changed
