"""Checkpoints of the official LSVCR implementation under our names: `adapter_model.bin` with everything in one file.

A peft adapter on a legacy ChatGLM is the same without SR model and heads.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors.torch import load_file
from torch import Tensor

from lsvcr.utils.errors import UserError

PREFIX = "base_model.model."
FILES = ("adapter_model.bin", "adapter_model.safetensors")
_SAVED_WHOLE = re.compile(r"(modules_to_save|original_module)\.(default\.)?")

_ATTENTION = {"query": "query", "key": "key", "value": "value", "out_linear": "output", "LayerNorm": "norm"}
_FEED_FORWARD = {"linear_1": "up", "linear_2": "down", "LayerNorm": "norm"}
_PLAIN = {
    "llm_emb_mlp.0": "head.inner",
    "llm_emb_mlp.2": "head.outer",
    "contrast_adapter": "contrast",
    "reccom.llm_adapter": "sr.adapter",
    "reccom.pc_merge": "sr.merge",
    "reccom.pposition_embedding": "sr.video_position",
    "reccom.cposition_embedding": "sr.comment_position",
    "reccom.photo_layernorm": "sr.video_norm",
    "reccom.comment_layernorm": "sr.comment_norm",
    "reccom.p_linear": "sr.video_join",
    "reccom.c_linear": "sr.comment_join",
    "reccom.rec_att.attn.0": "sr.rec_pooling.inner",
    "reccom.rec_att.attn.2": "sr.rec_pooling.norm",
    "reccom.rec_att.attn.4": "sr.rec_pooling.score",
}
_SIDES = {"phis": "video", "chis": "comment"}
_LORA = re.compile(
    r"(?:.*\.)?(?P<layer>layers\.\d+)\.(?P<name>self_attention\.query_key_value|self_attention\.dense|"
    r"mlp\.dense_h_to_4h|mlp\.dense_4h_to_h)\.lora_(?P<part>[AB])\.(?:default\.)?weight"
)
_NATIVE = {
    "self_attention.dense": "self_attn.o_proj",
    "mlp.dense_h_to_4h": "mlp.gate_up_proj",
    "mlp.dense_4h_to_h": "mlp.down_proj",
}


class OfficialCheckpoint(NamedTuple):
    """The parts of an official checkpoint."""

    heads: dict[str, Tensor]
    """`sr.*`, `head.*` and `contrast.*` under our names, float32."""
    lora: dict[str, Tensor]
    """LoRA matrices under their names in the file, float32; see `native_lora`."""
    names: dict[str, str]
    """The official name, without prefix, of each tensor of `heads` that the file holds."""


def read_official(path: str | Path) -> OfficialCheckpoint:
    """Read an `adapter_model.bin` or `.safetensors`, or the folder that holds one. Nothing in the file is run.

    Raises:
        UserError: no such file, not a file of tensors alone, or names that the official implementation does not have.
    """
    file = official_file(path)
    try:
        packed = file.suffix == ".safetensors"
        content = load_file(file) if packed else torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises what its reader of the day raises
        raise UserError(f"{file} is no file of tensors ({str(error).splitlines()[0][:200]})") from error
    if not isinstance(content, Mapping) or not all(isinstance(value, Tensor) for value in content.values()):
        raise UserError(f"{file} does not hold tensors by name: give the official adapter_model.bin")
    return renamed(content, str(file))


def official_file(path: str | Path) -> Path:
    """The file itself, or the one in a folder.

    Raises:
        UserError: there is none.
    """
    given = Path(path)
    found = [given] if given.is_file() else [given / name for name in FILES if (given / name).is_file()]
    if not found:
        raise UserError(f"{given} holds no {' or '.join(FILES)}: give the official checkpoint or its folder")
    return found[0]


def renamed(tensors: Mapping[str, Tensor], source: str) -> OfficialCheckpoint:
    """Official tensors under our names.

    Args:
        tensors: by the official names.
        source: where they come from, for messages.

    Raises:
        UserError: some names are unknown; the first are listed.
    """
    heads: dict[str, Tensor] = {}
    lora: dict[str, Tensor] = {}
    names: dict[str, str] = {}
    unknown = []
    for name, value in tensors.items():
        plain = _SAVED_WHOLE.sub("", name.removeprefix(PREFIX))
        ours = _our_name(plain)
        if ours is not None:
            heads[ours], names[ours] = value.float(), plain
        elif _LORA.fullmatch(plain):
            lora[plain] = value.float()
        else:
            unknown.append(name)
    if unknown:
        raise UserError(
            f"{source} holds {len(unknown)} tensors that an official LSVCR checkpoint does not have "
            f"(such as {', '.join(unknown[:3])}): is it of another program?"
        )
    if "head.inner.weight" in heads:
        # The official head takes its input as it is; ours standardises it, with these numbers not at all.
        width = heads["head.inner.weight"].shape[1]
        heads |= {"head.center": torch.zeros(width), "head.scale": torch.ones(width)}
    return OfficialCheckpoint(heads, lora, names)


def native_lora(lora: Mapping[str, Tensor], q_rows: int, kv_rows: int) -> dict[str, Tensor]:
    """LoRA of the fused ChatGLM projections as peft has it on transformers' own GLM.

    An adapter on the fused query_key_value equals three on its parts with the same A and the rows of B split.

    Args:
        lora: of `OfficialCheckpoint`, or of any peft adapter on a legacy ChatGLM.
        q_rows, kv_rows: rows of the query and of the key (or value) projection.

    Returns:
        By the names of a peft adapter file on `GlmForCausalLM`.

    Raises:
        UserError: a fused B has other rows.
    """
    native: dict[str, Tensor] = {}
    for name, value in lora.items():
        found = _LORA.fullmatch(name)
        assert found is not None  # `renamed` let nothing else in
        stem = f"{PREFIX}model.{found['layer']}."
        end = f".lora_{found['part']}.weight"
        if found["name"] in _NATIVE:
            native[f"{stem}{_NATIVE[found['name']]}{end}"] = value
            continue
        parts = [value] * 3 if found["part"] == "A" else _split(name, value, q_rows, kv_rows)
        for letter, part in zip("qkv", parts, strict=True):
            native[f"{stem}self_attn.{letter}_proj{end}"] = part.clone()
    return native


def _split(name: str, value: Tensor, q_rows: int, kv_rows: int) -> list[Tensor]:
    if value.shape[0] != q_rows + 2 * kv_rows:
        raise UserError(
            f"{name} has {value.shape[0]} rows, this LLM's fused projection has {q_rows + 2 * kv_rows}: "
            "give the LLM that the checkpoint was trained on"
        )
    return list(value.split([q_rows, kv_rows, kv_rows]))


def _our_name(name: str) -> str | None:
    """Our name of an official tensor without prefix; None if it is none of SR model and heads."""
    module, _, kind = name.rpartition(".")
    if module in _PLAIN:
        return f"{_PLAIN[module]}.{kind}"
    parts = module.split(".")
    if parts[0] != "reccom":
        return None
    if parts[1:2] == ["comm_rank_att"] and len(parts) == 3 and parts[2] in _ATTENTION:
        return f"sr.comm_rank_attention.{_ATTENTION[parts[2]]}.{kind}"
    if len(parts) != 6 or parts[2] != "layer":
        return None
    side, _, stack = parts[1].partition("_")
    block = {
        "multi_head_attention": ("attention", _ATTENTION),
        "feed_forward": ("feed_forward", _FEED_FORWARD),
    }
    if side not in _SIDES or parts[4] not in block or parts[5] not in block[parts[4]][1]:
        return None
    place = {"encoder": f"encoder.{parts[3]}", "mix_layer": "cross"}.get(stack)
    if place is None or (stack == "mix_layer" and parts[3] != "0"):
        return None
    inner, names = block[parts[4]]
    return f"sr.{_SIDES[side]}_{place}.{inner}.{names[parts[5]]}.{kind}"
