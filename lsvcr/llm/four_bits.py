"""QLoRA: an LLM whose frozen weights are kept in 4 bits, by the package bitsandbytes on a CUDA GPU."""

import os
from importlib.util import find_spec
from typing import Any

import torch
import torch.nn as nn
from transformers import BitsAndBytesConfig

from lsvcr.llm.families import unwrap
from lsvcr.utils.errors import UserError

PACKAGE = "bitsandbytes"


def obstacle() -> str:
    """Why this machine cannot read an LLM in 4 bits, with the remedy; empty where it can."""
    if not torch.cuda.is_available():
        return "it needs a CUDA GPU, and there is none here: leave it out, or run where there is one"
    if find_spec(PACKAGE) is None:
        return f"it needs the package {PACKAGE}: pip install 'lsvcr[qlora]', or leave it out"
    return ""


def in_four_bits(model: nn.Module) -> bool:
    """Was this LLM read in 4 bits?"""
    return bool(getattr(unwrap(model), "is_loaded_in_4bit", False))


def four_bit_options(dtype: torch.dtype) -> dict[str, Any]:
    """What `from_pretrained` is given: NF4 with doubly quantised scales, computing in `dtype`, on this process's GPU.

    Raises:
        UserError: this machine cannot.
    """
    reason = obstacle()
    if reason:
        raise UserError(f"--load_in_4bit: {reason}")
    config = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=dtype,
    )
    # Weights are quantised as they reach the GPU, so they must go there at once.
    return {"quantization_config": config, "device_map": {"": int(os.environ.get("LOCAL_RANK", "0"))}}
