"""The losses of wide batches: fresh texts against one another, histories from a cache.

An addition to the recommendation loss of the LSVCR paper's preference alignment; docs/method.md says why.
"""

from collections.abc import MutableMapping

import torch
from torch import Tensor, nn

from lsvcr.data.rank_wide import WideBatch
from lsvcr.losses.alignment import joined_rows
from lsvcr.losses.info_nce import info_nce
from lsvcr.models.rank import RankModel
from lsvcr.models.sr import EmbeddingHead, SRModel
from lsvcr.schema import Task
from lsvcr.utils.distributed import gather_values, gather_with_gradient, reduce_sum, world_size

_CACHE = {Task.REC: "cache.videos", Task.COMM_RANK: "cache.comments"}


def wide_name(task: Task) -> str:
    """Name of the loss part of a task's wide batches."""
    return f"wide_{task.value}"


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

    def update(self, batch: WideBatch, states: Tensor) -> None:
        """Keep the states (N, h) of every process's fresh texts."""
        self._of(batch.task)[gather_values(batch.fresh)] = gather_values(states.detach().float())

    def state(self) -> dict[str, Tensor]:
        """What a continued run needs."""
        return {name: self._of(task).cpu() for task, name in _CACHE.items()}

    def take(self, state: MutableMapping[str, Tensor]) -> None:
        """Take back, out of `state`, what `state()` gave."""
        for task, name in _CACHE.items():
            self._of(task).copy_(state.pop(name))

    def _of(self, task: Task) -> Tensor:
        return self.videos if task is Task.REC else self.comments


class WideLoss(nn.Module):
    """Rec: InfoNCE of each sample's target among the fresh titles of all processes. CommRank: cross-entropy of a liked
    comment among fresh comments of the same video.

    Only texts of the same step are compared: one that the LLM has just read differs from a cached one in more
    than its content, and a softmax over both would learn to tell which is which.
    """

    def __init__(self, sr: SRModel, head: EmbeddingHead) -> None:
        super().__init__()
        self.sr, self.head = sr, head

    def forward(self, fresh: Tensor, batch: WideBatch, cache: TextStates) -> Tensor:
        """Scalar; its mean over processes is the mean over all samples of the joined batch.

        Args:
            fresh: (N, h) pooled states of `batch.fresh`.
            batch: on the device of the cache.
            cache: of all texts.
        """
        model = self._model(fresh, batch, cache)
        if batch.task is Task.REC:
            loss = self._among_titles(model.user_vectors(batch.samples), fresh, batch)
        else:
            loss = model.training_loss(batch.samples)["ranking"]
        rows = torch.tensor(float(len(batch.samples)), device=fresh.device)
        return loss * rows * world_size() / reduce_sum(rows)

    def _model(self, fresh: Tensor, batch: WideBatch, cache: TextStates) -> RankModel:
        """Stage two's model, without ids, on the texts of the batch."""
        nothing = fresh.new_zeros(1, fresh.shape[1])
        videos, comments = cache.videos[batch.cached_videos], cache.comments[batch.cached_comments]
        is_rec = batch.task is Task.REC
        videos = torch.cat([nothing, fresh, videos] if is_rec else [nothing, videos])
        comments = torch.cat([nothing, comments] if is_rec else [nothing, fresh, comments])
        model = RankModel(
            self.sr,
            batch.task,
            videos,
            comments,
            n_videos=len(videos) - 1,
            n_comments=len(comments) - 1,
            head=self.head,
        )
        return model.train(self.training).to(fresh.device)

    def _among_titles(self, users: Tensor, fresh: Tensor, batch: WideBatch) -> Tensor:
        items = self.sr.project(self.head(fresh))  # (N, d), without ids
        first = joined_rows(items)[0]
        labels = first + batch.samples.candidates[:, 0] - 1
        return info_nce(users, gather_with_gradient(items), labels, temperature=self.sr.temperature)
