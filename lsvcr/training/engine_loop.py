"""The training loop around a DeepSpeed engine: steps, log lines, validations, checkpoints, and where a run stands.

What a step is and what a checkpoint holds say those who derive from it: stage one, and HLLM.
"""

import math
import time
from abc import ABC, abstractmethod
from collections.abc import Collection, Iterable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from lsvcr.schema import BEST_DIR, LAST_DIR
from lsvcr.training.align_keep import forget, full_disk_told, interrupted, keep_step, newest_good
from lsvcr.training.align_state import check_same_run, gather_state, read_trainer, restore_state
from lsvcr.training.align_window import Window
from lsvcr.training.engine import start_engine
from lsvcr.training.engine_parts import keep_whole, whole
from lsvcr.training.schedule import Kind, learning_rate_factor
from lsvcr.utils.distributed import barrier, broadcast_object, from_main, is_main, world_size
from lsvcr.utils.lock import run_lock
from lsvcr.utils.logging import MetricsWriter, duration, get_logger, progress

TIMED_STEPS = 20
"""Steps after which a run tells when it will end."""


@dataclass(frozen=True)
class Plan:
    """How a run is cut into steps."""

    samples: int
    """Training samples of an epoch."""
    global_batch: int
    """Samples of an optimiser step: batch x accumulation x processes."""
    steps: int
    """Optimiser steps of the run."""
    save_every: int
    """Optimiser steps between checkpoints; 0 = only at the end."""
    eval_every: int
    """Optimiser steps between validations; 0 = only at the end."""


class LoopSettings(Protocol):
    """The settings that the loop reads."""

    output_dir: str
    report_to: Any
    logging_steps: int
    learning_rate: float
    warmup_ratio: float
    lr_scheduler_type: Any
    load_best_model_at_end: bool
    save_total_limit: int
    resume: bool


class EngineSettings(Protocol):
    """The settings that the engine is made with."""

    weight_decay: float
    per_device_train_batch_size: int
    gradient_accumulation_steps: int
    max_grad_norm: float
    ddp_timeout: int


def open_engine(
    model: nn.Module,
    groups: Iterable[dict[str, Any]],
    config: dict[str, Any],
    heads: nn.Module,
    settings: EngineSettings,
) -> Any:
    """DeepSpeed's engine around a model, see `start_engine`; `heads`, a part of it, is never cut among processes."""
    engine = start_engine(
        model,
        groups,
        config,
        weight_decay=settings.weight_decay,
        micro_batch=settings.per_device_train_batch_size,
        accumulation=settings.gradient_accumulation_steps,
        max_grad_norm=settings.max_grad_norm,
        patience=settings.ddp_timeout,
    )
    keep_whole(engine, heads)
    return engine


class EngineLoop(ABC):
    """One run.

    Args:
        settings: of the run, a dataclass.
        plan: how it is cut.
        engine: DeepSpeed's, in place of the model.
        device: where batches go.
        data_hash: of the dataset.
    """

    label = "training"
    """How the run is called in bars and sentences."""
    kind = ""
    """Of its checkpoints."""
    free: Collection[str] = ()
    """Settings that a continued run may change."""
    patience = math.inf
    """Validations without a better figure after which a run ends."""

    def __init__(
        self, settings: LoopSettings, plan: Plan, engine: Any, device: torch.device, data_hash: str
    ) -> None:
        self._loop, self._cut, self._data_hash = settings, plan, data_hash
        self._engine, self._device = engine, device
        self._run = Path(settings.output_dir)
        self._best: float | None = None
        self._without_gain = 0
        self._figures: dict[str, float] = {}
        self._seconds = 0.0
        self._logger = get_logger(type(self).__module__)

    def run(self) -> Path:
        """Train from where the run stands to its end.

        Returns:
            The folder best/.
        """
        with run_lock(self._run), full_disk_told(self._run):
            window = self._window()
            start = self._standing(window)
            self._look_for_room()
            return self._train(start, window)

    @abstractmethod
    def _window(self) -> Window:
        """Fresh sums of what is logged."""

    @abstractmethod
    def _batches(self, first: int, last: int) -> Iterator[Any]:
        """This process's micro-batches of optimiser steps `first` ... `last - 1`."""

    @abstractmethod
    def _step(self, step: int, batches: Iterator[Any], window: Window) -> None:
        """One optimiser step: all its micro-batches forward and backward, then the update."""

    @abstractmethod
    def _validates(self) -> bool:
        """Is there anything to validate on?"""

    @abstractmethod
    def _validate(self) -> tuple[dict[str, float], float, str]:
        """Figures by name, the one that picks the best checkpoint, and a line that tells them."""

    @abstractmethod
    def _write_best(self, done: int, state: dict[str, Tensor]) -> None:
        """Write best/ after `done` steps; the main process calls it."""

    @abstractmethod
    def _write_last(self, done: int, state: dict[str, Tensor], standing: dict[str, Any]) -> None:
        """Write last/ after `done` steps, to go on from; the main process calls it."""

    @abstractmethod
    def _introduce(self, start: int) -> None:
        """Say what is about to be trained, and from which step on."""

    @abstractmethod
    def _look_for_room(self) -> None:
        """Warn where the disk cannot hold the run's checkpoints."""

    def _read_as_whole(self) -> nn.Module | None:
        """The part of a model cut among the processes that must be whole while checkpoints are written."""
        return None

    def _of_the_engine(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """What of a saved state is the engine's; the rest, if there is any, is taken up here."""
        return state

    def _over(self, done: int) -> bool:
        """Is there nothing left to do after `done` steps?"""
        return done >= self._cut.steps or self._without_gain >= self.patience

    def _train(self, start: int, window: Window) -> Path:
        self._introduce(start)
        writer = MetricsWriter(self._run, self._loop.report_to, resume_step=start)
        steps = self._cut.steps
        batches, began = self._batches(start, steps), time.monotonic()
        self._engine.train()
        with progress(steps, self.label) as bar:
            bar.start_at(start)
            for step in range(start, steps):
                if self._over(step):
                    break
                self._step(step, batches, window)
                done = step + 1
                if done % self._loop.logging_steps == 0 or done == steps:
                    writer.log(done, self._log_line(step, window))
                bar.advance(1, f"loss {window.last_loss:.3f}")
                self._milestones(done, writer, window)
                if done == start + TIMED_STEPS < steps:
                    self._forecast(done, time.monotonic() - began)
        writer.close()
        return self._finish()

    def _forecast(self, done: int, seconds: float) -> None:
        left = (self._cut.steps - done) * seconds / TIMED_STEPS
        end = time.strftime("%Y-%m-%d %H:%M", time.localtime(time.time() + left))
        self._logger.info(f"{seconds / TIMED_STEPS:.2f} s a step so far: {duration(left)} to go, until {end}")

    def _milestones(self, done: int, writer: MetricsWriter, window: Window) -> None:
        """Validation and checkpoints that are due after `done` steps, and both at the end."""
        last = done == self._cut.steps
        evaluate = last or (self._cut.eval_every > 0 and done % self._cut.eval_every == 0)
        improved = self._evaluate(done, writer) if evaluate and self._validates() else False
        at_end = self._over(done)
        save = at_end or (self._cut.save_every > 0 and done % self._cut.save_every == 0)
        keep_best = improved and self._loop.load_best_model_at_end
        if not save and not keep_best:
            return
        state, open_window = gather_state(self._engine), window.state()
        part = self._read_as_whole()
        with nullcontext() if part is None else whole(part):
            if is_main() and (keep_best or (at_end and not self._keeps_best())):
                self._write_best(done, state)
            if is_main() and save:
                standing = {
                    "step": done,
                    "best": self._best,
                    "seconds": self._seconds,
                    "window": open_window,
                    "without_gain": self._without_gain,
                }
                self._write_last(done, state, standing)
                keep_step(self._run, self._loop.save_total_limit)
        barrier()

    def _keeps_best(self) -> bool:
        return self._loop.load_best_model_at_end and self._validates()

    def _evaluate(self, done: int, writer: MetricsWriter) -> bool:
        """Validate, tell, and say whether this is the best so far."""
        self._figures, value, told = self._validate()
        writer.log(done, {f"val/{name}": figure for name, figure in self._figures.items()})
        self._logger.info(f"step {done} of {self._cut.steps}, validation: {told}")
        better = self._best is None or value > self._best
        if better:
            self._best = value
        self._without_gain = 0 if better else self._without_gain + 1
        return better

    def _standing(self, window: Window) -> int:
        """Optimiser steps already done: 0, or where an interrupted run in the folder stopped; and its open window."""
        if not broadcast_object(is_main() and interrupted(self._run)):
            if self._loop.resume and broadcast_object(is_main() and (self._run / BEST_DIR).is_dir()):
                # Of a run killed between best/ and last/, if it is this one.
                from_main(lambda: self._check_same_run(self._run / BEST_DIR))
            return 0
        if not self._loop.resume:
            if is_main():
                forget(self._run)
            barrier()
            return 0
        last = from_main(lambda: newest_good(self._run))
        self._check_same_run(last)
        state, standing = read_trainer(last)
        if is_main() and last.name == LAST_DIR:
            keep_step(self._run, self._loop.save_total_limit)
        restore_state(self._engine, self._of_the_engine(state), standing["step"])
        self._best, self._seconds = standing["best"], standing["seconds"]
        self._without_gain = standing.get("without_gain", 0)
        window.take(standing["window"])
        return int(standing["step"])

    def _check_same_run(self, folder: Path) -> None:
        check_same_run(folder, self._loop, self.free, self.kind, self._data_hash, world_size())

    def _rate_factor(self, step: int) -> float:
        kind: Kind = self._loop.lr_scheduler_type
        return learning_rate_factor(step, self._cut.steps, self._loop.warmup_ratio, kind)

    def _log_line(self, step: int, window: Window) -> dict[str, float]:
        """Means over the steps since the last line and over processes."""
        figures, seconds = window.close()
        self._seconds += seconds
        figures["train/grad_norm"] = window.norm
        figures["train/learning_rate"] = self._loop.learning_rate * self._rate_factor(step)
        figures["train/epoch"] = (step + 1) * self._cut.global_batch / self._cut.samples
        return figures

    def _finish(self) -> Path:
        best = self._run / BEST_DIR
        kind = "best" if self._keeps_best() else "last"
        self._logger.info(f"{self.label} is done: {best} holds the {kind} checkpoint")
        return best
