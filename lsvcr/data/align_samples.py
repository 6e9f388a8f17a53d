"""Samples of stage one: what each branch sees of one pointer of the prepared dataset."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from lsvcr.data.augment import augmented_entries, popular_comment, shown_comments, split_comments
from lsvcr.data.joint import joint_samples
from lsvcr.data.prompts import SHOWN_COMMENTS
from lsvcr.data.store import Dataset, Samples
from lsvcr.schema import Split, Task
from lsvcr.utils.errors import UserError
from lsvcr.utils.seeding import generator

TASK_NUMBER = {Task.REC: 0, Task.COMM_RANK: 1}

_SUBSET_STREAM = 11
"""First key after the seed of the random stream that draws a subset of the samples."""


class CommentEntry(NamedTuple):
    """One entry of a comment history: a video and the comments each branch sees there."""

    video: int
    llm: list[int]
    sr: list[int]


class VideoEntry(NamedTuple):
    """One entry of a video history: a video and the comment each branch sees with it (0 = none)."""

    video: int
    llm: int
    sr: int


@dataclass(frozen=True)
class AlignSample:
    """One sample, still as indices. Histories are oldest first."""

    row: int
    """Number that names the sample among all of its split: 2 * row of the task's table + task."""
    task: Task
    videos: list[VideoEntry]
    comments: list[CommentEntry]
    target: int
    """Video (Rec) or comment (CommRank)."""
    watched: int
    """CommRank: the video being watched; Rec: 0."""
    positives: list[int]
    """All targets that would be right for this sample, `target` among them."""
    comments_first: bool


class AlignSamples:
    """The stage-one samples of one split, both tasks behind one another.

    Args:
        dataset: a prepared dataset.
        split: where the pointers come from.
        tasks: which tasks, Rec first.
        per_task: use this many samples of each task, drawn once from `seed`; 0 = all.
        seed: of the subset.
        max_videos, max_comments: the latest entries of each history that a sample has.
        augment: training samples show the branches different comments.
        joint: histories end before what either task holds out from the split, as both are trained on together.

    Raises:
        UserError: the split has no sample of these tasks.
    """

    def __init__(
        self,
        dataset: Dataset,
        split: Split,
        tasks: Iterable[Task],
        *,
        max_videos: int,
        max_comments: int,
        per_task: int = 0,
        seed: int = 0,
        augment: bool = True,
        joint: bool = True,
    ) -> None:
        self._dataset = dataset
        self._max_videos, self._max_comments, self._augment = max_videos, max_comments, augment
        self._split, self._joint = split, joint
        self._tables = self._open(tasks)
        rows = []
        for task, table in self._tables.items():
            chosen = _subset(len(table), per_task, seed, TASK_NUMBER[task])
            rows.append(2 * chosen + TASK_NUMBER[task])
        self.rows = np.concatenate(rows)
        """(n,) int64: the `AlignSample.row` of every sample here."""
        if not len(self.rows):
            raise UserError(
                f"{dataset.root} has no {split.value} samples of {' and '.join(task.label for task in self._tables)}: "
                "prepare it from more data, or train on the other task with --tasks"
            )

    def __getstate__(self) -> dict[str, Any]:
        # A worker process maps the tables itself instead of receiving their content.
        return {**self.__dict__, "_tables": list(self._tables)}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._tables = self._open(state["_tables"])

    def _open(self, tasks: Iterable[Task]) -> dict[Task, Samples]:
        found = joint_samples if self._joint else Dataset.samples
        return {task: found(self._dataset, task, self._split) for task in tasks}

    def __len__(self) -> int:
        return len(self.rows)

    def counts(self) -> dict[Task, int]:
        """Samples of each task."""
        return {task: int((self.rows % 2 == TASK_NUMBER[task]).sum()) for task in self._tables}

    def training(self, index: int, rng: np.random.Generator) -> AlignSample:
        """Sample `index` as training sees it: random comments, target, order and augmentation, all from `rng`."""
        return self._sample(int(self.rows[index]), rng)

    def evaluation(self, index: int) -> AlignSample:
        """Sample `index` as evaluation sees it: the same every time."""
        return self._sample(int(self.rows[index]), None)

    def _sample(self, number: int, rng: np.random.Generator | None) -> AlignSample:
        row, task = number // 2, Task.COMM_RANK if number % 2 else Task.REC
        table = self._tables[task]
        user, video = int(table["user"][row]), int(table["video"][row])
        videos = self._videos(user, int(table["video_end"][row]), rng)
        comments = self._comments(user, int(table["comment_end"][row]), rng)
        if task is Task.REC:
            positives, watched = [video], 0
        else:
            assert table.positives is not None  # CommRank samples always have them
            positives, watched = [int(comment) for comment in table.positives.row(row)], video
        chosen = 0 if rng is None else int(rng.integers(len(positives)))
        return AlignSample(
            row=number,
            task=task,
            videos=videos,
            comments=comments,
            target=positives[chosen],
            watched=watched,
            positives=positives,
            comments_first=False if rng is None else bool(rng.random() < 0.5),
        )

    def _videos(self, user: int, end: int, rng: np.random.Generator | None) -> list[VideoEntry]:
        events = self._dataset.video_events
        start = max(int(events.offsets[user]), end - self._max_videos)
        videos = [int(video) for video in events.items[start:end]]
        popular = [self._dataset.video_comments.row(video) for video in videos]
        if rng is None:
            tops = [int(row[0]) if len(row) else 0 for row in popular]
            return [VideoEntry(video, top, top) for video, top in zip(videos, tops, strict=True)]
        augmented = self._draw_augmented(len(videos), rng)
        pairs = [popular_comment(row, bool(flag), rng) for row, flag in zip(popular, augmented, strict=True)]
        return [VideoEntry(video, *pair) for video, pair in zip(videos, pairs, strict=True)]

    def _comments(self, user: int, end: int, rng: np.random.Generator | None) -> list[CommentEntry]:
        groups = latest_groups(self._dataset, user, end, self._max_comments)
        if rng is None:
            return [CommentEntry(video, own[:SHOWN_COMMENTS], own) for video, own in groups]
        augmented = self._draw_augmented(len(groups), rng)
        entries = []
        for (video, own), flag in zip(groups, augmented, strict=True):
            llm, sr = own, own
            if flag:
                llm, sr = split_comments(own, self._dataset.video_comments.row(video), rng)
            entries.append(CommentEntry(video, shown_comments(llm, SHOWN_COMMENTS, rng), sr))
        return entries

    def _draw_augmented(self, entries: int, rng: np.random.Generator) -> np.ndarray:
        drawn = augmented_entries(entries, rng)
        return drawn if self._augment else np.zeros_like(drawn)


def latest_groups(dataset: Dataset, user: int, end: int, limit: int) -> list[tuple[int, list[int]]]:
    """The latest `limit` entries of a comment history before event `end`: (video, its distinct comments)."""
    events = dataset.comment_events
    start = int(events.offsets[user])
    if end <= start or limit <= 0:
        return []
    groups = np.asarray(events.groups[start:end])
    start += int(np.searchsorted(groups, groups[-1] - limit, side="right"))
    groups = np.asarray(events.groups[start:end])
    items, videos = np.asarray(events.items[start:end]), np.asarray(events.videos[start:end])
    cuts = np.flatnonzero(np.diff(groups)) + 1
    return [
        (int(video[0]), list(dict.fromkeys(own.tolist())))
        for video, own in zip(np.split(videos, cuts), np.split(items, cuts), strict=True)
    ]


def _subset(total: int, wanted: int, seed: int, task: int) -> np.ndarray:
    if wanted <= 0 or wanted >= total:
        return np.arange(total, dtype=np.int64)
    return np.sort(generator(seed, _SUBSET_STREAM, task).choice(total, size=wanted, replace=False)).astype(
        np.int64
    )
