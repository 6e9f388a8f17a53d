"""A generative LLM recommender: LoRA teaches any causal LM to say the next title (BIGRec, GenRec, METHOD section 6).

This is the loss and the training loop; `generative_decode` generates, `grounding` finds the titles meant.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lsvcr.baselines.alpaca import RecordSource
from lsvcr.baselines.alpaca_prompts import IGNORED, Example, LmBatch, PromptWriter, collate
from lsvcr.baselines.generative_settings import TuneSettings
from lsvcr.baselines.generative_state import Masters, Progress, TuneFolder, check_one_process, origin
from lsvcr.data.store import open_dataset
from lsvcr.llm.families import backbone, fingerprint, output_head
from lsvcr.llm.loading import load_llm
from lsvcr.llm.lora import add_lora
from lsvcr.schema import Split
from lsvcr.settings.bounds import check_bounds
from lsvcr.utils.errors import UserError
from lsvcr.utils.lock import run_lock
from lsvcr.utils.logging import MetricsWriter, get_logger, progress
from lsvcr.utils.precision import compute_dtype
from lsvcr.utils.seeding import generator, seed_everything

Schedule = Callable[[int, int, float, Literal["cosine", "linear", "constant"]], float]
"""(step, total steps, warm-up ratio, kind) -> factor of the peak learning rate."""

_ORDER, _DROPOUT, _INITIALISATION = range(1, 4)
"""Purposes of random streams."""

_log = get_logger(__name__)


def answer_loss(model: nn.Module, batch: LmBatch) -> tuple[Tensor, int]:
    """Negative log-likelihood of the labels, summed, and how many there are.

    Logits are made for the counted positions alone.
    """
    device = next(model.parameters()).device
    states = backbone(model)(
        input_ids=batch.ids.to(device),
        attention_mask=batch.mask.long().to(device),
        position_ids=batch.positions.to(device),
        use_cache=False,
    ).last_hidden_state[:, :-1]
    # The state at a position predicts the token after it.
    labels = batch.labels[:, 1:].to(device)
    counted = labels != IGNORED
    logits = output_head(model)(states[counted]).float()
    return F.cross_entropy(logits, labels[counted], reduction="sum"), int(counted.sum())


class Tuner:
    """The training loop: whole epochs, each of which can be the last that a killed process has finished.

    Args:
        settings: of the run.
        model: the LLM with trainable adapters.
        examples: training and validation examples.
        pad: id that fills up.
        folder: where checkpoints go.
        schedule: of the learning rate.
    """

    def __init__(
        self,
        settings: TuneSettings,
        model: nn.Module,
        examples: tuple[Sequence[Example], Sequence[Example]],
        pad: int,
        folder: TuneFolder,
        schedule: Schedule,
    ) -> None:
        self._settings, self._model, self._pad = settings, model, pad
        self._train, self._val = examples
        self._folder, self._schedule = folder, schedule
        self._masters = Masters(model)
        self._optimizer = torch.optim.AdamW(
            self._masters.weights.values(), lr=settings.learning_rate, weight_decay=settings.weight_decay
        )
        self._together = settings.per_device_train_batch_size * settings.gradient_accumulation_steps
        self._steps = -(-len(self._train) // self._together)

    def run(self, start: Progress | None) -> Progress:
        """Train from where `start` stands, or from the beginning."""
        state = start or Progress()
        if start:
            self._folder.load_last(self._masters, self._optimizer)
        else:
            loss = self._validated("before any training: give another LLM, or --bf16 False")
            state = self._close_epoch(state, loss, gained=True)
        curves = MetricsWriter(self._folder.path, resume_step=state.step)
        with progress(self._settings.num_train_epochs * self._steps, "tuning") as bar:
            bar.start_at(state.step)
            while not state.finished:
                seed_everything(self._settings.seed, _DROPOUT, state.epoch)
                started = time.monotonic()
                for step in range(self._steps):
                    loss = self._step(state.epoch, step)
                    curves.log(state.step + step + 1, {"train/loss": loss})
                    bar.advance(1, note=f"loss {loss:.3f}")
                seconds = state.seconds + time.monotonic() - started
                val_loss = self._validated(f"after epoch {state.epoch + 1}: lower --learning_rate")
                # The first epoch takes the place of the untuned LLM; without validation every epoch does.
                gained = not (state.epoch and self._val) or state.best is None or val_loss < state.best
                moved = replace(state, epoch=state.epoch + 1, step=state.step + self._steps, seconds=seconds)
                # Before the checkpoint, so that a run killed between the two goes on with the line written.
                curves.log(moved.step, {"val/loss": val_loss})
                state = self._close_epoch(moved, val_loss, gained)
                _log.info("epoch %d: validation loss %.4f", state.epoch, val_loss)
        return state

    @torch.no_grad()
    def validation_loss(self) -> float:
        """Mean loss of an answer's token on the validation records; 0 where there are none."""
        self._model.eval()
        total, count = 0.0, 0
        by_length = sorted(self._val, key=len)
        size = self._settings.per_device_train_batch_size
        for start in range(0, len(by_length), size):
            loss, tokens = answer_loss(
                self._model, collate(by_length[start : start + size], self._pad, False)
            )
            total, count = total + float(loss), count + tokens
        return total / max(count, 1)

    def _validated(self, when: str) -> float:
        """The validation loss; `when`, with a remedy, is for the error where it is not finite."""
        loss = self.validation_loss()
        if not np.isfinite(loss):
            raise UserError(f"the validation loss is {loss} {when}")
        return loss

    def _step(self, epoch: int, step: int) -> float:
        """One optimiser step; returns the mean loss of its tokens."""
        settings = self._settings
        order = generator(settings.seed, _ORDER, epoch).permutation(len(self._train))
        chosen = order[step * self._together : (step + 1) * self._together]
        # Similar lengths together: less padding. The loss is a mean over the step's tokens, whatever the cut.
        examples = sorted((self._train[place] for place in chosen), key=len)
        size = settings.per_device_train_batch_size
        batches = [
            collate(examples[start : start + size], self._pad, settings.train_on_inputs)
            for start in range(0, len(examples), size)
        ]
        tokens = sum(int((batch.labels[:, 1:] != IGNORED).sum()) for batch in batches)
        self._model.train()
        total = 0.0
        for batch in batches:
            loss, _ = answer_loss(self._model, batch)
            (loss / tokens).backward()
            total += float(loss.detach())
        self._masters.take_gradients()
        weights = list(self._masters.weights.values())
        if settings.max_grad_norm > 0:
            nn.utils.clip_grad_norm_(weights, settings.max_grad_norm)
        number, steps = epoch * self._steps + step, settings.num_train_epochs * self._steps
        factor = self._schedule(number, steps, settings.warmup_ratio, settings.lr_scheduler_type)
        for group in self._optimizer.param_groups:
            group["lr"] = settings.learning_rate * factor
        self._optimizer.step()
        self._masters.give_weights()
        self._optimizer.zero_grad()
        if not np.isfinite(total):
            raise UserError(f"the loss is {total} at step {number + 1}: lower --learning_rate")
        return total / tokens

    def _close_epoch(self, state: Progress, val_loss: float, gained: bool) -> Progress:
        """Judge an epoch and write its checkpoints."""
        if gained:
            state = replace(state, best=val_loss, best_epoch=state.epoch, without_gain=0)
        else:
            state = replace(state, without_gain=state.without_gain + 1)
        done = state.epoch >= self._settings.num_train_epochs
        state = replace(state, finished=done or state.without_gain >= self._settings.patience)
        if gained:
            self._folder.save_best(self._model, state)
        self._folder.save_last(self._model, self._masters, self._optimizer, state)
        return state


def tune(settings: TuneSettings, schedule: Schedule) -> Progress:
    """Fine-tune an LLM on a dataset's records, or go on with an interrupted run.

    Args:
        settings: of the run.
        schedule: of the learning rate, such as `lsvcr.training.schedule.learning_rate_factor`.

    Raises:
        UserError: settings that cannot work, nothing to learn from, another run in the folder, or whatever is wrong
            with dataset or LLM.
    """
    check_one_process("tune")
    check_settings(settings)
    dataset = open_dataset(settings.data_path)
    source = RecordSource(dataset, settings)
    dtype = compute_dtype(settings.bf16)
    model, tokenizer = load_llm(settings.model_name_or_path, dtype=dtype)
    writer = PromptWriter(
        tokenizer, settings.template, settings.max_source_length, settings.max_target_length
    )
    folder = TuneFolder(settings, origin(dataset.data_hash, fingerprint(model), dtype))
    with run_lock(folder.path):
        if not settings.resume:
            folder.clear()
        start = folder.find()
        if start is None:
            folder.clear()
        elif start.finished:
            _log.info("%s is finished: epoch %d is in best/", folder.path, start.best_epoch)
            return start
        examples = _examples(settings, source, writer)
        if not examples[0]:
            raise UserError(f"{dataset.root} has no Rec sample with a title to learn from")
        seed_everything(settings.seed, _INITIALISATION)
        targets = [name.strip() for name in settings.lora_targets.split(",") if name.strip()]
        adapted = add_lora(
            model, settings.lora_r, settings.lora_alpha, settings.lora_dropout, targets or None
        )
        adapted.to("cuda" if torch.cuda.is_available() else "cpu")
        pad = int(tokenizer.pad_token_id)
        return Tuner(settings, adapted, examples, pad, folder, schedule).run(start)


def _examples(
    settings: TuneSettings, source: RecordSource, writer: PromptWriter
) -> tuple[list[Example], list[Example]]:
    """Those of training and of validation, as many as the settings say; without rows, none."""
    limits = {Split.TRAIN: settings.max_train_samples, Split.VAL: settings.max_val_samples}
    found = {
        split: [writer.example(record) for record in source.records(split, rows) if record.target]
        for split, limit in limits.items()
        if len(rows := source.rows(split, limit))
    }
    return found.get(Split.TRAIN, []), found.get(Split.VAL, [])


def check_settings(settings: TuneSettings) -> None:
    """Raise a UserError that names the flag with a value that cannot work."""
    check_bounds(settings)
    if settings.num_train_epochs < 0:
        raise UserError(f"--num_train_epochs {settings.num_train_epochs} must be 0 or more")
