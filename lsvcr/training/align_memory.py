"""What a process of stage one will hold in memory: an estimate from shapes, nothing is loaded."""

from typing import Any

import torch
from transformers import AutoModelForCausalLM, PretrainedConfig

from lsvcr.llm.aligned import AlignedHeads
from lsvcr.llm.families import truncate
from lsvcr.llm.lora import add_lora
from lsvcr.llm.quiet import quiet
from lsvcr.models.sr import SRModel
from lsvcr.settings import AlignSettings
from lsvcr.utils.precision import compute_dtype

LIBRARIES = 450_000_000
"""Bytes that a process holds after importing Python, torch, transformers and DeepSpeed, measured."""

STATE, SHARED_STATE = 4, 12
"""Bytes a trained parameter: its gradient, and master weight with AdamW's two moments, which the processes share
(ZeRO-2); all float32."""


def stage_one_memory(
    config: PretrainedConfig, settings: AlignSettings, tokens: int, processes: int = 1
) -> dict[str, Any]:
    """Parameters and bytes of one process.

    - Weights: LLM, LoRA and heads in the precision of the run.
    - Training state: `STATE` bytes for each parameter of LoRA and heads, and its part of `SHARED_STATE`.
    - Activations of `tokens` tokens: a layer keeps about 16 h + 8 m numbers a token (h: hidden size, m: inner size),
      LoRA's included; fitted to runs of SmolLM2-135M. With full checkpointing every layer keeps its input (h), with
      selective the results of its products (6 h + 2 m); the layer at work keeps all.
    - Vocabulary logits of the responses, three times in float32 (values, probabilities, gradient).
    - Not in it: what the allocator loses between blocks of different sizes (docs/results.md has measured peaks), and
      that ZeRO-3 shares the weights and 4 bits shrink them.

    Args:
        config: of the LLM; left as it is.
        settings: of the run.
        tokens: read in one micro-step, the longest.
        processes: of the run.
    """
    own = type(config).from_dict(config.to_dict())
    truncate(own, settings.llm_layers)
    with torch.device("meta"), quiet():
        model = AutoModelForCausalLM.from_config(own)
        llm = sum(p.numel() for p in model.parameters())
        adapted = add_lora(model, settings.lora_r, settings.lora_alpha, 0.0) if settings.lora else None
        lora = sum(p.numel() for p in adapted.parameters() if p.requires_grad) if adapted is not None else 0
        heads = _heads(settings, int(own.get_text_config().hidden_size))
    text = own.get_text_config()
    width = compute_dtype(settings.bf16).itemsize
    whole = 16 * text.hidden_size + 8 * text.intermediate_size
    kept = {"full": text.hidden_size, "selective": 6 * text.hidden_size + 2 * text.intermediate_size}
    layer = kept[settings.recompute] if settings.gradient_checkpointing else whole
    responses = settings.per_device_train_batch_size * settings.max_target_length
    parts = {
        "weights_bytes": (llm + lora + heads) * width,
        "training_state_bytes": (lora + heads) * (STATE + SHARED_STATE // processes),
        "activation_bytes": tokens * (text.num_hidden_layers * layer + whole) * width
        + 3 * responses * text.vocab_size * 4,
        "libraries_bytes": LIBRARIES,
    }
    return {
        "llm_parameters": llm,
        "trained_parameters": lora + heads,
        **parts,
        "process_bytes": sum(parts.values()),
    }


def _heads(settings: AlignSettings, llm_width: int) -> int:
    sr = SRModel.from_settings(settings, settings.max_position)
    return sum(p.numel() for p in AlignedHeads(sr, llm_width, settings.text_width).parameters())
