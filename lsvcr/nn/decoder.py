"""Transformer blocks as large language models have them: RMSNorm first, rotary positions, gated feed-forward."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lsvcr.nn.attention import attend
from lsvcr.nn.dropout import Dropout

RMS_EPS = 1e-6
ROTARY_BASE = 10_000.0
"""Su et al. 2021 (RoFormer): the slowest pair of numbers turns once in about 2 pi times this many steps."""


class RotaryAttention(nn.Module):
    """Multi-head self-attention that tells positions by turning queries and keys (RoPE, Su et al. 2021); no biases.

    A score depends on how far apart two steps are, not on where they stand.

    Args:
        width: D, of which `heads` make an even part.
        heads: H.
        attention_dropout: on the attention weights.
    """

    def __init__(self, width: int, heads: int, attention_dropout: float) -> None:
        super().__init__()
        if width % (2 * heads):
            raise ValueError(f"width {width} is not a multiple of twice {heads} attention heads")
        self.heads = heads
        self.dropout = Dropout(attention_dropout)
        self.inputs = nn.Linear(width, 3 * width, bias=False)
        self.output = nn.Linear(width, width, bias=False)

    def forward(self, x: Tensor, turns: tuple[Tensor, Tensor], visible: Tensor | None = None) -> Tensor:
        """(B, L, D) -> (B, L, D).

        Args:
            x: (B, L, D).
            turns: what `rotary_turns(L, D / H)` gives.
            visible: (B, L) bool, at least one True in a row: what every step sees; None = causal.
        """
        q, k, v = (
            part.unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in self.inputs(x).chunk(3, dim=-1)
        )  # (B, H, L, D / H)
        seen = None if visible is None else visible[:, None, None, :]
        context = attend(
            turn(q, turns), turn(k, turns), v, self.dropout, visible=seen, causal=visible is None
        )
        projected: Tensor = self.output(context.transpose(1, 2).flatten(2))
        return projected


class GatedBlock(nn.Module):
    """RMSNorm, attention, residual; RMSNorm, SwiGLU (Shazeer 2020), residual.

    Args:
        width, heads: D and H.
        inner: width inside the feed-forward layer.
        dropout, attention_dropout: on a sub-layer's output and on attention weights.
    """

    def __init__(self, width: int, heads: int, inner: int, dropout: float, attention_dropout: float) -> None:
        super().__init__()
        self.attention_norm = nn.RMSNorm(width, eps=RMS_EPS)
        self.attention = RotaryAttention(width, heads, attention_dropout)
        self.inner_norm = nn.RMSNorm(width, eps=RMS_EPS)
        self.up = nn.Linear(width, 2 * inner, bias=False)  # the gate, then what it lets through
        self.down = nn.Linear(inner, width, bias=False)
        self.dropout, self.inner_dropout = Dropout(dropout), Dropout(dropout)

    def forward(self, x: Tensor, turns: tuple[Tensor, Tensor], visible: Tensor | None = None) -> Tensor:
        """(B, L, D) -> (B, L, D); `turns` and `visible` as in `RotaryAttention`."""
        x = x + self.dropout(self.attention(self.attention_norm(x), turns, visible))
        gate, value = self.up(self.inner_norm(x)).chunk(2, dim=-1)
        fed: Tensor = x + self.inner_dropout(self.down(F.silu(gate) * value))
        return fed


def rotary_turns(steps: int, width: int, device: torch.device | None = None) -> tuple[Tensor, Tensor]:
    """Cosine and sine of each step's angles, (L, width) float32 each.

    Args:
        steps: L.
        width: of a head, even; number i and number i + width / 2 are the two sides of one angle.
        device: where they are wanted.
    """
    speeds = ROTARY_BASE ** (-torch.arange(0, width, 2, device=device, dtype=torch.float32) / width)
    angles = torch.arange(steps, device=device, dtype=torch.float32)[:, None] * speeds
    angles = torch.cat([angles, angles], dim=-1)
    return angles.cos(), angles.sin()


def turn(x: Tensor, turns: tuple[Tensor, Tensor]) -> Tensor:
    """Vectors (..., L, width) turned by the angles of their steps, in their own precision."""
    cosine, sine = (part.to(x.dtype) for part in turns)
    left, right = x.chunk(2, dim=-1)
    return x * cosine + torch.cat([-right, left], dim=-1) * sine


def gated_inner(width: int) -> int:
    """The usual inner width of a gated layer: 8/3 of D, so that it has the weights of an ungated one of 4 D, rounded up
    to a multiple of 8.

    >>> gated_inner(64)
    176
    """
    return -(-8 * width // 24) * 8
