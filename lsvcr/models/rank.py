"""The stage-two model: the SR model on frozen text tables, trained for one task."""

from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from lsvcr.data.rank import RankBatch
from lsvcr.losses.id_text import id_text_contrast
from lsvcr.losses.ranking import comment_softmax, full_softmax
from lsvcr.models.rank_loss import SampledLoss
from lsvcr.models.sr import EmbeddingHead, Histories, SRModel
from lsvcr.nn.ragged import segment_mean
from lsvcr.nn.similarity import unit
from lsvcr.schema import PAD, Task

TABLE_ROWS = 1 << 16
"""Texts projected at once when a whole table is."""

CONTRASTED = 8192
"""History entries of a batch that the id-text contrast looks at, drawn anew each step. At batch 512 a batch has up to
51,200 entries of a few thousand videos: the mean over a draw has the same expectation and costs a sixth."""


class RankModel(nn.Module):
    """SR model, text tables and losses of stage two; implements `Recommender[RankBatch]`.

    Args:
        sr: the SR model; with a video-id table unless ids are disabled.
        task: what is ranked.
        video_text: (n_videos + 1, w) float32 title vectors, row 0 zeros; None without text. Never trained, not part
            of the state dict; may be memory-mapped.
        comment_text: (n_comments + 1, w) likewise.
        n_videos, n_comments: size of the catalogue.
        head: turns w-wide vectors (the LLM's own) into the SR model's text vectors and trains with it; None where
            the tables hold text vectors already.
        id_text_weight: weight of the id-text contrast; it needs ids and text and is off without one of them.
        id_text_negatives: its sampled negatives.
        with_id: (n_videos + 1,) bool, videos that have an id embedding; the others are their text alone. None = all.
        sampled_loss: loss of Rec batches that have negatives; None = softmax over uniform draws.
    """

    video_text: Tensor | None
    comment_text: Tensor | None
    with_id: Tensor | None
    video_places: Tensor
    comment_places: Tensor

    def __init__(
        self,
        sr: SRModel,
        task: Task,
        video_text: Tensor | None,
        comment_text: Tensor | None,
        *,
        n_videos: int,
        n_comments: int,
        head: EmbeddingHead | None = None,
        id_text_weight: float = 0.1,
        id_text_negatives: int = 99,
        with_id: Tensor | None = None,
        sampled_loss: SampledLoss | None = None,
    ) -> None:
        super().__init__()
        self.sr, self.head, self.task = sr, head, task
        self.n_videos, self.n_comments = n_videos, n_comments
        self.register_buffer("video_text", video_text, persistent=False)
        self.register_buffer("comment_text", comment_text, persistent=False)
        self.register_buffer("with_id", with_id, persistent=False)
        self.register_buffer("video_places", torch.zeros(n_videos + 1, dtype=torch.int64), persistent=False)
        self.register_buffer(
            "comment_places", torch.zeros(n_comments + 1, dtype=torch.int64), persistent=False
        )
        has_both = sr.video_id is not None and video_text is not None
        self.id_text_weight = id_text_weight if has_both else 0.0
        self.id_text_negatives = id_text_negatives
        self.sampled_loss = SampledLoss() if sampled_loss is None else sampled_loss
        self._titles: Tensor | None = None
        # Large, the same on every process or its own business: DDP must not broadcast them each step.
        self._ddp_params_and_buffers_to_ignore = [name for name, _ in self.named_buffers()]

    def train(self, mode: bool = True) -> "RankModel":
        """Switch the mode; what evaluation keeps of the current weights is forgotten."""
        self._titles = None
        super().train(mode)
        return self

    def forward(self, batch: RankBatch) -> dict[str, Tensor]:
        """The same as `training_loss`: what data-parallel wrappers call."""
        return self.training_loss(batch)

    def training_loss(self, batch: RankBatch) -> dict[str, Tensor]:
        """Losses of a training batch, each a scalar mean over its rows (the contrast: over its history entries).

        Returns:
            `loss` = ranking + weight * id_text; `ranking`; `id_text` where it is used.
        """
        videos = self._training_videos(batch)
        comments = self._comments(batch)
        users = self._users(batch, videos, comments)
        ranking = (
            self._rec_loss(batch, users, videos)
            if self.task is Task.REC
            else self._comment_loss(batch, users, comments)
        )
        if not self.id_text_weight:
            return {"loss": ranking, "ranking": ranking}
        contrast = self._id_text(batch, videos)
        return {"loss": ranking + self.id_text_weight * contrast, "ranking": ranking, "id_text": contrast}

    def user_vectors(self, batch: RankBatch) -> Tensor:
        """(B, d) float32 unit vectors. In evaluation mode the titles are projected once and kept."""
        videos = _Projected(self.titles()) if not self.training else self._distinct_videos(batch)
        return unit(self._users(batch, videos, self._comments(batch)))

    def item_vectors(self) -> Tensor:
        """(N + 1, d) float32 unit vectors of all videos (Rec) or comments (CommRank); row 0 is padding."""
        if self.task is Task.REC:
            return unit(self.with_ids(self.titles()))
        return unit(self.comment_vectors())

    def titles(self) -> Tensor:
        """(n_videos + 1, d) projected titles by index. In evaluation mode they are computed once and kept."""
        if self._titles is None or self.training:
            self._titles = self._table(self.video_text, self.n_videos)
        return self._titles

    def comment_vectors(self) -> Tensor:
        """(n_comments + 1, d) item vectors of all comments by index, as they stand in histories too."""
        contents = self._table(self.comment_text, self.n_comments)
        return self.sr.comment_vectors(contents, self._every(self.n_comments))

    def with_ids(self, vectors: Tensor) -> Tensor:
        """Vectors of all videos (n_videos + 1, d) plus what their ids add, without a copy of the id table."""
        if self.sr.video_id is None or self.sr.gate is None:
            return vectors
        table = self.sr.video_id.weight
        if self.with_id is not None:
            table = table * self.with_id.unsqueeze(1)
        return vectors + self.sr.gate * table

    def project_texts(self, vectors: Tensor) -> Tensor:
        """Text vectors (N, w), as the tables hold them, through the head (if any) and the adapter -> (N, d)."""
        projected: Tensor = self.sr.project(vectors if self.head is None else self.head(vectors))
        return projected

    def _every(self, count: int) -> Tensor:
        return torch.arange(count + 1, device=self.device)

    @property
    def device(self) -> torch.device:
        """Where the parameters are."""
        return self.sr.merge.weight.device

    def _rec_loss(self, batch: RankBatch, users: Tensor, videos: "_Projected") -> Tensor:
        targets = batch.candidates[:, 0]
        if len(batch.negatives) == 0:
            return full_softmax(users, self.with_ids(videos.vectors), targets, self.sr.temperature)
        positives = self._video_vectors(videos, targets)
        negatives = self._video_vectors(videos, batch.negatives)
        return self.sampled_loss(users, positives, negatives, targets, batch.negatives, self.sr.temperature)

    def _comment_loss(self, batch: RankBatch, users: Tensor, comments: "_Projected") -> Tensor:
        vectors = self.sr.comment_vectors(comments(batch.candidates), batch.candidates)
        return comment_softmax(users, vectors, batch.candidates != PAD, self.sr.temperature)

    def _id_text(self, batch: RankBatch, videos: "_Projected") -> Tensor:
        """Over the real entries of both histories, or a draw; the text vector of an entry is its video's title."""
        entries = torch.cat([batch.video_ids.flatten(), batch.entry_videos.flatten()])
        entries = self._ids(entries)
        entries = entries[entries != PAD]
        if len(entries) > CONTRASTED:
            # Drawn on the CPU, so that the same seed draws the same on every device.
            entries = entries[torch.randint(len(entries), (CONTRASTED,)).to(entries.device)]
        titles = videos(entries)
        told = (titles != 0).any(dim=1)  # a video without a title has the vector zero
        entries, titles = entries[told], titles[told]
        assert self.sr.video_id is not None
        return id_text_contrast(
            self.sr.video_id(entries),
            titles,
            self.id_text_negatives,
            temperature=self.sr.temperature,
            keys=entries,
        )

    def _users(self, batch: RankBatch, videos: "_Projected", comments: "_Projected") -> Tensor:
        """User vectors (B, d) of the task."""
        histories = self._histories(batch, videos, comments)
        if self.task is Task.REC:
            return self.sr.rec_vectors(histories)
        return self.sr.comm_rank_vectors(histories, self._video_vectors(videos, batch.videos))

    def _histories(self, batch: RankBatch, videos: "_Projected", comments: "_Projected") -> Histories:
        rows, steps = batch.entry_videos.shape
        titles = videos(batch.video_ids)
        if self.sr.use_comments:
            contents = self.sr.comment_vectors(comments(batch.comments), batch.comments)
            entries = segment_mean(contents, batch.comment_entries, rows * steps).view(rows, steps, -1)
            shown = self.sr.comment_vectors(comments(batch.video_comments), batch.video_comments)
        else:
            entries, shown = titles.new_zeros(rows, steps, titles.shape[-1]), torch.zeros_like(titles)
        return Histories(
            video_title=titles,
            video_comment=shown,
            video_ids=self._ids(batch.video_ids),
            video_mask=batch.video_ids != PAD,
            comment_title=videos(batch.entry_videos),
            comment_comment=entries,
            comment_video_ids=self._ids(batch.entry_videos),
            comment_mask=batch.entry_videos != PAD,
        )

    def _video_vectors(self, videos: "_Projected", ids: Tensor) -> Tensor:
        return self.sr.video_vectors(videos(ids), self._ids(ids))

    def _ids(self, videos: Tensor) -> Tensor:
        """Rows of the id table: padding, which is zero, for videos without an id embedding."""
        return videos if self.with_id is None else videos.masked_fill(~self.with_id[videos], PAD)

    def _training_videos(self, batch: RankBatch) -> "_Projected":
        """Titles of the step, each projected once: all of them where the softmax needs all."""
        if self.task is Task.REC and len(batch.negatives) == 0:
            return _Projected(self._table(self.video_text, self.n_videos))
        return self._distinct_videos(batch)

    def _distinct_videos(self, batch: RankBatch) -> "_Projected":
        return self._distinct(
            self.video_text,
            self.video_places,
            batch.video_ids,
            batch.entry_videos,
            batch.videos,
            batch.negatives,
        )

    def _comments(self, batch: RankBatch) -> "_Projected":
        """Comments of the step, each projected once."""
        wanted = [batch.candidates] if self.task is Task.COMM_RANK else []
        if self.sr.use_comments:
            wanted += [batch.video_comments, batch.comments]
        return self._distinct(self.comment_text, self.comment_places, *wanted)

    def _distinct(self, text: Tensor | None, places: Tensor, *ids: Tensor) -> "_Projected":
        distinct = torch.unique(torch.cat([places.new_zeros(1), *(some.flatten() for some in ids)]))
        # `places` is kept from step to step: what it says of other indices is stale and never asked for.
        places[distinct] = torch.arange(len(distinct), device=places.device)
        return _Projected(self._project(text, distinct), places)

    def _project(self, text: Tensor | None, ids: Tensor) -> Tensor:
        """Projected texts of `ids` (N,) -> (N, d)."""
        if text is None:
            return torch.zeros(len(ids), self.sr.hidden, device=self.device)
        return self.project_texts(text[ids])

    def _table(self, text: Tensor | None, count: int) -> Tensor:
        """Projected texts of a whole table (n + 1, d), in parts so that what is between stays small."""
        if text is None:
            return self._project(None, self._every(count))
        adapt: Callable[[Tensor], Tensor] = self.project_texts
        if self.head is not None and len(text) > TABLE_ROWS and torch.is_grad_enabled():
            # What a head keeps for backward is a multiple of its vectors: gigabytes for a large catalogue.
            adapt = partial(checkpoint, self.project_texts, use_reentrant=False)
        return torch.cat([adapt(part) for part in text.split(TABLE_ROWS)])


class _Projected:
    """Projected texts of a step by item index, each computed once.

    Args:
        vectors: (N, d).
        places: (n + 1,) int64, the row of each index; None where row and index are the same.
    """

    def __init__(self, vectors: Tensor, places: Tensor | None = None) -> None:
        self.vectors, self.places = vectors, places

    def __call__(self, ids: Tensor) -> Tensor:
        """(...) int64 -> (..., d)."""
        return F.embedding(ids if self.places is None else self.places[ids], self.vectors)
