"""Any causal language model that transformers knows, from any place, ready for LSVCR.

Code that lies in a model folder or on the hub is never run. Nothing is loaded loosely: a weight the model
asks for and the files do not have is an error, not a random number.
"""

import difflib
import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import transformers
from huggingface_hub import snapshot_download
from transformers import (
    CONFIG_MAPPING,
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    GlmForCausalLM,
    LlamaForCausalLM,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from lsvcr.llm.bundled import cached_folder, dense_folder, gguf_file
from lsvcr.llm.chatglm import MODEL_TYPE as CHATGLM
from lsvcr.llm.chatglm import glm_config, glm_weights
from lsvcr.llm.chatglm_tokenizer import is_chatglm_folder, open_tokenizer
from lsvcr.llm.families import backbone, hidden_size, n_layers, output_head, prepare_tokenizer, truncate
from lsvcr.llm.four_bits import four_bit_options
from lsvcr.llm.quiet import quiet
from lsvcr.llm.tiny import tiny_config, tiny_tokenizer, tiny_weights
from lsvcr.utils.errors import UserError

__all__ = [
    "SMOLLM2",
    "TINY",
    "backbone",
    "fetch_llm",
    "hidden_size",
    "load_config",
    "load_llm",
    "load_tokenizer",
    "n_layers",
    "output_head",
]

SMOLLM2 = "smollm2-135m"
TINY = "tiny-random"

_WEIGHTS = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)
_SMALL_FILES = ("*.json", "*.model", "*.txt", "*.jinja")
"""Configuration and tokenizer in a hub model."""

_HUB_WEIGHTS = (("model*.safetensors",), ("pytorch_model*.bin",))
_TOKENIZERS = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt")
_HUB_NAME = re.compile(r"[\w.-]+(/[\w.-]+)?")
_LAYER_KEY = re.compile(r"\.(?:layers|h|blocks|block)\.(\d+)\.")

Loaded = tuple[PreTrainedModel, PreTrainedTokenizerBase]


def load_llm(
    name_or_path: str,
    *,
    dtype: torch.dtype = torch.bfloat16,
    llm_layers: int = 0,
    load_in_4bit: bool = False,
) -> Loaded:
    """Load a causal LM and its tokenizer.

    Args:
        name_or_path: `smollm2-135m`, `tiny-random`, a folder (safetensors or .bin, sharded or not), a `.gguf`
            file, or a hub id.
        dtype: of the weights. They are loaded in it; casting later would round the rotary frequencies, which
            are kept in float32 (phase errors of 1 rad and more in long prompts).
        llm_layers: use the first N decoder layers; 0 = all.
        load_in_4bit: keep the weights of linear layers in 4 bits on this process's GPU, see `four_bits`.

    Returns:
        The model on the CPU (in 4 bits: on the GPU) in evaluation mode, and a tokenizer that pads on the left with
        an existing token.

    Raises:
        UserError: nothing loadable is there; the message names what is missing or what was tried.
    """
    options = four_bit_options(dtype) if load_in_4bit else {}
    if name_or_path == TINY:
        loaded = _load_tiny(dtype, llm_layers, options)
    else:
        source = _source(name_or_path, dtype)
        if not _is_gguf(source):
            loaded = _load(source, dtype, llm_layers, options)
        elif load_in_4bit:
            raise UserError(
                f"--load_in_4bit: {source} is a GGUF file; give a folder with safetensors or .bin weights"
            )
        else:
            loaded = _load_gguf(source, dtype, llm_layers)
    model, tokenizer = loaded
    prepare_tokenizer(tokenizer, model, name_or_path)
    # Artefacts name the model as the user did, not by the place of a cached copy.
    model.name_or_path = name_or_path
    model.config._name_or_path = name_or_path
    model.eval()
    return model, tokenizer


def fetch_llm(name_or_path: str, dtype: torch.dtype) -> None:
    """Do what `load_llm` does once: look the files over, download or convert them.

    Raises:
        UserError: nothing loadable is there.
    """
    if name_or_path != TINY:
        _source(name_or_path, dtype)


def load_tokenizer(name_or_path: str) -> PreTrainedTokenizerBase:
    """The tokenizer of `load_llm(name_or_path)` alone: no weights are read, and nothing is converted.

    Raises:
        UserError: nothing loadable is there.
    """
    if name_or_path == TINY:
        return tiny_tokenizer()
    source = _smollm2_tokenizer() if name_or_path == SMOLLM2 else _locate(name_or_path, weights=False)
    with _told(source), quiet():
        if _is_gguf(source):
            return AutoTokenizer.from_pretrained(Path(source).parent, gguf_file=Path(source).name)
        return _tokenizer(source)


def load_config(name_or_path: str) -> PretrainedConfig:
    """The configuration of `load_llm(name_or_path)` alone.

    Raises:
        UserError: nothing loadable is there.
    """
    if name_or_path == TINY:
        return tiny_config()
    source = gguf_file() if name_or_path == SMOLLM2 else _locate(name_or_path, weights=False)
    with _told(source), quiet():
        if _is_gguf(source):
            return AutoConfig.from_pretrained(Path(source).parent, gguf_file=Path(source).name)
        if _is_chatglm(source):
            return glm_config(Path(source) / "config.json")
        return AutoConfig.from_pretrained(source, trust_remote_code=False)


def _smollm2_tokenizer() -> Path:
    """A converted copy, whose tokenizer loads at once, or the GGUF file itself."""
    gguf = gguf_file()
    copies = (cached_folder(gguf, dtype) for dtype in (torch.bfloat16, torch.float32))
    return next((folder for folder in copies if folder.is_dir()), gguf)


def _load_tiny(dtype: torch.dtype, llm_layers: int, options: dict[str, Any]) -> Loaded:
    config = tiny_config()
    truncate(config, llm_layers)
    kept = n_layers(config)
    weights = {name: value for name, value in tiny_weights().items() if _layer_of(name) < kept}
    with quiet():
        model = LlamaForCausalLM.from_pretrained(
            None, config=config, state_dict=weights, dtype=dtype, attn_implementation="sdpa", **options
        )
    return model, tiny_tokenizer()


def _load(source: Path, dtype: torch.dtype, llm_layers: int, options: dict[str, Any]) -> Loaded:
    """From a folder that was looked over."""
    if _is_chatglm(source):
        return _load_chatglm(source, dtype, llm_layers, options)
    with _told(source), quiet():
        config = AutoConfig.from_pretrained(source, trust_remote_code=False)
        truncate(config, llm_layers)
        model, report = AutoModelForCausalLM.from_pretrained(
            source,
            config=config,
            dtype=dtype,
            trust_remote_code=False,
            attn_implementation=_attention(config),
            output_loading_info=True,
            **options,
        )
        tokenizer = _tokenizer(source)
    _check_report(source, report, llm_layers)
    return model, tokenizer


def _load_chatglm(source: Path, dtype: torch.dtype, llm_layers: int, options: dict[str, Any]) -> Loaded:
    """From a folder as published: translated, since the model class it names is code of its own."""
    with _told(source):
        config = glm_config(source / "config.json")
        truncate(config, llm_layers)
    with _told(source), quiet():
        file = next(source / name for name in _WEIGHTS if (source / name).is_file())
        weights, report = glm_weights(file, config, dtype)
        _check_report(source, report, llm_layers)
        model, report = GlmForCausalLM.from_pretrained(
            None,
            config=config,
            state_dict=weights,
            dtype=dtype,
            attn_implementation="sdpa",
            output_loading_info=True,
            **options,
        )
        _check_report(source, report, llm_layers)
        return model, open_tokenizer(source)


def _is_chatglm(source: Path) -> bool:
    return _read_config(source / "config.json").get("model_type") == CHATGLM


def _tokenizer(source: Path) -> PreTrainedTokenizerBase:
    """ChatGLM's own where it lies: of its files transformers makes another one, without a word."""
    if is_chatglm_folder(source):
        return open_tokenizer(source)
    return AutoTokenizer.from_pretrained(source, trust_remote_code=False)


def _load_gguf(path: Path, dtype: torch.dtype, llm_layers: int) -> Loaded:
    # Newer transformers can keep GGUF weights packed, which neither LoRA nor the CPU can use.
    dense: dict[str, Any] = {}
    if hasattr(transformers, "GgufConfig"):
        dense["quantization_config"] = transformers.GgufConfig(dequantize=True)
    with _told(path), quiet():
        config = AutoConfig.from_pretrained(path.parent, gguf_file=path.name)
        truncate(config, llm_layers)
        model, report = AutoModelForCausalLM.from_pretrained(
            path.parent,
            gguf_file=path.name,
            config=config,
            dtype=dtype,
            attn_implementation=_attention(config),
            output_loading_info=True,
            **dense,
        )
        tokenizer = AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
    _check_report(path, report, llm_layers)
    # The weights are plain ones now; with the note left in, a saved copy would ask for GGUF again.
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    return model, tokenizer


def _source(name: str, dtype: torch.dtype) -> Path:
    """A looked-over folder with weights, or a GGUF file."""
    if name == SMOLLM2:
        return dense_folder(dtype, lambda gguf, precision: _load_gguf(gguf, precision, 0))
    return _locate(name)


def _locate(name: str, *, weights: bool = True) -> Path:
    """A folder, here or downloaded, or a GGUF file; looked over where `weights` are wanted too."""
    path = Path(name).expanduser()
    if path.is_dir():
        return _check_folder(path)
    if path.is_file():
        if not _is_gguf(path):
            raise UserError(
                f"{path} is neither a model folder nor a .gguf file; give the folder that holds config.json"
            )
        return path
    if name.startswith((".", "/", "~")) or not _HUB_NAME.fullmatch(name) or _is_gguf(name):
        raise UserError(
            f"{name} does not exist: give a model folder, a .gguf file, a hub id, {SMOLLM2} or {TINY}"
        )
    nearest = difflib.get_close_matches(name.lower(), [SMOLLM2, TINY], n=1, cutoff=0.75)
    if nearest and "/" not in name:
        raise UserError(f"no LLM is called {name!r}: did you mean {nearest[0]}?")
    return _download(name, weights)


def _download(name: str, weights: bool) -> Path:
    """The folder of a hub model in the hub's own cache; without a network, what is there.

    A folder, because ChatGLM's must be read without the code that its configuration names. Of two formats of the
    weights only safetensors is taken.
    """
    small, best, other = list(_SMALL_FILES), list(_HUB_WEIGHTS[0]), list(_HUB_WEIGHTS[1])
    with _told(name):
        folder = Path(snapshot_download(name, allow_patterns=small + best if weights else small))
        if weights and not any((folder / file).is_file() for file in _WEIGHTS[:2]):
            folder = Path(snapshot_download(name, allow_patterns=small + other))
    return _check_folder(folder) if weights else folder


def _check_folder(folder: Path) -> Path:
    """Name what a model folder lacks; a folder with a lone GGUF file stands for that file."""
    names = {entry.name for entry in folder.iterdir()}
    ggufs = [name for name in names if _is_gguf(name)]
    if "config.json" not in names:
        if len(ggufs) == 1:
            return folder / ggufs[0]
        if "adapter_config.json" in names:
            raise UserError(f"{folder} is a LoRA adapter, not an LLM: give the model it was trained on")
        if ggufs:
            raise UserError(
                f"{folder} holds {len(ggufs)} .gguf files: give one of them, such as {folder / min(ggufs)}"
            )
        raise UserError(
            f"{folder} has no config.json, so it is no model folder: download the whole model again"
        )
    _check_config(folder / "config.json")
    weights = [name for name in _WEIGHTS if name in names]
    if not weights:
        raise UserError(
            f"{folder} has no weights (looked for {', '.join(_WEIGHTS)}): download the whole model, "
            "with `git lfs pull` if it came by git"
        )
    if weights[0].endswith(".index.json"):
        _check_shards(folder / weights[0], names)
    elif (folder / weights[0]).stat().st_size < 1024:
        raise UserError(
            f"{folder / weights[0]} is only a few bytes long, a git-lfs pointer: run `git lfs pull` there"
        )
    if not any(name in names for name in _TOKENIZERS):
        raise UserError(
            f"{folder} has no tokenizer (looked for {', '.join(_TOKENIZERS)}): copy the model's own into it"
        )
    return folder


def _read_config(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read ({error}): download the model again") from None
    return content if isinstance(content, dict) else {}


def _check_config(path: Path) -> None:
    content = _read_config(path)
    kind = content.get("model_type")
    if not kind:
        raise UserError(f"{path} names no model_type, so it is no configuration of a transformers model")
    if kind != CHATGLM and kind not in CONFIG_MAPPING:
        reason = " and asks for code of its own, which is never run" if "auto_map" in content else ""
        raise UserError(
            f"{path}: transformers {transformers.__version__} does not know the model type {kind!r}{reason}; "
            "take a version of the model in transformers' own format"
        )


def _check_shards(index: Path, names: set[str]) -> None:
    try:
        shards = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f"{index} is no index of weight files ({error!r}): download the model again"
        ) from None
    missing = sorted(shards - names)
    if missing:
        raise UserError(
            f"{index.parent} lacks {len(missing)} of {len(shards)} weight files: {', '.join(missing[:5])}"
        )


def _check_report(source: str | Path, report: dict[str, Any], llm_layers: int) -> None:
    """Every weight the model has must come from the files; the files may hold layers that were cut off.

    Unlike transformers, which warns, so that a folder of another architecture gives a random model.
    """
    problems = {
        "missing": sorted(map(str, report["missing_keys"])),
        "of another shape": sorted(map(str, report["mismatched_keys"])),
        "not understood": sorted(
            key for key in report["unexpected_keys"] if not _is_ignorable(key, llm_layers)
        ),
    }
    told = [
        f"{len(keys)} {what} ({', '.join(keys[:3])}{', ...' if len(keys) > 3 else ''})"
        for what, keys in problems.items()
        if keys
    ]
    if told:
        raise UserError(
            f"the weights in {source} do not fit its configuration: {'; '.join(told)}. Download it again."
        )


def _is_ignorable(key: str, llm_layers: int) -> bool:
    cut = llm_layers > 0 and _layer_of(key) >= llm_layers
    return cut or key.endswith(("inv_freq", "lm_head.weight", "masked_bias", "attn.bias"))


def _layer_of(key: str) -> int:
    """The decoder layer a weight belongs to; -1 for none."""
    found = _LAYER_KEY.search(key)
    return int(found.group(1)) if found else -1


def _attention(config: PretrainedConfig) -> str:
    """Fused attention where the family has it."""
    family = AutoModelForCausalLM._model_mapping.get(type(config), None)
    return "sdpa" if getattr(family, "_supports_sdpa", True) else "eager"


def _is_gguf(path: str | Path) -> bool:
    return str(path).lower().endswith(".gguf")


@contextmanager
def _told(source: str | Path) -> Iterator[None]:
    """Whatever goes wrong while foreign files are read becomes a message with a remedy.

    Reading fails in every way there is (network, rights, broken files, packages a format needs), so this is
    the one place that catches them all; the cause stays chained for whoever needs it.
    """
    try:
        yield
    except (UserError, KeyboardInterrupt):
        raise
    except Exception as error:
        reason = " ".join(str(error).split())[:300] or type(error).__name__
        if isinstance(source, Path):
            message = f"the LLM in {source} cannot be loaded: {reason}"
        else:
            message = (
                f"{source!r} is no folder here, and as a hub id it could not be loaded: {reason}\n"
                "Check its spelling and the network, download it elsewhere and give the folder, "
                f"or use {SMOLLM2}."
            )
        raise UserError(message) from error
