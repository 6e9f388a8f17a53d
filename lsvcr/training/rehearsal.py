"""What `--dry_run` tells: a run's samples, tokens, steps, memory and time, before a night is spent on it."""

import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from lsvcr.data.align import AlignCollator, TrainingStream
from lsvcr.settings import AlignSettings
from lsvcr.training.align_build import AlignParts, AlignPlan
from lsvcr.training.align_memory import stage_one_memory
from lsvcr.utils.distributed import is_main, world_size
from lsvcr.utils.logging import duration
from lsvcr.utils.memory import peak_bytes

STEPS = 3
"""Optimiser steps that are taken and thrown away; the first one warms up."""

READ = 64
"""Samples whose tokens are counted."""


@dataclass(frozen=True)
class Measured:
    """Of the steps behind the first."""

    seconds_a_step: float
    tokens_per_second: float


def tell(settings: AlignSettings, parts: AlignParts, plan: AlignPlan, measured: Measured) -> None:
    """Print the rehearsal of a run on stdout, from the first process."""
    if not is_main():
        return
    mean, longest = _tokens(parts.stream, parts.collator, settings.per_device_train_batch_size)
    memory = stage_one_memory(parts.model.llm.config, settings, longest, world_size())
    samples = plan.steps * plan.global_batch
    counts = ", ".join(f"{count:,} {task.label}" for task, count in parts.samples.counts().items())
    rows = {
        "samples": f"{plan.samples:,} ({counts})",
        "steps": f"{plan.steps:,} of {plan.global_batch} samples, {samples / plan.samples:.2f} epochs; "
        f"{world_size()} process(es)",
        "tokens": f"{mean:,.0f} a sample, {mean * samples / 1e6:,.1f} million in all; a micro-step's most: {longest:,}",
        "parameters": f"{memory['llm_parameters']:,} of the LLM, {memory['trained_parameters']:,} that train",
        "memory, from shapes": _parts(memory),
        "memory, measured": f"{_peak() / 1e9:.2f} GB a process at most, in {STEPS} steps",
        "speed, measured": f"{measured.seconds_a_step:.2f} s a step, {measured.tokens_per_second:,.0f} tokens a second "
        "of all processes",
        "time": f"{duration(measured.seconds_a_step * plan.steps)}, and validations and checkpoints",
    }
    width = max(map(len, rows))
    lines = [f"{name:<{width}}  {text}" for name, text in rows.items()]
    sys.stdout.write("\n".join(["dry run of stage one; nothing is written", *lines]) + "\n")


def _parts(memory: Mapping[str, Any]) -> str:
    names = {
        "weights": "weights",
        "training_state": "optimiser",
        "activation": "activations",
        "libraries": "libraries",
    }
    told = ", ".join(f"{label} {memory[f'{name}_bytes'] / 1e9:.2f}" for name, label in names.items())
    return f"{memory['process_bytes'] / 1e9:.2f} GB a process: {told}"


def _tokens(stream: TrainingStream, collator: AlignCollator, batch: int) -> tuple[float, int]:
    """Mean tokens of a sample, and the most of a micro-batch, among the first in training's order."""
    total = longest = read = 0
    while read < READ:
        tokens = collator([stream[place] for place in range(read, read + batch)]).tokens
        total, longest, read = total + tokens, max(longest, tokens), read + batch
    return total / read, longest


def _peak() -> int:
    return torch.cuda.max_memory_allocated() if torch.cuda.is_available() else peak_bytes()
