"""Boolean masks, True = real."""

import torch
from torch import Tensor


def open_first(mask: Tensor) -> Tensor:
    """Make the first position of every wholly padded row visible.

    An empty history is then read as one empty entry, whatever the width of the padding, so that attention and
    pooling over it are defined.

    Args:
        mask: (B, L) bool, L >= 1.

    Returns:
        (B, L) bool with at least one True in every row; rows that had one are unchanged.
    """
    first = torch.arange(mask.shape[1], device=mask.device) == 0
    return mask | (first & ~mask.any(dim=1, keepdim=True))
