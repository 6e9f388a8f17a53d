"""Dropout that does not spend a step drawing its mask."""

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import handle_torch_function, has_torch_function_unary

_LEVELS = 1 << 16
_BITS = {
    torch.float64: torch.int64,
    torch.float32: torch.int32,
    torch.bfloat16: torch.int16,
    torch.float16: torch.int16,
}
"""Whole numbers as wide as the floats."""


class Dropout(nn.Dropout):
    """torch's dropout with a mask that is cheap on a CPU.

    There torch draws one double a number, one after the other: a seventh of a training step of the SR model. Here
    each 64-bit draw gives four 16-bit numbers. The probability is therefore one of 65,536 levels, and the scale is
    exact for that level. Every mask begins with one draw of torch's global generator, which its own are made from, so
    that torch's seed and state determine it; on other devices it is torch's own.
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
        return _factors(mask, scale, x.dtype).mul_(x)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        (mask,) = ctx.saved_tensors
        return _factors(mask, ctx.scale, grads[0].dtype).mul_(grads[0]), None, None


def _factors(mask: Tensor, scale: float, dtype: torch.dtype) -> Tensor:
    """`scale` where the mask is true, else 0, made as the bits of the number times 0 or 1.

    numpy widens bytes to whole numbers and multiplies those faster than torch makes floats of them.
    """
    whole = torch.empty(mask.shape, dtype=_BITS[dtype])
    numbers = whole.numpy()
    np.copyto(numbers, mask.numpy())
    bits = torch.tensor(scale, dtype=dtype).view(whole.dtype).item()
    np.multiply(numbers, numbers.dtype.type(bits), out=numbers)
    return whole.view(dtype)


def keep_mask(shape: torch.Size, p: float) -> Tensor:
    """Bool of this shape on the CPU, each element False with probability p (to the nearest of 65,536 levels)."""
    count = shape.numel()
    seed = int(torch.empty((), dtype=torch.int64).random_())
    numbers = np.random.SFC64(seed).random_raw(-(-count // 4)).view(np.uint16)[:count]
    mask = torch.empty(count, dtype=torch.bool)
    np.greater_equal(numbers, _dropped(p), out=mask.numpy())
    return mask.view(shape)


def keep_scale(p: float) -> float:
    """What kept elements are multiplied by, so that the mean stays."""
    dropped = _dropped(p)
    return 0.0 if dropped == _LEVELS else _LEVELS / (_LEVELS - dropped)


def _dropped(p: float) -> int:
    return round(p * _LEVELS)
