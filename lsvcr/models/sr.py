"""The SR model: two histories in, a user vector for each task out. One class for both training stages.

LSVCR paper, section 3. Stage one has text and positions; stage two adds video ids behind a learned gate.
"""

from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lsvcr.nn.attention import LAYER_NORM_EPS, CrossLayer, MultiHeadAttention, causal_stack, initialise
from lsvcr.nn.dropout import Dropout
from lsvcr.nn.masks import open_first
from lsvcr.nn.pooling import AdditivePooling
from lsvcr.schema import PAD
from lsvcr.settings import SRSettings

Positions = tuple[Tensor, Tensor]
"""Rows of the two position tables, one a step: (V,) and (C,) int64."""


@dataclass
class Histories:
    """A batch of both histories, oldest first, padded on the right. Texts are already projected to width d.

    What stands at padded steps is ignored. An empty history (no True in its mask, or width 0) is legal.
    """

    video_title: Tensor  # (B, V, d)
    video_comment: Tensor  # (B, V, d) one popular comment of the video; zeros without one
    video_ids: Tensor  # (B, V) int64, 0 = padding
    video_mask: Tensor  # (B, V) bool, True = real
    comment_title: Tensor  # (B, C, d) title of the video commented on
    comment_comment: Tensor  # (B, C, d) mean over the entry's comments
    comment_video_ids: Tensor  # (B, C) int64, 0 = padding
    comment_mask: Tensor  # (B, C) bool, True = real


@dataclass
class States:
    """The encoders' output. An empty history is one empty entry, so no row of a mask is all False."""

    video: Tensor  # (B, V, d)
    comment: Tensor  # (B, C, d)
    video_mask: Tensor  # (B, V) bool
    comment_mask: Tensor  # (B, C) bool


class EmbeddingHead(nn.Module):
    """The LLM embedding head: pooled LLM states to text vectors by Linear(h, h/4), GELU, Linear(h/4, e).

    Pooled states of a language model share one large component (four times what tells texts apart in SmolLM2), in
    which a fresh head drowns. They are therefore standardised first, by fixed statistics; see `standardise`.
    """

    center: Tensor
    scale: Tensor

    def __init__(self, llm_width: int, text_width: int = 256) -> None:
        super().__init__()
        self.inner = nn.Linear(llm_width, llm_width // 4)
        self.outer = nn.Linear(llm_width // 4, text_width)
        self.register_buffer("center", torch.zeros(llm_width))
        self.register_buffer("scale", torch.ones(llm_width))
        self.apply(initialise)

    def standardise(self, pooled: Tensor) -> None:
        """Fix the input's center and scale to mean and standard deviation of (N, h); rows of zeros do not count.

        Both are rounded to bfloat16, so that a model kept in that precision has the same ones.
        """
        some_text = pooled[(pooled != 0).any(dim=-1)].float()
        if len(some_text) < 2:
            return
        self.center.copy_(some_text.mean(dim=0).bfloat16())
        self.scale.copy_(some_text.std(dim=0).clamp(min=1e-3).bfloat16())

    def forward(self, pooled: Tensor) -> Tensor:
        """(..., h) -> (..., e). A row of zeros (no text) stays a row of zeros, as in the embedding files."""
        some_text = pooled.abs().amax(dim=-1, keepdim=True) > 0
        standard = (pooled - self.center.to(pooled.dtype)) / self.scale.to(pooled.dtype)
        vectors: Tensor = self.outer(F.gelu(self.inner(standard)))
        return vectors * some_text.to(vectors.dtype)


def random_positions(length: int, max_position: int, generator: np.random.Generator) -> Tensor:
    """A random increasing subset of the positions 0 .. max_position - 1; (length,) int64.

    Stage one draws one for each history and batch, so that a model aligned on short histories has seen every
    row of the position table.

    Raises:
        ValueError: if `length` exceeds `max_position`.
    """
    if length > max_position:
        raise ValueError(f"a history of {length} steps needs max_position >= {length}, not {max_position}")
    chosen = generator.choice(max_position, size=length, replace=False)
    return torch.from_numpy(np.sort(chosen).astype(np.int64))


class SRModel(nn.Module):
    """Scores videos and comments for a user with two histories.

    Args:
        text_width: e, width of a text vector.
        hidden: d. layers, heads, inner: shape of the transformer layers.
        dropout, attention_dropout: on hidden states and on attention weights.
        max_position: rows of each position table, the longest history.
        n_videos: > 0 adds the video-id table (n_videos + 1, d) and the gate (stage two); 0 = stage one.
        n_comments: > 0 adds a comment-id table (the ids-only ablation).
        temperature: divides every cosine.
        use_text: False makes every text vector zero.
        use_comments: False ignores the comment history and the videos' comments.
        start_near_identity: a fresh user vector lies near what is in the user's history, see `_start_as_average`;
            False leaves the initialisation at what follows.

    Initialisation: linears and tables N(0, 0.02^2), biases 0, padding rows 0, LayerNorm identity, gate 1.

    Raises:
        ValueError: if neither text nor video ids are left, or `hidden` is no multiple of `heads`.
    """

    @classmethod
    def from_settings(cls, settings: SRSettings, max_position: int, **more: Any) -> "SRModel":
        """The model that `settings` describe; `more` are arguments that they do not have, such as `n_videos`."""
        shape = {field.name: getattr(settings, field.name) for field in fields(SRSettings)}
        return cls(max_position=max_position, **shape, **more)

    def __init__(
        self,
        *,
        text_width: int = 256,
        hidden: int = 64,
        layers: int = 2,
        heads: int = 2,
        inner: int = 256,
        dropout: float = 0.3,
        attention_dropout: float = 0.3,
        max_position: int = 50,
        n_videos: int = 0,
        n_comments: int = 0,
        temperature: float = 0.07,
        use_text: bool = True,
        use_comments: bool = True,
        start_near_identity: bool = True,
    ) -> None:
        arguments: dict[str, Any] = {k: v for k, v in locals().items() if k not in ("self", "__class__")}
        super().__init__()
        if not use_text and not n_videos:
            raise ValueError("a model without text needs video ids (n_videos > 0)")
        self.arguments = arguments
        self.hidden, self.max_position, self.temperature = hidden, max_position, temperature
        self.use_comments = use_comments
        shape: dict[str, Any] = {
            "width": hidden,
            "heads": heads,
            "dropout": dropout,
            "attention_dropout": attention_dropout,
        }

        self.adapter = nn.Linear(text_width, hidden, bias=False) if use_text else None
        self.video_id = nn.Embedding(n_videos + 1, hidden, padding_idx=PAD) if n_videos else None
        self.comment_id = nn.Embedding(n_comments + 1, hidden, padding_idx=PAD) if n_comments else None
        self.merge = nn.Linear(2 * hidden, hidden)
        self.video_position = nn.Embedding(max_position, hidden)
        self.comment_position = nn.Embedding(max_position, hidden)
        self.video_norm = nn.LayerNorm(hidden, eps=LAYER_NORM_EPS)
        self.comment_norm = nn.LayerNorm(hidden, eps=LAYER_NORM_EPS)
        self.dropout = Dropout(dropout)
        self.video_encoder = causal_stack(layers, inner=inner, **shape)
        self.comment_encoder = causal_stack(layers, inner=inner, **shape)
        self.video_cross = CrossLayer(inner=inner, **shape)
        self.comment_cross = CrossLayer(inner=inner, **shape)
        self.video_join = nn.Linear(2 * hidden, hidden)
        self.comment_join = nn.Linear(2 * hidden, hidden)
        self.rec_pooling = AdditivePooling(hidden, dropout)
        self.comm_rank_attention = MultiHeadAttention(**shape)
        self.apply(initialise)
        if start_near_identity:
            self._start_as_average()
        self.gate = nn.Parameter(torch.ones(1)) if n_videos else None

    @torch.no_grad()
    def _start_as_average(self) -> None:
        """Add the identity where texts and own states pass, so that a fresh user vector lies near the user's history.

        From noise alone, text has to find its way through three products of small random matrices before a user
        scores what resembles their history; on text vectors of a language model that took longer than
        learning every video's popularity, and training ended there (docs/log.md). An entry starts as title + comment,
        a joined state as its own history's, the answer to CommRank's question as the mean of the comment states.
        """
        same = torch.eye(self.hidden)
        self.merge.weight += torch.cat([same, same], dim=1)
        for joint in (self.video_join, self.comment_join):
            joint.weight[:, : self.hidden] += same
        for part in (self.comm_rank_attention.value, self.comm_rank_attention.output):
            part.weight += same

    def project(self, text: Tensor) -> Tensor:
        """The adapter: text vectors (..., e) -> (..., d). Zero rows stay zero; all rows are without text."""
        if self.adapter is None:
            return text.new_zeros(*text.shape[:-1], self.hidden)
        projected: Tensor = self.adapter(text)
        return projected

    def video_vectors(self, projected: Tensor, ids: Tensor | None = None) -> Tensor:
        """Item vectors of videos: projected titles (..., d) + gate * id embedding -> (..., d).

        Args:
            projected: (..., d) from `project`.
            ids: (...) int64 video indices, ignored without an id table; None = text alone.
        """
        if ids is None or self.video_id is None:
            return projected
        return projected + self.gate * self.video_id(ids)

    def comment_vectors(self, projected: Tensor, ids: Tensor | None = None) -> Tensor:
        """Item vectors of comments: projected contents (..., d) + id embedding where there is a table."""
        if ids is None or self.comment_id is None:
            return projected
        return projected + self.comment_id(ids)

    def encode(self, h: Histories, positions: Positions | None = None) -> States:
        """Both histories through their encoders and the cross layers.

        Args:
            h: the batch; histories of at most `max_position` steps.
            positions: rows of the position tables for each history; None = 0 .. L-1.

        Returns:
            `States`; an empty history becomes one empty entry at its first step.

        Raises:
            ValueError: if a history is longer than the position table.
        """
        each = self._encode_each(h, positions)
        return replace(each, video=self._cross_videos(each), comment=self._cross_comments(each))

    def rec_user(self, states: States) -> Tensor:
        """User vector for Rec: additive pooling of the video states -> (B, d)."""
        pooled: Tensor = self.rec_pooling(states.video, states.video_mask)
        return pooled

    def rec_other(self, states: States) -> Tensor:
        """The same pooling of the comment states -> (B, d): the contrast to `rec_user`."""
        pooled: Tensor = self.rec_pooling(states.comment, states.comment_mask)
        return pooled

    def comm_rank_user(self, states: States, watched: Tensor) -> Tensor:
        """User vector for CommRank: the watched video's vector (B, d) asks the comment states -> (B, d)."""
        return self._ask(watched, states.comment, states.comment_mask)

    def comm_rank_other(self, states: States, watched: Tensor) -> Tensor:
        """The same attention over the video states -> (B, d): the contrast to `comm_rank_user`."""
        return self._ask(watched, states.video, states.video_mask)

    def rec_vectors(self, h: Histories, positions: Positions | None = None) -> Tensor:
        """`rec_user(encode(h, positions))` without the comment side's cross layer; (B, d)."""
        each = self._encode_each(h, positions)
        pooled: Tensor = self.rec_pooling(self._cross_videos(each), each.video_mask)
        return pooled

    def comm_rank_vectors(self, h: Histories, watched: Tensor, positions: Positions | None = None) -> Tensor:
        """`comm_rank_user(encode(h, positions), watched)` without the video side's cross layer; (B, d)."""
        each = self._encode_each(h, positions)
        return self._ask(watched, self._cross_comments(each), each.comment_mask)

    def _ask(self, watched: Tensor, states: Tensor, mask: Tensor) -> Tensor:
        answer: Tensor = self.comm_rank_attention(watched.unsqueeze(1), states, mask)
        return answer.squeeze(1)

    def _cross_videos(self, each: States) -> Tensor:
        crossed = self.video_cross(each.video, each.comment, each.comment_mask)
        joined: Tensor = self.video_join(torch.cat([each.video, crossed], dim=-1))
        return joined  # (B, V, d)

    def _cross_comments(self, each: States) -> Tensor:
        crossed = self.comment_cross(each.comment, each.video, each.video_mask)
        joined: Tensor = self.comment_join(torch.cat([each.comment, crossed], dim=-1))
        return joined  # (B, C, d)

    def _encode_each(self, h: Histories, positions: Positions | None) -> States:
        """Each history through its own encoder alone; masks opened where a history is empty."""
        h = _at_least_one_step(h)
        if not self.use_comments:
            h = replace(
                h,
                video_comment=torch.zeros_like(h.video_comment),
                comment_mask=torch.zeros_like(h.comment_mask),
            )
        rows = (None, None) if positions is None else positions
        video = self._entries(h.video_title, h.video_comment, h.video_ids, h.video_mask)
        video = self.video_norm(video + self._position(self.video_position, video, rows[0]))
        comment = self._entries(h.comment_title, h.comment_comment, h.comment_video_ids, h.comment_mask)
        comment = self.comment_norm(comment + self._position(self.comment_position, comment, rows[1]))
        return States(
            video=self.video_encoder(self.dropout(video)),
            comment=self.comment_encoder(self.dropout(comment)),
            video_mask=open_first(h.video_mask),
            comment_mask=open_first(h.comment_mask),
        )

    def _entries(self, title: Tensor, comment: Tensor, ids: Tensor, mask: Tensor) -> Tensor:
        """Entry vectors (B, L, d) without positions; padded steps have neither text nor id."""
        text = torch.cat([title, comment], dim=-1) * mask.unsqueeze(-1).to(title.dtype)
        return self.video_vectors(self.merge(text), ids.masked_fill(~mask, PAD))

    def _position(self, table: nn.Embedding, entries: Tensor, rows: Tensor | None) -> Tensor:
        length = entries.shape[1]
        if length > self.max_position:
            raise ValueError(f"a history of {length} steps is longer than max_position = {self.max_position}")
        if rows is None or rows.shape[0] == 0:
            return table.weight[:length]
        found: Tensor = table(rows)
        return found


def _at_least_one_step(h: Histories) -> Histories:
    """Give a history of width 0 one padded step."""
    if h.video_mask.shape[1] == 0:
        h = replace(
            h,
            video_title=_padded(h.video_title),
            video_comment=_padded(h.video_comment),
            video_ids=_padded(h.video_ids),
            video_mask=_padded(h.video_mask),
        )
    if h.comment_mask.shape[1] == 0:
        h = replace(
            h,
            comment_title=_padded(h.comment_title),
            comment_comment=_padded(h.comment_comment),
            comment_video_ids=_padded(h.comment_video_ids),
            comment_mask=_padded(h.comment_mask),
        )
    return h


def _padded(x: Tensor) -> Tensor:
    """(B, 0, ...) -> (B, 1, ...) of zeros (False)."""
    return x.new_zeros(x.shape[0], 1, *x.shape[2:])
