"""Training rows for models that learn from whole sequences: a row is a user's history, each video after the first a
target. No Python loop over rows.
"""

from dataclasses import dataclass, fields
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from lsvcr.data.draws import integers
from lsvcr.data.spans import Spans, ranges
from lsvcr.data.store import Dataset
from lsvcr.schema import PAD, Split, Task

Share = Literal["position", "sequence", "batch"]
"""Which targets share their negatives: none, those of a sequence, or those of a batch."""

_NEGATIVE = 7
"""Purpose of a row's random stream."""


@dataclass
class SequenceBatch:
    """B sequences, oldest first, padded with 0 on the right; all tensors are int64.

    Attributes:
        rows: (B,) row numbers.
        video_ids: (B, L) what is read, L >= 1.
        targets: (B, L) the video that comes after each, 0 where there is none.
        negatives: sampled videos, of which any may be a target: (B, L, K), (B, K) or (K,) by what shares them; (0,)
            without negatives.
        times: (B, L) Unix milliseconds of the videos read; 0 = padding.
        next_times: (B, L) of the targets; 0 where there is none.
    """

    rows: Tensor
    video_ids: Tensor
    targets: Tensor
    negatives: Tensor
    times: Tensor
    next_times: Tensor

    def __len__(self) -> int:
        return len(self.rows)

    def to(self, device: torch.device) -> "SequenceBatch":
        """The same batch on another device."""
        moved = {
            field.name: getattr(self, field.name).to(device, non_blocking=True) for field in fields(self)
        }
        return SequenceBatch(**moved)


class SequenceData:
    """Sequences that training may know of: each user's liked videos before what is held out of them.

    Args:
        dataset: the prepared dataset.
        length: videos that are read at most, so that a row has as many targets.
        share: which targets share their negatives.
        windows: a longer history becomes several rows, in which each video but the very first is a target once; False:
            it is one row, of its latest videos, as the literature has it.
    """

    def __init__(
        self, dataset: Dataset, length: int, *, share: Share = "position", windows: bool = False
    ) -> None:
        self.dataset, self.length, self.share = dataset, length, share
        starts = dataset.video_events.offsets[:-1].astype(np.int64)
        ends = known_ends(dataset)
        targets = np.maximum(ends - starts - 1, 0)
        pieces = -(-targets // length) if windows else np.minimum(targets, 1)
        # A history of 25 targets and a length of 10 gives windows of 5, 10 and 10: the latest are full.
        later = np.repeat(pieces, pieces) - 1 - ranges(np.zeros_like(pieces), pieces)
        self._ends = np.repeat(ends, pieces) - later * length
        self._starts = np.maximum(self._ends - length - 1, np.repeat(starts, pieces))
        self.users = np.repeat(np.arange(len(starts)), pieces)

    def __len__(self) -> int:
        return len(self._ends)

    def spans(self, rows: np.ndarray) -> Spans:
        """All videos of these rows (B,), oldest first: the targets and the one before them; at least two each."""
        return Spans(
            self._starts[rows], self._ends[rows] - self._starts[rows], self.dataset.video_events.items
        )

    def terms(self, rows: np.ndarray, keys: tuple[int, int]) -> int:
        """Targets of these rows."""
        return int((self._ends[rows] - self._starts[rows] - 1).sum())

    def training(self, rows: np.ndarray, keys: tuple[int, int], negatives: int = 0) -> SequenceBatch:
        """Batch of rows (B,).

        Args:
            rows: (B,) row numbers.
            keys: (seed, epoch); with a row's number, or the first row's where a batch shares them, they determine the
                negatives.
            negatives: K, drawn uniformly from all videos.
        """
        starts = self._starts[rows]
        counts = self._ends[rows] - starts - 1
        steps = np.arange(int(counts.max(initial=1)))
        inside = steps < counts[:, None]  # (B, L)
        read = np.where(inside, starts[:, None] + steps, 0)
        follow = read + inside
        events = self.dataset.video_events
        arrays = {
            "rows": rows,
            "video_ids": np.where(inside, events.items[read], PAD),
            "targets": np.where(inside, events.items[follow], PAD),
            "negatives": self._negatives(rows, (*keys, _NEGATIVE), negatives, len(steps)),
            "times": np.where(inside, events.times[read], 0),
            "next_times": np.where(inside, events.times[follow], 0),
        }
        return SequenceBatch(
            **{name: torch.from_numpy(array.astype(np.int64)) for name, array in arrays.items()}
        )

    def _negatives(self, rows: np.ndarray, keys: tuple[int, ...], count: int, width: int) -> np.ndarray:
        if not count:
            return np.zeros(0)
        videos = self.dataset.n_videos
        if self.share == "batch":
            return integers(keys, rows[:1], count, videos)[0] + 1
        if self.share == "sequence":
            return integers(keys, rows, count, videos) + 1
        # Counted from the start of the sequence, so that padding changes no draw.
        return integers(keys, rows, width * count, videos).reshape(len(rows), width, count) + 1


def known_ends(dataset: Dataset, held: Split = Split.VAL) -> np.ndarray:
    """Where what is before a held-out split ends in each user's liked videos, int64 (n_users + 1,): positions in the
    events. With `Split.VAL` that is what training may know.

    temporal: before the split's cut time. leave-last: before the user's validation target (`Split.TEST`: before the
    test target, wherever that is), or test target where they have none; what came at the same time and is ordered
    before it belongs to training, as in its samples. Of users without a held-out sample all is known. Users whom only
    held-out samples know of, as the official format has, end where they start.
    """
    events = dataset.video_events
    starts, ends = events.offsets[:-1].astype(np.int64), events.offsets[1:].astype(np.int64)
    cuts = dataset.manifest["split"]["cut_times"]
    if cuts is not None:
        before = np.concatenate([[0], np.cumsum(events.times < cuts[held.value])])
        return starts + before[ends] - before[starts]
    ends = ends.copy()
    for split in (Split.TEST, Split.VAL) if held is Split.VAL else (Split.TEST,):
        samples = dataset.samples(Task.REC, split)
        places = _place(dataset, samples.user, samples.video_end, samples.video, samples.cut)
        np.minimum.at(ends, samples.user, places)
    if dataset.manifest["split"]["name"] == "as given":
        trained = np.zeros(len(ends), bool)
        trained[dataset.samples(Task.REC, Split.TRAIN).user] = True
        ends = np.where(trained, ends, starts)
    return ends


def known_events(dataset: Dataset) -> np.ndarray:
    """Positions of all liked videos that training may know of, int64, user by user."""
    starts = dataset.video_events.offsets[:-1].astype(np.int64)
    return ranges(starts, known_ends(dataset) - starts)


def _place(
    dataset: Dataset, users: np.ndarray, ends: np.ndarray, videos: np.ndarray, times: np.ndarray
) -> np.ndarray:
    """Position of each target (n,) among the events at its time, which begin at `ends`; (n,) int64."""
    events = dataset.video_events
    stops = events.offsets[users + 1].astype(np.int64)
    place = ends.astype(np.int64)
    last = max(0, len(events.items) - 1)
    while True:
        here = np.minimum(place, last)
        ahead = (place < stops) & (events.times[here] == times) & (events.items[here] != videos)
        if not ahead.any():
            return place
        place = place + ahead
