"""Samples of both tasks and their splits; every history ends strictly before its sample's cut time.

leave-last: a user's last sample is test, the one before it validation, the others training; both tasks on
their own. What one task holds out is then hidden from the histories of both tasks' training samples, because
stage one trains on both together (`hide_held_out`). temporal: two cut times, the same for everybody and both
tasks, taken from the liked videos.
"""

from dataclasses import dataclass, replace
from typing import NamedTuple

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


class HeldOut(NamedTuple):
    """leave-last: position, among the task's events, of each user's first one that is held out; int64 (n_users + 1,).

    A user of whom nothing is held out has the largest int64.
    """

    from_train: np.ndarray
    """From training: the validation target, or the test target of a user without one."""
    from_val: np.ndarray
    """From validation: the test target."""


@dataclass(frozen=True)
class TaskSplits:
    """Samples by split, and which events training may know of (bool, one an event of the task)."""

    samples: dict[Split, Samples]
    is_known: np.ndarray
    held_out: HeldOut


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
    held_out = _held_out(rows["user"], chosen, part, len(video.offsets) - 1)
    return TaskSplits(samples, _known(len(owners), video.times, chosen[part != _TRAIN], cuts), held_out)


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
    entries = np.flatnonzero(_has_history(rows, video.offsets, comment.offsets, min_history))
    part = _parts(rows[entries], cuts)
    samples = {}
    for split, number in _SPLITS.items():
        own = entries[part == number]
        samples[split] = Samples(rows[own], _positives(comment, bounds, own, _end_of(split, cuts)))
    withheld, _ = expand(bounds, entries[part != _TRAIN])
    held_out = _held_out(users[entries], starts[entries], part, len(comment.offsets) - 1)
    return TaskSplits(samples, _known(len(owners), comment.times, withheld, cuts), held_out)


def hide_held_out(
    rec: TaskSplits, comm_rank: TaskSplits, video: VideoEvents, comment: CommentEvents, min_history: int
) -> tuple[TaskSplits, TaskSplits]:
    """leave-last: end the histories of training samples before the user's first held-out event of either task.

    The samples' own cut times keep a task's held-out events from its own training samples, but a user may touch
    comments after the last like, or like videos after the last comment. Validation samples likewise see no test
    target. A sample that is left without history goes.

    Returns:
        Both tasks' splits with shorter histories.
    """

    def hidden(task: TaskSplits) -> TaskSplits:
        samples = dict(task.samples)
        for split in (Split.TRAIN, Split.VAL):
            rows = samples[split].rows.copy()
            for name, held_out in (("video_end", rec.held_out), ("comment_end", comm_rank.held_out)):
                rows[name] = np.minimum(rows[name], getattr(held_out, f"from_{split.value}")[rows["user"]])
            stays = np.flatnonzero(_has_history(rows, video.offsets, comment.offsets, min_history))
            samples[split] = Samples(rows[stays], _taken(samples[split].positives, stays))
        return replace(task, samples=samples)

    return hidden(rec), hidden(comm_rank)


def _has_history(
    rows: np.ndarray, video_offsets: np.ndarray, comment_offsets: np.ndarray, min_history: int
) -> np.ndarray:
    """bool (n,): whether `min_history` liked videos or one comment lie in the histories of a sample."""
    videos = rows["video_end"] - video_offsets[rows["user"]]
    comments = rows["comment_end"] - comment_offsets[rows["user"]]
    return (videos >= min_history) | (comments >= 1)


def _held_out(users: np.ndarray, positions: np.ndarray, part: np.ndarray, n_users: int) -> HeldOut:
    """See `HeldOut`; `positions` (n,) is where the first event of each sample's target lies."""
    test = np.full(n_users, np.iinfo(np.int64).max)
    test[users[part == _TEST]] = positions[part == _TEST]
    val = test.copy()
    val[users[part == _VAL]] = positions[part == _VAL]
    return HeldOut(val, test)


def _taken(rows: Csr | None, chosen: np.ndarray) -> Csr | None:
    if rows is None:
        return None
    positions, offsets = expand(rows.offsets, chosen)
    return Csr(offsets, rows.items[positions])


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
