"""LoRA adapters in peft's own format: put on, saved with proof, loaded without guessing."""

from collections.abc import Sequence
from pathlib import Path

import torch
from peft import LoraConfig, PeftConfig, PeftModel, TaskType, get_peft_model
from peft.utils import get_peft_model_state_dict, set_peft_model_state_dict
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from lsvcr.llm.families import lora_targets
from lsvcr.llm.lora_linear import fuse_lora
from lsvcr.llm.quiet import quiet
from lsvcr.nn.dropout import Dropout
from lsvcr.utils.arguments import nearest
from lsvcr.utils.errors import UserError
from lsvcr.utils.io import read_json, write_json
from lsvcr.utils.logging import get_logger

CONFIG_FILE = "adapter_config.json"
WEIGHTS_FILE = "adapter_model.safetensors"

logger = get_logger(__name__)


def add_lora(
    model: PreTrainedModel, r: int, alpha: int, dropout: float, targets: Sequence[str] | None = None
) -> PeftModel:
    """Freeze `model` and put trainable LoRA on linear projections of attention and MLP: all, or those named.

    The adapters have the dtype of the weights they sit on: beside bf16 weights fp32 adapters cost nearly half
    the speed. A is initialised from torch's global generator, B is zero, so the output is unchanged at first.

    Args:
        model: the LLM.
        r, alpha, dropout: of LoRA.
        targets: last parts of layers' names, such as `q_proj`; None = every linear projection.

    Raises:
        UserError: rank or dropout out of range, or a target that the LLM has not.
    """
    if r < 1 or not 0 <= dropout < 1:
        raise UserError(
            f"--lora_r {r} --lora_dropout {dropout}: the rank is at least 1, the dropout in [0, 1)"
        )
    config = LoraConfig(
        task_type=TaskType.CAUSAL_LM,
        r=r,
        lora_alpha=alpha,
        lora_dropout=dropout,
        target_modules=lora_targets(model) if targets is None else _known(model, targets),
        bias="none",
    )
    with quiet():
        adapted = get_peft_model(model, config, autocast_adapter_dtype=False)
    for layer in adapted.modules():
        for name, drop in getattr(layer, "lora_dropout", {}).items():
            if isinstance(drop, nn.Dropout):  # torch's own takes a third of a training step on a CPU
                layer.lora_dropout[name] = Dropout(drop.p)
    fuse_lora(adapted)
    return adapted


def _known(model: PreTrainedModel, targets: Sequence[str]) -> list[str]:
    """The named layers, after checking that there are such."""
    linear = {
        name.rpartition(".")[2]
        for name, layer in model.named_modules()
        if isinstance(layer, nn.Linear | Conv1D)
    }
    for name in targets:
        if name not in linear:
            hint = nearest(name, linear) or f"it has {', '.join(sorted(linear))}"
            raise UserError(f"--lora_targets: this LLM has no layer {name!r}; {hint}")
    return list(targets)


def adapter_tensors(model: PeftModel) -> dict[str, Tensor]:
    """The adapter's tensors on the CPU, under the names they have in the file."""
    tensors = get_peft_model_state_dict(model, save_embedding_layers=False)
    return {name: value.detach().cpu() for name, value in tensors.items()}


def delta_norm(model: PeftModel) -> float:
    """Size of what the adapter adds: the norm of all its B matrices. 0 = it has learned nothing yet."""
    squares = [
        value.float().pow(2).sum() for name, value in adapter_tensors(model).items() if ".lora_B." in name
    ]
    return float(torch.stack(squares).sum().sqrt()) if squares else 0.0


def save_adapter(model: PeftModel, folder: str | Path) -> None:
    """Write the adapter to `folder` and read it back: what is on the disk equals what is in memory.

    Raises:
        UserError: the file differs from the model, or holds a number that is not finite.
    """
    target = Path(folder)
    kept = adapter_tensors(model)
    broken = [name for name, value in kept.items() if not torch.isfinite(value).all()]
    if broken:
        raise UserError(
            f"the adapter has NaN or infinity in {broken[0]} ({len(broken)} tensors): lower the learning rate"
        )
    # "auto" would ask the hub about the base model's vocabulary, which LoRA never changes here.
    with quiet():
        model.save_pretrained(str(target), save_embedding_layers=False)
    (target / "README.md").unlink(missing_ok=True)  # an empty form
    config = read_json(target / CONFIG_FILE)
    # peft writes a set, in an order that differs between processes.
    write_json(target / CONFIG_FILE, {**config, "target_modules": sorted(config["target_modules"])})
    written = _read(target)
    differing = [
        name
        for name in kept.keys() | written.keys()
        if name not in kept or name not in written or not torch.equal(kept[name], written[name])
    ]
    if differing:
        raise UserError(
            f"{target / WEIGHTS_FILE} was not written whole ({min(differing)} differs): "
            "check the disk and run again"
        )


def load_adapter(model: PreTrainedModel, folder: str | Path, trainable: bool = False) -> PeftModel:
    """Put a saved adapter on `model`, in the model's dtype.

    Args:
        model: the base model the adapter was trained on, with the same number of layers.
        folder: written by `save_adapter` or by peft.
        trainable: the adapter's tensors take part in training; else nothing of the model does.

    Raises:
        UserError: the folder is no adapter, or the adapter was made for another base model (names and shapes
            are compared both ways). `model` is left without adapter then.
    """
    source = Path(folder)
    saved = _read(source)
    try:
        config = PeftConfig.from_pretrained(str(source))
        config.inference_mode = not trainable
        trained_on = config.base_model_name_or_path  # peft writes the new model's name over it
        with quiet():
            adapted = get_peft_model(model, config, autocast_adapter_dtype=False)
    except (ValueError, TypeError, KeyError) as error:
        raise UserError(f"the adapter in {source} does not fit this LLM: {error}") from error
    told = mismatch(saved, adapter_tensors(adapted))
    if told:
        adapted.unload()
        raise UserError(
            f"the adapter in {source} is of another LLM than this one ({trained_on!r}, "
            f"or another --llm_layers): {told}. Load it on the model it was trained on."
        )
    # Its weights may be the same under another name, so this is no error.
    if trained_on not in (None, "", model.name_or_path):
        logger.warning(
            f"the adapter in {source} was trained on {trained_on!r}, not on {model.name_or_path!r}: see that both "
            "are the same model"
        )
    set_peft_model_state_dict(adapted, saved)
    fuse_lora(adapted)
    for name, parameter in adapted.named_parameters():
        parameter.requires_grad_(trainable and "lora_" in name)
    return adapted


def _read(folder: Path) -> dict[str, Tensor]:
    for name in (CONFIG_FILE, WEIGHTS_FILE):
        if not (folder / name).is_file():
            raise UserError(f"{folder} is no saved adapter: it has no {name}")
    try:
        return load_file(folder / WEIGHTS_FILE)
    except (SafetensorError, OSError) as error:
        raise UserError(f"{folder / WEIGHTS_FILE} is damaged ({error}): take another checkpoint") from error


def mismatch(saved: dict[str, Tensor], wanted: dict[str, Tensor]) -> str:
    """What differs in names and shapes, in words; empty if nothing does."""
    parts = {
        "missing in the file": sorted(wanted.keys() - saved.keys()),
        "unknown to the model": sorted(saved.keys() - wanted.keys()),
        "of another shape": [
            f"{name} {tuple(saved[name].shape)}, wanted {tuple(wanted[name].shape)}"
            for name in sorted(wanted.keys() & saved.keys())
            if saved[name].shape != wanted[name].shape
        ],
    }
    return "; ".join(f"{len(names)} {what} (such as {names[0]})" for what, names in parts.items() if names)
