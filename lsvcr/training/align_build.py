"""Builds what stage one trains from its settings: samples, batches, model, validation."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from lsvcr.data.align import AlignCollator, TrainingStream
from lsvcr.data.align_samples import AlignSamples
from lsvcr.data.prompts import PromptBuilder
from lsvcr.data.store import Dataset
from lsvcr.data.text_bank import TextBank, comment_code, video_code
from lsvcr.llm.aligned import AlignedHeads, AlignedModel
from lsvcr.llm.encoder import encode, tokenize
from lsvcr.llm.families import backbone, fingerprint, n_layers, unwrap
from lsvcr.llm.loading import fetch_llm, hidden_size, load_llm
from lsvcr.llm.lora import add_lora
from lsvcr.llm.recompute import enable_checkpointing
from lsvcr.llm.wide import TASTE, WIDE_REC
from lsvcr.models.sr import SRModel
from lsvcr.schema import LLM_FINGERPRINT, Split, Task
from lsvcr.settings import AlignSettings
from lsvcr.settings.bounds import check_bounds
from lsvcr.training.align_eval import AlignEvaluator
from lsvcr.training.engine_loop import Plan
from lsvcr.training.engine_parts import ONE_BATCH, is_cut, loading_in_parts, whole_while_used
from lsvcr.utils.errors import UserError
from lsvcr.utils.logging import get_logger
from lsvcr.utils.precision import compute_dtype
from lsvcr.utils.seeding import seed_everything

CPU_BUDGET, GPU_BUDGET = 512, 16_384
"""Tokens of a text batch. On a CPU a larger one costs more in padding than it wins (docs/log.md)."""

_INIT_STREAM = 41
_STANDARD_TEXTS = 512
"""Titles, and comments, that the embedding head's input statistics are taken from."""

logger = get_logger(__name__)


@dataclass(frozen=True)
class AlignParts:
    """What the training loop runs."""

    model: AlignedModel
    stream: TrainingStream
    samples: AlignSamples
    collator: AlignCollator
    llm: str
    """Fingerprint of the base model."""
    evaluator: AlignEvaluator | None
    """None where the dataset has no validation samples of the chosen tasks."""

    @property
    def untuned(self) -> dict[str, Any]:
        """What `embeddings.json` says of vectors by the base model."""
        llm = self.model.llm
        layers = n_layers(unwrap(llm).config)
        return {LLM_FINGERPRINT: self.llm, "llm_layers": layers, "width": hidden_size(llm)}


@dataclass(frozen=True)
class AlignPlan(Plan):
    """How a run of stage one is cut."""

    accumulation: int
    contrast_steps: int
    """Micro-steps whose samples the contrastive losses compare with one another."""


def check_settings(settings: AlignSettings) -> None:
    """Raise `UserError` for values that no field type can rule out."""
    check_bounds(settings)
    for name in ("max_phis_len", "max_chis_len"):
        if not 0 <= getattr(settings, name) <= settings.max_position:
            raise UserError(
                f"--{name} {getattr(settings, name)} needs --max_position {getattr(settings, name)} or more, "
                f"not {settings.max_position}"
            )
    if settings.hidden % settings.heads:
        raise UserError(f"--hidden {settings.hidden} must be a multiple of --heads {settings.heads}")
    if settings.save_strategy == "steps" and settings.save_steps < 1:
        raise UserError(f"--save_steps {settings.save_steps}: give 1 or more, or --save_strategy no")
    if settings.max_steps <= 0 and settings.num_train_epochs <= 0:
        raise UserError("nothing to train: give --num_train_epochs or --max_steps above 0")


def make_plan(settings: AlignSettings, samples: int, world: int) -> AlignPlan:
    """Cut `samples` training samples into optimiser steps; the last one reaches into the next epoch's order."""
    global_batch = settings.per_device_train_batch_size * settings.gradient_accumulation_steps * world
    epoch = math.ceil(samples / global_batch)
    steps = settings.max_steps
    if steps <= 0:
        steps = max(1, math.ceil(settings.num_train_epochs * samples / global_batch))
    save_every = {"steps": settings.save_steps, "epoch": epoch, "no": 0}[settings.save_strategy]
    return AlignPlan(
        samples=samples,
        global_batch=global_batch,
        accumulation=settings.gradient_accumulation_steps,
        contrast_steps=contrast_steps(settings, world),
        steps=steps,
        save_every=save_every,
        eval_every=settings.eval_steps or save_every,
    )


def contrast_steps(settings: AlignSettings, world: int) -> int:
    """Micro-steps of `world` processes whose samples are contrasted with one another.

    Raises:
        UserError: they are no part of an optimiser step, or there is one sample, which has nothing to be told from.
    """
    joined = settings.per_device_train_batch_size * world
    wanted, whole = settings.contrast_batch or joined, joined * settings.gradient_accumulation_steps
    if wanted % joined or whole % wanted:
        raise UserError(
            f"--contrast_batch {wanted}: a micro-step has {joined} samples ({world} processes x "
            f"--per_device_train_batch_size {settings.per_device_train_batch_size}), an optimiser step {whole} "
            f"(x --gradient_accumulation_steps {settings.gradient_accumulation_steps}); give a multiple of the one "
            "that divides the other"
        )
    if wanted == 1 and (settings.rec_loss_weight or settings.contrast_loss_weight):
        raise UserError(
            "a micro-step of one sample has nothing to contrast it with, so that stage one would not learn to "
            "recommend: give --per_device_train_batch_size 2, or with --gradient_accumulation_steps 2 or more "
            "--contrast_batch 2 or more"
        )
    return wanted // joined


def build(settings: AlignSettings, dataset: Dataset, config: Mapping[str, Any] | None = None) -> AlignParts:
    """Load the LLM and build samples, batches and model; the same on every process.

    Args:
        settings: of the run.
        dataset: to train on.
        config: DeepSpeed's, from `engine.read_config`, which may have the LLM cut among the processes; None = it
            stays whole.

    Raises:
        UserError: settings, data and LLM do not fit one another.
    """
    dtype = compute_dtype(settings.bf16)
    if settings.load_in_4bit and is_cut(config):
        raise UserError(
            "--load_in_4bit keeps the LLM whole on every GPU: give a --deepspeed file with ZeRO stage 2, "
            "such as config/ds_z2_bf16.json"
        )
    samples = _samples(settings, dataset, Split.TRAIN)
    fetch_llm(settings.model_name_or_path, dtype)
    with loading_in_parts(config, settings.per_device_train_batch_size, settings.gradient_accumulation_steps):
        llm, tokenizer = load_llm(
            settings.model_name_or_path,
            dtype=dtype,
            llm_layers=settings.llm_layers,
            load_in_4bit=settings.load_in_4bit,
        )
    cut = partial(tokenize, tokenizer, max_tokens=settings.max_text_length)
    bank = TextBank(dataset.titles(), dataset.contents(), cut)
    prompts = prompt_builder(settings, tokenizer, llm.config.get_text_config())
    collator = AlignCollator(bank, prompts)
    budget = settings.text_token_budget or (GPU_BUDGET if torch.cuda.is_available() else CPU_BUDGET)
    pad_id = int(tokenizer.pad_token_id)
    if is_cut(config):
        logger.info(
            "ZeRO-3: each process holds a part of the LLM, and reads all texts of a step in one batch"
        )
    model = _model(settings, llm, pad_id, ONE_BATCH if is_cut(config) else budget)
    with whole_while_used(model.llm):
        states = _some_states(
            partial(encode, backbone(model.llm), pad_id=pad_id, budget=budget), dataset, bank
        )
        llm_fingerprint = fingerprint(model.llm)
    model.heads.head.standardise(states)
    return AlignParts(
        model=model,
        stream=TrainingStream(samples, settings.seed),
        samples=samples,
        collator=collator,
        llm=llm_fingerprint,
        evaluator=_evaluator(settings, dataset, collator, bank),
    )


def parameter_groups(model: AlignedModel, settings: AlignSettings) -> list[dict[str, Any]]:
    """Two groups with their peak rates: what sits in the LLM, and SR model with heads."""
    rates = (settings.learning_rate, settings.sr_learning_rate or settings.learning_rate)
    groups = [
        {"params": [p for p in part.parameters() if p.requires_grad], "lr": rate, "initial_lr": rate}
        for part, rate in zip((model.llm, model.heads), rates, strict=True)
    ]
    return [group for group in groups if group["params"]]


def _some_states(
    pooled: Callable[[list[list[int]]], torch.Tensor], dataset: Dataset, bank: TextBank
) -> torch.Tensor:
    """Pooled states of texts from all over the dataset: (N, h), of the LLM as it comes; the same on every process."""
    codes = [video_code(i) for i in _spread(dataset.n_videos)] + [
        comment_code(i) for i in _spread(dataset.n_comments)
    ]
    ids = bank.ids(codes)
    with torch.no_grad():
        return pooled([ids[code] for code in codes])


def _spread(count: int) -> list[int]:
    """At most `_STANDARD_TEXTS` indices of 1 .. count, evenly spread."""
    return sorted({1 + i * count // _STANDARD_TEXTS for i in range(_STANDARD_TEXTS)}) if count else []


def _samples(settings: AlignSettings, dataset: Dataset, split: Split) -> AlignSamples:
    tasks = list(Task) if settings.tasks == "both" else [Task.parse(settings.tasks)]
    return AlignSamples(
        dataset,
        split,
        tasks,
        max_videos=settings.max_phis_len,
        max_comments=settings.max_chis_len,
        per_task=settings.max_train_samples if split is Split.TRAIN else settings.eval_pool,
        seed=settings.seed,
        augment=settings.augment,
    )


def _evaluator(
    settings: AlignSettings, dataset: Dataset, collator: AlignCollator, bank: TextBank
) -> AlignEvaluator | None:
    try:
        pool = _samples(settings, dataset, Split.VAL)
    except UserError as absent:
        logger.warning(f"no validation: {absent}")
        return None
    return AlignEvaluator(
        dataset, pool, collator, bank, batch=settings.per_device_eval_batch_size, seed=settings.seed
    )


def prompt_builder(settings: AlignSettings, tokenizer: Any, config: Any) -> PromptBuilder:
    """Prompts that the LLM's window holds together with the response."""
    window = int(getattr(config, "max_position_embeddings", 0) or 0)
    source = settings.max_source_length
    if window and source + settings.max_target_length > window:
        source = window - settings.max_target_length
        logger.info(
            f"prompts are cut at {source} tokens: the LLM reads {window} at once, responses take the rest"
        )
    if window and settings.max_text_length > window:
        raise UserError(
            f"--max_text_length {settings.max_text_length}: the LLM reads {window} tokens at once; give less"
        )
    try:
        return PromptBuilder(
            tokenizer,
            language=settings.language,
            max_source=source,
            max_target=settings.max_target_length,
            max_text=settings.max_text_length,
        )
    except UserError as error:
        if source == settings.max_source_length:
            raise
        raise UserError(
            f"the LLM reads {window} tokens at once, which leaves {source} for a prompt beside --max_target_length "
            f"{settings.max_target_length}: {error}; or lower --max_target_length, or take an LLM with a longer window"
        ) from error


def _model(settings: AlignSettings, llm: Any, pad_id: int, budget: int) -> AlignedModel:
    width = hidden_size(llm)
    seed_everything(settings.seed, _INIT_STREAM)
    sr = SRModel.from_settings(settings, settings.max_position)
    heads = AlignedHeads(sr, width, settings.text_width)
    if settings.lora:
        llm = add_lora(llm, settings.lora_r, settings.lora_alpha, settings.lora_dropout)
    else:
        llm.requires_grad_(False)
    if settings.gradient_checkpointing:
        enable_checkpointing(llm, settings.recompute)
    return AlignedModel(
        llm,
        heads,
        pad_id=pad_id,
        text_token_budget=budget,
        weights={
            "lm": settings.lm_loss_weight,
            "rec": settings.rec_loss_weight,
            "contrast": settings.contrast_loss_weight,
            WIDE_REC: settings.wide_loss_weight,
            TASTE: settings.taste_loss_weight,
        },
    )
