"""Samples of click models: a history, a video that was shown, and whether it was clicked. No Python loop over rows.

Where a dataset has impressions, they are the samples. Elsewhere each liked video is one, and k videos that the user had
not liked until then are passed-over ones of the same moment.
"""

from dataclasses import dataclass, fields
from typing import Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from lsvcr.data.draws import integers
from lsvcr.data.histories import count_before
from lsvcr.data.rank_sequences import known_ends
from lsvcr.data.store import Dataset
from lsvcr.schema import Split, Task
from lsvcr.utils.errors import UserError

Source = Literal["impressions", "sampled"]

CONTEXT = 4
"""Numbers of `ClickBatch.context`."""

_NEGATIVE = 9
"""Purpose of a row's random stream."""

_DRAWS = 16
"""Draws of a passed-over video; where the user had liked all of them, the next that they had not liked is taken."""

_BLOCK = 1 << 16
"""Rows that are looked at together."""

_HOUR, _DAY = 3_600_000, 86_400_000
_NEVER = np.iinfo(np.int64).max


@dataclass
class ClickBatch:
    """B samples; int64 but for labels and context.

    Attributes:
        rows: (B,) row numbers.
        ids: (B, L + 1) the history, oldest first, then the candidate, padded with 0 on the right.
        places: (B,) where the candidate stands: the length of the history.
        labels: (B,) float32: 1 = clicked.
        context: (B, CONTEXT) float32: log of 1 + videos liked so far, log of 1 + hours since the latest (0 without
            one), and sine and cosine of the time of day (UTC).
    """

    rows: Tensor
    ids: Tensor
    places: Tensor
    labels: Tensor
    context: Tensor

    def __len__(self) -> int:
        return len(self.rows)

    def to(self, device: torch.device) -> "ClickBatch":
        """The same batch on another device."""
        moved = {
            field.name: getattr(self, field.name).to(device, non_blocking=True) for field in fields(self)
        }
        return ClickBatch(**moved)


class Moments(NamedTuple):
    """What some rows are about.

    Attributes:
        users: (B,) int64.
        times: (B,) int64 Unix milliseconds; the history is strictly earlier.
        videos: (B,) int64, the candidates.
        labels: (B,) int64, 1 = clicked.
    """

    users: np.ndarray
    times: np.ndarray
    videos: np.ndarray
    labels: np.ndarray


class ClickData:
    """Samples of one split; the same in every epoch.

    Args:
        dataset: with times.
        split: in time, as the dataset's own split is: what lies behind its cut for validation or test is that split's.
        length: latest liked videos of the history.
        source: `impressions`, or `sampled`.
        negatives: k, passed-over videos of each liked one where they are sampled.
        seed: of these.

    Raises:
        UserError: the dataset cannot serve the source, or the split lacks clicks or passes.
    """

    def __init__(
        self,
        dataset: Dataset,
        split: Split,
        *,
        length: int,
        source: Source,
        negatives: int = 4,
        seed: int = 2024,
    ) -> None:
        self.dataset, self.split, self.length, self.source = dataset, split, length, source
        self._keys = (seed, _NEGATIVE, list(Split).index(split))
        self._liked = None if source == "impressions" else LikedBefore(dataset)
        self._together = 1 if source == "impressions" else 1 + negatives
        self._starts, ends = _spans(dataset, split, source)
        self._until = np.cumsum(ends - self._starts)
        if source == "impressions" and not self._has_both():
            raise UserError(
                f"{dataset.root}: of the impressions of the {split.value} split none was clicked, or all were; use "
                "--click_samples sampled, or prepare more data"
            )
        if not len(self):
            raise UserError(
                f"{dataset.root} has no liked video in its {split.value} split; prepare more data"
            )

    def __len__(self) -> int:
        return int(self._until[-1]) * self._together

    def terms(self, rows: np.ndarray, keys: tuple[int, int]) -> int:
        """The loss of a batch is the mean over its samples."""
        return len(rows)

    def training(self, rows: np.ndarray, keys: tuple[int, int] = (0, 0), negatives: int = 0) -> ClickBatch:
        """Batch of rows (B,); neither `keys` nor `negatives` changes what the samples are."""
        moments, events = self.moments(rows), self.dataset.video_events
        starts = events.offsets[moments.users].astype(np.int64)
        ends = count_before(events.times, events.offsets, moments.users, moments.times)
        counts = np.minimum(ends - starts, self.length)
        steps = np.arange(int(counts.max(initial=0)) + 1)
        inside = steps < counts[:, None]
        ids = np.zeros(inside.shape, dtype=np.int64)
        ids[inside] = events.items[((ends - counts)[:, None] + steps)[inside]]
        ids[np.arange(len(rows)), counts] = moments.videos
        since = np.zeros(len(rows))
        some = ends > starts
        since[some] = (moments.times[some] - events.times[ends[some] - 1]) / _HOUR
        arrays = {
            "rows": rows,
            "ids": ids,
            "places": counts,
            "labels": moments.labels.astype(np.float32),
            "context": _context(ends - starts, since, moments.times),
        }
        return ClickBatch(**{name: torch.from_numpy(array) for name, array in arrays.items()})

    def moments(self, rows: np.ndarray) -> Moments:
        """What rows (B,) are about."""
        groups, place = np.divmod(rows, self._together)
        users = np.searchsorted(self._until, groups, side="right")
        positions = self._starts[users] + groups - np.where(users > 0, self._until[users - 1], 0)
        if self._liked is None:
            shown = self.dataset.impressions
            assert shown is not None
            return Moments(
                users,
                shown.times[positions].astype(np.int64),
                shown.items[positions].astype(np.int64),
                shown.clicked[positions].astype(np.int64),
            )
        events = self.dataset.video_events
        times, videos = events.times[positions].astype(np.int64), events.items[positions].astype(np.int64)
        passed = place > 0
        videos[passed] = self._passed_over(rows[passed], users[passed], times[passed])
        return Moments(users, times, videos, (~passed).astype(np.int64))

    def _has_both(self) -> bool:
        """Whether some impressions of the split were clicked and some were not; looks until it has seen both."""
        seen: set[int] = set()
        for start in range(0, len(self), _BLOCK):
            rows = np.arange(start, min(start + _BLOCK, len(self)))
            seen |= set(np.unique(self.moments(rows).labels).tolist())
            if len(seen) > 1:
                return True
        return False

    def _passed_over(self, rows: np.ndarray, users: np.ndarray, times: np.ndarray) -> np.ndarray:
        """A video for each row (B,) that the user had not liked at that time: a function of seed and row."""
        assert self._liked is not None
        drawn = integers(self._keys, rows, _DRAWS, self.dataset.n_videos) + 1
        liked = self._liked(users[:, None], drawn, times[:, None])
        videos = drawn[np.arange(len(rows)), np.where(liked.all(axis=1), -1, liked.argmin(axis=1))]
        while (again := self._liked(users, videos, times)).any():
            videos = np.where(again, videos % self.dataset.n_videos + 1, videos)
        return videos


class LikedBefore:
    """Answers whether somebody had liked a video by some time.

    Raises:
        UserError: a user likes every video, so that nothing can be passed over.
    """

    def __init__(self, dataset: Dataset) -> None:
        events = dataset.video_events
        self._stride = dataset.n_videos + 1
        owners = np.repeat(np.arange(len(events.offsets) - 1), np.diff(events.offsets))
        # Of equal ones the first, which is the earliest: a user's events are in the order of time.
        self._pairs, first = np.unique(owners * self._stride + events.items, return_index=True)
        self._times = events.times[first]
        most = np.bincount(self._pairs // self._stride).max(initial=0)
        if most >= dataset.n_videos:
            raise UserError(
                f"{dataset.root}: a user likes all {dataset.n_videos} videos, so that none can stand for one they "
                "passed over; prepare more data"
            )

    def __call__(self, users: np.ndarray, videos: np.ndarray, times: np.ndarray) -> np.ndarray:
        """Of (user, video) pairs, whatever their common shape: liked at or before the time? bool."""
        wanted = users * self._stride + videos
        place = np.minimum(np.searchsorted(self._pairs, wanted), len(self._pairs) - 1)
        found: np.ndarray = (self._pairs[place] == wanted) & (self._times[place] <= times)
        return found


def choose_source(dataset: Dataset, asked: Literal["auto", "impressions", "sampled"]) -> Source:
    """`auto` is impressions where there are any.

    Raises:
        UserError: impressions are asked for and not there.
    """
    if asked == "impressions" and dataset.impressions is None:
        raise UserError(
            f"{dataset.root} has no impressions; use --click_samples sampled, or prepare it from a source that has "
            "them (kuaicomt, tables)"
        )
    if asked == "auto":
        return "sampled" if dataset.impressions is None else "impressions"
    return asked


def cut_times(dataset: Dataset, held: Split) -> np.ndarray:
    """int64 (n_users + 1,) Unix milliseconds: from when on what a user is shown belongs to a held-out split or a later.

    temporal: the split's cut. leave-last: the time of the user's validation target or test target, whichever comes
    first (`Split.TEST`: of the test target); of users without one the end of time.
    """
    cuts = dataset.manifest["split"]["cut_times"]
    if cuts is not None:
        return np.full(dataset.n_users + 1, cuts[held.value], dtype=np.int64)
    found = np.full(dataset.n_users + 1, _NEVER)
    for split in (Split.TEST, Split.VAL) if held is Split.VAL else (Split.TEST,):
        samples = dataset.samples(Task.REC, split)
        np.minimum.at(found, samples.user, samples.cut)
    return found


def _spans(dataset: Dataset, split: Split, source: Source) -> tuple[np.ndarray, np.ndarray]:
    """Where each user's part of a split begins and ends, among the impressions or the liked videos: (n_users + 1,)."""
    users = np.arange(dataset.n_users + 1)
    if source == "impressions":
        shown = dataset.impressions
        assert shown is not None
        bounds = [shown.offsets[:-1].astype(np.int64)]
        for held in (Split.VAL, Split.TEST):
            bounds.append(count_before(shown.times, shown.offsets, users, cut_times(dataset, held)))
        bounds.append(shown.offsets[1:].astype(np.int64))
    else:
        offsets = dataset.video_events.offsets.astype(np.int64)
        bounds = [offsets[:-1], *(known_ends(dataset, held) for held in (Split.VAL, Split.TEST)), offsets[1:]]
    number = list(Split).index(split)
    return bounds[number], bounds[number + 1]


def _context(liked: np.ndarray, hours: np.ndarray, times: np.ndarray) -> np.ndarray:
    """(B, CONTEXT) float32, see `ClickBatch`."""
    angle = times % _DAY * (2 * np.pi / _DAY)
    columns = [np.log1p(liked), np.log1p(hours), np.sin(angle), np.cos(angle)]
    return np.stack(columns, axis=1).astype(np.float32)
