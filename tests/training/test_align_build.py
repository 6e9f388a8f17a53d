"""What stage one is built of: prompts and texts fit the LLM's window, or it is said why they cannot."""

import logging
from pathlib import Path

import pytest
import torch
from transformers import LlamaForCausalLM

from lsvcr.data.store import Dataset
from lsvcr.llm.tiny import tiny_config, tiny_tokenizer
from lsvcr.training.align_build import AlignParts, build, contrast_steps
from lsvcr.utils.errors import UserError
from tests.training.align_runs import settings

SHORT = 640


def llm_with_window(folder: Path, window: int) -> str:
    """A random LLM that reads `window` tokens."""
    config = tiny_config()
    config.max_position_embeddings = window
    LlamaForCausalLM(config).save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return str(folder)


def parts_with(dataset: Dataset, folder: Path, window: int, **changes: object) -> AlignParts:
    llm = llm_with_window(folder / str(window), window)
    lengths = {"max_source_length": 3000, "max_target_length": 24, "max_text_length": 20, **changes}
    own = settings(str(dataset.root), folder / "run", model_name_or_path=llm, bf16=False, **lengths)
    return build(own, dataset)


def longest(parts: AlignParts) -> int:
    """Tokens of the longest prompt with its response among many samples."""
    batch = parts.collator([parts.stream[position] for position in range(60)])
    return max(map(len, batch.sequences))


def test_a_prompt_longer_than_the_window_loses_its_oldest_entries(
    tiny_dataset: Dataset, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logging.getLogger("lsvcr"), "propagate", True)
    caplog.set_level(logging.INFO)
    assert longest(parts_with(tiny_dataset, tmp_path, 8192)) > SHORT
    assert "prompts are cut" not in caplog.text
    parts = parts_with(tiny_dataset, tmp_path, SHORT)
    assert f"prompts are cut at {SHORT - 24} tokens: the LLM reads {SHORT} at once" in caplog.text
    assert 0.5 * SHORT < longest(parts) <= SHORT
    batch = parts.collator([parts.stream[position] for position in range(4)])
    with torch.no_grad():
        assert torch.isfinite(parts.model(batch, None)["loss"])


@pytest.mark.parametrize("window", [16, 200])
def test_a_window_too_short_for_any_prompt_is_named(
    tiny_dataset: Dataset, tmp_path: Path, window: int
) -> None:
    with pytest.raises(
        UserError, match=rf"the LLM reads {window} tokens at once, .* or take an LLM with a longer"
    ):
        parts_with(tiny_dataset, tmp_path, window, max_text_length=8)


def test_a_sample_is_contrasted_with_others_of_its_micro_step_or_of_several(tmp_path: Path) -> None:
    def steps(world: int, batch: int, **changes: object) -> int:
        return contrast_steps(settings("data", tmp_path, per_device_train_batch_size=batch, **changes), world)

    assert steps(1, 2) == steps(2, 1) == 1
    assert steps(1, 1, contrast_batch=4, gradient_accumulation_steps=4) == 4
    assert steps(1, 1, rec_loss_weight=0.0, contrast_loss_weight=0.0) == 1
    for changes in ({}, {"contrast_batch": 1}, {"gradient_accumulation_steps": 4}, {"rec_loss_weight": 0.0}):
        with pytest.raises(UserError, match="--per_device_train_batch_size 2, or .*--contrast_batch 2"):
            steps(1, 1, **changes)


def test_texts_longer_than_the_window_are_refused(tiny_dataset: Dataset, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=f"--max_text_length 700: the LLM reads {SHORT} tokens at once"):
        parts_with(tiny_dataset, tmp_path, SHORT, max_text_length=700)
