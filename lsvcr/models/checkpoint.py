"""Checkpoint folders: `sr.safetensors` and `manifest.json`, written whole or not at all, read strictly."""

from collections.abc import Iterable, Mapping
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from lsvcr.schema import MANIFEST_FILE, SR_WEIGHTS_FILE
from lsvcr.utils.errors import UserError
from lsvcr.utils.io import atomic_dir, read_json, write_json

POSITION_TABLES = ("video_position.weight", "comment_position.weight")
"""Names (or their last parts) of the tables that `extend_positions` lengthens."""


class Checkpoint(NamedTuple):
    """What a checkpoint folder holds."""

    tensors: dict[str, Tensor]
    manifest: dict[str, Any]


def save(folder: str | Path, tensors: Mapping[str, Tensor], manifest: Mapping[str, Any]) -> None:
    """Write a checkpoint folder atomically; one that is already there is replaced as a whole.

    Args:
        folder: receives `sr.safetensors` and `manifest.json`.
        tensors: by name; any device. NaN and infinity are refused.
        manifest: plain JSON data.

    Raises:
        UserError: a tensor is not finite, or the folder cannot be written.
    """
    with atomic_dir(folder) as temporary:
        save_into(temporary, tensors, manifest)


def save_into(folder: str | Path, tensors: Mapping[str, Tensor], manifest: Mapping[str, Any]) -> None:
    """As `save`, into a folder that the caller makes atomic because it holds more than this."""
    _check_finite(tensors, f"the checkpoint for {folder}", "the run has diverged: lower the learning rate")
    # Copies: safetensors refuses tensors that share memory, and must not see later optimiser steps.
    own = {name: tensor.detach().to("cpu", copy=True).contiguous() for name, tensor in tensors.items()}
    save_file(own, Path(folder) / SR_WEIGHTS_FILE)
    write_json(Path(folder) / MANIFEST_FILE, dict(manifest))


def load(folder: str | Path) -> Checkpoint:
    """Read a checkpoint folder to the CPU.

    Raises:
        UserError: the folder or one of its files is missing or damaged, or a tensor holds NaN or infinity.
    """
    path = Path(folder)
    if not path.is_dir():
        raise UserError(f"{path} is not a checkpoint folder: it does not exist")
    absent = [name for name in (MANIFEST_FILE, SR_WEIGHTS_FILE) if not (path / name).is_file()]
    if absent:
        raise UserError(
            f"{path} is not a complete checkpoint: {' and '.join(absent)} missing; write it again"
        )
    manifest = read_json(path / MANIFEST_FILE)
    try:
        tensors = load_file(path / SR_WEIGHTS_FILE)
    except (SafetensorError, OSError) as broken:
        raise UserError(
            f"{path / SR_WEIGHTS_FILE} is damaged ({broken}); write the checkpoint again"
        ) from None
    _check_finite(tensors, str(path / SR_WEIGHTS_FILE), "use an earlier checkpoint or train again")
    return Checkpoint(tensors, manifest)


def load_into(
    module: nn.Module,
    tensors: Mapping[str, Tensor],
    *,
    source: str,
    may_miss: Iterable[str] = (),
    may_ignore: Iterable[str] = (),
) -> list[str]:
    """Copy `tensors` into the parameters and buffers of `module`, strictly.

    Args:
        module: receives values in its own precision and on its own device.
        tensors: by the module's names; left untouched.
        source: where they come from, for the message.
        may_miss: patterns (`video_id.*`) of names the module keeps at their initial values when absent.
        may_ignore: patterns of given names that the module has no place for.

    Returns:
        Names left at their initial values, sorted.

    Raises:
        UserError: lists every missing, unexpected and wrongly shaped tensor; nothing has been copied then.
    """
    wanted = module.state_dict()
    missing = sorted(wanted.keys() - tensors.keys())
    unexpected = sorted(tensors.keys() - wanted.keys())
    faults = [f"missing: {name} {_shape(wanted[name])}" for name in missing if not _matches(name, may_miss)]
    faults += [f"unexpected: {n} {_shape(tensors[n])}" for n in unexpected if not _matches(n, may_ignore)]
    common = [name for name in wanted if name in tensors]
    faults += [
        f"wrong shape: {name} is {_shape(tensors[name])} there, {_shape(wanted[name])} here"
        for name in common
        if tensors[name].shape != wanted[name].shape
    ]
    if faults:
        listed = "\n  ".join(faults)
        raise UserError(
            f"{source} does not fit this model; use the settings it was trained with:\n  {listed}"
        )
    with torch.no_grad():
        for name in common:
            wanted[name].copy_(tensors[name])
    return missing


def with_prefix(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A new mapping with `prefix` put before every name."""
    return {prefix + name: tensor for name, tensor in tensors.items()}


def under_prefix(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A new mapping of the tensors whose names start with `prefix`, without it."""
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def extend_positions(
    tensors: Mapping[str, Tensor], rows: int, tables: Iterable[str] = POSITION_TABLES
) -> dict[str, Tensor]:
    """Lengthen position tables to `rows` rows, in a new mapping: missing rows are the mean of those present.

    Args:
        tensors: by name; a table is any whose name ends with one of `tables`. Longer tables stay as they are.
        rows: rows a table must have.
        tables: endings of names.
    """
    endings = tuple(tables)
    return {
        name: _extended(tensor, rows) if name.endswith(endings) else tensor
        for name, tensor in tensors.items()
    }


def _extended(table: Tensor, rows: int) -> Tensor:
    missing = rows - table.shape[0]
    if missing <= 0:
        return table
    return torch.cat([table, table.mean(dim=0, keepdim=True).expand(missing, -1)])


def _matches(name: str, patterns: Iterable[str]) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in patterns)


def _shape(tensor: Tensor) -> str:
    return str(tuple(tensor.shape))


def _check_finite(tensors: Mapping[str, Tensor], source: str, remedy: str) -> None:
    bad = sorted(n for n, t in tensors.items() if t.is_floating_point() and not bool(t.isfinite().all()))
    if bad:
        raise UserError(f"{source} holds NaN or infinity in {', '.join(bad)}: {remedy}")
