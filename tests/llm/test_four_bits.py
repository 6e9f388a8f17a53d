"""`--load_in_4bit`: what is handed to transformers, and what is said where it cannot be done. Needs no GPU."""

import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, GlmForCausalLM, LlamaForCausalLM

from lsvcr.data.store import Dataset
from lsvcr.llm import four_bits
from lsvcr.llm.loading import TINY, load_llm
from lsvcr.schema import BEST_DIR
from lsvcr.settings import EmbedSettings
from lsvcr.training import embedder
from lsvcr.training.align_build import build
from lsvcr.utils.errors import UserError
from lsvcr.utils.io import read_json
from tests.llm.test_families_matrix import CHATGLM
from tests.tiny_gguf import write_tiny_gguf
from tests.training.align_runs import settings
from tests.training.test_embed import write_checkpoint


@pytest.fixture
def able(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine that has a GPU and the package, as far as is asked."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(four_bits, "find_spec", lambda _: object())
    monkeypatch.setenv("LOCAL_RANK", "3")


@pytest.fixture
def handed(able: None, monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """What each `from_pretrained` is given for quantising; the model is then read as it is."""
    seen: list[dict[str, Any]] = []
    for family in (AutoModelForCausalLM, LlamaForCausalLM, GlmForCausalLM):
        real = family.from_pretrained

        def watch(*words: Any, _real: Any = real, **options: Any) -> Any:
            names = [name for name in ("quantization_config", "device_map") if name in options]
            if names:
                seen.append({name: options.pop(name) for name in names})
            return _real(*words, **options)

        monkeypatch.setattr(family, "from_pretrained", watch)
    return seen


@pytest.mark.parametrize("kind", [TINY, "folder", "chatglm"])
def test_the_right_quantisation_is_handed_over(handed: list[dict], tmp_path: Path, kind: str) -> None:
    name = {TINY: TINY, "folder": str(tmp_path), "chatglm": str(CHATGLM)}[kind]
    if kind == "folder":
        for part in load_llm(TINY, dtype=torch.float32):
            part.save_pretrained(tmp_path)
    load_llm(name, dtype=torch.float32)
    assert handed == []
    load_llm(name, dtype=torch.bfloat16, load_in_4bit=True)
    (options,) = handed
    config = options["quantization_config"]
    assert config.load_in_4bit and config.bnb_4bit_use_double_quant
    assert (config.bnb_4bit_quant_type, config.bnb_4bit_compute_dtype) == ("nf4", torch.bfloat16)
    assert options["device_map"] == {"": 3}


def test_no_gpu_or_no_package_is_said_before_anything_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UserError, match="--load_in_4bit: it needs a CUDA GPU"):
        load_llm("somebody/absent", load_in_4bit=True)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(four_bits, "find_spec", lambda _: None)
    with pytest.raises(UserError, match=r"the package bitsandbytes: pip install 'lsvcr\[qlora\]'"):
        load_llm("somebody/absent", load_in_4bit=True)


def test_what_cannot_be_quantised(able: None, tiny_dataset: Dataset, tmp_path: Path) -> None:
    gguf = write_tiny_gguf(tmp_path / "tiny.gguf")
    with pytest.raises(UserError, match=f"--load_in_4bit: {gguf} is a GGUF file"):
        load_llm(str(gguf), load_in_4bit=True)
    own = settings(str(tiny_dataset.root), tmp_path / "run", load_in_4bit=True, bf16=False)
    with pytest.raises(UserError, match="ZeRO stage 2"):
        build(own, tiny_dataset, {"zero_optimization": {"stage": 3}})


def test_stage_one_asks_for_it(handed: list[dict], tiny_dataset: Dataset, tmp_path: Path) -> None:
    own = settings(str(tiny_dataset.root), tmp_path / "run", load_in_4bit=True, bf16=False)
    build(own, tiny_dataset)
    assert handed[0]["quantization_config"].bnb_4bit_compute_dtype == torch.float32


@pytest.mark.parametrize(
    ("asked", "possible", "used"),
    [(None, True, True), (None, False, False), (False, True, False), (True, True, True)],
)
def test_embed_reads_a_run_of_4_bits_so_or_whole(
    handed: list[dict],
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
    asked: bool | None,
    possible: bool,
    used: bool,
) -> None:
    monkeypatch.setattr(logging.getLogger("lsvcr"), "propagate", True)
    monkeypatch.setattr(embedder, "_device", lambda: torch.device("cpu"))
    trained = {"model_name_or_path": TINY, "llm_layers": 1, "load_in_4bit": True}
    write_checkpoint(tmp_path / BEST_DIR, settings=trained)
    assert read_json(tmp_path / BEST_DIR / "manifest.json")["settings"] == trained
    if not possible:
        monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    found = embedder.load_embedder(EmbedSettings(bf16=False, load_in_4bit=asked), tmp_path / BEST_DIR)
    assert len(handed) == used
    assert torch.isfinite(found.vectors([[5, 6, 7]])[0]).all()
    assert ("here it is read whole" in caplog.text) == (not possible)


def test_a_model_of_4_bits_is_not_moved(able: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """bitsandbytes puts it where it belongs; moving it is an error of transformers."""
    model, tokenizer = load_llm(TINY, dtype=torch.float32, llm_layers=1)
    model.is_loaded_in_4bit = True

    def refuse(*_: Any) -> None:
        raise ValueError("`.to` is not supported for `4-bit`")

    model.to = refuse
    monkeypatch.setattr(embedder, "load_llm", lambda *_, **__: (model, tokenizer))
    monkeypatch.setattr(embedder, "_device", lambda: torch.device("cpu"))
    write_checkpoint(tmp_path / BEST_DIR)
    found = embedder.load_embedder(EmbedSettings(load_in_4bit=True, bf16=False), tmp_path / BEST_DIR)
    assert torch.isfinite(found.vectors([[5, 6, 7]])[0]).all()
