"""From the states of a sequence to one vector."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lsvcr.nn.attention import LAYER_NORM_EPS
from lsvcr.nn.dropout import Dropout
from lsvcr.nn.precision import at_least_float32


class AdditivePooling(nn.Module):
    """Additive attention: a small network weighs each state, the vector is the weighted sum.

    Weights: softmax over the real positions of Linear(D, 2D), dropout, LayerNorm, GELU, Linear(2D, 1).
    """

    def __init__(self, width: int, dropout: float) -> None:
        super().__init__()
        self.inner = nn.Linear(width, 2 * width)
        self.dropout = Dropout(dropout)
        self.norm = nn.LayerNorm(2 * width, eps=LAYER_NORM_EPS)
        self.score = nn.Linear(2 * width, 1)

    def forward(self, states: Tensor, mask: Tensor) -> Tensor:
        """States (B, L, D) and mask (B, L) bool -> (B, D); zeros for a row without a real position."""
        scores = self.score(F.gelu(self.norm(self.dropout(self.inner(states))))).squeeze(-1)  # (B, L)
        logits = at_least_float32(scores)
        weights = torch.softmax(logits.masked_fill(~mask, torch.finfo(logits.dtype).min), dim=-1) * mask
        return (states * weights.unsqueeze(-1).to(states.dtype)).sum(dim=1)
