"""The head start teaches the SR model and the text head on frozen vectors, and refuses vectors of another LLM."""

import dataclasses
from pathlib import Path

import pytest
import torch

from lsvcr.data.store import open_dataset
from lsvcr.llm.aligned import AlignedHeads
from lsvcr.models.sr import SRModel
from lsvcr.settings import AlignSettings
from lsvcr.training.head_start import head_start
from lsvcr.utils.errors import UserError
from tests.training.untuned_files import write_vectors

WIDTH = 24


def _heads() -> AlignedHeads:
    torch.manual_seed(0)
    sr = SRModel(
        text_width=16, hidden=16, inner=32, heads=2, dropout=0.0, attention_dropout=0.0, max_position=8
    )
    return AlignedHeads(sr, WIDTH, 16)


def _settings(data: Path, vectors: Path, **changes: object) -> AlignSettings:
    base = AlignSettings(
        data_path=str(data),
        head_start_vectors=str(vectors),
        head_start_epochs=1,
        head_start_learning_rate=5e-3,
        max_position=8,
        hidden=16,
        text_width=16,
    )
    return dataclasses.replace(base, **changes)  # type: ignore[arg-type]


def test_it_trains_sr_model_and_head_and_nothing_else(tiny_data: Path, tmp_path: Path) -> None:
    dataset = open_dataset(tiny_data)
    write_vectors(tmp_path, dataset, WIDTH)
    heads, before = _heads(), _heads()
    head_start(heads, dataset, _settings(tiny_data, tmp_path, head_start_epochs=1))
    moved = {
        name.split(".")[0]
        for (name, new), old in zip(heads.named_parameters(), before.parameters(), strict=True)
        if not torch.equal(new, old)
    }
    assert moved == {"sr", "head"}


def test_the_same_seed_gives_the_same_weights(tiny_data: Path, tmp_path: Path) -> None:
    dataset = open_dataset(tiny_data)
    write_vectors(tmp_path, dataset, WIDTH)
    one, two = _heads(), _heads()
    for heads in (one, two):
        head_start(heads, dataset, _settings(tiny_data, tmp_path, head_start_epochs=2))
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), two.parameters(), strict=True))


def test_missing_vectors_are_told_with_the_command_that_makes_them(tiny_data: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="photo_full_embs.npy.*lsvcr embed --checkpoint none"):
        head_start(_heads(), open_dataset(tiny_data), _settings(tiny_data, tmp_path))


@pytest.mark.parametrize("about", [{"kind": "tuned", "llm_layers": 4}, {"kind": "untuned", "llm_layers": 30}])
def test_vectors_of_another_llm_are_refused(
    tiny_data: Path, tmp_path: Path, about: dict[str, object]
) -> None:
    dataset = open_dataset(tiny_data)
    write_vectors(tmp_path, dataset, WIDTH, **about)
    with pytest.raises(UserError, match="tuned LLM.*lsvcr embed --checkpoint none"):
        head_start(_heads(), dataset, _settings(tiny_data, tmp_path, llm_layers=4))
