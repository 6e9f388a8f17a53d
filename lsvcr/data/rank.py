"""Stage-two batches: sample numbers in, padded ids out. No text, no floats, no Python loop over samples."""

from dataclasses import dataclass, fields
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from lsvcr.data.draws import integers
from lsvcr.data.joint import joint_samples
from lsvcr.data.negatives import comment_negatives
from lsvcr.data.samplers import Sampler, VideoSampler
from lsvcr.data.spans import Spans, ranges, rows_of
from lsvcr.schema import PAD, Split, Task

if TYPE_CHECKING:
    from lsvcr.data.store import Dataset

POPULAR = 3
"""A video entry shows one of its this many most liked comments in training (LSVCR paper, section 3)."""

_ENTRY_COMMENT, _POSITIVE, _NEGATIVE = range(3)
"""Purposes of a sample's random streams."""


@dataclass
class RankBatch:
    """Ids of B samples. Histories are oldest first, padded with 0 on the right; all tensors are int64.

    Attributes:
        rows: (B,) sample numbers.
        videos: (B,) Rec: the target; CommRank: the watched video.
        video_ids: (B, V) video history, V >= 1.
        video_comments: (B, V) the comment shown with each video, 0 = it has none.
        entry_videos: (B, C) video of each comment-history entry, C >= 1.
        comments: (M,) all comments of all entries, flat.
        comment_entries: (M,) the entry of each, as row * C + step.
        candidates: training: (B, 1 + K), a positive and, for CommRank, K negatives, 0 = fewer were to be had.
            Evaluation: (B, 0).
        negatives: (K,) Rec with sampled negatives: videos drawn for the whole batch, or its targets; else (0,).
        video_times: (B, V) evaluation: Unix milliseconds of the video history, 0 = padding. Training: (B, 0).
        cuts: (B,) Unix milliseconds of the moment at which is asked.
    """

    rows: Tensor
    videos: Tensor
    video_ids: Tensor
    video_comments: Tensor
    entry_videos: Tensor
    comments: Tensor
    comment_entries: Tensor
    candidates: Tensor
    negatives: Tensor
    video_times: Tensor
    cuts: Tensor

    def __len__(self) -> int:
        return len(self.rows)

    def to(self, device: torch.device) -> "RankBatch":
        """The same batch on another device."""
        moved = {
            field.name: getattr(self, field.name).to(device, non_blocking=True) for field in fields(self)
        }
        return RankBatch(**moved)


class RankData:
    """Builds batches of one task and split from a memory-mapped dataset.

    Args:
        dataset: the prepared dataset.
        task, split: which samples.
        max_videos: latest videos of the video history.
        max_entries: latest entries of the comment history. An entry is all that the user did with the comments of
            one video in one visit; a visit that the sample's cut goes through shows what lies before it.
        fill_up: CommRank: where a video has too few comments, those of other videos are negatives too.
        joint: training on both tasks together, so that histories end before what either holds out.
        sampler: Rec: where sampled negatives come from; `in_batch`: a batch's negatives are its targets.
        with_comments: False: for models that read none, batches with empty comment histories.
    """

    def __init__(
        self,
        dataset: "Dataset",
        task: Task,
        split: Split,
        *,
        max_videos: int = 50,
        max_entries: int = 50,
        fill_up: bool = True,
        joint: bool = False,
        sampler: Sampler = "uniform",
        with_comments: bool = True,
    ) -> None:
        self.dataset, self.task, self.split = dataset, task, split
        self._with_comments = with_comments
        self.fill_up = fill_up
        self.max_videos, self.max_entries = max_videos, max_entries
        self.samples = joint_samples(dataset, task, split) if joint else dataset.samples(task, split)
        self._sampler = None if sampler == "in_batch" else VideoSampler(dataset, sampler)

    def __len__(self) -> int:
        return len(self.samples)

    def evaluation(self, rows: np.ndarray) -> RankBatch:
        """Batch of sample numbers (B,): every video entry shows its most liked comment, no candidates."""
        return self._batch(rows, None, np.zeros((len(rows), 0)), np.zeros(0))

    def training(self, rows: np.ndarray, keys: tuple[int, int], negatives: int = 0) -> RankBatch:
        """Batch of sample numbers (B,) with random comments of the entries, positives and negatives.

        Args:
            rows: (B,) sample numbers.
            keys: (seed, epoch); with a sample's number they determine what it draws.
            negatives: K. CommRank: a row's own, of the same video, filled up (`fill_up`) from all comments. Rec:
                drawn from all videos for the batch as a whole, so a draw may be a row's target. What is drawn is a
                function of `keys` and the first row: the same wherever the same rows make a batch, on one process or
                several; cut otherwise, other videos are drawn. Without meaning for the `in_batch` sampler.
        """
        spans = self.positives(rows)
        positive = _at(spans, integers((*keys, _POSITIVE), rows, 1, spans.counts[:, None]))
        purpose = (*keys, _NEGATIVE)
        if self.task is Task.REC:
            targets = self.samples.video[rows]
            # The first row names the stream of the batch.
            shared = targets if self._sampler is None else self._sampler.draw(purpose, rows[:1], negatives)
            return self._batch(rows, keys, positive, shared)
        own = self.video_comments(rows)
        everywhere = self.dataset.n_comments if self.fill_up else 0
        drawn = comment_negatives(purpose, rows, spans, own, negatives, everywhere)
        return self._batch(rows, keys, np.concatenate([positive, drawn], axis=1), np.zeros(0))

    def terms(self, rows: np.ndarray, keys: tuple[int, int]) -> int:
        """The loss of a batch is the mean over its samples."""
        return len(rows)

    def positives(self, rows: np.ndarray) -> Spans:
        """What would be right for each sample: videos (one each) or comments (one or more)."""
        if self.task is Task.REC:
            count = len(rows)
            return Spans(np.arange(count), np.ones(count, dtype=np.int64), self.samples.video[rows])
        positives = self.samples.positives
        assert positives is not None
        return rows_of(positives.offsets, positives.items, rows)

    def video_comments(self, rows: np.ndarray) -> Spans:
        """All comments of each sample's video, most liked first."""
        table = self.dataset.video_comments
        return rows_of(table.offsets, table.items, self.samples.video[rows])

    def seen_videos(self, rows: np.ndarray) -> Spans:
        """Every video the user liked before the cut, not only the latest."""
        events = self.dataset.video_events
        starts = events.offsets[self.samples.user[rows]]
        return Spans(starts, self.samples.video_end[rows] - starts, events.items)

    def _batch(
        self, rows: np.ndarray, keys: tuple[int, int] | None, candidates: np.ndarray, negatives: np.ndarray
    ) -> RankBatch:
        video_ids = self._video_history(rows)
        arrays = {
            "rows": rows,
            "videos": self.samples.video[rows],
            "video_ids": video_ids,
            **(self._comments(rows, video_ids, keys) if self._with_comments else _no_comments(video_ids)),
            "candidates": candidates,
            "negatives": negatives,
            "video_times": self._video_times(rows) if keys is None else np.zeros((len(rows), 0)),
            "cuts": self.samples.cut[rows],
        }
        return RankBatch(**{name: torch.from_numpy(array.astype(np.int64)) for name, array in arrays.items()})

    def _comments(
        self, rows: np.ndarray, video_ids: np.ndarray, keys: tuple[int, int] | None
    ) -> dict[str, np.ndarray]:
        """Those shown with the videos, and the comment history."""
        return {
            "video_comments": self._shown_comments(rows, video_ids, keys),
            **self._comment_history(rows),
        }

    def _video_history(self, rows: np.ndarray) -> np.ndarray:
        """(B, V) int64, the latest videos."""
        return self._latest(self.seen_videos(rows))

    def _video_times(self, rows: np.ndarray) -> np.ndarray:
        """(B, V) int64, when each of them was liked."""
        return self._latest(self.seen_videos(rows)._replace(items=self.dataset.video_events.times))

    def _latest(self, seen: Spans) -> np.ndarray:
        """(B, V) int64, the latest elements of each span."""
        lengths = np.minimum(seen.counts, self.max_videos)
        steps = np.arange(max(1, int(lengths.max(initial=0))))
        return _at(seen._replace(counts=lengths, starts=seen.starts + seen.counts - lengths), steps[None, :])

    def _shown_comments(
        self, rows: np.ndarray, videos: np.ndarray, keys: tuple[int, int] | None
    ) -> np.ndarray:
        """(B, V) int64: for each video one of its popular comments (training) or the most liked."""
        table = self.dataset.video_comments
        own = rows_of(table.offsets, table.items, videos.ravel())
        counts = np.where(videos == PAD, 0, own.counts.reshape(videos.shape))
        if keys is None:
            place = np.zeros(videos.shape, dtype=np.int64)
        else:
            place = integers((*keys, _ENTRY_COMMENT), rows, videos.shape[1], np.minimum(counts, POPULAR))
        return _at(Spans(own.starts, counts.ravel(), own.items), place.reshape(-1, 1)).reshape(videos.shape)

    def _comment_history(self, rows: np.ndarray) -> dict[str, np.ndarray]:
        """The latest entries: their videos (B, C), all comments flat, and the entry of each comment."""
        events = self.dataset.comment_events
        starts, ends = (
            events.offsets[self.samples.user[rows]],
            self.samples.comment_end[rows].astype(np.int64),
        )
        some = ends > starts
        newest = (
            events.groups[np.where(some, ends - 1, 0)].astype(np.int64) if len(events.groups) else ends * 0
        )
        first = _first_at_least(events.groups, starts, ends, newest - self.max_entries + 1)
        counts = ends - first
        flat = ranges(first, counts)
        owner = np.repeat(np.arange(len(rows)), counts)
        groups = events.groups[flat].astype(np.int64)
        base = np.zeros(len(rows), dtype=np.int64)
        base[some] = events.groups[first[some]]
        step = groups - base[owner]
        width = max(1, int(step.max(initial=0)) + 1)
        videos = np.zeros((len(rows), width), dtype=np.int64)
        videos[owner, step] = events.videos[flat]
        return {
            "entry_videos": videos,
            "comments": events.items[flat],
            "comment_entries": owner * width + step,
        }


def _no_comments(video_ids: np.ndarray) -> dict[str, np.ndarray]:
    """What a batch has in place of comments for histories (B, V)."""
    none = np.zeros(0, dtype=np.int64)
    return {
        "video_comments": np.zeros_like(video_ids),
        "entry_videos": np.full((len(video_ids), 1), PAD),
        "comments": none,
        "comment_entries": none,
    }


def _at(spans: Spans, place: np.ndarray) -> np.ndarray:
    """Elements number `place` (B, S) of each span, (B, S) int64; padding beyond its end."""
    inside = place < spans.counts[:, None]
    if not inside.any():
        return np.full(inside.shape, PAD, dtype=np.int64)
    index = np.where(inside, spans.starts[:, None] + place, 0)
    return np.where(inside, spans.items[index].astype(np.int64), PAD)


def _first_at_least(
    values: np.ndarray, starts: np.ndarray, ends: np.ndarray, bound: np.ndarray
) -> np.ndarray:
    """First index in [start, end) whose value reaches the bound, each span being sorted; (B,) int64, end if none.

    A binary search in all spans at once, because a search per span would be a Python loop over the batch.
    """
    low, high = starts.astype(np.int64), ends.astype(np.int64)
    while (open_spans := low < high).any():
        middle = (low + high) // 2
        reached = values[np.where(open_spans, middle, 0)] >= bound
        high = np.where(open_spans & reached, middle, high)
        low = np.where(open_spans & ~reached, middle + 1, low)
    return low
