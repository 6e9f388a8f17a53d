"""Wide Rec batches of stage one: a few titles read afresh by the LLM, and many samples that learn from them.

A prompt costs hundreds of tokens and teaches one sample. A title costs fifteen and is the target of several
training samples: all of these can learn from it in one step, if the other texts of their histories come from a cache.
"""

from dataclasses import dataclass, fields, replace
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from lsvcr.data.rank import RankBatch, RankData
from lsvcr.data.rounds import Rounds
from lsvcr.data.text_bank import TextBank, video_code
from lsvcr.schema import PAD
from lsvcr.utils.seeding import generator

_ORDER_STREAM, _ROW_STREAM = 61, 62

_Batch = TypeVar("_Batch", bound="FreshTexts")


@dataclass
class FreshTexts:
    """Texts that a step reads afresh, and what a sub-class learns from them.

    Attributes:
        codes: (N,) int64, see `video_code` and `comment_code`.
        texts: their N token id lists.
    """

    codes: Tensor
    texts: list[list[int]]

    def to(self: _Batch, device: torch.device) -> _Batch:
        """The same batch on another device."""
        moved = {f.name: getattr(self, f.name).to(device) for f in fields(self) if f.name != "texts"}
        return replace(self, **moved)

    @property
    def tokens(self) -> int:
        """Tokens that the LLM reads for it, without padding."""
        return sum(map(len, self.texts))


@dataclass
class WideBatch(FreshTexts):
    """Fresh titles and the samples that rank them, in a numbering of its own.

    Attributes:
        codes: (N,) int64 codes of the fresh titles (`video_code`), rising.
        texts: their N token id lists.
        samples: B samples. Fresh titles have the numbers 1 .. N, cached ones those that follow; what a history shows
            is cached, what is ranked is fresh. Comments are all cached. Candidates: (B, 1), the target.
        cached_videos, cached_comments: (V,) and (C,) int64 indices of the cached texts, in the order of their numbers.
    """

    samples: RankBatch
    cached_videos: Tensor
    cached_comments: Tensor


class WideStream:
    """The wide batch of every micro-step and process: a function of (seed, number).

    Process r of W takes the r-th part of a joined batch, so that this is the same however it is cut.

    Args:
        data: training samples of Rec.
        bank: token ids of titles.
        titles: fresh ones of one micro-step, of all processes together (`Rounds`).
        per_title: most samples of a title that learn in one step.
        seed: of order and draws.
    """

    def __init__(self, data: RankData, bank: TextBank, *, titles: int, per_title: int, seed: int) -> None:
        self._data, self._bank, self._seed, self._per_title = data, bank, seed, per_title
        videos = np.asarray(data.samples.video)
        self._rows = np.argsort(videos, kind="stable")
        self._starts = np.unique(videos[self._rows], return_index=True)[1]
        self._ends = np.append(self._starts[1:], len(self._rows))
        self._rounds = Rounds(len(self._starts), titles, seed, _ORDER_STREAM)

    def __len__(self) -> int:
        """Titles there are."""
        return len(self._starts)

    def batch(self, number: int, rank: int, world: int) -> WideBatch:
        """The part of process `rank` of `world` in the joined batch `number`."""
        places = np.array_split(self._rounds.batch(number), world)[rank]
        rows = np.concatenate([self._drawn(number, place) for place in places])
        batch = self._data.training(rows, (self._seed, number))
        fresh = batch.videos.unique()
        texts = self._bank.ids([video_code(int(video)) for video in fresh])
        return _renumbered(batch, fresh, list(texts.values()))

    def _drawn(self, number: int, place: int) -> np.ndarray:
        rows = self._rows[self._starts[place] : self._ends[place]]
        if len(rows) <= self._per_title:
            return rows
        return generator(self._seed, _ROW_STREAM, number, int(place)).choice(
            rows, self._per_title, replace=False
        )


def _renumbered(batch: RankBatch, fresh: Tensor, texts: list[list[int]]) -> WideBatch:
    """Replace dataset indices by the numbers of the few texts that the batch needs.

    Histories show a fresh title as the cache has it: its new state may be on another process.
    """
    videos = torch.cat([batch.video_ids.flatten(), batch.entry_videos.flatten()]).unique()
    comments = torch.cat([batch.video_comments.flatten(), batch.comments]).unique()
    videos, comments = videos[videos != PAD], comments[comments != PAD]
    target, shown, comment = _Numbers(fresh), _Numbers(videos, after=len(fresh)), _Numbers(comments)
    samples = replace(
        batch,
        videos=target(batch.videos),
        video_ids=shown(batch.video_ids),
        entry_videos=shown(batch.entry_videos),
        candidates=target(batch.candidates),
        video_comments=comment(batch.video_comments),
        comments=comment(batch.comments),
    )
    return WideBatch(2 * fresh, texts, samples, videos, comments)


class _Numbers:
    """`after` + position + 1 of each index in `listed`, sorted; 0 stays 0, and only listed indices may be asked for."""

    def __init__(self, listed: Tensor, after: int = 0) -> None:
        self._listed, self._first = listed, after + 1

    def __call__(self, ids: Tensor) -> Tensor:
        return torch.where(ids > 0, torch.searchsorted(self._listed, ids) + self._first, 0)
