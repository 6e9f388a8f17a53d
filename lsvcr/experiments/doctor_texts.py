"""Lengths in the LLM's tokens: of texts, and of whole stage-one samples as training builds them."""

import importlib.util
from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np

from lsvcr.data.align import AlignCollator, TrainingStream
from lsvcr.data.align_samples import AlignSamples
from lsvcr.data.audit_facts import quantiles
from lsvcr.data.prompts import PromptBuilder
from lsvcr.data.store import Dataset, Texts
from lsvcr.data.text_bank import TextBank
from lsvcr.llm.bundled import PACKAGE
from lsvcr.llm.encoder import tokenize
from lsvcr.llm.loading import SMOLLM2, load_tokenizer
from lsvcr.schema import Split, Task
from lsvcr.settings import AlignSettings
from lsvcr.utils.errors import UserError
from lsvcr.utils.seeding import generator

TEXTS = 20_000
"""Texts of each kind that are tokenised, drawn with the seed `SEED`; all where there are fewer."""

SAMPLES = 64
"""Training samples of each task whose prompts are built."""

SEED = 2024
_TEXT_STREAM = 71
_UNCUT = 1 << 20


def open_tokenizer(name: str) -> tuple[str, Any | None]:
    """The LLM's name and tokenizer; (none, None) for `none`, and for `auto` without the package of SmolLM2.

    Raises:
        UserError: there is no such LLM.
    """
    if name == "auto":
        name = SMOLLM2 if importlib.util.find_spec(PACKAGE) else "none"
    return (name, None) if name == "none" else (name, load_tokenizer(name))


def text_tokens(dataset: Dataset, tokenizer: Any) -> dict[str, Any]:
    """For `titles` and `comments`: how many were tokenised, quantiles of their tokens, and the share that is longer
    than the default `max_text_length`."""
    limit = AlignSettings.max_text_length
    found = {}
    for number, (name, texts) in enumerate((("titles", dataset.titles()), ("comments", dataset.contents()))):
        lengths = _token_counts(tokenizer, texts, number)
        found[name] = {
            "texts": len(lengths),
            "tokens": quantiles(lengths),
            "longer_than_max_text_length": float((lengths > limit).mean()) if len(lengths) else None,
        }
    return found


def sample_tokens(dataset: Dataset, tokenizer: Any, settings: AlignSettings) -> dict[str, dict[str, Any]]:
    """What `SAMPLES` training samples of each task cost under `settings`; a task without samples is left out.

    Returns:
        task -> `samples`, `tokens_a_sample` (prompt, response and distinct texts, as the run will read them) and
        `prompt`, the quantiles of the prompts' lengths.
    """
    cut = partial(tokenize, tokenizer, max_tokens=settings.max_text_length)
    prompts = PromptBuilder(
        tokenizer,
        language=settings.language,
        max_source=settings.max_source_length,
        max_target=settings.max_target_length,
        max_text=settings.max_text_length,
    )
    bank = TextBank(dataset.titles(), dataset.contents(), cut)
    collator = AlignCollator(bank, prompts)
    found = {}
    for task in Task:
        try:
            samples = AlignSamples(
                dataset,
                Split.TRAIN,
                [task],
                max_videos=settings.max_phis_len,
                max_comments=settings.max_chis_len,
                per_task=SAMPLES,
                seed=SEED,
            )
        except UserError:
            continue  # the dataset serves the other task alone
        found[task.value] = _cost(
            TrainingStream(samples, SEED), collator, settings.per_device_train_batch_size
        )
    return found


def _cost(stream: TrainingStream, collator: AlignCollator, batch: int) -> dict[str, Any]:
    tokens, prompts = 0, []
    for start in range(0, len(stream), batch):
        built = collator([stream[place] for place in range(start, min(start + batch, len(stream)))])
        tokens += built.tokens
        prompts.append(np.array([*map(len, built.sequences)]) - np.array(built.response_lengths))
    return {
        "samples": len(stream),
        "tokens_a_sample": tokens / len(stream),
        "prompt": quantiles(np.concatenate(prompts)),
    }


def _token_counts(tokenizer: Any, texts: Texts, number: int) -> np.ndarray:
    """Tokens of at most `TEXTS` texts, int64."""
    total = len(texts) - 1
    chosen: Sequence[int] | np.ndarray = np.arange(1, total + 1)
    if total > TEXTS:
        chosen = 1 + np.sort(generator(SEED, _TEXT_STREAM, number).choice(total, TEXTS, replace=False))
    ids = tokenize(tokenizer, texts.take(chosen), _UNCUT)
    return np.fromiter(map(len, ids), np.int64, len(ids))
