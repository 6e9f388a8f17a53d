"""Checks of the stored evaluation candidates, row by row."""

import numpy as np

from lsvcr.data.audit_tally import Check, Tally, chunks
from lsvcr.data.histories import expand
from lsvcr.data.store import Csr, Dataset, Samples
from lsvcr.schema import Split, Task

_ROWS = 1 << 14
"""Rows looked at together: about a million and a half candidates."""


def candidate_checks(dataset: Dataset, task: Task, split: Split, video_of: np.ndarray) -> list[Check]:
    """Range, repeats, positives, and for comm_rank the video.

    Args:
        dataset, task, split: whose candidates.
        video_of: (n_comments + 1,) video of each comment.
    """
    where = f"{task.value}.{split.value}.candidates"
    samples, table = dataset.samples(task, split), dataset.candidates(task, split)
    offsets = table.offsets
    tally = Tally(where, len(samples))
    if len(offsets) != len(samples) + 1 or offsets[-1] != len(table.items) or (np.diff(offsets) < 0).any():
        tally.mark("offsets_in_order", np.zeros(1, np.int64), np.ones(1, bool))
        return tally.checks()
    most = dataset.n_videos if task is Task.REC else dataset.n_comments
    for start, stop in chunks(len(samples), _ROWS):
        rows = np.arange(start, stop)
        places, starts = expand(offsets, rows)
        local = np.repeat(np.arange(len(rows)), np.diff(starts))
        items = table.items[places].astype(np.int64)
        legal = (items >= 1) & (items <= most)
        _mark(tally, "candidates_in_range", rows, local[~legal])
        keys = np.sort(local << 32 | items)
        _mark(tally, "candidates_distinct", rows, keys[1:][np.diff(keys) == 0] >> 32)
        owners, wanted = _positives(samples, rows)
        wanted = owners << 32 | wanted
        times = np.searchsorted(keys, wanted, side="right") - np.searchsorted(keys, wanted)
        _mark(tally, "candidates_hold_positives", rows, owners[times != 1])
        if task is Task.COMM_RANK:
            other = legal & (video_of[np.where(legal, items, 0)] != samples.video[rows][local])
            _mark(tally, "candidates_of_the_video", rows, local[other])
    return tally.checks()


def _positives(samples: Samples, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(place of the row, item) of every positive, int64."""
    if samples.positives is None:
        return np.arange(len(rows)), samples.video[rows].astype(np.int64)
    positives: Csr = samples.positives
    places, starts = expand(positives.offsets, rows)
    return np.repeat(np.arange(len(rows)), np.diff(starts)), positives.items[places].astype(np.int64)


def _mark(tally: Tally, name: str, rows: np.ndarray, failing: np.ndarray) -> None:
    """Mark a chunk whose rows at the places `failing` (with repeats) fail."""
    bad = np.zeros(len(rows), bool)
    bad[failing] = True
    tally.mark(name, rows, bad)
