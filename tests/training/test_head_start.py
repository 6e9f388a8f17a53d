"""The head start teaches the SR model and the text head on frozen vectors, and refuses vectors of another LLM."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import LlamaForCausalLM

from lsvcr.data.align_taste import TasteStream
from lsvcr.data.store import Dataset, open_dataset
from lsvcr.llm.aligned import AlignedHeads
from lsvcr.llm.tiny import tiny_config, tiny_tokenizer
from lsvcr.llm.wide import TasteLoss, TextStates
from lsvcr.models.sr import SRModel
from lsvcr.settings import AlignSettings, EmbedSettings
from lsvcr.training.align_build import build
from lsvcr.training.embed import embed
from lsvcr.training.head_start import head_start
from lsvcr.training.untuned import untuned_states
from lsvcr.utils.errors import UserError
from tests.training.align_runs import settings as stage_one
from tests.training.untuned_files import write_vectors

WIDTH = 24
LLM = {"llm_fingerprint": "a", "llm_layers": 4, "width": WIDTH}


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
    heads = _heads()
    head_start(heads, dataset, _settings(tiny_data, tmp_path, head_start_epochs=1), LLM)
    assert {name.split(".")[0] for name in moved(heads)} == {"sr", "head"}


def moved(heads: AlignedHeads) -> set[str]:
    """Names of the parameters that training has changed."""
    pairs = zip(heads.named_parameters(), _heads().parameters(), strict=True)
    return {name for (name, new), old in pairs if not torch.equal(new, old)}


def test_the_taste_contrast_brings_texts_of_the_same_people_together(tiny_data: Path, tmp_path: Path) -> None:
    dataset = open_dataset(tiny_data)
    write_vectors(tmp_path, dataset, WIDTH)
    heads = _heads()
    before = taste_loss(heads, dataset, tmp_path)
    head_start(
        heads, dataset, _settings(tiny_data, tmp_path, head_start_epochs=0, head_start_taste_steps=60), LLM
    )
    assert taste_loss(heads, dataset, tmp_path) < before - 0.2
    assert {name.removeprefix("sr.").split(".")[0] for name in moved(heads)} == {"adapter", "head"}


def test_epochs_behind_the_taste_contrast_leave_the_head_alone(tiny_data: Path, tmp_path: Path) -> None:
    dataset = open_dataset(tiny_data)
    write_vectors(tmp_path, dataset, WIDTH)
    short, long = _heads(), _heads()
    for heads, epochs in ((short, 0), (long, 1)):
        settings = _settings(tiny_data, tmp_path, head_start_taste_steps=2, head_start_epochs=epochs)
        head_start(heads, dataset, settings, LLM)
    assert all(
        torch.equal(a, b) for a, b in zip(short.head.parameters(), long.head.parameters(), strict=True)
    )
    assert not torch.equal(short.sr.merge.weight, long.sr.merge.weight)
    # Stage one begins with no gradient left over, and trains the head again.
    assert all(parameter.grad is None and parameter.requires_grad for parameter in long.parameters())


def taste_loss(heads: AlignedHeads, dataset: Dataset, vectors: Path) -> float:
    tables = [torch.from_numpy(np.load(vectors / f"{kind}_full_embs.npy")) for kind in ("photo", "comment")]
    cache = TextStates(tables[0], tables[1], torch.device("cpu"))
    batch = TasteStream(dataset, None, texts=500, per_text=4, seed=1).batch(0, 0, 1)
    with torch.no_grad():
        return float(TasteLoss(heads.sr, heads.head)(cache.rows(batch.codes), batch, cache))


def test_the_same_seed_gives_the_same_weights(tiny_data: Path, tmp_path: Path) -> None:
    dataset = open_dataset(tiny_data)
    write_vectors(tmp_path, dataset, WIDTH)
    one, two = _heads(), _heads()
    for heads in (one, two):
        head_start(heads, dataset, _settings(tiny_data, tmp_path, head_start_epochs=2), LLM)
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), two.parameters(), strict=True))


def test_missing_vectors_are_told_with_the_command_that_makes_them(tiny_data: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="photo_full_embs.npy.*lsvcr embed --checkpoint none"):
        head_start(_heads(), open_dataset(tiny_data), _settings(tiny_data, tmp_path), LLM)


@pytest.mark.parametrize(
    "width, about, told",
    [
        (WIDTH, {"kind": "tuned"}, "made by a tuned LLM"),
        (WIDTH, {"kind": "untuned", "llm_layers": 30}, "llm_layers 30 there, 4 here"),
        (WIDTH, {"kind": "untuned", "llm_layers": 4, "llm_fingerprint": "b"}, "made by another LLM"),
        (WIDTH + 8, {"kind": "untuned"}, f"width {WIDTH + 8} there, {WIDTH} here"),
        (WIDTH + 8, {}, f"width {WIDTH + 8} there, {WIDTH} here"),
    ],
)
def test_vectors_of_another_llm_are_refused(
    tiny_data: Path, tmp_path: Path, width: int, about: dict[str, object], told: str
) -> None:
    dataset = open_dataset(tiny_data)
    write_vectors(tmp_path, dataset, width, **about)
    with pytest.raises(UserError, match=f"{told}.*lsvcr embed --checkpoint none"):
        head_start(_heads(), dataset, _settings(tiny_data, tmp_path), LLM)


def test_vectors_described_before_there_were_fingerprints_are_taken(tiny_data: Path, tmp_path: Path) -> None:
    dataset = open_dataset(tiny_data)
    write_vectors(tmp_path, dataset, WIDTH, kind="untuned", llm_layers=4)
    assert untuned_states(dataset, _settings(tiny_data, tmp_path), LLM)[0].shape[1] == WIDTH


def test_embed_describes_the_llm_as_stage_one_asks_for_it(tiny_dataset: Dataset, tmp_path: Path) -> None:
    """The real vectors of one LLM, for itself, for its first layer and for one of the same shape."""
    other = tiny_config()
    torch.manual_seed(1)
    LlamaForCausalLM(other).save_pretrained(tmp_path / "other")
    tiny_tokenizer().save_pretrained(tmp_path / "other")
    made = {"data_path": str(tiny_dataset.root), "model_name_or_path": "tiny-random"}
    embed(EmbedSettings(**made, output_dir=str(tmp_path)))
    own = {"bf16": False, "head_start_vectors": str(tmp_path)}

    def states(**changes: object) -> torch.Tensor:
        settings = dataclasses.replace(stage_one(str(tiny_dataset.root), tmp_path, **own), **changes)
        return untuned_states(tiny_dataset, settings, build(settings, tiny_dataset).untuned)[0]

    assert len(states()) == tiny_dataset.n_videos + 1
    with pytest.raises(UserError, match="llm_layers 2 there, 1 here"):
        states(llm_layers=1)
    with pytest.raises(UserError, match="made by another LLM"):
        states(model_name_or_path=str(tmp_path / "other"))
