"""Transformer blocks as large language models have them: RMSNorm first, rotary positions, gated feed-forward.

Sequences are packed: only real steps pass through norms and matrix products, which is most of the work where lengths
differ; attention alone sees them side by side, padded.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lsvcr.nn.attention import attend
from lsvcr.nn.dropout import Dropout

RMS_EPS = 1e-6
ROTARY_BASE = 10_000.0
"""Su et al. 2021 (RoFormer): the slowest pair of numbers turns once in about 2 pi times this many steps."""


class Packing(NamedTuple):
    """Where P real steps stand in sequences (B, L).

    Attributes:
        shape: (B, L).
        flat: (P,) int64, rising: row * L + step.
        turns: cosine and sine of each step's angles, (P, 1, D / H) float32 each.
        visible: (B, L) bool, the steps that all others of their row see, one or more in each; None = causal. Causal
            attention over steps padded on the right needs no mask.
    """

    shape: tuple[int, int]
    flat: Tensor
    turns: tuple[Tensor, Tensor]
    visible: Tensor | None

    @classmethod
    def of(cls, real: Tensor, head_width: int, both_ways: bool = False) -> "Packing":
        """That of sequences (B, L) bool, True = real, whose real steps come first."""
        rows, steps = real.shape
        flat = real.flatten().nonzero().squeeze(1)
        cosine, sine = rotary_turns(steps, head_width, real.device)
        place = flat % steps
        visible = None
        if both_ways:
            # An empty row sees its first step, which nobody reads.
            visible = real | (~real.any(dim=1, keepdim=True) & (torch.arange(steps, device=real.device) == 0))
        return cls((rows, steps), flat, (cosine[place].unsqueeze(1), sine[place].unsqueeze(1)), visible)

    def spread(self, packed: Tensor) -> Tensor:
        """(P, ...) -> (B, L, ...), zero where there is no real step."""
        whole = packed.new_zeros(self.shape[0] * self.shape[1], *packed.shape[1:])
        return whole.index_copy(0, self.flat, packed).unflatten(0, self.shape)

    def packed(self, spread: Tensor) -> Tensor:
        """(B, L, ...) -> (P, ...)."""
        return spread.flatten(0, 1).index_select(0, self.flat)


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

    def forward(self, x: Tensor, packing: Packing) -> Tensor:
        """(P, D) -> (P, D): each step sees those up to its own place, or all that are visible."""
        q, k, v = self.inputs(x).unflatten(-1, (3, self.heads, -1)).unbind(dim=1)  # (P, H, D / H)
        q, k = turn(q, packing.turns), turn(k, packing.turns)
        q, k, v = (packing.spread(part).transpose(1, 2) for part in (q, k, v))  # (B, H, L, D / H)
        seen = None if packing.visible is None else packing.visible[:, None, None, :]
        context = attend(q, k, v, self.dropout, visible=seen, causal=seen is None)
        projected: Tensor = self.output(packing.packed(context.transpose(1, 2)).flatten(1))
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

    def forward(self, x: Tensor, packing: Packing) -> Tensor:
        """(P, D) -> (P, D)."""
        x = x + self.dropout(self.attention(self.attention_norm(x), packing))
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
    """Vectors (..., width) turned by the angles of their steps, of shapes that fit, in their own precision."""
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
