"""Stage-one checkpoints: what the next stages load, and what an interrupted run needs to go on.

best/, last/            sr.safetensors (`sr.*`, `head.*`, `contrast.*`, fp32), adapter/ (peft's format),
                        manifest.json (also has the checksums of all other files)
last/ also              trainer.safetensors (fp32 master weights and AdamW moments, whole tensors by parameter
                        name), trainer.json (where the run stands)

Order, dropout and augmentation are functions of (seed, step), so no random state is stored; and tensors are
stored whole, so a run may continue on another number of processes.
"""

import platform
from collections.abc import Collection, Mapping
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from lsvcr.llm.aligned import AlignedModel
from lsvcr.llm.lora import WEIGHTS_FILE, adapter_tensors, delta_norm, save_adapter
from lsvcr.models.checkpoint import save_into
from lsvcr.schema import ADAPTER_DIR, MANIFEST_FILE, SR_WEIGHTS_FILE, STAGE_ONE, TRAINER_FILE
from lsvcr.training.align_keep import FILES, checkpoint_bytes, file_hashes, full_disk_told, settle
from lsvcr.training.engine import MOMENTS, open_moments
from lsvcr.training.engine_parts import set_master, set_parameter, shape
from lsvcr.utils.errors import UserError
from lsvcr.utils.identity import refuse_other_kind
from lsvcr.utils.io import atomic_dir, read_json, write_json

KIND = STAGE_ONE
TRAINER_WEIGHTS_FILE = "trainer.safetensors"
STANDING = ("step", "best", "seconds", "window")
"""What `trainer.json` says: steps done, best validation figure, seconds of training, sums since the last log line."""

HEADS = "heads."
"""Prefix of the fully trained parameters inside `AlignedModel`; left out in the file."""

MASTER = "master"

FREE_SETTINGS = frozenset(
    (
        "output_dir", "data_path", "resume", "logging_steps", "report_to", "dataloader_num_workers", "save_strategy",
        "save_steps", "eval_steps", "per_device_eval_batch_size", "per_device_train_batch_size",
        "gradient_accumulation_steps", "contrast_batch", "gradient_checkpointing", "recompute", "text_token_budget",
        "deepspeed", "load_best_model_at_end", "save_total_limit", "ddp_timeout", "dry_run",
    )
)  # fmt: skip
"""Settings that a continued run may change: they do not change what is learned from which samples. Of batch,
accumulation, processes and contrast_batch it is compared what `cut_of` makes of them, the data by their hash."""


def trainable(model: nn.Module) -> dict[str, nn.Parameter]:
    """Parameters that train, by name, in the model's order."""
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}


def gather_state(engine: Any) -> dict[str, Tensor]:
    """Master weights and AdamW moments of every trained parameter, whole, fp32, on the CPU.

    Every process must call it, after at least one step.

    Returns:
        `master.NAME`, `exp_avg.NAME`, `exp_avg_sq.NAME`.
    """
    from deepspeed.utils import safe_get_full_fp32_param, safe_get_full_optimizer_state

    state = {}
    for name, parameter in trainable(engine.module).items():
        state[f"{MASTER}.{name}"] = safe_get_full_fp32_param(parameter).cpu()
        for moment in MOMENTS:
            state[f"{moment}.{name}"] = safe_get_full_optimizer_state(parameter, moment).cpu()
    return state


def restore_state(engine: Any, state: Mapping[str, Tensor], step: int) -> None:
    """Put what `gather_state` returned into a fresh engine, on any number of processes.

    Args:
        engine: before its first step.
        state: for exactly the engine's trained parameters.
        step: optimiser steps taken, AdamW's bias correction depends on it.

    Raises:
        UserError: names or shapes differ.
    """
    parameters = trainable(engine.module)
    wanted = {f"{part}.{name}": shape(p) for part in (MASTER, *MOMENTS) for name, p in parameters.items()}
    given = {name: tensor.shape for name, tensor in state.items()}
    if wanted != given:
        differing = sorted(
            name for name in wanted.keys() | given.keys() if wanted.get(name) != given.get(name)
        )
        raise UserError(
            f"the saved trainer state is of another model ({', '.join(differing[:5])}): "
            "use another output_dir, or --resume False to start anew"
        )
    open_moments(engine, step)
    for name, parameter in parameters.items():
        master = state[f"{MASTER}.{name}"].to(parameter.device)
        set_master(parameter, master)
        set_parameter(parameter, master)  # the working copy, rounded as the engine rounds it
        for moment in MOMENTS:
            set_master(parameter, state[f"{moment}.{name}"].to(parameter.device), moment)


def write_checkpoint(
    folder: Path,
    model: AlignedModel,
    state: Mapping[str, Tensor],
    manifest: Mapping[str, Any],
    trainer: Any = None,
) -> None:
    """Write a checkpoint folder whole or not at all, and read back what was written. One process calls it.

    Args:
        folder: replaced if it is there.
        model: its `llm` is saved as adapter if it has one.
        state: from `gather_state`.
        manifest: plain data; hashes of the files are added.
        trainer: plain data for `trainer.json`; None leaves the trainer's state out.

    Raises:
        UserError: something is not finite, cannot be written, or reads back differently; the adapter is still zero.
    """
    prefix = f"{MASTER}.{HEADS}"
    heads = {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}
    heads |= {name: value.detach().float().cpu() for name, value in model.heads.named_buffers()}
    if not hasattr(model.llm, "peft_config"):
        write_folder(folder, heads, state, manifest, trainer)
        return
    if delta_norm(model.llm) == 0:
        raise UserError("the LoRA adapter has learned nothing (B is zero): is --learning_rate 0?")
    write_folder(folder, heads, state, manifest, trainer, model.llm)


def write_folder(
    folder: Path,
    weights: Mapping[str, Tensor],
    state: Mapping[str, Tensor],
    manifest: Mapping[str, Any],
    trainer: Any = None,
    adapted: Any = None,
) -> None:
    """As `write_checkpoint`, whatever `weights` (for sr.safetensors) are of.

    Args:
        folder, state, manifest, trainer: as there.
        weights: by name.
        adapted: LLM whose adapter goes to adapter/; None = there is none.
    """
    tensors: dict[Path, Mapping[str, Tensor]] = {Path(SR_WEIGHTS_FILE): weights}
    if trainer is not None:
        tensors[Path(TRAINER_WEIGHTS_FILE)] = state
    if adapted is not None:
        tensors[Path(ADAPTER_DIR, WEIGHTS_FILE)] = adapter_tensors(adapted)
    needed = sum(map(checkpoint_bytes, tensors.values()))
    with atomic_dir(folder) as temporary, full_disk_told(folder.parent, needed):
        if adapted is not None:
            save_adapter(adapted, temporary / ADAPTER_DIR)
        save_into(temporary, weights, manifest)
        if trainer is not None:
            save_file(dict(state), temporary / TRAINER_WEIGHTS_FILE)
            write_json(temporary / TRAINER_FILE, trainer)
        for path in temporary.rglob("*.safetensors"):
            path.chmod(0o644)  # safetensors lets only the owner read, but runs are shared
        settle(temporary)
        for name, expected in tensors.items():
            _check_written(temporary / name, expected)
        write_json(temporary / MANIFEST_FILE, {**manifest, FILES: file_hashes(temporary)})
        settle(temporary)


def read_trainer(last: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """State and standing of an interrupted run from its last/, or from a kept step.

    Raises:
        UserError: a file is missing or damaged, or was written by another version.
    """
    standing = read_json(last / TRAINER_FILE)
    missing = [name for name in STANDING if name not in standing]
    if missing:
        raise UserError(
            f"{last / TRAINER_FILE} has no {', '.join(missing)}, so another version of LSVCR wrote it: finish the run "
            "with that one, or start anew with --resume False"
        )
    try:
        return load_file(last / TRAINER_WEIGHTS_FILE), standing
    except (SafetensorError, OSError) as broken:
        raise UserError(
            f"{last / TRAINER_WEIGHTS_FILE} cannot be read ({broken}): start anew with --resume False"
        ) from None


def cut_of(settings: Mapping[str, Any], processes: int) -> dict[str, int]:
    """What must stay the same where a step is cut into other processes and micro-steps, by its name in messages.

    Samples are contrasted within a micro-step of all processes, or over as many as `contrast_batch` says; each
    micro-step has wide batches of its own.
    """
    joined = settings["per_device_train_batch_size"] * processes
    micro_steps = settings["gradient_accumulation_steps"]
    found = {"samples of an optimiser step (batch x accumulation x processes)": joined * micro_steps}
    if settings.get("rec_loss_weight") or settings.get("contrast_loss_weight"):
        contrasted = settings["contrast_batch"] or joined
        found["samples contrasted with one another (--contrast_batch, else batch x processes)"] = contrasted
    if settings.get("wide_titles") or settings.get("taste_texts"):
        found["micro-steps of an optimiser step, each with wide batches (accumulation)"] = micro_steps
    return found


def check_same_run(
    folder: Path, settings: Any, free: Collection[str], kind: str, data_hash: str, processes: int
) -> None:
    """Refuse to continue, or to replace, the checkpoint of a run that was started with other settings or on other data.

    Args:
        folder: the checkpoint's.
        settings: of the run, a dataclass.
        free: its fields that may change.
        kind: of the run's checkpoints.
        data_hash: of the dataset.
        processes: that train.

    Raises:
        UserError: names every difference and the ways out.
    """
    manifest = read_json(folder / MANIFEST_FILE)
    refuse_other_kind(folder.parent, kind, manifest)
    if "processes" not in manifest:
        raise UserError(
            f"{folder} holds a checkpoint that was converted, none of a run: choose another --output_dir"
        )
    # A setting that the run's version did not have yet: it did what the default does.
    before = {**asdict(type(settings)()), **manifest["settings"]}
    differences = [
        f"{name} was {before.get(name)!r}, is {value!r}"
        for name, value in asdict(settings).items()
        if name not in free and before.get(name) != value
    ]
    was = cut_of(before, manifest["processes"])
    differences += [
        f"{name} were {was[name]}, are {number}"
        for name, number in cut_of(asdict(settings), processes).items()
        if was.get(name, number) != number
    ]
    if manifest["data_hash"] != data_hash:
        differences.append("the prepared dataset has changed")
    if differences:
        raise UserError(
            f"{folder.parent} holds a run that was started differently: {'; '.join(differences)}. "
            "Use another --output_dir, or --resume False to start anew there"
        )


def versions() -> dict[str, str]:
    """Versions of what a result depends on."""
    found = {"python": platform.python_version()}
    for package in ("lsvcr", "torch", "transformers", "peft", "deepspeed"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def _check_written(path: Path, expected: Mapping[str, Tensor]) -> None:
    written = load_file(path)
    differing = [n for n in written.keys() | expected.keys() if not _same(written.get(n), expected.get(n))]
    if differing:
        raise UserError(
            f"{path} was not written whole ({min(differing)} differs): check the disk and run again"
        )


def _same(left: Tensor | None, right: Tensor | None) -> bool:
    return left is not None and right is not None and torch.equal(left, right)
