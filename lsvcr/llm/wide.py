"""The losses of wide batches: fresh texts against one another, people as a cache of texts shows them.

An addition to the recommendation loss of the LSVCR paper's preference alignment; docs/method.md says why. Only texts
of the same step are compared: one that the LLM has just read differs from a cached one in more than its content, and
a softmax over both would learn to tell which is which.
"""

from collections.abc import MutableMapping

import torch
from torch import Tensor, nn

from lsvcr.data.align_taste import TasteBatch
from lsvcr.data.rank_wide import WideBatch
from lsvcr.losses.alignment import joined_rows
from lsvcr.losses.info_nce import info_nce
from lsvcr.models.rank import RankModel
from lsvcr.models.sr import EmbeddingHead, SRModel
from lsvcr.nn.ragged import segment_mean
from lsvcr.nn.similarity import unit
from lsvcr.schema import Task
from lsvcr.utils.distributed import gather_values, gather_with_gradient, reduce_sum, world_size

WIDE_REC, TASTE = "wide_rec", "taste"
"""Names of the loss parts."""


class TextStates:
    """Pooled LLM states of all texts, as they were when the LLM last read them; the same on every process.

    Args:
        videos: (n_videos + 1, h), row 0 zeros.
        comments: (n_comments + 1, h) likewise.
        device: where they are kept; float32.
    """

    def __init__(self, videos: Tensor, comments: Tensor, device: torch.device) -> None:
        self.videos = videos.to(device, torch.float32, copy=True)
        self.comments = comments.to(device, torch.float32, copy=True)

    def rows(self, codes: Tensor) -> Tensor:
        """(N,) int64 codes of texts (`video_code`, `comment_code`) -> (N, h)."""
        is_comment = (codes % 2).bool()
        states = self.videos.new_empty(len(codes), self.videos.shape[1])
        states[~is_comment] = self.videos[codes[~is_comment] // 2]
        states[is_comment] = self.comments[codes[is_comment] // 2]
        return states

    def update(self, codes: Tensor, states: Tensor) -> None:
        """Keep the new states (N, h) of every process's fresh texts (N,)."""
        codes, states = gather_values(codes), gather_values(states.detach().float())
        is_comment = (codes % 2).bool()
        self.videos[codes[~is_comment] // 2] = states[~is_comment]
        self.comments[codes[is_comment] // 2] = states[is_comment]

    def state(self) -> dict[str, Tensor]:
        """What a continued run needs."""
        return {"cache.videos": self.videos.cpu(), "cache.comments": self.comments.cpu()}

    def take(self, state: MutableMapping[str, Tensor]) -> None:
        """Take back, out of `state`, what `state()` gave."""
        self.videos.copy_(state.pop("cache.videos"))
        self.comments.copy_(state.pop("cache.comments"))


class WideLoss(nn.Module):
    """InfoNCE of each sample's target among the fresh titles of all processes, by SR user vectors."""

    name = WIDE_REC

    def __init__(self, sr: SRModel, head: EmbeddingHead) -> None:
        super().__init__()
        self.sr, self.head = sr, head

    def forward(self, fresh: Tensor, batch: WideBatch, cache: TextStates) -> Tensor:
        """Scalar; its mean over processes is the mean over all samples of the joined batch.

        Args:
            fresh: (N, h) pooled states of `batch.codes`.
            batch: on the device of the cache.
            cache: of all texts.
        """
        users = self._model(fresh, batch, cache).user_vectors(batch.samples)
        items = self.sr.project(self.head(fresh))  # (N, d), without ids
        labels = joined_rows(items)[0] + batch.samples.candidates[:, 0] - 1
        loss = info_nce(users, gather_with_gradient(items), labels, temperature=self.sr.temperature)
        return _of_all(loss, len(users))

    def _model(self, fresh: Tensor, batch: WideBatch, cache: TextStates) -> RankModel:
        """Stage two's model, without ids, on the texts of the batch."""
        nothing = fresh.new_zeros(1, fresh.shape[1])
        videos = torch.cat([nothing, fresh, cache.videos[batch.cached_videos]])
        comments = torch.cat([nothing, cache.comments[batch.cached_comments]])
        model = RankModel(
            self.sr,
            Task.REC,
            videos,
            comments,
            n_videos=len(videos) - 1,
            n_comments=len(comments) - 1,
            head=self.head,
        )
        return model.train(self.training).to(fresh.device)


class TasteLoss(nn.Module):
    """InfoNCE of a text that a person liked among the fresh texts of all processes; those that they liked, too, are
    left out. The person's vector is the mean of the unit vectors of other texts that they liked."""

    name = TASTE

    def __init__(self, sr: SRModel, head: EmbeddingHead) -> None:
        super().__init__()
        self.sr, self.head = sr, head

    def forward(self, fresh: Tensor, batch: TasteBatch, cache: TextStates) -> Tensor:
        """Scalar; its mean over processes is the mean over all people of the joined batch. Arguments: `WideLoss`."""
        items = self.sr.project(self.head(fresh))
        shown, place = batch.shown.unique(return_inverse=True)
        seen = unit(self.sr.project(self.head(cache.rows(shown))))
        people = segment_mean(seen[place], batch.owners, len(batch.labels))
        loss = info_nce(people, gather_with_gradient(items), batch.labels, batch.liked, self.sr.temperature)
        return _of_all(loss, len(people))


def _of_all(loss: Tensor, rows: int) -> Tensor:
    """The mean over this process's rows, so weighted that the mean over processes is that over all rows."""
    count = torch.tensor(float(rows), device=loss.device)
    return loss * count * world_size() / reduce_sum(count)
