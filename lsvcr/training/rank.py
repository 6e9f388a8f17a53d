"""The training loop of stage two (LSVCR paper, recommendation-oriented fine-tuning) and of every other recommender."""

import math
import time
from collections import defaultdict
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedDataParallelKwargs

from lsvcr.settings import RankSettings
from lsvcr.training.rank_batches import EpochBatches, MicroBatch, optimiser_steps
from lsvcr.training.rank_contract import Judge, Looped, Trainable
from lsvcr.training.rank_evaluate import RankJudge, final_test, show
from lsvcr.training.rank_setup import metric_name, set_up
from lsvcr.training.rank_state import Progress, RunFolder
from lsvcr.training.schedule import learning_rate_factor
from lsvcr.utils.distributed import barrier, is_main, reduce_sum, world_size
from lsvcr.utils.errors import UserError
from lsvcr.utils.io import read_json
from lsvcr.utils.lock import run_lock
from lsvcr.utils.logging import MetricsWriter, get_logger, progress
from lsvcr.utils.logging import Progress as Bar
from lsvcr.utils.seeding import seed_everything

logger = get_logger(__name__)

_DROPOUT_STREAM = 3


def run(settings: RankSettings) -> dict[str, Any]:
    """Stage two: train, keep the best checkpoint, test it once; an interrupted run goes on where it was.

    Processes and mixed precision are those of the launcher (`accelerate launch --config_file ...`); without one
    it is a single process in single precision.

    Returns:
        What `metrics.json` holds.

    Raises:
        UserError: whatever the user can mend.
    """
    accelerator = start_accelerator()
    return run_setup(accelerator, set_up(settings))


def run_setup(accelerator: Accelerator, setup: Trainable) -> dict[str, Any]:
    """As `run`, for any recommender that is set up."""
    report = train_and_test(
        accelerator,
        setup,
        lambda: RankJudge(setup),
        lambda folder: final_test(setup, folder, accelerator.device),
    )
    show(report)
    return report


def train_and_test(
    accelerator: Accelerator,
    setup: Looped,
    judge: Callable[[], Judge],
    test: Callable[[RunFolder], dict[str, Any]],
) -> dict[str, Any]:
    """Train what is set up, from where an interrupted run stands, and test it; a finished run is only read.

    Args:
        accelerator: device, processes, precision.
        setup: what to train on what.
        judge: makes what measures it between epochs.
        test: tests the best checkpoint and writes `metrics.json`.

    Returns:
        What `metrics.json` holds.

    Raises:
        UserError: another run trains in the folder, or has left it; or whatever else the user can mend.
    """
    folder = RunFolder(setup, world_size(), accelerator.mixed_precision)
    with run_lock(folder.path):
        done = folder.find() if setup.settings.resume else None
        barrier()
        if done is not None and folder.metrics.is_file():
            logger.info(f"{folder.path} holds this run, finished; --resume False would train it again")
            report: dict[str, Any] = read_json(folder.metrics)
            return report
        Trainer(accelerator, setup, folder, judge()).train(done)
        return test(folder)


def start_accelerator() -> Accelerator:
    """Accelerate as the launcher configured it; on a machine without a GPU processes meet through gloo."""
    kwargs = DistributedDataParallelKwargs(find_unused_parameters=True, broadcast_buffers=False)
    return Accelerator(cpu=not torch.cuda.is_available(), kwargs_handlers=[kwargs])


class Trainer:
    """The training loop.

    Args:
        accelerator: device, processes, precision.
        setup: what to train on what.
        folder: where it goes.
        judge: what measures it between epochs.
    """

    def __init__(self, accelerator: Accelerator, setup: Looped, folder: RunFolder, judge: Judge) -> None:
        self.accelerator, self.setup, self.folder, self.judge = accelerator, setup, folder, judge
        self.settings = settings = setup.settings
        self.data = setup.training()
        if not len(self.data):
            raise UserError(f"{setup.dataset.root} has no training samples; prepare it from more data")
        self.model = setup.model.to(accelerator.device)
        trained = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
        optimizer = torch.optim.AdamW(
            trained,
            lr=settings.learning_rate,
            betas=(0.9, settings.adam_beta2),
            weight_decay=settings.weight_decay,
            fused=True,
        )
        self.wrapped, self.optimizer = accelerator.prepare(self.model, optimizer)
        self.metric = metric_name(settings)
        self.steps = settings.num_train_epochs * optimiser_steps(
            len(self.data), settings.per_device_train_batch_size, settings.gradient_accumulation_steps
        )

    def train(self, done: Progress | None) -> None:
        """Run the epochs that remain; afterwards best/ holds the chosen checkpoint."""
        state = Progress() if done is None else done
        if done is None:
            if is_main():
                self.folder.clear()
            barrier()
        else:
            logger.info(f"going on after epoch {state.epoch} of {self.folder.path}")
            self.folder.load_last(self.model, self.optimizer.optimizer, self.accelerator.scaler)
        settings = self.settings
        writer = MetricsWriter(self.folder.path, settings.report_to, state.step)
        total = settings.num_train_epochs * len(self.data)
        try:
            bar: Bar[None] = progress(total, self.setup.label)
            with bar:
                bar.start_at(state.epoch * len(self.data))
                while state.epoch < settings.num_train_epochs and not self._patience_is_over(state):
                    losses = self._epoch(state, bar)
                    self._close_epoch(state, losses, writer)
        finally:
            writer.close()

    def _patience_is_over(self, state: Progress) -> bool:
        return state.without_gain >= self.settings.patience

    def _epoch(self, state: Progress, bar: Bar[None]) -> dict[str, float]:
        """One pass over the training samples; mean losses and the speed."""
        settings, accelerator = self.settings, self.accelerator
        # Dropout is the only reader of the global generator: a function of the epoch, it needs no saving.
        seed_everything(settings.seed, state.epoch, _DROPOUT_STREAM, accelerator.process_index)
        batches = EpochBatches(
            self.data,
            batch=settings.per_device_train_batch_size,
            accumulation=settings.gradient_accumulation_steps,
            seed=settings.seed,
            epoch=state.epoch,
            negatives=self.setup.negatives,
        )
        self.wrapped.train()
        sums: dict[str, torch.Tensor] = defaultdict(lambda: torch.zeros((), device=accelerator.device))
        started = time.perf_counter()
        for micro in batches.loader(settings.dataloader_num_workers):
            parts = self._micro_step(micro)
            for name, value in parts.items():
                sums[name] += value.detach() * micro.weight
            if micro.last:
                self._update(state.step)
                state.step += 1
            bar.advance(micro.rows, note=f"epoch {state.epoch + 1}, {self.metric} {_shown(state.best)}")
        means = {
            name: float(reduce_sum(value)) / world_size() / batches.steps for name, value in sums.items()
        }
        seconds = time.perf_counter() - started
        if not all(map(math.isfinite, means.values())):
            raise UserError(
                f"the loss is not finite in epoch {state.epoch + 1}: lower --learning_rate; {self.folder.last} holds "
                "the epoch before"
            )
        speeds = {"samples_per_second": len(self.data) / seconds}
        if batches.terms != len(self.data):
            speeds["targets_per_second"] = batches.terms / seconds
        return {**means, **speeds}

    def _micro_step(self, micro: MicroBatch) -> dict[str, torch.Tensor]:
        """Forward and backward of one micro-batch; the last of a step also updates the weights."""
        context = nullcontext() if micro.last else self.accelerator.no_sync(self.wrapped)
        with context:
            parts: dict[str, torch.Tensor] = self.wrapped(micro.batch.to(self.accelerator.device))
            self.accelerator.backward(parts["loss"] * micro.weight)
        return parts

    def _update(self, step: int) -> None:
        """One optimiser step on the gradients of all its micro-batches, which are dropped only afterwards."""
        settings = self.settings
        factor = learning_rate_factor(step, self.steps, settings.warmup_ratio, settings.lr_scheduler_type)
        for group in self.optimizer.param_groups:
            group["lr"] = settings.learning_rate * factor
        self.optimizer.step()
        self.optimizer.zero_grad()

    def _close_epoch(self, state: Progress, losses: dict[str, float], writer: MetricsWriter) -> None:
        """Validate where it is due, keep the best, and write down where the run stands."""
        state.epoch += 1
        last = state.epoch == self.settings.num_train_epochs
        figures = {f"train/{name}": value for name, value in losses.items()}
        if self._validates(state.epoch):
            self.model.eval()
            figures |= self.judge.figures(self.model, self.accelerator.device)
            value = figures[f"val/{self.metric}"]
            if state.best is None or value > state.best:
                state.best, state.best_epoch, state.without_gain = value, state.epoch, 0
            else:
                state.without_gain += 1
            logger.info(
                f"epoch {state.epoch}: loss {losses['loss']:.4f}, val {self.metric} {value:.4f} "
                f"(best {state.best:.4f} in epoch {state.best_epoch}), {losses['samples_per_second']:.0f} samples/s"
            )
        elif last:
            state.best_epoch = state.epoch
        # Before the checkpoint: a run killed between the two drops the line, but never goes on without one.
        writer.log(state.step, figures)
        if is_main():
            if state.best_epoch == state.epoch:
                self.folder.save_best(self.model, state, figures)
            self.folder.save_last(
                self.model, self.optimizer.optimizer, self.accelerator.scaler, state, figures
            )
        barrier()

    def _validates(self, epoch: int) -> bool:
        every = {"no": 0, "epoch": 1, "steps": self.settings.eval_steps}[self.settings.evaluation_strategy]
        return every > 0 and (epoch % every == 0 or epoch == self.settings.num_train_epochs)


def _shown(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"
