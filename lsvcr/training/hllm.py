"""HLLM with both LLMs in training, under DeepSpeed ZeRO-2 or ZeRO-3 (Chen et al. 2024, arXiv 2409.12740).

Order, negatives and dropout are functions of (seed, step), so an interrupted run continues from last/ exactly as if it
had not stopped.
"""

import dataclasses
import time
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from lsvcr.data.rank_joined import JoinedBatch, JoinedStream
from lsvcr.data.rank_sequences import SequenceData
from lsvcr.data.store import open_dataset
from lsvcr.evaluation.evaluator import evaluate
from lsvcr.evaluation.metrics import DEFAULT_METRICS
from lsvcr.evaluation.protocol import Protocol, check
from lsvcr.evaluation.result import Result
from lsvcr.models import checkpoint
from lsvcr.schema import BEST_DIR, FORMAT_VERSION, HLLM, LAST_DIR, METRICS_FILE, Split
from lsvcr.settings import HllmSettings
from lsvcr.training.align_keep import warn_if_tight
from lsvcr.training.align_state import MASTER, trainable, versions, write_folder
from lsvcr.training.align_window import Window
from lsvcr.training.engine import process_group, read_config, set_learning_rate
from lsvcr.training.engine_loop import EngineLoop, Plan, open_engine
from lsvcr.training.engine_parts import is_cut, numel
from lsvcr.training.hllm_setup import (
    CutScorer,
    HllmSetup,
    build,
    check_negatives,
    check_settings,
    load_weights,
    parameter_groups,
    weights_of,
)
from lsvcr.training.rank_evaluate import protocols, show, write_test
from lsvcr.training.rank_setup import metric_name
from lsvcr.training.rank_state import ROWS_FILE
from lsvcr.utils.distributed import barrier, is_main, rank, world_size
from lsvcr.utils.errors import UserError
from lsvcr.utils.io import read_json
from lsvcr.utils.precision import wants_bf16
from lsvcr.utils.seeding import seed_everything

LOSSES = ("loss", "negatives", "scale")
SIDES = {"user": "user vectors", "item": "item vectors"}
REMEDY = "Lower --learning_rate, or raise --per_device_train_batch_size or --neg_video_num for more negatives"
FREE_SETTINGS = frozenset(
    (
        "output_dir", "data_path", "resume", "logging_steps", "report_to", "dataloader_num_workers", "save_strategy",
        "save_steps", "save_total_limit", "per_device_eval_batch_size", "per_device_train_batch_size",
        "gradient_checkpointing", "recompute", "text_token_budget", "deepspeed", "ddp_timeout",
    )
)  # fmt: skip
"""Settings that a continued run may change: they do not change what is learned from which users. The product of batch,
accumulation and processes is compared, too, and accumulation itself, since a micro-step's targets are one another's
negatives."""

_DROPOUT_STREAM = 53


def hllm(settings: HllmSettings) -> dict[str, Any]:
    """Train, keep the best checkpoint, test it once; an interrupted run goes on where it was.

    Processes are those of the launcher (torchrun); without one it is a single process.

    Returns:
        What `metrics.json` holds.

    Raises:
        UserError: settings, data, LLMs or an earlier run in the folder do not fit, or the loss is not finite.
    """
    bf16 = wants_bf16(settings.bf16)
    settings = dataclasses.replace(settings, bf16=bf16)  # so that the manifest says which
    check_settings(settings)
    config = read_config(settings.deepspeed, bf16=bf16)
    with process_group(settings.ddp_timeout) as device:
        check_negatives(settings, world_size())
        setup = build(settings, open_dataset(settings.data_path), config)
        groups = parameter_groups(setup.model, settings)
        engine = open_engine(setup.model, groups, config, setup.model.heads, settings)
        trainer = HllmTrainer(setup, engine, device, cut=is_cut(config))
        trainer.run()
        report = trainer.test()
        show(report)  # while it is known which process is the first
    return report


def make_plan(settings: HllmSettings, users: int, world: int) -> Plan:
    """Cut `users` training rows into optimiser steps; the last one reaches into the next epoch's order."""
    global_batch = settings.per_device_train_batch_size * settings.gradient_accumulation_steps * world
    epoch = -(-users // global_batch)
    steps = settings.max_steps
    if steps <= 0:
        steps = -(-settings.num_train_epochs * users // global_batch)
    return Plan(
        samples=users,
        global_batch=global_batch,
        steps=steps,
        save_every={"steps": settings.save_steps, "epoch": epoch, "no": 0}[settings.save_strategy],
        eval_every={"steps": settings.eval_steps, "epoch": epoch, "no": 0}[settings.evaluation_strategy],
    )


class HllmTrainer(EngineLoop):
    """HLLM around a DeepSpeed engine.

    Args:
        setup: what to train on what; its model is in the engine.
        engine: DeepSpeed's.
        device: where batches go.
        cut: the LLMs' weights are cut among the processes.
    """

    label = "HLLM"
    kind = HLLM
    free = FREE_SETTINGS

    def __init__(self, setup: HllmSetup, engine: Any, device: torch.device, *, cut: bool) -> None:
        settings = setup.settings
        self._rows: SequenceData = setup.rows()
        self._plan = make_plan(settings, len(self._rows), world_size())
        super().__init__(settings, self._plan, engine, device, setup.dataset.data_hash)
        self._settings, self._setup, self._is_cut = settings, setup, cut
        self.patience = settings.patience
        self._validation = setup.data(Split.VAL)
        for protocol in protocols(settings).values():
            check(protocol, setup.data(Split.TEST))
        self._protocol: Protocol = protocols(settings)[settings.val_protocol]
        self._metric = metric_name(settings)
        if settings.freeze_item_llm and not settings.item_emb_token_n:
            setup.model.eval()
            setup.model.freeze_items()

    def test(self) -> dict[str, Any]:
        """Test best/ once, after `run`; what `metrics.json` holds."""
        best = self._run / BEST_DIR
        if (self._run / METRICS_FILE).is_file():
            self._logger.info(f"{self._run} holds this run, finished; --resume False would train it again")
            report: dict[str, Any] = read_json(self._run / METRICS_FILE)
            return report
        weights = checkpoint.load(best)
        load_weights(self._setup.model, weights.tensors, str(best))
        results = self._measure(Split.TEST, protocols(self._settings), DEFAULT_METRICS)
        return write_test(self._run, weights.manifest, results)

    def _standing(self, window: Window) -> int:
        start = super()._standing(window)
        if start == 0:  # what an earlier run left could be taken for figures of this one
            barrier()
            if is_main():
                for file in (
                    METRICS_FILE,
                    *(ROWS_FILE.format(name=name) for name in protocols(self._settings)),
                ):
                    (self._run / file).unlink(missing_ok=True)
            barrier()
        return start

    def _window(self) -> Window:
        return Window(LOSSES, self._setup.model.heads.project.out_features, self._device, SIDES, REMEDY)

    def _batches(self, first: int, last: int) -> Iterator[JoinedBatch]:
        settings = self._settings
        accumulation = settings.gradient_accumulation_steps
        stream = JoinedStream(
            self._rows,
            seed=settings.seed,
            batch=settings.per_device_train_batch_size,
            accumulation=accumulation,
            negatives=settings.neg_video_num,
            place=(rank(), world_size()),
            micro_steps=last * accumulation,
        )
        return stream.loader(first * accumulation, settings.dataloader_num_workers)

    def _step(self, step: int, batches: Iterator[JoinedBatch], window: Window) -> None:
        started = time.monotonic()
        set_learning_rate(self._engine, self._rate_factor(step))
        for _ in range(self._settings.gradient_accumulation_steps):
            batch = next(batches).to(self._device)
            seed_everything(self._settings.seed, _DROPOUT_STREAM, batch.number, rank())
            losses: dict[str, Tensor] = self._engine(batch)
            if not bool(torch.isfinite(losses["loss"])):
                raise UserError(
                    f"the loss is not finite at optimiser step {step + 1}: lower --learning_rate; the last checkpoint "
                    f"is in {self._run / LAST_DIR}"
                )
            self._engine.backward(losses["loss"])
            self._engine.step()
            window.add(losses, len(batch), self._setup.model.tokens_of(batch))
        window.seconds += time.monotonic() - started
        window.norm = float(self._engine.get_global_grad_norm() or 0.0)

    def _validates(self) -> bool:
        return self._settings.evaluation_strategy != "no" and len(self._validation) > 0

    def _validate(self) -> tuple[dict[str, float], float, str]:
        name = self._protocol.name
        metrics = tuple(dict.fromkeys((*DEFAULT_METRICS, self._metric)))
        result = self._measure(Split.VAL, {name: self._protocol}, metrics)[name]
        self._engine.train()
        figures = {metric: result.mean(metric) or 0.0 for metric in result.values}
        return figures, figures[self._metric], f"{self._metric} {figures[self._metric]:.4f}"

    def _measure(
        self, split: Split, chosen: dict[str, Protocol], metrics: tuple[str, ...]
    ) -> dict[str, Result]:
        model = self._setup.model.eval()
        data = self._validation if split is Split.VAL else self._setup.data(split)
        return evaluate(
            CutScorer(model, data) if self._is_cut else model,
            data,
            chosen,
            metrics=metrics,
            batch_size=self._settings.per_device_eval_batch_size,
            device=self._device,
        )

    def _write_best(self, done: int, state: dict[str, Tensor]) -> None:
        write_folder(self._run / BEST_DIR, self._weights(state), state, self._manifest(done))

    def _write_last(self, done: int, state: dict[str, Tensor], standing: dict[str, Any]) -> None:
        write_folder(self._run / LAST_DIR, self._weights(state), state, self._manifest(done), standing)

    def _weights(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        prefix = f"{MASTER}."
        master = {
            name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)
        }
        return weights_of(self._setup.model, master)

    def _manifest(self, done: int) -> dict[str, Any]:
        epoch = done * self._plan.global_batch / self._plan.samples
        return {
            **self._setup.about(world_size()),
            "format": FORMAT_VERSION,
            "step": done,
            "steps": self._plan.steps,
            "epoch": epoch,
            "progress": {"epoch": round(epoch, 4), "step": done},
            "global_batch": self._plan.global_batch,
            "metrics": self._figures,
            "trained_parameters": self._trained(),
            "versions": versions(),
        }

    def _trained(self) -> int:
        return sum(map(numel, trainable(self._setup.model).values()))

    def _look_for_room(self) -> None:
        if is_main():
            best = 4 * self._trained()
            warn_if_tight(self._run, 4 * best, best, self._settings.save_total_limit)

    def _introduce(self, start: int) -> None:
        plan, settings = self._plan, self._settings
        user = settings.user_model_name_or_path or settings.model_name_or_path
        frozen = " (frozen)" if settings.freeze_item_llm else ""
        self._logger.info(
            f"HLLM with item LLM {settings.model_name_or_path}{frozen} and user LLM {user}: {plan.samples:,} users, "
            f"{self._setup.dataset.n_videos:,} videos, {plan.steps:,} steps of {plan.global_batch} users; "
            f"{self._trained():,} parameters train, {'bf16' if settings.bf16 else 'fp32'}; {world_size()} "
            f"process{'es' if world_size() > 1 else ''} on {self._device.type}"
            + (f"; continues after step {start:,}" if start else "")
        )
