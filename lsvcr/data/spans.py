"""Ragged rows in NumPy: parts of a flat array, for a whole batch at a time."""

from typing import NamedTuple

import numpy as np


class Spans(NamedTuple):
    """Row i is `items[starts[i] : starts[i] + counts[i]]`."""

    starts: np.ndarray
    """(B,) int64."""
    counts: np.ndarray
    """(B,) int64."""
    items: np.ndarray
    """Any integers; may be memory-mapped."""

    def flat(self) -> np.ndarray:
        """All rows one after another, (sum of counts,) int64."""
        return self.items[ranges(self.starts, self.counts)].astype(np.int64)

    def owner(self) -> np.ndarray:
        """Row number of each element of `flat`, int64."""
        return np.repeat(np.arange(len(self.counts), dtype=np.int64), self.counts)

    def kept(self, mask: np.ndarray) -> "Spans":
        """The rows reduced to the elements of `flat` where `mask` holds."""
        counts = np.bincount(self.owner()[mask], minlength=len(self.counts))
        return Spans(np.cumsum(counts) - counts, counts, self.flat()[mask])

    def contains(self, rows: np.ndarray, ids: np.ndarray) -> np.ndarray:
        """For pairs of row numbers and ids (same shape, ids not negative): is the id in that row? bool."""
        known = self.flat()
        if len(known) == 0:
            return np.zeros(ids.shape, dtype=bool)
        stride = int(max(known.max(), ids.max(initial=0))) + 1
        members = np.sort(self.owner() * stride + known)
        wanted = rows * stride + ids
        found = np.minimum(np.searchsorted(members, wanted), len(members) - 1)
        return members[found] == wanted


def rows_of(offsets: np.ndarray, items: np.ndarray, rows: np.ndarray) -> Spans:
    """The named rows (B,) of a CSR table."""
    starts = offsets[rows].astype(np.int64)
    return Spans(starts, offsets[rows + 1] - starts, items)


def ranges(starts: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """start, start + 1, ... of every span, one after another: (sum of counts,) int64."""
    before = np.cumsum(counts) - counts
    return np.repeat(starts - before, counts) + np.arange(int(counts.sum()), dtype=np.int64)
