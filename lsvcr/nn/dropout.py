"""Dropout that does not spend a step drawing its mask."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

_LEVELS = 1 << 16


class Dropout(nn.Dropout):
    """torch's dropout with a mask that is cheap on a CPU.

    There torch draws one double a number, one after the other: a seventh of a training step of the SR model. Here
    each 64-bit draw gives four 16-bit numbers. The probability is therefore one of 65,536 levels, and the scale is
    exact for that level. Reads torch's global generator, as torch's own does; on other devices it is torch's own.
    """

    def forward(self, x: Tensor) -> Tensor:
        """(...) -> (...), float; the identity in evaluation mode."""
        if not self.training or not self.p or x.device.type != "cpu":
            return F.dropout(x, self.p, self.training)
        return x * keep_mask(x.shape, self.p).to(x.dtype).mul_(keep_scale(self.p))


def keep_mask(shape: torch.Size, p: float) -> Tensor:
    """Bool of this shape on the CPU, each element False with probability p (to the nearest of 65,536 levels)."""
    count = shape.numel()
    draws = torch.empty(-(-count // 4), dtype=torch.int64).random_(torch.iinfo(torch.int64).min, None)
    numbers = draws.view(torch.int16)[:count].view(shape)
    return numbers >= _dropped(p) - _LEVELS // 2


def keep_scale(p: float) -> float:
    """What kept elements are multiplied by, so that the mean stays."""
    dropped = _dropped(p)
    return 0.0 if dropped == _LEVELS else _LEVELS / (_LEVELS - dropped)


def _dropped(p: float) -> int:
    return round(p * _LEVELS)
