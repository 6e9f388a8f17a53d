"""Wide batches of stage one: a few texts read afresh by the LLM, and many samples that learn from them.

A prompt costs hundreds of tokens and teaches one sample. A title costs fifteen and is the target of several
training samples: all of these can learn from it in one step, if the other texts of their histories come from a cache.
So can the samples of one watched video from some of its comments.
"""

from dataclasses import dataclass, fields, replace

import numpy as np
import torch
from torch import Tensor

from lsvcr.data.rank import RankBatch, RankData
from lsvcr.data.text_bank import TextBank, comment_code, video_code
from lsvcr.schema import PAD, Task
from lsvcr.utils.seeding import generator

COMMENTS_READ = 8
"""Comments of one watched video that are read afresh, more where more of them are positives."""

_ORDER_STREAM, _ROW_STREAM, _COMMENT_STREAM = 61, 62, 63


@dataclass
class WideBatch:
    """Fresh texts and the samples that rank them, in a numbering of its own.

    Attributes:
        task: Rec: the fresh texts are titles. CommRank: comments.
        fresh: (N,) int64 indices of the fresh videos or comments.
        texts: their N token id lists.
        samples: B samples. Fresh texts have the numbers 1 .. N of their kind, cached ones those that follow; what a
            history shows is cached, what is ranked is fresh. Candidates: Rec (B, 1), the target; CommRank (B, 1 + K),
            a positive and fresh comments of the same video that are none, 0 = fewer.
        cached_videos, cached_comments: (V,) and (C,) int64 indices of the cached texts, in the order of their numbers.
    """

    task: Task
    fresh: Tensor
    texts: list[list[int]]
    samples: RankBatch
    cached_videos: Tensor
    cached_comments: Tensor

    def to(self, device: torch.device) -> "WideBatch":
        """The same batch on another device."""
        kept = ("task", "texts")
        moved = {f.name: getattr(self, f.name).to(device) for f in fields(self) if f.name not in kept}
        return replace(self, **moved)

    @property
    def tokens(self) -> int:
        """Tokens that the LLM reads for it, without padding."""
        return sum(map(len, self.texts))


class WideStream:
    """The wide batch of every micro-step and process: a function of (seed, number).

    Samples are grouped by their video: Rec by target, CommRank by watched video in groups of at most `per_group`.
    Groups come in one random order behind another; what is left of an order when it makes no whole batch any more is
    passed over. Process r of W takes the r-th part of a joined batch, so that this is the same however it is cut.

    Args:
        data: training samples of one task.
        bank: token ids of titles and comments.
        groups: of one micro-step, of all processes together. Rec: as many fresh titles.
        per_group: most samples of a group that learn in one step.
        seed: of order and draws.
    """

    def __init__(self, data: RankData, bank: TextBank, *, groups: int, per_group: int, seed: int) -> None:
        self._data, self._bank, self._seed = data, bank, seed
        self._groups, self._per_group = groups, per_group
        self.task = data.task
        videos = np.asarray(data.samples.video)
        self._rows = np.argsort(videos, kind="stable")
        if self.task is Task.COMM_RANK:
            comments = np.diff(data.dataset.video_comments.offsets)
            self._rows = self._rows[comments[videos[self._rows]] > 1]  # one comment alone ranks itself
        starts = np.unique(videos[self._rows], return_index=True)[1]
        if self.task is Task.COMM_RANK:
            place = np.arange(len(self._rows)) - np.repeat(starts, np.diff([*starts, len(self._rows)]))
            starts = np.flatnonzero(place % per_group == 0)
        self._starts, self._ends = starts, np.append(starts[1:], len(self._rows))
        self._round, self._order = -1, np.zeros(0, dtype=np.int64)

    def __len__(self) -> int:
        """Groups there are."""
        return len(self._starts)

    def batch(self, number: int, rank: int, world: int) -> WideBatch:
        """The part of process `rank` of `world` in the joined batch `number`."""
        groups = [self._drawn(number, place) for place in self._places(number, rank, world)]
        batch = self._data.training(np.concatenate(groups), (self._seed, number))
        if self.task is Task.COMM_RANK:
            batch = replace(batch, candidates=self._candidates(number, groups, batch.candidates[:, 0]))
        fresh = batch.candidates[batch.candidates != PAD].unique()
        code = video_code if self.task is Task.REC else comment_code
        texts = self._bank.ids([code(int(index)) for index in fresh])
        return _renumbered(self.task, batch, fresh, list(texts.values()))

    def _places(self, number: int, rank: int, world: int) -> np.ndarray:
        """Numbers of the groups in this process's part of the joined batch."""
        joined = min(self._groups, len(self))
        round_, turn = divmod(number, len(self) // joined)
        if round_ != self._round:
            self._round = round_
            self._order = generator(self._seed, _ORDER_STREAM, round_).permutation(len(self))
        return np.array_split(self._order[turn * joined : (turn + 1) * joined], world)[rank]

    def _drawn(self, number: int, place: int) -> np.ndarray:
        rows = self._rows[self._starts[place] : self._ends[place]]
        if len(rows) <= self._per_group:
            return rows
        return generator(self._seed, _ROW_STREAM, number, int(place)).choice(
            rows, self._per_group, replace=False
        )

    def _candidates(self, number: int, groups: list[np.ndarray], positives: Tensor) -> Tensor:
        """(B, 1 + K): each row's drawn positive, then what is read of its video but none of its positives."""
        lists: list[np.ndarray] = []
        for rows in groups:
            drawn = positives[len(lists) : len(lists) + len(rows)].numpy()
            read = self._read(number, rows, drawn)
            right = self._data.positives(rows)
            lists += [
                np.append(drawn[i], np.setdiff1d(read, right.items[start : start + count]))
                for i, (start, count) in enumerate(zip(right.starts, right.counts, strict=True))
            ]
        width = max(map(len, lists))
        return torch.from_numpy(np.stack([np.pad(row, (0, width - len(row))) for row in lists]))

    def _read(self, number: int, rows: np.ndarray, drawn: np.ndarray) -> np.ndarray:
        """Comments of a group's video that are read: the drawn positives, and others up to `COMMENTS_READ`."""
        every = self._data.video_comments(rows[:1])
        first = every.starts[0]
        others = np.setdiff1d(every.items[first : first + every.counts[0]], drawn)
        positives = np.unique(drawn)
        rng = generator(self._seed, _COMMENT_STREAM, number, int(rows[0]))
        more = min(len(others), max(0, COMMENTS_READ - len(positives)))
        return np.concatenate([positives, rng.choice(others, more, replace=False)]).astype(np.int64)


def _renumbered(task: Task, batch: RankBatch, fresh: Tensor, texts: list[list[int]]) -> WideBatch:
    """Replace dataset indices by the numbers of the few texts that the batch needs.

    Histories show a fresh text as the cache has it: its new state may be on another process.
    """
    is_rec = task is Task.REC
    watched = batch.videos[:0] if is_rec else batch.videos
    videos = torch.cat([batch.video_ids.flatten(), batch.entry_videos.flatten(), watched]).unique()
    comments = torch.cat([batch.video_comments.flatten(), batch.comments]).unique()
    videos, comments = videos[videos != PAD], comments[comments != PAD]
    fresh_number = _Numbers(fresh)
    video_number = _Numbers(videos, after=len(fresh) if is_rec else 0)
    comment_number = _Numbers(comments, after=0 if is_rec else len(fresh))
    samples = replace(
        batch,
        videos=(fresh_number if is_rec else video_number)(batch.videos),
        video_ids=video_number(batch.video_ids),
        entry_videos=video_number(batch.entry_videos),
        candidates=fresh_number(batch.candidates),
        video_comments=comment_number(batch.video_comments),
        comments=comment_number(batch.comments),
    )
    return WideBatch(task, fresh, texts, samples, videos, comments)


class _Numbers:
    """`after` + position + 1 of each index in `listed`, sorted; 0 stays 0, and only listed indices may be asked for."""

    def __init__(self, listed: Tensor, after: int = 0) -> None:
        self._listed, self._first = listed, after + 1

    def __call__(self, ids: Tensor) -> Tensor:
        return torch.where(ids > 0, torch.searchsorted(self._listed, ids) + self._first, 0)
