"""The recommendation loss of a wide batch: fresh titles against one another, histories from a cache.

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

_VIDEOS = "cache.videos"


class TextStates:
    """Pooled LLM states of all texts, as they were when the LLM last read them; the same on every process.

    Args:
        videos: (n_videos + 1, h), row 0 zeros.
        comments: (n_comments + 1, h) likewise.
        device: where they are kept; float32.
    """

    def __init__(self, videos: Tensor, comments: Tensor, device: torch.device) -> None:
        self.videos = videos.to(device, torch.float32, copy=True)
        self.comments = comments.to(device, torch.float32)

    def update(self, titles: Tensor, states: Tensor) -> None:
        """Keep the states (N, h) of `titles` (N,) of every process."""
        self.videos[gather_values(titles)] = gather_values(states.detach().float())

    def state(self) -> dict[str, Tensor]:
        """What a continued run needs: titles change, comments do not."""
        return {_VIDEOS: self.videos.cpu()}

    def take(self, state: MutableMapping[str, Tensor]) -> None:
        """Take back, out of `state`, what `state()` gave."""
        self.videos.copy_(state.pop(_VIDEOS))


class WideRec(nn.Module):
    """InfoNCE of each sample's target among the fresh titles of all processes.

    Only titles of the same step are compared: a title that the LLM has just read differs from a cached one in more
    than its content, and a softmax over both would learn to tell which is which.
    """

    def __init__(self, sr: SRModel, head: EmbeddingHead) -> None:
        super().__init__()
        self.sr, self.head = sr, head

    def forward(self, fresh: Tensor, batch: WideBatch, cache: TextStates) -> Tensor:
        """Scalar; its mean over processes is the mean over all samples of the joined batch.

        Args:
            fresh: (N, h) pooled states of `batch.titles`.
            batch: on the device of the cache.
            cache: of all texts.
        """
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
        model.train(self.training).to(fresh.device)
        users = model.user_vectors(batch.samples)
        items = self.sr.project(self.head(fresh))  # (N, d), without ids
        first = joined_rows(items)[0]
        labels = first + batch.samples.candidates[:, 0] - 1
        loss = info_nce(users, gather_with_gradient(items), labels, temperature=self.sr.temperature)
        rows = torch.tensor(float(len(users)), device=fresh.device)
        return loss * rows * world_size() / reduce_sum(rows)
