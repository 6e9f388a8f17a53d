"""Stage one: personalised preference alignment of LLM and SR model, under DeepSpeed ZeRO-2.

Order, augmentation, positions and dropout are functions of (seed, step), so an interrupted run continues from
last/ exactly as if it had not stopped.
"""

import dataclasses
import shutil
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lsvcr.data.align import AlignBatch, micro_batches, training_loader
from lsvcr.data.align_taste import TasteBatch
from lsvcr.data.rank_wide import WideBatch
from lsvcr.data.store import Dataset, open_dataset
from lsvcr.llm.aligned import Vectors, draw_positions
from lsvcr.llm.contrast import Share, contrast_shares
from lsvcr.models.sr import Positions
from lsvcr.schema import BEST_DIR, FORMAT_VERSION, LAST_DIR
from lsvcr.settings import AlignSettings
from lsvcr.training import rehearsal
from lsvcr.training.align_build import AlignParts, build, check_settings, make_plan, parameter_groups
from lsvcr.training.align_eval import SELECTION
from lsvcr.training.align_state import (
    KIND,
    check_same_run,
    gather_state,
    read_trainer,
    restore_state,
    run_lock,
    trainable,
    versions,
    write_checkpoint,
)
from lsvcr.training.engine import process_group, read_config, set_learning_rate, start_engine
from lsvcr.training.head_start import head_start
from lsvcr.training.schedule import learning_rate_factor
from lsvcr.training.wide import wide_batches
from lsvcr.utils.distributed import barrier, broadcast_object, is_main, rank, reduce_sum, world_size
from lsvcr.utils.errors import UserError
from lsvcr.utils.logging import MetricsWriter, duration, get_logger, progress
from lsvcr.utils.precision import wants_bf16
from lsvcr.utils.seeding import seed_everything

_DROPOUT_STREAM = 42
TIMED_STEPS = 20
"""Steps after which a run tells when it will end."""

PARTS = ("loss", "lm", "rec", "behaviour", "preference")

COLLAPSED, FEWEST_TO_JUDGE = 1e-5, 32
"""Variance of unit vectors below which they count as one, and samples that it takes to say so."""

logger = get_logger(__name__)


def align(settings: AlignSettings) -> Path:
    """Run stage one, or continue the interrupted run in `settings.output_dir`.

    Returns:
        The folder best/: the best checkpoint, or the last one under `load_best_model_at_end False`. Under `dry_run`
        nothing has been written there.

    Raises:
        UserError: settings, data, LLM or an earlier run in the folder do not fit, or the loss is not finite.
    """
    bf16 = wants_bf16(settings.bf16)
    settings = dataclasses.replace(settings, bf16=bf16)  # so that the manifest says which
    check_settings(settings)
    config = read_config(settings.deepspeed, bf16=bf16)
    with process_group() as device:
        dataset = open_dataset(settings.data_path)
        parts = build(settings, dataset)
        if not settings.dry_run and not _is_interrupted(settings):
            head_start(parts.model.heads.to(device), dataset, settings)
        engine = start_engine(
            parts.model,
            parameter_groups(parts.model, settings),
            config,
            weight_decay=settings.weight_decay,
            micro_batch=settings.per_device_train_batch_size,
            accumulation=settings.gradient_accumulation_steps,
            max_grad_norm=settings.max_grad_norm,
        )
        trainer = AlignTrainer(settings, dataset, parts, engine, device)
        return trainer.rehearse() if settings.dry_run else trainer.run()


def _is_interrupted(settings: AlignSettings) -> bool:
    """True where weights of an interrupted run will replace those of a fresh start."""
    return settings.resume and bool(broadcast_object((Path(settings.output_dir) / LAST_DIR).is_dir()))


@dataclass(frozen=True)
class _Micro:
    """One micro-batch of this process."""

    number: int
    """Since the start of the run."""
    batch: AlignBatch
    positions: Positions | None


class AlignTrainer:
    """The training loop around a DeepSpeed engine."""

    def __init__(
        self, settings: AlignSettings, dataset: Dataset, parts: AlignParts, engine: Any, device: torch.device
    ) -> None:
        self._settings, self._dataset, self._parts = settings, dataset, parts
        self._engine, self._device = engine, device
        self._plan = make_plan(settings, len(parts.samples), world_size())
        self._run = Path(settings.output_dir)
        self._wide = wide_batches(settings, dataset, parts, device)
        self._names = (*PARTS, *(self._wide.names if self._wide else ()))
        self._best: float | None = None
        self._figures: dict[str, float] = {}
        self._seconds = 0.0

    def run(self) -> Path:
        """Train from where the run stands to its end; see `align`."""
        with run_lock(self._run):
            window = self._window()
            return self._train(self._standing(window), window)

    def rehearse(self) -> Path:
        """Take the run's first steps, tell what the whole will take and write nothing."""
        window, batches = self._window(), self._batches(0, rehearsal.STEPS)
        self._engine.train()
        self._step(0, batches, window)
        window = self._window()
        for step in range(1, rehearsal.STEPS):
            self._step(step, batches, window)
        figures, seconds = window.close()
        measured = rehearsal.Measured(seconds / (rehearsal.STEPS - 1), figures["train/tokens_per_s"])
        rehearsal.tell(self._settings, self._parts, self._plan, measured)
        return self._run / BEST_DIR

    def _window(self) -> "_Window":
        return _Window(self._names, self._settings.hidden, self._device)

    def _batches(self, first: int, last: int) -> Iterator[AlignBatch]:
        """This process's micro-batches of optimiser steps `first` ... `last - 1`."""
        numbers = micro_batches(
            first * self._plan.accumulation,
            last * self._plan.accumulation,
            batch=self._settings.per_device_train_batch_size,
            rank=rank(),
            world=world_size(),
        )
        workers = self._settings.dataloader_num_workers
        return training_loader(self._parts.stream, self._parts.collator, numbers, workers)

    def _train(self, start: int, window: "_Window") -> Path:
        self._introduce(start)
        writer = MetricsWriter(self._run, self._settings.report_to, resume_step=start)
        batches, began = self._batches(start, self._plan.steps), time.monotonic()
        self._engine.train()
        with progress(self._plan.steps, "stage one") as bar:
            bar.start_at(start)
            for step in range(start, self._plan.steps):
                self._step(step, batches, window)
                done = step + 1
                if done % self._settings.logging_steps == 0 or done == self._plan.steps:
                    writer.log(done, self._log_line(step, window))
                bar.advance(1, f"loss {window.last_loss:.3f}")
                self._milestones(done, writer, window)
                if done == start + TIMED_STEPS < self._plan.steps:
                    self._forecast(done, time.monotonic() - began)
        writer.close()
        return self._finish()

    def _forecast(self, done: int, seconds: float) -> None:
        left = (self._plan.steps - done) * seconds / TIMED_STEPS
        end = time.strftime("%Y-%m-%d %H:%M", time.localtime(time.time() + left))
        logger.info(f"{seconds / TIMED_STEPS:.2f} s a step so far: {duration(left)} to go, until {end}")

    def _step(self, step: int, batches: Iterator[AlignBatch], window: "_Window") -> None:
        """One optimiser step: all its micro-batches forward and backward, then the update."""
        started = time.monotonic()
        set_learning_rate(self._engine, self._rate_factor(step))
        first, count = step * self._plan.accumulation, self._plan.contrast_steps
        for start in range(first, first + self._plan.accumulation, count):
            together = [self._micro(number, next(batches)) for number in range(start, start + count)]
            for micro, share in zip(together, self._shares(together), strict=True):
                wide = self._wide.batches(micro.number) if self._wide else []
                losses = self._losses(micro, wide, share)
                self._engine.backward(losses["loss"])
                self._engine.step()
                window.add(losses, len(micro.batch), micro.batch.tokens + sum(part.tokens for part in wide))
        window.seconds += time.monotonic() - started
        window.norm = float(self._engine.get_global_grad_norm() or 0.0)

    def _micro(self, number: int, batch: AlignBatch) -> "_Micro":
        settings = self._settings
        positions = None
        batch = batch.to(self._device)
        if settings.random_positions:
            longest = (settings.max_phis_len, settings.max_chis_len)
            # One draw for all that is compared, however it is cut into micro-steps.
            keys = (settings.seed, number // self._plan.contrast_steps)
            positions = draw_positions(batch, longest, settings.max_position, *keys)
        return _Micro(number, batch, positions)

    def _shares(self, together: Sequence["_Micro"]) -> Sequence[Share | None]:
        """What contrast over several micro-batches says to each; None where each is compared within itself."""
        if len(together) == 1:
            return [None]
        model = self._engine.module

        def read(place: int) -> Vectors:
            self._seed_dropout(together[place])
            vectors: Vectors = model.vectors(together[place].batch, together[place].positions)
            return vectors

        return contrast_shares(model, [micro.batch for micro in together], read)

    def _losses(
        self, micro: "_Micro", wide: list[WideBatch | TasteBatch], share: Share | None
    ) -> dict[str, Tensor]:
        self._seed_dropout(micro)
        cache = self._wide.cache if self._wide else None
        losses: dict[str, Tensor] = self._engine(micro.batch, micro.positions, wide, cache, share)
        if not bool(torch.isfinite(losses["loss"])):
            broken = ", ".join(name for name in self._names[1:] if not bool(torch.isfinite(losses[name])))
            raise UserError(
                f"the loss is not finite ({broken or 'their sum'}) "
                f"at optimiser step {micro.number // self._plan.accumulation + 1}, "
                f"samples {micro.batch.rows.tolist()}: lower --learning_rate, or look at the texts of these samples"
            )
        return losses

    def _seed_dropout(self, micro: "_Micro") -> None:
        seed_everything(self._settings.seed, _DROPOUT_STREAM, micro.number, rank())

    def _milestones(self, done: int, writer: MetricsWriter, window: "_Window") -> None:
        """Validation and checkpoints that are due after `done` steps, and both at the end."""
        at_end = done == self._plan.steps
        save = at_end or (self._plan.save_every > 0 and done % self._plan.save_every == 0)
        evaluate = at_end or (self._plan.eval_every > 0 and done % self._plan.eval_every == 0)
        improved = self._evaluate(done, writer) if evaluate and self._parts.evaluator is not None else False
        keep_best = improved and self._settings.load_best_model_at_end
        if not save and not keep_best:
            return
        state, open_window = gather_state(self._engine), window.state()
        if is_main():
            model = self._engine.module
            if keep_best or (at_end and not self._keeps_best()):
                write_checkpoint(self._run / BEST_DIR, model, state, self._manifest(done))
            if save:
                trainer = {"step": done, "best": self._best, "seconds": self._seconds, "window": open_window}
                state |= self._wide.cache.state() if self._wide else {}
                write_checkpoint(self._run / LAST_DIR, model, state, self._manifest(done), trainer)
        barrier()

    def _keeps_best(self) -> bool:
        return self._settings.load_best_model_at_end and self._parts.evaluator is not None

    def _evaluate(self, done: int, writer: MetricsWriter) -> bool:
        """Validate, tell, and say whether this is the best so far."""
        assert self._parts.evaluator is not None
        self._figures = self._parts.evaluator(self._engine.module)
        writer.log(done, {f"val/{name}": value for name, value in self._figures.items()})
        logger.info(f"step {done} of {self._plan.steps}, validation: {_told(self._figures)}")
        better = self._best is None or self._figures[SELECTION] > self._best
        if better:
            self._best = self._figures[SELECTION]
        return better

    def _standing(self, window: "_Window") -> int:
        """Optimiser steps already done: 0, or where an interrupted run in the folder stopped; and its open window."""
        last = self._run / LAST_DIR
        found = broadcast_object(last.is_dir())
        if found and not self._settings.resume:
            if is_main():
                for name in (LAST_DIR, BEST_DIR):
                    shutil.rmtree(self._run / name, ignore_errors=True)
            barrier()
            return 0
        if not found:
            return 0
        check_same_run(
            self._run, dataclasses.asdict(self._settings), self._dataset.data_hash, self._plan.global_batch
        )
        state, standing = read_trainer(self._run)
        if self._wide:
            self._wide.cache.take(state)
        restore_state(self._engine, state, standing["step"])
        self._best, self._seconds = standing["best"], standing["seconds"]
        window.take(standing["window"])
        return int(standing["step"])

    def _introduce(self, start: int) -> None:
        plan, settings = self._plan, self._settings
        groups = parameter_groups(self._parts.model, settings)
        sizes = [sum(parameter.numel() for parameter in group["params"]) for group in groups]
        counts = ", ".join(f"{count:,} {task.label}" for task, count in self._parts.samples.counts().items())
        lora = f"{sizes[0]:,} in LoRA, " if len(sizes) == 2 else ""
        processes = f"{world_size()} process{'es' if world_size() > 1 else ''}"
        logger.info(
            f"stage one with {settings.model_name_or_path}: {plan.samples:,} training samples ({counts}), "
            f"{plan.steps:,} steps of {plan.global_batch} samples; {sum(sizes):,} parameters train "
            f"({lora}{sizes[-1]:,} in SR model and heads), {'bf16' if settings.bf16 else 'fp32'}; "
            f"{processes} on {self._device.type}" + (f"; continues after step {start:,}" if start else "")
        )

    def _rate_factor(self, step: int) -> float:
        settings = self._settings
        return learning_rate_factor(step, self._plan.steps, settings.warmup_ratio, settings.lr_scheduler_type)

    def _log_line(self, step: int, window: "_Window") -> dict[str, float]:
        """Means over the steps since the last line and over processes."""
        figures, seconds = window.close()
        self._seconds += seconds
        figures["train/grad_norm"] = window.norm
        figures["train/learning_rate"] = self._settings.learning_rate * self._rate_factor(step)
        figures["train/epoch"] = (step + 1) * self._plan.global_batch / self._plan.samples
        return figures

    def _manifest(self, step: int) -> dict[str, Any]:
        return {
            "kind": KIND,
            "format": FORMAT_VERSION,
            "step": step,
            "steps": self._plan.steps,
            "epoch": step * self._plan.global_batch / self._plan.samples,
            "global_batch": self._plan.global_batch,
            "processes": world_size(),
            "seed": self._settings.seed,
            "settings": dataclasses.asdict(self._settings),
            "data_hash": self._dataset.data_hash,
            "metrics": self._figures,
            "trained_parameters": sum(p.numel() for p in trainable(self._engine.module).values()),
            "versions": versions(),
        }

    def _finish(self) -> Path:
        best = self._run / BEST_DIR
        kind = "best" if self._keeps_best() else "last"
        logger.info(f"stage one is done: {best} holds the {kind} checkpoint")
        return best


class _Window:
    """Sums between two log lines.

    Args:
        names: of the losses.
        width: d of the user vectors.
        device: of the sums.
    """

    def __init__(self, names: Sequence[str], width: int, device: torch.device) -> None:
        self._names = names
        # One sum a loss, then micro-batches, samples and tokens, then SR and LLM users' unit vectors.
        self._sums = torch.zeros(len(names) + 3 + 2 * width, dtype=torch.float64, device=device)
        self.norm, self.last_loss, self.seconds = 0.0, float("nan"), 0.0

    def add(self, losses: dict[str, Tensor], samples: int, tokens: int) -> None:
        """Count one micro-batch of this process."""
        self.last_loss = losses["loss"].item()
        values = torch.stack([losses[name].detach().double() for name in self._names])
        counts = values.new_tensor([1, samples, tokens])
        self._sums += torch.cat([values, counts, losses["directions"].flatten().double()])

    def state(self) -> dict[str, Any]:
        """Where an open window stands, for `take`; every process must call it."""
        return {"sums": reduce_sum(self._sums).tolist(), "seconds": self.seconds}

    def take(self, state: dict[str, Any]) -> None:
        """Go on from `state`, on however many processes: the first one keeps the sums of all."""
        self.seconds = state["seconds"]
        if is_main():
            self._sums.copy_(torch.tensor(state["sums"], dtype=torch.float64))

    def close(self) -> tuple[dict[str, float], float]:
        """Means of all processes by name, tokens a second, and seconds of training; every process must call it.

        Raises:
            UserError: the user vectors of one side have all become the same; see `_check_alive`.
        """
        seconds = self.seconds
        total = reduce_sum(self._sums)
        count = len(self._names)
        sums = total[:count].tolist()
        batches, samples, tokens = total[count : count + 3].tolist()
        figures = {f"train/{name}": value / batches for name, value in zip(self._names, sums, strict=True)}
        figures["train/tokens_per_s"] = tokens / seconds
        for side, mean in zip(("sr", "llm"), (total[count + 3 :] / samples).view(2, -1), strict=True):
            figures[f"train/{side}_variance"] = 1 - float(mean.square().sum())
            _check_alive(figures[f"train/{side}_variance"], int(samples), side)
        self._sums.zero_()
        self.seconds = 0.0
        return figures, seconds


def _check_alive(variance: float, samples: int, side: str) -> None:
    """Stop where the unit vectors of many users differ by nothing: what is left is not worth training on."""
    if samples >= FEWEST_TO_JUDGE and variance < COLLAPSED:
        raise UserError(
            f"the {side.upper()} user vectors have collapsed: the last {samples} samples' all point the same way "
            f"(variance {variance:.1e} of at most 1). Lower --learning_rate, raise --contrast_batch for more "
            "negatives, or look whether the texts of different users differ at all"
        )


def _told(figures: dict[str, float]) -> str:
    """Validation figures as a person reads them."""
    names = {
        "retrieval@1": "own LLM vector first",
        "rec_ndcg@10": "Rec NDCG@10",
        "comm_rank_ndcg@10": "CommRank NDCG@10",
        "lm": "LM loss",
    }
    told = [f"{label} {figures[name]:.4f}" for name, label in names.items() if name in figures]
    told[0] += f" (chance {figures['retrieval@1_chance']:.4f})"
    return ", ".join(told)
