"""Where half precision is not enough."""

import torch
from torch import Tensor


def at_least_float32(x: Tensor) -> Tensor:
    """`x` in float32; float32 and float64 stay as they are."""
    return x if x.dtype == torch.float64 else x.float()
