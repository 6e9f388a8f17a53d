"""The LLM's precision: what is asked for, else what the processor is made for."""

import pytest
import torch

from lsvcr.utils.precision import compute_dtype, wants_bf16


def processor(monkeypatch: pytest.MonkeyPatch, **capabilities: bool) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities)


@pytest.mark.parametrize(
    "capabilities, dtype",
    [
        ({"avx512_bf16": False, "amx_bf16": False, "avx2": True}, torch.float32),
        ({"avx512_bf16": True, "amx_bf16": False}, torch.bfloat16),
        ({}, torch.float32),
    ],
)
def test_auto_follows_the_processor(monkeypatch: pytest.MonkeyPatch, capabilities, dtype) -> None:
    processor(monkeypatch, **capabilities)
    assert compute_dtype(None) is dtype


@pytest.mark.parametrize("asked", [True, False])
def test_what_is_asked_for_wins(monkeypatch: pytest.MonkeyPatch, asked: bool) -> None:
    processor(monkeypatch, avx512_bf16=not asked)
    assert wants_bf16(asked) is asked


def test_an_older_torch_without_the_list_computes_in_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.delattr(torch.cpu, "get_capabilities")
    assert wants_bf16(None) is False
