"""A linear layer with LoRA as one operation: what the adapter adds goes straight into the layer's own product.

peft's own layer makes more passes over the output (scale, add) and as many over the gradient; beside the matrix
products of a small LLM that is a fifteenth of a training step (docs/log.md).
"""

from typing import Any

import torch
from peft import PeftModel
from peft.tuners.lora import Linear as PeftLinear
from torch import Tensor, nn


class LoraLinear(PeftLinear):
    """peft's layer, computed at once where it is plain: one adapter in the weights' dtype, nothing merged or cut.

    Everything else (two adapters, a merged or switched-off one, weights cut among processes by ZeRO-3, autocast) is
    left to peft.
    """

    def forward(self, x: Tensor, *args: Any, **options: Any) -> Tensor:
        """(..., in) -> (..., out)."""
        name = self._only_adapter(x)
        if name is None or args or options:
            result: Tensor = super().forward(x, *args, **options)
            return result
        base, a, b = self.base_layer, self.lora_A[name].weight, self.lora_B[name].weight
        seen = self.lora_dropout[name](x)
        added: Tensor = _LinearWithLora.apply(x, seen, base.weight, base.bias, a, b, self.scaling[name])
        return added

    def _only_adapter(self, x: Tensor) -> str | None:
        """The adapter's name; None where the layer is not plain."""
        if self.disable_adapters or self.merged or len(self.active_adapters) != 1:
            return None
        name = self.active_adapters[0]
        if name not in self.lora_A or name in self.lora_variant or self.lora_bias[name]:
            return None
        if self.base_layer.weight.requires_grad:
            return None
        weights = (self.base_layer.weight, self.lora_A[name].weight, self.lora_B[name].weight)
        if any(hasattr(weight, "ds_id") or weight.dtype != x.dtype for weight in weights):
            return None
        return None if torch.is_autocast_enabled(x.device.type) else name


def fuse_lora(model: PeftModel) -> None:
    """Let linear layers with LoRA compute it at once; quantised ones and others stay as they are."""
    for layer in model.modules():
        if type(layer) is PeftLinear and type(layer.base_layer) is nn.Linear:
            layer.__class__ = LoraLinear


class _LinearWithLora(torch.autograd.Function):
    """x W^T + bias + scale * (seen A^T) B^T, with W and bias frozen; `seen` is x after LoRA's dropout, or x itself."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        seen: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        a: Tensor,
        b: Tensor,
        scale: float,
    ) -> Tensor:
        rows = x.reshape(-1, x.shape[-1])
        thin = seen.reshape(-1, seen.shape[-1]) @ a.T
        out = rows @ weight.T if bias is None else torch.addmm(bias, rows, weight.T)
        out.addmm_(thin, b.T, alpha=scale)
        ctx.save_for_backward(seen, thin, weight, a, b)
        ctx.scale, ctx.same = scale, seen is x
        return out.view(*x.shape[:-1], -1)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        seen, thin, weight, a, b = ctx.saved_tensors
        grad = grads[0].reshape(-1, grads[0].shape[-1])
        thin_grad = (grad @ b).mul_(ctx.scale)
        a_grad = thin_grad.T @ seen.reshape(-1, seen.shape[-1])
        b_grad = (grad.T @ thin).mul_(ctx.scale)
        x_grad, seen_grad = None, None
        if ctx.needs_input_grad[0]:
            x_grad = grad @ weight
            if ctx.same:
                x_grad.addmm_(thin_grad, a)
            else:
                seen_grad = (thin_grad @ a).view(seen.shape)
            x_grad = x_grad.view(seen.shape)
        return x_grad, seen_grad, None, None, a_grad, b_grad, None
