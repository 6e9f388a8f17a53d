"""A start for an embedding head that has no stage one behind it."""

import torch
import torch.nn.functional as F
from torch import Tensor

from lsvcr.models.sr import EmbeddingHead


@torch.no_grad()
def start_head(head: EmbeddingHead, pooled: Tensor, generator: torch.Generator) -> None:
    """Initialise `head`, in place, so that on real texts each layer's outputs have mean 0 and variance 1.

    An LLM's mean-pooled states share one large vector; what tells texts apart is a small remainder (SmolLM2-135M,
    measured on simulated titles: norm 28, of which the mean has 27). From the usual start, N(0, 0.02^2), that remainder
    reaches the SR model at a tenth of the size of ids and positions, and a head that trains from there would be a
    weaker control than one that comes from stage one. The function class stays the same: standardisation is only
    folded into the first weights (in the spirit of LSUV, Mishkin and Matas 2015).

    Args:
        head: fresh.
        pooled: (N, h) mean-pooled LLM states of texts; rows of zeros (no text) do not count.
        generator: CPU generator of the random weights.
    """
    states = pooled[(pooled != 0).any(dim=1)].float()
    if len(states) < 2:
        return
    inner = _standardised(states, head.inner.out_features, generator)
    head.inner.weight.copy_(inner[0])
    head.inner.bias.copy_(inner[1])
    outer = _standardised(F.gelu(head.inner(states)), head.outer.out_features, generator)
    head.outer.weight.copy_(outer[0])
    head.outer.bias.copy_(outer[1])


def _standardised(inputs: Tensor, outputs: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Weight (outputs, D) and bias (outputs,) of a random projection of the centred and scaled rows of (N, D).

    One scale for all columns: to blow up those that hardly vary would drown the others in their noise.
    """
    mean = inputs.mean(dim=0)
    length = (inputs - mean).square().sum(dim=1).mean().sqrt().clamp_min(1e-8)
    weight = torch.randn(outputs, inputs.shape[1], generator=generator) / length
    return weight, -(weight @ mean)
