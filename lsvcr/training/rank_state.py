"""The run folder of stage two: best/, last/, and what lets a killed run go on as if nothing had happened."""

import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from lsvcr.models import checkpoint
from lsvcr.schema import BEST_DIR, LAST_DIR, MANIFEST_FILE, METRICS_FILE, METRICS_LOG_FILE
from lsvcr.training.rank_contract import Kept
from lsvcr.utils.errors import UserError
from lsvcr.utils.identity import START_OVER, refuse_other_kind, refuse_other_run
from lsvcr.utils.io import atomic_dir, read_json, recover

OPTIMIZER_FILE = "optimizer.safetensors"
ROWS_FILE = "rows_{name}.safetensors"
"""Per-row test values of one protocol."""

FREE = {
    "output_dir",
    "resume",
    "report_to",
    "dataloader_num_workers",
    "per_device_eval_batch_size",
    "data_path",
    "pretrain_checkpoint",
    "pretrained",
    "photo_emb_file",
    "comment_emb_file",
}
"""Settings that may change between a run and its continuation: they change no figure, or are compared by content."""


@dataclass
class Progress:
    """Where a run stands after an epoch; all of it goes into last/'s manifest.

    Attributes:
        epoch: epochs done.
        step: optimiser steps done.
        best: best value of the selection metric so far, None before the first validation.
        best_epoch: the epoch that reached it (from 1), 0 before.
        without_gain: validations since.
    """

    epoch: int = 0
    step: int = 0
    best: float | None = None
    best_epoch: int = 0
    without_gain: int = 0


class RunFolder:
    """Reads and writes the artefacts of one run.

    Args:
        setup: of the run; its settings' `output_dir` is the folder.
        processes: how many train.
        precision: mixed precision of the run (`no`, `bf16`, `fp16`).
    """

    def __init__(self, setup: Kept, processes: int, precision: str) -> None:
        self.path = Path(setup.settings.output_dir)
        self._about = setup.about(processes)
        self._defaults = asdict(type(setup.settings)())
        self._identity = _identity(setup, self._about, precision)

    @property
    def best(self) -> Path:
        """Folder of the best checkpoint."""
        return self.path / BEST_DIR

    @property
    def last(self) -> Path:
        """Folder of the state after the last whole epoch."""
        return self.path / LAST_DIR

    @property
    def metrics(self) -> Path:
        """The test figures, written when the run is over."""
        return self.path / METRICS_FILE

    def clear(self) -> None:
        """Remove what an earlier run left here, so that no figure of it can be taken for one of this run."""
        for folder in (self.best, self.last, self.path / "curves"):
            shutil.rmtree(folder, ignore_errors=True)
        for pattern in (METRICS_FILE, METRICS_LOG_FILE, ROWS_FILE.format(name="*")):
            for file in self.path.glob(pattern):
                file.unlink()

    def find(self) -> Progress | None:
        """Where an interrupted run of the same settings and data stands; None when there is none.

        Undoes what a kill left half done in exchanging best/ or last/ for its successor.

        Raises:
            UserError: the run in the folder is another one; the message names what differs.
        """
        self._read(self.best)  # of a run that has no last/, too
        manifest = self._read(self.last)
        return None if manifest is None else Progress(**manifest["progress"])

    def save_best(self, model: nn.Module, progress: Progress, figures: Mapping[str, float]) -> None:
        """Write best/, replacing an earlier one."""
        checkpoint.save(self.best, model.state_dict(), self._manifest(progress, figures))

    def save_last(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        scaler: Any,
        progress: Progress,
        figures: Mapping[str, float],
    ) -> None:
        """Write last/: weights, optimiser state and progress."""
        manifest = self._manifest(progress, figures) | {
            "scaler": None if scaler is None else scaler.state_dict()
        }
        with atomic_dir(self.last) as folder:
            checkpoint.save_into(folder, model.state_dict(), manifest)
            save_file(_optimizer_tensors(model, optimizer), folder / OPTIMIZER_FILE)

    def load_last(self, model: nn.Module, optimizer: torch.optim.Optimizer, scaler: Any) -> None:
        """Put weights and optimiser state of last/ in place.

        Raises:
            UserError: a file is damaged or does not fit.
        """
        state = checkpoint.load(self.last)
        checkpoint.load_into(model, state.tensors, source=str(self.last))
        try:
            tensors = load_file(self.last / OPTIMIZER_FILE)
        except (SafetensorError, OSError) as broken:
            raise UserError(
                f"{self.last / OPTIMIZER_FILE} is damaged ({broken}); start over with --resume False"
            ) from None
        _restore_optimizer(model, optimizer, tensors)
        if scaler is not None and state.manifest["scaler"] is not None:
            scaler.load_state_dict(state.manifest["scaler"])

    def _read(self, folder: Path) -> dict[str, Any] | None:
        """The manifest of best/ or last/, which must be of this run; None when there is none."""
        recover(folder)
        if not (folder / MANIFEST_FILE).is_file():
            return None
        manifest: dict[str, Any] = read_json(folder / MANIFEST_FILE)
        refuse_other_kind(self.path, self._about["kind"], manifest)
        # A setting that an earlier version did not have had what is its default now.
        there = {**self._defaults, **manifest.get("identity", {})}
        anew = START_OVER if "resume" in self._defaults else "remove what is there"
        refuse_other_run(self.path, self._identity, there, anew)
        return manifest

    def _manifest(self, progress: Progress, figures: Mapping[str, float]) -> dict[str, Any]:
        return {
            **self._about,
            "identity": self._identity,
            "progress": asdict(progress),
            "metrics": dict(figures),
        }


def _identity(setup: Kept, about: Mapping[str, Any], precision: str) -> dict[str, Any]:
    """What a run and its continuation must share, flat, so that a message can name it."""
    chosen = {name: value for name, value in asdict(setup.settings).items() if name not in FREE}
    return {
        **chosen,
        **setup.identity(about),
        "data hash": about["data_hash"],
        "number of processes": about["processes"],
        "mixed precision": precision,
    }


def _optimizer_tensors(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """AdamW's state by `parameter name|entry`; parameters without a gradient so far have none."""
    tensors = {}
    for name, parameter in model.named_parameters():
        for entry, value in optimizer.state.get(parameter, {}).items():
            tensors[f"{name}|{entry}"] = torch.as_tensor(value).detach().to("cpu", copy=True).contiguous()
    return tensors


def _restore_optimizer(
    model: nn.Module, optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor]
) -> None:
    parameters = dict(model.named_parameters())
    for key, value in tensors.items():
        name, _, entry = key.rpartition("|")
        if name not in parameters:
            raise UserError(
                f"{OPTIMIZER_FILE} has a state for {name}, which the model has not; use --resume False"
            )
        parameter = parameters[name]
        # The fused AdamW keeps its step count on the parameter's device too.
        optimizer.state[parameter][entry] = value.to(parameter.device)
