"""`lsvcr convert`: checkpoints of the official implementation, and adapters on a legacy ChatGLM, as ours."""

from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, TaskType
from safetensors.torch import save_file
from torch import Tensor
from transformers import AutoModelForCausalLM, PretrainedConfig

from lsvcr import __version__
from lsvcr.llm.aligned import AlignedHeads
from lsvcr.llm.loading import load_config
from lsvcr.llm.lora import CONFIG_FILE, WEIGHTS_FILE, add_lora, mismatch
from lsvcr.llm.quiet import quiet
from lsvcr.models import checkpoint
from lsvcr.models.official import OfficialCheckpoint, native_lora, official_file, read_official
from lsvcr.models.sr import SRModel
from lsvcr.schema import ADAPTER_DIR, BEST_DIR, MANIFEST_FILE, SR_WEIGHTS_FILE
from lsvcr.settings import AlignSettings, ConvertSettings
from lsvcr.settings.bounds import check_bounds
from lsvcr.training.embedder import STAGE_ONE_KIND
from lsvcr.utils.errors import UserError
from lsvcr.utils.io import atomic_dir, read_json, sha256_file, write_json
from lsvcr.utils.logging import get_logger

_log = get_logger(__name__)


def convert(settings: ConvertSettings) -> Path:
    """Write what an official checkpoint holds as a stage-one run that `embed` and stage two read.

    Every tensor must have its place: SR model and heads are compared with a model of their shape, LoRA with the LLM.
    A file with nothing but LoRA becomes a peft adapter.

    Returns:
        The folder.

    Raises:
        UserError: settings out of range, no checkpoint, a tensor without a place or a place without a tensor, or
            another LLM.
    """
    check_bounds(settings)
    out = Path(settings.out)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"--out {out} is there already: give a new or empty folder")
    found = read_official(settings.checkpoint)
    llm = load_config(settings.model_name_or_path)
    adapter = _native(found.lora, llm, settings)
    if not found.heads:
        with atomic_dir(out) as folder:
            _write_adapter(folder, adapter, settings)
        _log.info("%s: a peft adapter of %d tensors", out, len(adapter))
        return out
    aligned = _settings(found, settings, lora=bool(adapter))
    heads = _heads(found, aligned, int(llm.get_text_config().hidden_size), settings.checkpoint)
    with atomic_dir(out) as folder:
        _write_run(folder / BEST_DIR, heads, adapter, aligned, settings)
    _log.info("%s: a stage-one run of %d tensors and %d of LoRA", out, len(found.heads), len(adapter))
    return out


def _native(
    lora: Mapping[str, Tensor], llm: PretrainedConfig, settings: ConvertSettings
) -> dict[str, Tensor]:
    """The adapter under the names of the LLM's native layout, compared with the LLM."""
    if not lora:
        return {}
    config = llm.get_text_config()
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    shared = getattr(config, "num_key_value_heads", config.num_attention_heads)
    rows = (config.num_attention_heads * width, shared * width)
    adapter = native_lora(lora, *rows)
    with torch.device("meta"), quiet():
        model = AutoModelForCausalLM.from_config(llm)
        wanted = _lora_places(model, _rank(adapter))
    told = mismatch(adapter, wanted)
    if told:
        raise UserError(
            f"the adapter in {settings.checkpoint} is not of {settings.model_name_or_path}: {told}. "
            "Give the LLM it was trained on."
        )
    return adapter


def _lora_places(model: Any, rank: int) -> dict[str, Tensor]:
    """Names and shapes of a LoRA of that rank on every projection of `model`, without memory for either."""
    adapted = add_lora(model, rank, rank, 0.0)
    return {
        name: parameter
        for name, parameter in ((n.replace(".default", ""), p) for n, p in adapted.named_parameters())
        if ".lora_" in name
    }


def _rank(adapter: Mapping[str, Tensor]) -> int:
    return next(value.shape[0] for name, value in adapter.items() if ".lora_A." in name)


def _settings(found: OfficialCheckpoint, settings: ConvertSettings, lora: bool) -> AlignSettings:
    """The shape that the tensors tell, and what only the user knows."""
    heads = found.heads
    needed = ("sr.adapter.weight", "sr.video_encoder.0.feed_forward.up.weight", "sr.video_position.weight")
    absent = [name for name in needed if name not in heads]
    if absent:
        raise UserError(f"{settings.checkpoint} holds no whole SR model: {', '.join(absent)} missing")
    hidden, text_width = heads["sr.adapter.weight"].shape
    layers = [int(name.split(".")[2]) for name in heads if name.startswith("sr.video_encoder.")]
    return replace(
        AlignSettings(),
        model_name_or_path=settings.model_name_or_path,
        hidden=int(hidden),
        text_width=int(text_width),
        layers=max(layers) + 1,
        heads=settings.heads,
        inner=int(heads["sr.video_encoder.0.feed_forward.up.weight"].shape[0]),
        max_position=int(heads["sr.video_position.weight"].shape[0]),
        max_text_length=settings.max_text_length,
        lora=lora,
    )


def _heads(found: OfficialCheckpoint, settings: AlignSettings, llm_width: int, source: str) -> AlignedHeads:
    if settings.hidden % settings.heads:
        raise UserError(f"--heads {settings.heads}: the SR model is {settings.hidden} wide, not a multiple")
    sr = SRModel.from_settings(settings, settings.max_position)
    heads = AlignedHeads(sr, llm_width, settings.text_width)
    checkpoint.load_into(heads, found.heads, source=source)
    return heads


def _write_run(
    folder: Path,
    heads: AlignedHeads,
    adapter: Mapping[str, Tensor],
    aligned: AlignSettings,
    settings: ConvertSettings,
) -> None:
    folder.mkdir()
    if adapter:
        (folder / ADAPTER_DIR).mkdir()
        _write_adapter(folder / ADAPTER_DIR, adapter, settings)
    file = official_file(settings.checkpoint)
    manifest = {
        "kind": STAGE_ONE_KIND,
        "settings": asdict(aligned),
        "converted_from": {"file": file.name, "sha256": sha256_file(file)},
        "versions": {"lsvcr": __version__, "torch": torch.__version__},
    }
    checkpoint.save_into(folder, heads.state_dict(), manifest)
    kept = [folder / SR_WEIGHTS_FILE, *(folder / ADAPTER_DIR).glob("*.safetensors")]
    hashes = {path.relative_to(folder).as_posix(): sha256_file(path) for path in kept}
    write_json(folder / MANIFEST_FILE, {**manifest, "files": hashes})


def _write_adapter(folder: Path, adapter: Mapping[str, Tensor], settings: ConvertSettings) -> None:
    """A peft adapter; alpha and dropout from the configuration beside the checkpoint, if there is one."""
    beside = official_file(settings.checkpoint).parent / CONFIG_FILE
    known = read_json(beside) if beside.is_file() else {}
    config = LoraConfig(
        task_type=TaskType.CAUSAL_LM,
        base_model_name_or_path=settings.model_name_or_path,
        r=_rank(adapter),
        lora_alpha=known.get("lora_alpha", settings.lora_alpha),
        lora_dropout=known.get("lora_dropout", 0.0),
        target_modules=sorted({name.split(".")[-3] for name in adapter}),
        bias="none",
        inference_mode=True,
    )
    config.save_pretrained(str(folder))
    written = read_json(folder / CONFIG_FILE)
    write_json(folder / CONFIG_FILE, {**written, "target_modules": sorted(written["target_modules"])})
    save_file(dict(adapter), folder / WEIGHTS_FILE)
