"""Contrast among more samples than fit in memory at once (gradient caching; Gao et al. 2021, section 3).

A first pass without gradient gives the vectors of all micro-batches; the contrastive losses of all of them together
give the gradient at every vector; a second pass sends each micro-batch's share of it back. The sum is exactly the
gradient of one large batch, at the price of one more forward pass.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from lsvcr.data.align import NO_KEY, AlignBatch

CONTRASTED = ("users", "others", "llm_users", "targets")
"""The `Vectors` that the contrastive losses compare."""


@dataclass
class Vectors:
    """What the losses of B samples are made of; float32."""

    users: Tensor
    """(B, d) SR user vectors: Rec from the video history, CommRank from the comment history."""
    others: Tensor
    """(B, d) the same pooling of the other history."""
    llm_users: Tensor
    """(B, d) LLM user vectors: last prompt token, projected."""
    targets: Tensor
    """(B, d) item vectors of the targets, text alone."""
    lm: Tensor
    """(B,) mean cross-entropy of each sample's response tokens."""


@dataclass(frozen=True)
class Share:
    """What the contrast of a large batch says to one of its micro-batches."""

    gradients: dict[str, Tensor]
    """(B, d) by the names of `CONTRASTED`: of the weighted contrastive losses, times the number of micro-batches, so
    that the mean over micro-batches is the large batch's."""
    losses: dict[str, Tensor]
    """The large batch's contrastive losses, scalars without gradient."""


def contrast_shares(
    losses: Callable[..., dict[str, Tensor]],
    total: Callable[[dict[str, Tensor]], Tensor],
    batches: Sequence[AlignBatch],
    read: Callable[[int], Vectors],
) -> list[Share]:
    """The share of each micro-batch of this process in the contrast of all of them, on all processes.

    Args:
        losses, total: `AlignedModel.contrasts` and `AlignedModel.contrast_total`.
        batches: K micro-batches of equal size.
        read: gives the vectors of batch k, and the same ones, dropout included, when it is read again.
    """
    with torch.no_grad():
        vectors = [read(k) for k in range(len(batches))]
    joined = {
        name: torch.cat([getattr(one, name) for one in vectors]).requires_grad_() for name in CONTRASTED
    }
    longest = max(batch.positive_keys.shape[1] for batch in batches)
    positives = [
        F.pad(batch.positive_keys, (0, longest - batch.positive_keys.shape[1]), value=NO_KEY)
        for batch in batches
    ]
    keys = torch.cat([batch.target_keys for batch in batches])
    parts = losses(**joined, target_keys=keys, positive_keys=torch.cat(positives))
    gradients = torch.autograd.grad(total(parts), list(joined.values()))
    chunks = [(gradient * len(batches)).chunk(len(batches)) for gradient in gradients]
    told = {name: value.detach() for name, value in parts.items()}
    return [Share(dict(zip(CONTRASTED, own, strict=True)), told) for own in zip(*chunks, strict=True)]
