"""The run folder of a generative recommender: best/, last/, and what a killed run goes on from, to the last bit."""

import os
import platform
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from lsvcr import __version__
from lsvcr.baselines.generative_settings import TuneSettings
from lsvcr.llm.lora import save_adapter
from lsvcr.schema import ADAPTER_DIR, BEST_DIR, LAST_DIR, LLM_FINGERPRINT, MANIFEST_FILE, METRICS_LOG_FILE
from lsvcr.utils.errors import UserError
from lsvcr.utils.identity import refuse_other_kind, refuse_other_run
from lsvcr.utils.io import atomic_dir, read_json, recover, write_json

KIND = "generative"
"""`kind` in the manifests of these checkpoints."""

OPTIMIZER_FILE = "optimizer.safetensors"
_MASTER = "master"
_FREE = {"output_dir", "resume", "data_path"}
"""Settings that may change between a run and its continuation."""


@dataclass
class Progress:
    """Where a run stands after an epoch.

    Attributes:
        epoch: epochs done.
        step: optimiser steps done.
        best: lowest validation loss so far, None before the first.
        best_epoch: the epoch that reached it (from 1), 0 before.
        without_gain: epochs since.
        finished: nothing is left to do.
        seconds: in the training steps of whole epochs.
    """

    epoch: int = 0
    step: int = 0
    best: float | None = None
    best_epoch: int = 0
    without_gain: int = 0
    finished: bool = False
    seconds: float = 0.0


class Masters:
    """fp32 copies of trained weights that are kept in less: AdamW's small steps would be rounded away there.

    Args:
        model: its parameters that need a gradient; fp32 ones are their own masters.
    """

    def __init__(self, model: nn.Module) -> None:
        self._own = {name: p for name, p in model.named_parameters() if p.requires_grad}
        self.weights = {
            name: p if p.dtype == torch.float32 else nn.Parameter(p.detach().float())
            for name, p in self._own.items()
        }

    def take_gradients(self) -> None:
        """Hand the model's gradients to the masters, and forget them in the model."""
        for name, own, master in self._pairs():
            if own.grad is None:
                raise RuntimeError(f"{name} has no gradient")
            master.grad = own.grad.float()
            own.grad = None

    def give_weights(self) -> None:
        """Round the masters into the model."""
        with torch.no_grad():
            for _, own, master in self._pairs():
                own.copy_(master)

    def _pairs(self) -> Iterator[tuple[str, nn.Parameter, nn.Parameter]]:
        for name, own in self._own.items():
            if self.weights[name] is not own:
                yield name, own, self.weights[name]


class TuneFolder:
    """Reads and writes the artefacts of one run.

    Args:
        settings: of the run; `output_dir` is the folder.
        origin: what else the run's weights come from: `data_hash`, the LLM's fingerprint, `precision`.
    """

    def __init__(self, settings: TuneSettings, origin: Mapping[str, Any]) -> None:
        self.path = Path(settings.output_dir)
        self.last, self.best = self.path / LAST_DIR, self.path / BEST_DIR
        chosen = {name: value for name, value in asdict(settings).items() if name not in _FREE}
        self._identity = chosen | dict(origin)
        self._about = {
            "kind": KIND,
            "settings": asdict(settings),
            "seed": settings.seed,
            **origin,
            "versions": {
                "lsvcr": __version__,
                "torch": torch.__version__,
                "python": platform.python_version(),
            },
        }

    def clear(self) -> None:
        """Remove an earlier run; generations of it, too, for they would be taken for this one's."""
        for folder in (self.best, self.last, *(self.path / name for name in ("free", "trie"))):
            shutil.rmtree(folder, ignore_errors=True)
        (self.path / METRICS_LOG_FILE).unlink(missing_ok=True)

    def find(self) -> Progress | None:
        """Where a run of the same settings, data and LLM stands; None when there is none.

        Raises:
            UserError: the run in the folder is another one; the message names what differs.
        """
        self._read(self.best)  # of a run that has no last/, too
        manifest = self._read(self.last)
        return None if manifest is None else Progress(**manifest["progress"])

    def save_best(self, model: Any, progress: Progress) -> None:
        """Write best/: the adapter alone."""
        with atomic_dir(self.best) as folder:
            self._save(folder, model, progress)

    def save_last(
        self, model: Any, masters: Masters, optimizer: torch.optim.Optimizer, progress: Progress
    ) -> None:
        """Write last/: adapter, master weights and the optimiser's state."""
        tensors = {}
        for name, weight in masters.weights.items():
            state = {_MASTER: weight, **optimizer.state.get(weight, {})}
            for entry, value in state.items():
                tensors[f"{name}|{entry}"] = torch.as_tensor(value).detach().to("cpu", copy=True).contiguous()
        with atomic_dir(self.last) as folder:
            self._save(folder, model, progress)
            save_file(tensors, folder / OPTIMIZER_FILE)

    def load_last(self, masters: Masters, optimizer: torch.optim.Optimizer) -> None:
        """Put weights and the optimiser's state of last/ in place.

        Raises:
            UserError: the file is damaged or of another shape.
        """
        file = self.last / OPTIMIZER_FILE
        try:
            tensors = load_file(file)
        except (SafetensorError, OSError) as broken:
            raise UserError(f"{file} is damaged ({broken}); start over with --resume False") from None
        wanted = {f"{name}|{_MASTER}": weight.shape for name, weight in masters.weights.items()}
        found = {key: value.shape for key, value in tensors.items() if key.endswith(f"|{_MASTER}")}
        if wanted != found:
            raise UserError(
                f"{file} holds other weights than this run trains; start over with --resume False"
            )
        for key, value in tensors.items():
            name, _, entry = key.rpartition("|")
            _put(masters.weights[name], optimizer, entry, value)
        masters.give_weights()

    def _read(self, folder: Path) -> dict[str, Any] | None:
        """The manifest of best/ or last/, which must be of this run; None when there is none."""
        recover(folder)
        if not (folder / MANIFEST_FILE).is_file():
            return None
        manifest: dict[str, Any] = read_json(folder / MANIFEST_FILE)
        refuse_other_kind(self.path, KIND, manifest)
        refuse_other_run(self.path, self._identity, asdict(TuneSettings()) | manifest["identity"])
        return manifest

    def _save(self, folder: Path, model: Any, progress: Progress) -> None:
        save_adapter(model, folder / ADAPTER_DIR)
        write_json(
            folder / MANIFEST_FILE,
            {**self._about, "identity": self._identity, "progress": asdict(progress)},
        )


def _put(weight: nn.Parameter, optimizer: torch.optim.Optimizer, entry: str, value: Tensor) -> None:
    if entry == _MASTER:
        with torch.no_grad():
            weight.copy_(value)
    else:
        # torch keeps the step count on the CPU, unless the optimiser is fused.
        optimizer.state[weight][entry] = value if entry == "step" else value.to(weight.device)


def read_run(run: str | Path) -> tuple[Path, dict[str, Any]]:
    """The best checkpoint's folder of a finished run, and its manifest.

    Raises:
        UserError: no such run, or one that is not finished.
    """
    folder = Path(run)
    recover(folder / BEST_DIR)
    files = {name: folder / name / MANIFEST_FILE for name in (BEST_DIR, LAST_DIR)}
    lacking = [name for name, file in files.items() if not file.is_file()]
    if lacking:
        raise UserError(
            f"{folder} holds no run of `lsvcr tune` ({lacking[0]}/ is missing); give its output_dir"
        )
    best, last = (read_json(file) for file in files.values())
    if not isinstance(best, dict) or best.get("kind") != KIND:
        raise UserError(f"{folder} holds no run of `lsvcr tune`, but another kind of checkpoint")
    if not last["progress"]["finished"]:
        raise UserError(f"{folder} is not finished: run `lsvcr tune` with the same flags again, it goes on")
    return folder / BEST_DIR, best


def settings_of(manifest: Mapping[str, Any]) -> TuneSettings:
    """The settings a run was started with."""
    known = {k: v for k, v in manifest["settings"].items() if k in TuneSettings.__dataclass_fields__}
    return TuneSettings(**known)


def check_one_process(command: str) -> None:
    """Refuse to be one of several processes, which would all do the same work and write the same files.

    Raises:
        UserError: a launcher has started several.
    """
    if os.environ.get("WORLD_SIZE", "1") != "1":
        raise UserError(
            f"lsvcr {command} runs as one process, on one GPU or the CPU: start it without a launcher"
        )


def origin(data_hash: str, llm_fingerprint: str, dtype: torch.dtype) -> dict[str, Any]:
    """What a run's weights come from beside its settings."""
    return {
        "data_hash": data_hash,
        LLM_FINGERPRINT: llm_fingerprint,
        "precision": str(dtype).removeprefix("torch."),
    }
