"""Activations that are computed anew in the backward pass instead of being kept: less memory, more time.

`full` keeps the input of every layer alone and pays one more forward pass. `selective` (PyTorch's selective activation
checkpointing) also keeps what is dear to compute, the products with the LLM's weights and attention, and repeats the
rest: norms, rotations, activations, LoRA's thin products. Korthikanti et al. 2022, section 5, choose the other way
round: they repeat attention, because without a fused kernel it is large.
"""

from functools import partial
from typing import Any, Literal

import torch
from torch import nn
from torch.utils.checkpoint import CheckpointPolicy, create_selective_checkpoint_contexts

from lsvcr.llm.families import unwrap
from lsvcr.utils.errors import UserError

Recompute = Literal["selective", "full"]

_PRODUCTS = (torch.ops.aten.mm.default, torch.ops.aten.addmm.default)
_ATTENTION = (
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu.default,
    torch.ops.aten._scaled_dot_product_flash_attention.default,
    torch.ops.aten._scaled_dot_product_efficient_attention.default,
    torch.ops.aten._scaled_dot_product_cudnn_attention.default,
)


def enable_checkpointing(llm: nn.Module, recompute: Recompute = "selective", lora_r: int = 0) -> None:
    """Recompute activations in the backward pass of both branches.

    Args:
        llm: causal LM or a `PeftModel` around one.
        recompute: what; see the module.
        lora_r: products whose inner or outer width is no more than this are cheap.

    Raises:
        UserError: the LLM's family cannot.
    """
    model = unwrap(llm)
    options: dict[str, Any] = {"use_reentrant": False}
    if recompute == "selective":
        options["context_fn"] = partial(create_selective_checkpoint_contexts, partial(_policy, lora_r))
    try:
        # transformers 5.2x renamed it and drops the older name in version 6.
        if hasattr(model, "activation_checkpointing_enable"):
            model.activation_checkpointing_enable(activation_checkpointing_kwargs=options)
        else:
            model.gradient_checkpointing_enable(gradient_checkpointing_kwargs=options)
    except ValueError as error:
        raise UserError(
            f"this LLM cannot recompute activations ({error}): give --gradient_checkpointing False"
        ) from error


def _policy(lora_r: int, _context: Any, op: Any, *args: Any, **_options: Any) -> CheckpointPolicy:
    """Whether an operation's result is kept."""
    kept = op in _ATTENTION or (op in _PRODUCTS and min(args[-2].shape[1], args[-1].shape[1]) > lora_r)
    return CheckpointPolicy.MUST_SAVE if kept else CheckpointPolicy.PREFER_RECOMPUTE
