"""Samples of both tasks and their splits; every history ends strictly before its sample's cut time.

leave-last: a user's last sample is test, the one before it validation, the others training; both tasks on
their own. temporal: two cut times, the same for everybody and both tasks, taken from the liked videos.
"""

from dataclasses import dataclass

import numpy as np

from lsvcr.data.histories import count_before, expand, first_of_ties, offsets_of
from lsvcr.data.store import SAMPLE_DTYPE, CommentEvents, Csr, Samples, VideoEvents
from lsvcr.schema import Split

_TRAIN, _VAL, _TEST = range(3)
_SPLITS = {Split.TRAIN: _TRAIN, Split.VAL: _VAL, Split.TEST: _TEST}


@dataclass(frozen=True)
class TimeCuts:
    """temporal split: validation starts at `val`, test at `test` (Unix ms, inclusive)."""

    val: int
    test: int


@dataclass(frozen=True)
class TaskSplits:
    """Samples by split, and which events training may know of (bool, one an event of the task)."""

    samples: dict[Split, Samples]
    is_known: np.ndarray


def time_cuts(times: np.ndarray, val_share: float, test_share: float) -> TimeCuts:
    """The times after which the last `test_share` of the events, and `val_share` before them, lie.

    Events with the same time stay together, in the later part.
    """
    order = np.sort(times)
    last = len(order) - 1
    test = order[min(last, round(len(order) * (1 - test_share)))]
    val = order[min(last, round(len(order) * (1 - test_share - val_share)))]
    return TimeCuts(int(val), int(test))


def rec_splits(
    video: VideoEvents, comment: CommentEvents, min_history: int, cuts: TimeCuts | None
) -> TaskSplits:
    """A sample for each liked video with at least `min_history` strictly earlier ones."""
    owners = _owners(video.offsets)
    ends = first_of_ties(owners, video.times)
    chosen = np.flatnonzero(ends - video.offsets[owners] >= min_history)
    rows = np.empty(len(chosen), SAMPLE_DTYPE)
    rows["user"] = owners[chosen]
    rows["cut"] = video.times[chosen]
    rows["video_end"] = ends[chosen]
    rows["comment_end"] = count_before(comment.times, comment.offsets, owners[chosen], rows["cut"])
    rows["video"] = video.items[chosen]
    part = _parts(rows, cuts)
    samples = {split: Samples(rows[part == number]) for split, number in _SPLITS.items()}
    return TaskSplits(samples, _known(len(owners), video.times, chosen[part != _TRAIN], cuts))


def comm_rank_splits(
    video: VideoEvents, comment: CommentEvents, min_history: int, cuts: TimeCuts | None
) -> TaskSplits:
    """A sample for each entry of a comment history that has something before it.

    That is `min_history` liked videos or one comment, strictly earlier than the entry's first event.
    Under the temporal split an entry may reach over a cut time: the comments behind it are no positives.
    """
    owners = _owners(comment.offsets)
    starts = _entry_starts(owners, comment.groups)
    bounds = np.append(starts, len(owners))
    users, times = owners[starts], comment.times[starts]
    rows = np.empty(len(starts), SAMPLE_DTYPE)
    rows["user"] = users
    rows["cut"] = times
    rows["video_end"] = count_before(video.times, video.offsets, users, times)
    rows["comment_end"] = count_before(comment.times, comment.offsets, users, times)
    rows["video"] = comment.videos[starts]
    videos_before = rows["video_end"] - video.offsets[users]
    comments_before = rows["comment_end"] - comment.offsets[users]
    entries = np.flatnonzero((videos_before >= min_history) | (comments_before >= 1))
    part = _parts(rows[entries], cuts)
    samples = {}
    for split, number in _SPLITS.items():
        own = entries[part == number]
        samples[split] = Samples(rows[own], _positives(comment, bounds, own, _end_of(split, cuts)))
    withheld, _ = expand(bounds, entries[part != _TRAIN])
    return TaskSplits(samples, _known(len(owners), comment.times, withheld, cuts))


def _owners(offsets: np.ndarray) -> np.ndarray:
    """int64 (n_events,): the user of each event."""
    return np.repeat(np.arange(len(offsets) - 1), np.diff(offsets))


def _entry_starts(owners: np.ndarray, groups: np.ndarray) -> np.ndarray:
    """Positions of the first event of each entry."""
    is_start = np.ones(len(owners), bool)
    is_start[1:] = (owners[1:] != owners[:-1]) | (groups[1:] != groups[:-1])
    return np.flatnonzero(is_start)


def _parts(rows: np.ndarray, cuts: TimeCuts | None) -> np.ndarray:
    """int (n,): the split of each sample; rows are sorted by user and then in the user's order."""
    if cuts is not None:
        return np.digitize(rows["cut"], [cuts.val, cuts.test])
    users = rows["user"]
    ends = offsets_of(users, int(users.max(initial=0)))[users + 1]
    from_end = ends - 1 - np.arange(len(rows))
    return np.select([from_end == 0, from_end == 1], [_TEST, _VAL], _TRAIN)


def _end_of(split: Split, cuts: TimeCuts | None) -> int | None:
    """The time at which a split ends, if it ends by time."""
    if cuts is None or split is Split.TEST:
        return None
    return cuts.val if split is Split.TRAIN else cuts.test


def _positives(comment: CommentEvents, bounds: np.ndarray, entries: np.ndarray, end: int | None) -> Csr:
    """The comments of each entry, those at or after `end` left out (its first is always before it)."""
    positions, starts = expand(bounds, entries)
    if end is None:
        return Csr(starts, comment.items[positions])
    inside = comment.times[positions] < end
    kept = np.concatenate([[0], np.cumsum(inside)])
    return Csr(kept[starts].astype(np.int64), comment.items[positions[inside]])


def _known(n_events: int, times: np.ndarray, withheld: np.ndarray, cuts: TimeCuts | None) -> np.ndarray:
    if cuts is not None:
        return times < cuts.val
    known = np.ones(n_events, bool)
    known[withheld] = False
    return known
