"""Dropout that does not spend a step drawing its mask."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import handle_torch_function, has_torch_function_unary

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
        return drop(x, keep_mask(x.shape, self.p), keep_scale(self.p))


def drop(x: Tensor, mask: Tensor, scale: float) -> Tensor:
    """x * mask * scale; `mask` bool of x's shape. Keeps one byte a number for its backward pass."""
    if has_torch_function_unary(x):
        result: Tensor = handle_torch_function(drop, (x,), x, mask, scale)
    else:
        result = _Drop.apply(x, mask, scale)
    return result


class _Drop(torch.autograd.Function):
    """Keeps the mask as it is, not as the four bytes a number that multiplying by it would keep."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, mask: Tensor, scale: float) -> Tensor:
        ctx.save_for_backward(mask)
        ctx.scale = scale
        # Multiplying by a float mask is three times faster than by a bool one.
        return mask.to(x.dtype).mul_(scale).mul_(x)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        (mask,) = ctx.saved_tensors
        return mask.to(grads[0].dtype).mul_(ctx.scale).mul_(grads[0]), None, None


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
