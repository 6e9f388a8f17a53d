"""What must hold in every prepared dataset, looked at over all rows: no leak, no broken pointer, honest candidates.

Rows go through in chunks, so that memory does not grow with their number. A check never raises on bad data: it counts.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from lsvcr.data.audit_candidates import candidate_checks
from lsvcr.data.audit_events import event_checks, video_of_comments
from lsvcr.data.audit_tally import Check, Tally, chunks
from lsvcr.data.histories import count_before, expand
from lsvcr.data.joint import joint_samples
from lsvcr.data.store import CommentEvents, Dataset, VideoEvents
from lsvcr.schema import Split, Task
from lsvcr.utils.io import sha256_file

NEVER = np.iinfo(np.int64).max
"""A position or time that nothing reaches."""

HELD_OUT = {Split.TRAIN: (Split.VAL, Split.TEST), Split.VAL: (Split.TEST,), Split.TEST: ()}
"""Whose targets a split must not know."""

CUT_ELSEWHERE = "official"
"""Samples of this source keep the histories and candidates of their files; times are made to fit them."""

OF_OUR_CUT = {
    "each_event_once",
    "video_history_complete",
    "comment_history_complete",
    "target_at_cut",
    "split_order",
    "one_row_a_user",
    "counts_leave_out_held_out",
}
"""What `lsvcr prepare` promises of samples that it cuts itself."""


def audit(dataset: Dataset) -> list[Check]:
    """Every check of a dataset, each over all rows it speaks of.

    Where offsets or indices of the events are broken, only those are reported: nothing else could be read. Of samples
    that were cut elsewhere, what only our own cut promises (`OF_OUR_CUT`) is not asked.
    """
    checks = _all_checks(dataset)
    if dataset.manifest.get("source") == CUT_ELSEWHERE:
        return [check for check in checks if check.name not in OF_OUR_CUT]
    return checks


def _all_checks(dataset: Dataset) -> list[Check]:
    checks = [_files_check(dataset), *event_checks(dataset)]
    if any(check.failed for check in checks if check.is_basis):
        return checks
    world = _World(dataset)
    for task in Task:
        for split in Split:
            checks += _sample_checks(world, task, split)
    if not any(check.failed for check in checks if check.is_basis):
        for task in Task:
            checks += [*_joint_checks(world, task, Split.TRAIN), *_joint_checks(world, task, Split.VAL)]
    for task in Task:
        checks += [_counts_check(world, task)]
        for split in (Split.VAL, Split.TEST):
            checks += candidate_checks(dataset, task, split, world.video_of)
    return checks


def _files_check(dataset: Dataset) -> Check:
    """`first` is the name of the first changed file."""
    files = dataset.manifest["files"]
    changed = [name for name, entry in files.items() if sha256_file(dataset.root / name) != entry["sha256"]]
    return Check("files_as_prepared", "manifest", len(files), len(changed), changed[0] if changed else None)


@dataclass(frozen=True)
class _Targets:
    """The targets of some samples, each with its event. P targets of n samples."""

    sample: np.ndarray
    """(P,) int64: place of the sample in its chunk."""
    item: np.ndarray
    """(P,) int64: video (rec) or comment (comm_rank)."""
    place: np.ndarray
    """(P,) int64: position of its event at or after the history's end, -1 = the user has none there."""


class _Rows:
    """A chunk of samples as plain columns; those that cannot be followed are left out of all but `is_sound`."""

    def __init__(self, world: "_World", task: Task, split: Split, start: int, stop: int) -> None:
        samples = world.samples[task, split]
        rows = samples.rows[start:stop]
        user, video = rows["user"].astype(np.int64), rows["video"].astype(np.int64)
        ends = {Task.REC: rows["video_end"], Task.COMM_RANK: rows["comment_end"]}
        dataset = world.dataset
        sound = (user >= 1) & (user <= dataset.n_users) & (video >= 1) & (video <= dataset.n_videos)
        owner = np.where(sound, user, 0)
        inside = {
            side: (events.offsets[owner] <= ends[side]) & (ends[side] <= events.offsets[owner + 1])
            for side, events in world.events.items()
        }
        self.is_sound = sound & inside[Task.REC] & inside[Task.COMM_RANK]
        self.number = start + np.flatnonzero(self.is_sound)
        self.user, self.video = user[self.is_sound], video[self.is_sound]
        self.cut = rows["cut"][self.is_sound].astype(np.int64)
        self.end = {side: ends[side][self.is_sound].astype(np.int64) for side in Task}


class _World:
    """What the checks of one dataset share."""

    def __init__(self, dataset: Dataset) -> None:
        self.dataset = dataset
        self.events: dict[Task, VideoEvents | CommentEvents] = {
            Task.REC: dataset.video_events,
            Task.COMM_RANK: dataset.comment_events,
        }
        self.samples = {(task, split): dataset.samples(task, split) for task in Task for split in Split}
        self.video_of = video_of_comments(dataset)
        times = dataset.manifest.get("split", {}).get("cut_times")
        self.ends = {Split.TRAIN: times["val"], Split.VAL: times["test"]} if times else {}
        """temporal: the time at which a split ends."""
        self.first = {(side, split): self._first(side, split) for side in Task for split in HELD_OUT}
        """Position of each user's first event that is a held-out target of this side, by the split that must not
        know it."""

    @property
    def is_temporal(self) -> bool:
        """Split by time, not user by user."""
        return bool(self.ends)

    def rows(self, task: Task, split: Split) -> Iterator[tuple[int, int, _Rows]]:
        """(start, stop, rows) of all samples, a chunk at a time."""
        for start, stop in chunks(len(self.samples[task, split])):
            yield start, stop, _Rows(self, task, split, start, stop)

    def targets(self, task: Task, split: Split, rows: _Rows) -> _Targets:
        """The targets of a chunk and their events."""
        samples, events = self.samples[task, split], self.events[task]
        if samples.positives is None:
            sample, item = np.arange(len(rows.user)), rows.video
        else:
            places, starts = expand(samples.positives.offsets, rows.number)
            sample = np.repeat(np.arange(len(rows.user)), np.diff(starts))
            item = samples.positives.items[places].astype(np.int64)
        start = self._first_candidate(events, rows, task)
        place = _find(events.items, start[sample], events.offsets[rows.user[sample] + 1], item)
        return _Targets(sample, item, place)

    def _first_candidate(self, events: VideoEvents | CommentEvents, rows: _Rows, task: Task) -> np.ndarray:
        """Where to look for a sample's target: at the end of its history, or at its cut if that lies further on."""
        start = rows.end[task].copy()
        short = np.flatnonzero(start < events.offsets[rows.user + 1])
        short = short[events.times[start[short]] < rows.cut[short]]
        start[short] = count_before(events.times, events.offsets, rows.user[short], rows.cut[short])
        return start

    def _first(self, side: Task, split: Split) -> np.ndarray:
        """(n_users + 1,) int64, `NEVER` where there is none; under the temporal split nothing is held out by user."""
        first = np.full(self.dataset.n_users + 1, NEVER)
        if self.is_temporal:
            return first
        for held in HELD_OUT[split]:
            for _, _, rows in self.rows(side, held):
                targets = self.targets(side, held, rows)
                found = targets.place >= 0
                np.minimum.at(first, rows.user[targets.sample[found]], targets.place[found])
        return first


def _sample_checks(world: _World, task: Task, split: Split) -> list[Check]:
    """All that is said of one table of samples."""
    tally = Tally(f"{task.value}.{split.value}", len(world.samples[task, split]))
    held = _held_keys(world, task, split)
    low, high = _cut_bounds(world, task, split)
    seen = np.zeros(world.dataset.n_users + 1, bool)
    for start, stop, rows in world.rows(task, split):
        tally.mark("pointers_inside", np.arange(start, stop), ~rows.is_sound)
        for side in Task:
            tally.mark(f"{_SIDE[side]}_before_cut", rows.number, _reaches_cut(world, side, rows))
            tally.mark(f"{_SIDE[side]}_complete", rows.number, _stops_early(world, side, rows))
        beyond = rows.end[task] > world.first[task, split][rows.user]
        tally.mark("no_held_out_in_history", rows.number, beyond)
        tally.mark("split_order", rows.number, (rows.cut < low) | (rows.cut > high[rows.user]))
        targets = world.targets(task, split, rows)
        for name, bad in _target_checks(world, task, split, rows, targets, held):
            tally.mark(name, rows.number, bad)
        if split is not Split.TRAIN and not world.is_temporal:
            again = seen[rows.user]
            again |= ~np.isin(np.arange(len(again)), np.unique(rows.user, return_index=True)[1])
            seen[rows.user] = True
            tally.mark("one_row_a_user", rows.number, again)
    return tally.checks()


_SIDE = {Task.REC: "video_history", Task.COMM_RANK: "comment_history"}


def _reaches_cut(world: _World, side: Task, rows: _Rows) -> np.ndarray:
    """bool: the last event of the history is not earlier than the cut; the events of a user are sorted."""
    events, end = world.events[side], rows.end[side]
    bad = end > events.offsets[rows.user]
    bad[bad] = events.times[end[bad] - 1] >= rows.cut[bad]
    return bad


def _stops_early(world: _World, side: Task, rows: _Rows) -> np.ndarray:
    """bool: the event behind the history is earlier than the cut."""
    events, end = world.events[side], rows.end[side]
    bad = end < events.offsets[rows.user + 1]
    bad[bad] = events.times[end[bad]] < rows.cut[bad]
    return bad


def _joint_checks(world: _World, task: Task, split: Split) -> list[Check]:
    """Histories as stage one sees them, which trains on both tasks together."""
    rows = joint_samples(world.dataset, task, split).rows
    tally = Tally(f"{task.value}.{split.value}.joint", len(rows))
    for start, stop in chunks(len(rows)):
        part = rows[start:stop]
        ends = {Task.REC: part["video_end"], Task.COMM_RANK: part["comment_end"]}
        beyond = [ends[side] > world.first[side, split][part["user"]] for side in Task]
        tally.mark("no_held_out_in_joint_history", np.arange(start, stop), beyond[0] | beyond[1])
    return tally.checks()


def _target_checks(
    world: _World, task: Task, split: Split, rows: _Rows, targets: _Targets, held: np.ndarray
) -> Iterator[tuple[str, np.ndarray]]:
    """(check, bool a row of the chunk: it fails)."""
    events, count = world.events[task], len(rows.user)
    found = targets.place >= 0
    time = _at(events.times, np.where(found, targets.place, NEVER), NEVER)
    earliest = np.full(count, NEVER)
    np.minimum.at(earliest, targets.sample, time)
    absent = np.bincount(targets.sample, weights=~found, minlength=count) > 0
    yield "target_at_cut", (earliest != rows.cut) | absent
    known = _among(held, _keys(rows.user[targets.sample], targets.item))
    yield "no_held_out_target", np.bincount(targets.sample, weights=known, minlength=count) > 0
    if split in world.ends:
        late = time >= world.ends[split]
        yield "targets_before_split_end", np.bincount(targets.sample, weights=late, minlength=count) > 0
    if task is Task.COMM_RANK:
        inside = (targets.item >= 1) & (targets.item <= world.dataset.n_comments)
        other = world.video_of[np.where(inside, targets.item, 0)] != rows.video[targets.sample]
        yield "positives_of_the_video", np.bincount(targets.sample, weights=other, minlength=count) > 0


def _cut_bounds(world: _World, task: Task, split: Split) -> tuple[int, np.ndarray]:
    """The earliest legal cut, and (n_users + 1,) int64 the latest one of each user."""
    latest = np.full(world.dataset.n_users + 1, NEVER)
    if world.is_temporal:
        starts = {Split.VAL: world.ends[Split.TRAIN], Split.TEST: world.ends[Split.VAL]}
        if split in world.ends:
            latest[:] = world.ends[split] - 1
        return starts.get(split, -NEVER), latest
    for held in HELD_OUT[split]:
        for _, _, rows in world.rows(task, held):
            np.minimum.at(latest, rows.user, rows.cut)
    return -NEVER, latest


def _held_keys(world: _World, task: Task, split: Split) -> np.ndarray:
    """Ascending (user, item) keys of all targets that samples of `split` must not have."""
    keys = [np.zeros(0, np.int64)]
    for held in HELD_OUT[split]:
        for _, _, rows in world.rows(task, held):
            targets = world.targets(task, held, rows)
            keys.append(_keys(rows.user[targets.sample], targets.item))
    return np.sort(np.concatenate(keys))


def _counts_check(world: _World, task: Task) -> Check:
    """The counts that training knows leave out what is held out."""
    events, dataset = world.events[task], world.dataset
    stored = dataset.train_counts() if task is Task.REC else dataset.comment_train_counts()
    most = np.zeros(len(stored), np.int64)
    for start, stop in chunks(len(events.items)):
        items = events.items[start:stop]
        if world.is_temporal:
            items = items[events.times[start:stop] < world.ends[Split.TRAIN]]
        most += np.bincount(items, minlength=len(stored))
    if not world.is_temporal:
        held = _held_keys(world, task, Split.TRAIN) & _ITEM
        most -= np.bincount(held[held < len(stored)], minlength=len(stored))
    tally = Tally(f"{task.value}.train_counts", len(stored))
    tally.mark("counts_leave_out_held_out", np.arange(len(stored)), stored > most)
    return tally.checks()[0]


_ITEM = (1 << 31) - 1


def _keys(users: np.ndarray, items: np.ndarray) -> np.ndarray:
    """One int64 for each (user, item)."""
    return users.astype(np.int64) << 31 | items


def _among(ascending: np.ndarray, keys: np.ndarray) -> np.ndarray:
    """bool: which keys are in a sorted array."""
    if not len(ascending):
        return np.zeros(len(keys), bool)
    place = np.searchsorted(ascending, keys)
    return ascending[np.minimum(place, len(ascending) - 1)] == keys


def _at(values: np.ndarray, places: np.ndarray, absent: int) -> np.ndarray:
    """int64: values at `places`, `absent` where a place is `NEVER`."""
    found = np.full(len(places), absent, np.int64)
    real = places != NEVER
    found[real] = values[places[real]]
    return found


def _find(items: np.ndarray, starts: np.ndarray, stops: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """int64: first position in [start, stop) that holds the wanted item, -1 where none does.

    Each round looks at one position of every open row; a target stands near its start, so the rows soon close.
    """
    found = np.full(len(starts), -1, np.int64)
    open_rows = np.flatnonzero(starts < stops)
    step = 0
    while len(open_rows):
        at = starts[open_rows] + step
        hit = items[at] == wanted[open_rows]
        found[open_rows[hit]] = at[hit]
        step += 1
        open_rows = open_rows[~hit]
        open_rows = open_rows[starts[open_rows] + step < stops[open_rows]]
    return found
