"""ChatGLM2 and ChatGLM3 as published, read into transformers' own `GlmForCausalLM`.

The published folders bring code of their own, which is never run; the architecture is that of GLM under other
names. Configuration and weights are translated in memory: queries, keys and values lie in one matrix and are cut
apart, everything else only gets another name.
"""

import json
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor
from transformers import GlmConfig

from lsvcr.utils.errors import UserError
from lsvcr.utils.logging import get_logger

MODEL_TYPE = "chatglm"
"""`model_type` in the config.json of a published folder."""

_SIZES = {
    "padded_vocab_size": "vocab_size",
    "hidden_size": "hidden_size",
    "ffn_hidden_size": "intermediate_size",
    "num_layers": "num_hidden_layers",
    "num_attention_heads": "num_attention_heads",
    "multi_query_group_num": "num_key_value_heads",
    "kv_channels": "head_dim",
    "seq_length": "max_position_embeddings",
}
_FRACTION_ROTATED = 0.5
_BASE = 10000.0
_PUBLISHED = "take ChatGLM2-6B or ChatGLM3-6B as published"

# Key, its value if the file does not name it, the only value that can be read, what to do about another.
_FIXED: tuple[tuple[str, Any, Any, str], ...] = (
    ("quantization_bit", 0, 0, "take the model that is not quantised"),
    ("pre_seq_len", None, None, "take the model without a trained prefix (P-tuning)"),
    ("multi_query_attention", False, True, _PUBLISHED),
    ("rmsnorm", True, True, _PUBLISHED),
    ("post_layer_norm", True, True, _PUBLISHED),
    ("apply_residual_connection_post_layernorm", False, False, _PUBLISHED),
    ("add_bias_linear", False, False, _PUBLISHED),
)

Report = dict[str, list[str]]

logger = get_logger(__name__)


def glm_config(path: Path) -> GlmConfig:
    """The configuration in transformers' terms.

    Dropout of hidden states, which transformers' GLM does not have, is left out, and that is said: the published
    models have none.

    Args:
        path: the config.json of a ChatGLM2 or ChatGLM3 folder.

    Raises:
        UserError: a needed key is missing or senseless, or the model has parts that GLM has not.
    """
    legacy = json.loads(path.read_text(encoding="utf-8"))
    _check(path, legacy)
    if legacy.get("hidden_dropout"):
        logger.warning(
            f"{path}: hidden_dropout {legacy['hidden_dropout']} is left out, transformers' GLM has none; "
            "it would only matter in training"
        )
    rope = {
        "rope_type": "default",
        "rope_theta": _BASE * legacy.get("rope_ratio", 1),
        "partial_rotary_factor": _FRACTION_ROTATED,
    }
    # GLM's own defaults (padding, end, epsilon) are those of GLM-4, so every one is named here.
    return GlmConfig(
        **{native: legacy[key] for key, native in _SIZES.items()},
        hidden_act="silu",
        rms_norm_eps=legacy["layernorm_epsilon"],
        attention_bias=legacy["add_qkv_bias"],
        attention_dropout=legacy.get("attention_dropout", 0.0),
        use_cache=legacy.get("use_cache", True),
        pad_token_id=legacy.get("pad_token_id") or 0,
        eos_token_id=legacy.get("eos_token_id") or 2,
        bos_token_id=None,
        tie_word_embeddings=False,
        rope_parameters=rope,
    )


def _check(path: Path, legacy: dict[str, Any]) -> None:
    """Refuse what is missing, what GLM does not have, and sizes that are none."""
    missing = [key for key in (*_SIZES, "layernorm_epsilon", "add_qkv_bias") if legacy.get(key) is None]
    if missing:
        raise UserError(
            f"{path} lacks {', '.join(missing)}, so it is of no ChatGLM2 or ChatGLM3: download one of them again "
            "(the first ChatGLM has another architecture, which cannot be read)"
        )
    for key, default, wanted, remedy in _FIXED:
        value = legacy.get(key, default)
        if value != wanted and (value or wanted):
            raise UserError(f"{path}: {key} is {json.dumps(value)}, which GLM does not have: {remedy}")
    for key in _SIZES:
        if type(legacy[key]) is not int or legacy[key] < 1:
            raise UserError(
                f"{path}: {key} is {json.dumps(legacy[key])}, no positive number: download it again"
            )
    if legacy["num_attention_heads"] % legacy["multi_query_group_num"]:
        raise UserError(
            f"{path}: {legacy['num_attention_heads']} num_attention_heads cannot share "
            f"{legacy['multi_query_group_num']} multi_query_group_num evenly: download it again"
        )


def glm_weights(source: Path, config: GlmConfig, dtype: torch.dtype) -> tuple[dict[str, Tensor], Report]:
    """The weights a configuration asks for, under GLM's names.

    Files are read one after the other and give up what was taken, so that memory holds the result and at most
    one of them; those with nothing but layers that `config` does not have stay closed.

    Args:
        source: `model.safetensors` or `pytorch_model.bin`, or the `.index.json` of a sharded one.
        config: from `glm_config`, perhaps with fewer layers.
        dtype: of the result.

    Returns:
        The weights, and a report as transformers gives it: names, as the files have them, of `missing_keys`,
        `mismatched_keys` (with both shapes) and `unexpected_keys`.

    Raises:
        UserError: a `.bin` file cannot be read as plain tensors.
    """
    layout = _layout(config)
    found: set[str] = set()
    files = [source.name]
    if source.suffix == ".json":
        index: dict[str, str] = json.loads(source.read_text(encoding="utf-8"))["weight_map"]
        found.update(index)
        files = sorted({index[name] for name in layout if name in index})
    weights: dict[str, Tensor] = {}
    mismatched, read = [], set()
    for file in files:
        for name, get in _entries(source.parent / file):
            found.add(name)
            if name not in layout:
                continue
            read.add(name)
            names, shape = layout[name]
            tensor = get()
            if tuple(tensor.shape) != shape:
                mismatched.append(f"{name} {tuple(tensor.shape)}, wanted {shape}")
                continue
            weights.update(_parts(names, tensor.to(dtype), config))
    report = {
        "missing_keys": sorted(layout.keys() - read),
        "mismatched_keys": sorted(mismatched),
        "unexpected_keys": sorted(found - layout.keys()),
    }
    return weights, report


def _layout(config: GlmConfig) -> dict[str, tuple[tuple[str, ...], tuple[int, ...]]]:
    """Published name of every weight, with its name or names in GLM and its published shape."""
    width, inner, words = config.hidden_size, config.intermediate_size, config.vocab_size
    queries = config.num_attention_heads * config.head_dim
    fused = queries + 2 * config.num_key_value_heads * config.head_dim
    layout: dict[str, tuple[tuple[str, ...], tuple[int, ...]]] = {
        "transformer.embedding.word_embeddings.weight": (("model.embed_tokens.weight",), (words, width)),
        "transformer.encoder.final_layernorm.weight": (("model.norm.weight",), (width,)),
        "transformer.output_layer.weight": (("lm_head.weight",), (words, width)),
    }
    one_name: dict[str, tuple[str, tuple[int, ...]]] = {
        "input_layernorm": ("input_layernorm", (width,)),
        "self_attention.dense": ("self_attn.o_proj", (width, queries)),
        "post_attention_layernorm": ("post_attention_layernorm", (width,)),
        # Gate first, then up, in both.
        "mlp.dense_h_to_4h": ("mlp.gate_up_proj", (2 * inner, width)),
        "mlp.dense_4h_to_h": ("mlp.down_proj", (width, inner)),
    }
    for layer in range(config.num_hidden_layers):
        old, new = f"transformer.encoder.layers.{layer}", f"model.layers.{layer}"
        for name, (native, shape) in one_name.items():
            layout[f"{old}.{name}.weight"] = ((f"{new}.{native}.weight",), shape)
        fused_shapes = {"weight": (fused, width), **({"bias": (fused,)} if config.attention_bias else {})}
        for kind, shape in fused_shapes.items():
            parts = tuple(f"{new}.self_attn.{part}_proj.{kind}" for part in "qkv")
            layout[f"{old}.self_attention.query_key_value.{kind}"] = (parts, shape)
    return layout


def _parts(names: tuple[str, ...], tensor: Tensor, config: GlmConfig) -> Iterator[tuple[str, Tensor]]:
    """A published tensor under its GLM name, or cut along its rows into queries, keys and values."""
    if len(names) == 1:
        yield names[0], tensor
        return
    shared = config.num_key_value_heads * config.head_dim
    rows = [config.num_attention_heads * config.head_dim, shared, shared]
    for name, part in zip(names, tensor.split(rows), strict=True):
        yield name, part.clone()  # not views of one storage, which could not be saved apart


def _entries(path: Path) -> Iterator[tuple[str, Callable[[], Tensor]]]:
    """Names in a weight file, each with a function that reads the tensor and can be called once."""
    if path.suffix == ".safetensors":
        with safe_open(path, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118 (no mapping)
                yield name, partial(file.get_tensor, name)
        return
    try:
        held = torch.load(path, map_location="cpu", weights_only=True)
        names = [name for name, value in held.items() if isinstance(value, Tensor)]
    except Exception as error:  # an unpickler fails in every way there is
        raise UserError(
            f"{path} is damaged or holds more than tensors ({type(error).__name__}): "
            "download it again, or the model's safetensors files"
        ) from error
    for name in names:
        yield name, partial(held.pop, name)
