"""Cosine similarity in single precision, whatever precision the vectors come in."""

import torch
import torch.nn.functional as F
from torch import Tensor

from lsvcr.nn.precision import at_least_float32

NORM_EPS = 1e-8
"""Shorter vectors are divided by this instead of their length: a zero vector scores 0 with everything."""


def unit(vectors: Tensor) -> Tensor:
    """Vectors (..., D) scaled to length 1, float32 (float64 stays). A zero vector stays zero."""
    return F.normalize(at_least_float32(vectors), dim=-1, eps=NORM_EPS)


def cosine_logits(queries: Tensor, keys: Tensor, temperature: float) -> Tensor:
    """Cosine of every query with every key, divided by the temperature.

    Args:
        queries: (B, D).
        keys: (N, D), the same for all rows; or (B, K, D), each row its own.
        temperature: positive.

    Returns:
        (B, N) or (B, K), float32 also under autocast: at temperature 0.07 a bfloat16 logit would be rounded
        by up to 0.03.
    """
    with torch.autocast(device_type=queries.device.type, enabled=False):
        left, right = unit(queries) / temperature, unit(keys)
        return left @ right.T if keys.dim() == 2 else (right @ left.unsqueeze(-1)).squeeze(-1)
