"""Samples that were cut elsewhere, each with whole histories, to the pointers and event arrays of a prepared dataset.

The histories of one user are mostly beginnings of one another. Those that are become one *chain*, a sequence of liked
videos and one of touched comments, so that memory grows with events. A sample whose histories begin otherwise, as
when histories were cut to their latest entries, gets a chain of its own, which is a further user `USER#2`, `USER#3`,
...: bigger, but exactly what the sample says.

Samples have no times. Times here are small counters: an event is earlier than another if its time is smaller, and
equal times say that the order is not known. They are chosen so that a history is what lies before its sample's cut and
the target lies at the cut, as far as a user's samples do not contradict one another.
"""

import sys
from array import array
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import count
from typing import NamedTuple

import numpy as np

from lsvcr.data.official_times import event_times
from lsvcr.data.store import SAMPLE_DTYPE, CommentEvents, Csr, Samples, VideoEvents
from lsvcr.schema import Split, Task

_TRIED = 32
"""A sample is compared with so many of its user's latest chains: histories cut short make one a sample."""

_WORD = 8
"""Bytes of an event in a chain: int64."""


class OfficialSample(NamedTuple):
    """One line of a sample file, as indices."""

    user: str
    videos: bytes
    """Video history, int64 each."""
    comments: bytes
    """Comment history, int64 each, see `comment_codes`."""
    video: int
    """Target (rec) or watched video (comm_rank)."""
    positives: Sequence[int]
    """comm_rank: distinct comments; rec: none."""


class Imported(NamedTuple):
    """All samples as arrays."""

    user_ids: list[str]
    """Of user index i + 1."""
    people: int
    """Users there are in the files."""
    video: VideoEvents
    comment: CommentEvents
    samples: dict[Task, dict[Split, Samples]]
    train_videos: np.ndarray
    """int64 (n_videos + 1,): users who liked the video in a training sample of rec, history or target."""
    train_comments: np.ndarray
    """int64 (n_comments + 1,): users who touched the comment in one of comm_rank, history or positive."""


def comment_codes(videos: Sequence[int], comments: Sequence[Sequence[int]]) -> bytes:
    """Entries of a comment history as int64 events: comment, video, and whether an entry starts here."""
    codes = array("q")
    for video, own in zip(videos, comments, strict=True):
        base = video << 1
        codes.extend([own[0] << 32 | base | 1])
        codes.extend([comment << 32 | base for comment in own[1:]])
    return codes.tobytes()


@dataclass
class _Table:
    """The samples of one task and split, column by column."""

    chain: array = field(default_factory=lambda: array("q"))
    video_end: array = field(default_factory=lambda: array("q"))
    comment_end: array = field(default_factory=lambda: array("q"))
    video: array = field(default_factory=lambda: array("q"))
    positive_offsets: array = field(default_factory=lambda: array("q", [0]))
    positives: array = field(default_factory=lambda: array("q"))

    def column(self, name: str) -> np.ndarray:
        """A column as int64."""
        return np.frombuffer(getattr(self, name), np.int64)

    def target(self, row: int, task: Task) -> bytes:
        """What the user did next, as events of a chain."""
        if task is Task.REC:
            return self.video[row].to_bytes(_WORD, sys.byteorder)
        start, end = self.positive_offsets[row : row + 2]
        return comment_codes([self.video[row]], [self.positives[start:end]])


class Chains:
    """Takes samples one by one and keeps only what is new in them."""

    def __init__(self) -> None:
        self._of_user: dict[str, list[int]] = {}
        self._videos: list[bytearray] = []
        self._comments: list[bytearray] = []
        self._tables = {(task, split): _Table() for task in Task for split in Split}

    def add(self, task: Task, split: Split, sample: OfficialSample) -> None:
        """Add the next sample of a table."""
        table = self._tables[task, split]
        table.chain.append(self._place(sample))
        table.video_end.append(len(sample.videos) // _WORD)
        table.comment_end.append(len(sample.comments) // _WORD)
        table.video.append(sample.video)
        table.positives.extend(sample.positives)
        table.positive_offsets.append(len(table.positives))

    def size(self, task: Task, split: Split) -> int:
        """Samples of a table so far."""
        return len(self._tables[task, split].chain)

    def _place(self, sample: OfficialSample) -> int:
        """The chain that a sample's histories are the beginning of, made longer or new."""
        own = self._of_user.setdefault(sample.user, [])
        for chain in own[-_TRIED:]:
            videos, comments = self._videos[chain], self._comments[chain]
            if _agree(videos, sample.videos) and _agree(comments, sample.comments):
                videos += sample.videos[len(videos) :]
                comments += sample.comments[len(comments) :]
                return chain
        own.append(len(self._videos))
        self._videos.append(bytearray(sample.videos))
        self._comments.append(bytearray(sample.comments))
        return own[-1]

    def finish(self, n_videos: int, n_comments: int) -> Imported:
        """Arrays of everything; nothing may be added afterwards."""
        self._append_targets()
        video_offsets, video_codes = _joined(self._videos)
        comment_offsets, codes = _joined(self._comments)
        video_times, comment_times = self._times(video_offsets, comment_offsets)
        entries = np.cumsum(codes & 1)
        owners = np.repeat(np.arange(len(comment_offsets) - 1), np.diff(comment_offsets))
        video = VideoEvents(video_offsets, video_codes.astype(np.int32), video_times)
        comment = CommentEvents(
            offsets=comment_offsets,
            items=(codes >> 32).astype(np.int32),
            videos=((codes & 0xFFFF_FFFF) >> 1).astype(np.int32),
            times=comment_times,
            groups=(entries - entries[comment_offsets[owners]]).astype(np.int32),
        )
        samples = {
            task: {split: _samples(task, self._tables[task, split], video, comment) for split in Split}
            for task in Task
        }
        people, user_ids = self._people()
        rec, comm_rank = samples[Task.REC][Split.TRAIN], samples[Task.COMM_RANK][Split.TRAIN]
        assert comm_rank.positives is not None  # CommRank samples always have them
        touchers = np.repeat(comm_rank.user, np.diff(comm_rank.positives.offsets))
        videos_known = _shown_pairs(people, video, rec.user, rec.video_end)
        comments_known = _shown_pairs(people, comment, comm_rank.user, comm_rank.comment_end)
        return Imported(
            user_ids=user_ids,
            people=len(self._of_user),
            video=video,
            comment=comment,
            samples=samples,
            train_videos=_people_by_item(videos_known, people[rec.user], rec.video, n_videos),
            train_comments=_people_by_item(
                comments_known, people[touchers], comm_rank.positives.items, n_comments
            ),
        )

    def _append_targets(self) -> None:
        """Put the targets that no history shows, those of a user's last samples, behind the events."""
        missing: dict[tuple[bool, int], dict[bytes, bool]] = {}
        for (task, _), table in self._tables.items():
            is_video = task is Task.REC
            events = self._videos if is_video else self._comments
            ends = table.video_end if is_video else table.comment_end
            for row, (chain, end) in enumerate(zip(table.chain, ends, strict=True)):
                target = table.target(row, task)
                left = len(events[chain]) - end * _WORD
                # The target may be there in part: histories can end inside of an entry.
                if left < len(target) and target.startswith(events[chain][end * _WORD :]):
                    missing.setdefault((is_video, chain), {})[target[left:]] = left == 0
        for (is_video, chain), targets in missing.items():
            rest_first = sorted(targets, key=targets.__getitem__)
            (self._videos if is_video else self._comments)[chain] += b"".join(rest_first)

    def _times(self, video_offsets: np.ndarray, comment_offsets: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        tables = self._tables.values()
        columns = ("chain", "video_end", "comment_end")
        chain, video, comment = (np.concatenate([table.column(name) for table in tables]) for name in columns)
        user = chain + 1
        return event_times(
            video_offsets, comment_offsets, user, video_offsets[user] + video, comment_offsets[user] + comment
        )

    def _people(self) -> tuple[np.ndarray, list[str]]:
        """The person (from 1) behind each user index, int64 (n_users + 1,), and the users' ids."""
        people = np.zeros(len(self._videos) + 1, np.int64)
        ids = [""] * len(self._videos)
        for person, (user, chains) in enumerate(self._of_user.items(), start=1):
            people[np.asarray(chains) + 1] = person
            # An id of this form may be a real user's.
            further = (name for n in count(2) if (name := f"{user}#{n}") not in self._of_user)
            ids[chains[0]] = user
            for chain, name in zip(chains[1:], further, strict=False):
                ids[chain] = name
        return people, ids


def _agree(events: bytearray, history: bytes) -> bool:
    """True when one is the beginning of the other."""
    if len(history) <= len(events):
        return events.startswith(history)
    return history.startswith(events)


def _joined(rows: list[bytearray]) -> tuple[np.ndarray, np.ndarray]:
    """Offsets int64 (n + 2,) with an empty row 0 in front, and all events int64."""
    lengths = [0, 0, *(len(row) // _WORD for row in rows)]
    return np.cumsum(lengths, dtype=np.int64), np.frombuffer(b"".join(rows), np.int64)


def _samples(task: Task, table: _Table, video: VideoEvents, comment: CommentEvents) -> Samples:
    """The pointers of one table. A cut is the time of what comes next, and later than both histories."""
    user = table.column("chain") + 1
    rows = np.empty(len(user), SAMPLE_DTYPE)
    rows["user"], rows["video"] = user, table.column("video")
    rows["video_end"] = video.offsets[user] + table.column("video_end")
    rows["comment_end"] = comment.offsets[user] + table.column("comment_end")
    # Something always comes next: where the histories of a user end, the target was appended.
    if task is Task.REC:
        rows["cut"] = video.times[rows["video_end"]]
    else:
        rows["cut"] = comment.times[rows["comment_end"]]
    for events, name in ((video, "video_end"), (comment, "comment_end")):
        some = np.flatnonzero(rows[name] > events.offsets[user])
        rows["cut"][some] = np.maximum(rows["cut"][some], events.times[rows[name][some] - 1] + 1)
    if task is Task.REC:
        return Samples(rows)
    return Samples(rows, Csr(table.column("positive_offsets"), table.column("positives").astype(np.int32)))


def _shown_pairs(
    people: np.ndarray, events: VideoEvents | CommentEvents, user: np.ndarray, end: np.ndarray
) -> np.ndarray:
    """int64: one number for each (person, item) of the histories of samples (n,)."""
    reach = events.offsets[:-1].copy()
    np.maximum.at(reach, user, end)
    owners = np.repeat(np.arange(len(reach)), np.diff(events.offsets))
    shown = np.arange(len(owners)) < reach[owners]
    return people[owners[shown]] << 32 | events.items[shown]


def _people_by_item(known: np.ndarray, people: np.ndarray, items: np.ndarray, n_items: int) -> np.ndarray:
    """int64 (n_items + 1,): people with each item, among `known` pairs and further (person, item) ones."""
    pairs = np.unique(np.concatenate([known, people << 32 | items]))
    return np.bincount(pairs & 0xFFFF_FFFF, minlength=n_items + 1)
