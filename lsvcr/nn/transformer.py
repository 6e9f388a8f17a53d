"""Transformer blocks of the other recommenders: norm first or last, causal or not."""

from typing import Literal

import torch.nn.functional as F
from torch import Tensor, nn

from lsvcr.nn.attention import LAYER_NORM_EPS, attend
from lsvcr.nn.dropout import Dropout

Activation = Literal["relu", "gelu"]
NormPlace = Literal["first", "last"]
"""first: the input of a sub-layer is normalised (what is between layers never is). last: the sum of a sub-layer's input
and output, as Vaswani et al. 2017 have it."""


class SelfAttention(nn.Module):
    """Multi-head self-attention with output projection, and nothing around it.

    Args:
        width: D, a multiple of `heads`.
        heads: H.
        attention_dropout: on the attention weights.
    """

    def __init__(self, width: int, heads: int, attention_dropout: float) -> None:
        super().__init__()
        if width % heads:
            raise ValueError(f"width {width} is not a multiple of {heads} attention heads")
        self.heads = heads
        self.dropout = Dropout(attention_dropout)
        self.inputs = nn.Linear(width, 3 * width)
        self.output = nn.Linear(width, width)

    def forward(self, x: Tensor, visible: Tensor | None = None) -> Tensor:
        """Each step of (B, L, D) sees those up to its own place, or all that are visible; -> (B, L, D).

        Args:
            x: (B, L, D). Causal attention over steps padded on the right needs no mask.
            visible: (B, L) bool, at least one True in a row; None = causal.
        """
        q, k, v = (
            part.unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in self.inputs(x).chunk(3, dim=-1)
        )  # (B, H, L, D / H)
        seen = None if visible is None else visible[:, None, None, :]
        context = attend(q, k, v, self.dropout, visible=seen, causal=visible is None)
        projected: Tensor = self.output(context.transpose(1, 2).flatten(2))
        return projected


class Block(nn.Module):
    """Self-attention and a feed-forward layer, each with dropout, residual and LayerNorm.

    Args:
        width, heads: D and H.
        inner: width inside the feed-forward layer.
        dropout, attention_dropout: on a sub-layer's output and on attention weights.
        norm: where LayerNorm stands.
        activation: of the feed-forward layer.
        more_dropout: between the two feed-forward maps and behind the block, too.
    """

    def __init__(
        self,
        width: int,
        heads: int,
        inner: int,
        dropout: float,
        attention_dropout: float,
        norm: NormPlace = "first",
        activation: Activation = "relu",
        more_dropout: bool = False,
    ) -> None:
        super().__init__()
        self.norm_first = norm == "first"
        self.activation = F.relu if activation == "relu" else F.gelu
        self.attention = SelfAttention(width, heads, attention_dropout)
        self.up, self.down = nn.Linear(width, inner), nn.Linear(inner, width)
        self.dropout, self.inner_dropout = Dropout(dropout), Dropout(dropout)
        more = dropout if more_dropout else 0.0
        self.middle_dropout, self.block_dropout = Dropout(more), Dropout(more)
        self.attention_norm = nn.LayerNorm(width, eps=LAYER_NORM_EPS)
        self.inner_norm = nn.LayerNorm(width, eps=LAYER_NORM_EPS)

    def forward(self, x: Tensor, visible: Tensor | None = None) -> Tensor:
        """(B, L, D) -> (B, L, D); `visible` as in `SelfAttention`."""
        if self.norm_first:
            x = x + self.dropout(self.attention(self.attention_norm(x), visible))
            fed: Tensor = self.block_dropout(x + self.inner_dropout(self._feed(self.inner_norm(x))))
            return fed
        x = self.attention_norm(x + self.dropout(self.attention(x, visible)))
        finished: Tensor = self.block_dropout(self.inner_norm(x + self.inner_dropout(self._feed(x))))
        return finished

    def _feed(self, x: Tensor) -> Tensor:
        fed: Tensor = self.down(self.middle_dropout(self.activation(self.up(x))))
        return fed
