"""Stage one: personalised preference alignment of LLM and SR model, under DeepSpeed ZeRO-2.

Order, augmentation, positions and dropout are functions of (seed, step), so an interrupted run continues from
last/ exactly as if it had not stopped.
"""

import dataclasses
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lsvcr.data.align import AlignBatch, micro_batches, training_loader
from lsvcr.data.align_taste import TasteBatch
from lsvcr.data.rank_wide import WideBatch
from lsvcr.data.store import Dataset, open_dataset
from lsvcr.llm.aligned import draw_positions
from lsvcr.llm.contrast import Share, Vectors, contrast_shares
from lsvcr.models.sr import Positions
from lsvcr.schema import BEST_DIR, FORMAT_VERSION, LAST_DIR, LLM_FINGERPRINT
from lsvcr.settings import AlignSettings
from lsvcr.training import rehearsal
from lsvcr.training.align_build import (
    AlignParts,
    build,
    check_settings,
    contrast_steps,
    make_plan,
    parameter_groups,
)
from lsvcr.training.align_eval import SELECTION
from lsvcr.training.align_keep import checkpoint_bytes, interrupted, warn_if_tight
from lsvcr.training.align_state import FREE_SETTINGS, KIND, trainable, versions, write_checkpoint
from lsvcr.training.align_window import Window
from lsvcr.training.engine import process_group, read_config, set_learning_rate
from lsvcr.training.engine_loop import EngineLoop, open_engine
from lsvcr.training.engine_parts import numel
from lsvcr.training.head_start import head_start
from lsvcr.training.wide import wide_batches
from lsvcr.utils.distributed import broadcast_object, is_main, rank, world_size
from lsvcr.utils.errors import UserError
from lsvcr.utils.logging import get_logger
from lsvcr.utils.precision import wants_bf16
from lsvcr.utils.seeding import seed_everything

_DROPOUT_STREAM = 42

PARTS = ("loss", "lm", "rec", "behaviour", "preference")

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
    with process_group(settings.ddp_timeout) as device:
        contrast_steps(settings, world_size())  # said before the LLM is read
        dataset = open_dataset(settings.data_path)
        parts = build(settings, dataset, config)
        if not settings.dry_run and not _is_interrupted(settings):
            head_start(parts.model.heads.to(device), dataset, settings, parts.untuned)
        groups = parameter_groups(parts.model, settings)
        engine = open_engine(parts.model, groups, config, parts.model.heads, settings)
        trainer = AlignTrainer(settings, dataset, parts, engine, device)
        return trainer.rehearse() if settings.dry_run else trainer.run()


def _is_interrupted(settings: AlignSettings) -> bool:
    """True where weights of an interrupted run will replace those of a fresh start."""
    return settings.resume and bool(broadcast_object(is_main() and interrupted(Path(settings.output_dir))))


@dataclass(frozen=True)
class _Micro:
    """One micro-batch of this process."""

    number: int
    """Since the start of the run."""
    batch: AlignBatch
    positions: Positions | None


class AlignTrainer(EngineLoop):
    """Stage one around a DeepSpeed engine."""

    label = "stage one"
    kind = KIND
    free = FREE_SETTINGS

    def __init__(
        self, settings: AlignSettings, dataset: Dataset, parts: AlignParts, engine: Any, device: torch.device
    ) -> None:
        self._plan = make_plan(settings, len(parts.samples), world_size())
        super().__init__(settings, self._plan, engine, device, dataset.data_hash)
        self._settings, self._dataset, self._parts = settings, dataset, parts
        self._wide = wide_batches(settings, dataset, parts, device)
        self._names = (*PARTS, *(self._wide.names if self._wide else ()))

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

    def _window(self) -> Window:
        return Window(self._names, self._settings.hidden, self._device)

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

    def _step(self, step: int, batches: Iterator[AlignBatch], window: Window) -> None:
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

        batches = [micro.batch for micro in together]
        return contrast_shares(model.contrasts, model.contrast_total, batches, read)

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

    def _validates(self) -> bool:
        return self._parts.evaluator is not None

    def _validate(self) -> tuple[dict[str, float], float, str]:
        assert self._parts.evaluator is not None
        figures = self._parts.evaluator(self._engine.module)
        return figures, figures[SELECTION], _told(figures)

    def _read_as_whole(self) -> nn.Module:
        part: nn.Module = self._engine.module.llm
        return part

    def _write_best(self, done: int, state: dict[str, Tensor]) -> None:
        write_checkpoint(self._run / BEST_DIR, self._engine.module, state, self._manifest(done))

    def _write_last(self, done: int, state: dict[str, Tensor], standing: dict[str, Any]) -> None:
        state |= self._wide.cache.state() if self._wide else {}
        write_checkpoint(self._run / LAST_DIR, self._engine.module, state, self._manifest(done), standing)

    def _of_the_engine(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        if self._wide:
            self._wide.cache.take(state)
        return state

    def _look_for_room(self) -> None:
        """Warn where the disk cannot hold the run's checkpoints."""
        if is_main():
            model, cache = self._parts.model, self._wide.cache.state() if self._wide else {}
            adapters = [p for p in model.llm.parameters() if p.requires_grad]
            heads = sum(map(numel, model.heads.parameters()))
            # Adapters have the precision they compute in, all else is float32.
            best = 4 * heads + sum(numel(p) * p.element_size() for p in adapters)
            last = best + 12 * (heads + sum(map(numel, adapters))) + checkpoint_bytes(cache)
            warn_if_tight(self._run, last, best, self._settings.save_total_limit)

    def _introduce(self, start: int) -> None:
        plan, settings = self._plan, self._settings
        groups = parameter_groups(self._parts.model, settings)
        sizes = [sum(map(numel, group["params"])) for group in groups]
        counts = ", ".join(f"{count:,} {task.label}" for task, count in self._parts.samples.counts().items())
        lora = f"{sizes[0]:,} in LoRA, " if len(sizes) == 2 else ""
        processes = f"{world_size()} process{'es' if world_size() > 1 else ''}"
        logger.info(
            f"stage one with {settings.model_name_or_path}: {plan.samples:,} training samples ({counts}), "
            f"{plan.steps:,} steps of {plan.global_batch} samples; {sum(sizes):,} parameters train "
            f"({lora}{sizes[-1]:,} in SR model and heads), {'bf16' if settings.bf16 else 'fp32'}; "
            f"{processes} on {self._device.type}" + (f"; continues after step {start:,}" if start else "")
        )

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
            LLM_FINGERPRINT: self._parts.llm,
            "metrics": self._figures,
            "trained_parameters": sum(map(numel, trainable(self._engine.module).values())),
            "versions": versions(),
        }


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
