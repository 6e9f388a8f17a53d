"""Wide Rec batches of stage one: a few titles read afresh by the LLM, and many samples that learn from them.

A prompt costs hundreds of tokens and teaches one sample. A title costs fifteen and is the target of several
training samples: all of these can learn from it in one step, if the other texts of their histories come from a cache.
"""

from dataclasses import dataclass, fields, replace

import numpy as np
import torch
from torch import Tensor

from lsvcr.data.rank import RankBatch, RankData
from lsvcr.data.text_bank import TextBank, video_code
from lsvcr.utils.seeding import generator

_ORDER_STREAM, _ROW_STREAM = 61, 62


@dataclass
class WideBatch:
    """Fresh titles and the Rec samples whose targets they are, in a numbering of its own.

    Attributes:
        titles: (N,) int64 video indices of the fresh titles.
        texts: their N token id lists.
        samples: B Rec samples. Video 1 .. N are the fresh titles, N + 1 .. the cached ones; comments 1 .. are cached.
        cached_videos, cached_comments: (V,) and (C,) int64 indices of the cached texts, in the order of their numbers.
    """

    titles: Tensor
    texts: list[list[int]]
    samples: RankBatch
    cached_videos: Tensor
    cached_comments: Tensor

    def to(self, device: torch.device) -> "WideBatch":
        """The same batch on another device."""
        moved = {f.name: getattr(self, f.name).to(device) for f in fields(self) if f.name != "texts"}
        return replace(self, **moved)

    @property
    def tokens(self) -> int:
        """Tokens that the LLM reads for it, without padding."""
        return sum(map(len, self.texts))


class WideStream:
    """The wide batch of every micro-step and process: a function of (seed, number).

    Titles come in one random order behind another; what is left of an order when it makes no whole batch any more is
    passed over. Process r of W takes the r-th part of a joined batch, so that this is the same however it is cut.

    Args:
        data: Rec training samples.
        bank: token ids of titles.
        titles: fresh titles of one micro-step, of all processes together.
        per_title: most samples that learn from one title in one step.
        seed: of order and draws.
    """

    def __init__(self, data: RankData, bank: TextBank, *, titles: int, per_title: int, seed: int) -> None:
        self._data, self._bank, self._seed = data, bank, seed
        self._titles, self._per_title = titles, per_title
        targets = np.asarray(data.samples.video)
        self._rows = np.argsort(targets, kind="stable")
        self._videos, counts = np.unique(targets, return_counts=True)
        self._ends = np.cumsum(counts)
        self._starts = self._ends - counts
        self._round, self._order = -1, np.zeros(0, dtype=np.int64)

    def __len__(self) -> int:
        """Titles that are the target of a sample."""
        return len(self._videos)

    def batch(self, number: int, rank: int, world: int) -> WideBatch:
        """The part of process `rank` of `world` in the joined batch `number`."""
        mine = self._places(number, rank, world)
        rows = np.concatenate([self._drawn(number, place) for place in mine])
        titles = self._videos[mine]
        ids = self._bank.ids([video_code(int(video)) for video in titles])
        return _renumbered(self._data.training(rows, (self._seed, number)), titles, list(ids.values()))

    def _places(self, number: int, rank: int, world: int) -> np.ndarray:
        """Places in `self._videos`: this process's part of the joined batch."""
        joined = min(self._titles, len(self))
        round_, turn = divmod(number, len(self) // joined)
        if round_ != self._round:
            self._round = round_
            self._order = generator(self._seed, _ORDER_STREAM, round_).permutation(len(self))
        return np.array_split(self._order[turn * joined : (turn + 1) * joined], world)[rank]

    def _drawn(self, number: int, place: int) -> np.ndarray:
        rows = self._rows[self._starts[place] : self._ends[place]]
        if len(rows) <= self._per_title:
            return rows
        return generator(self._seed, _ROW_STREAM, number, int(place)).choice(
            rows, self._per_title, replace=False
        )


def _renumbered(batch: RankBatch, titles: np.ndarray, texts: list[list[int]]) -> WideBatch:
    """Replace dataset indices by the numbers of the few texts that the batch needs."""
    fresh = torch.from_numpy(titles.astype(np.int64))
    seen = torch.cat([batch.video_ids.flatten(), batch.entry_videos.flatten()]).unique()
    videos = seen[(seen > 0) & ~torch.isin(seen, fresh)]
    comments = torch.cat([batch.video_comments.flatten(), batch.comments]).unique()
    comments = comments[comments > 0]
    video_number, comment_number = _Numbers(torch.cat([fresh, videos])), _Numbers(comments)
    samples = replace(
        batch,
        videos=video_number(batch.videos),
        video_ids=video_number(batch.video_ids),
        entry_videos=video_number(batch.entry_videos),
        candidates=video_number(batch.candidates),
        video_comments=comment_number(batch.video_comments),
        comments=comment_number(batch.comments),
    )
    return WideBatch(fresh, texts, samples, videos, comments)


class _Numbers:
    """Position + 1 of each index in `listed`; 0 stays 0, and only listed indices may be asked for."""

    def __init__(self, listed: Tensor) -> None:
        self._sorted, self._order = listed.sort()

    def __call__(self, ids: Tensor) -> Tensor:
        if not len(self._sorted):
            return torch.zeros_like(ids)
        places = torch.searchsorted(self._sorted, ids).clamp(max=len(self._sorted) - 1)
        return torch.where(ids > 0, self._order[places] + 1, 0)
