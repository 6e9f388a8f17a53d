"""`lsvcr embed --item_prompt hllm`: the last token's state of each item's text, beside the other vectors."""

from pathlib import Path

import numpy as np
import pytest
import torch

from lsvcr.data.item_texts import ItemTexts
from lsvcr.data.store import Dataset
from lsvcr.data.vectors import described, load_embeddings
from lsvcr.llm.encoder import encode, last_pool, mean_pool, tokenize
from lsvcr.llm.families import backbone
from lsvcr.schema import (
    EMBEDDINGS_MANIFEST_FILE,
    ITEM_EMBEDDINGS_FILE,
    ITEM_KEYS_FILE,
    VIDEO_FULL_EMBEDDINGS_FILE,
)
from lsvcr.training import embed_parts
from lsvcr.training.embed import embed
from lsvcr.utils.errors import UserError
from tests.training.embed_runs import contents, count_texts, names, settings

FIELDS = ["title", "category"]


def items(data: Path, out: Path, **others: object) -> Path:
    return embed(settings(data, out, item_prompt="hllm", **others))


def test_rows_are_the_states_of_the_last_token(tiny_dataset: Dataset, tiny_llm, tmp_path: Path) -> None:
    out = items(tiny_dataset.root, tmp_path / "out")
    assert names(out) == sorted([ITEM_EMBEDDINGS_FILE, ITEM_KEYS_FILE, EMBEDDINGS_MANIFEST_FILE])
    texts = ItemTexts(tiny_dataset, FIELDS)
    found = load_embeddings(out, ITEM_EMBEDDINGS_FILE, len(texts), tiny_dataset.data_hash)
    model, tokenizer = tiny_llm
    ids = tokenize(tokenizer, texts.take(np.arange(len(texts))), 256)
    assert not found[0].any() and not ids[0]
    for row in range(1, len(texts)):
        with torch.no_grad():
            alone = backbone(model.eval())(input_ids=torch.tensor([ids[row]])).last_hidden_state[0, -1]
        np.testing.assert_allclose(found[row], alone.numpy(), rtol=1e-4, atol=1e-5)


def test_the_description_says_what_they_are(tiny_data: Path, tmp_path: Path) -> None:
    out = items(tiny_data, tmp_path / "out")
    entry = described(out / ITEM_EMBEDDINGS_FILE) or {}
    assert (entry["pooling"], entry["item_prompt"], entry["item_fields"]) == ("last", "hllm", FIELDS)
    assert entry["max_text_length"] == 256 and entry["kind"] == "untuned"


def test_other_vectors_in_the_folder_stay_as_they_are(tiny_data: Path, tmp_path: Path) -> None:
    out = embed(settings(tiny_data, tmp_path / "out"))
    before = contents(out)
    titles = described(out / VIDEO_FULL_EMBEDDINGS_FILE)
    items(tiny_data, out)
    after = contents(out)
    assert all(after[name] == data for name, data in before.items() if name != EMBEDDINGS_MANIFEST_FILE)
    assert described(out / VIDEO_FULL_EMBEDDINGS_FILE) == titles and "pooling" not in (titles or {})


def test_finished_vectors_are_made_again_only_for_other_settings(
    tiny_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = items(tiny_data, tmp_path / "out")
    read = count_texts(monkeypatch)
    items(tiny_data, out)
    assert not read
    first = (out / ITEM_EMBEDDINGS_FILE).read_bytes()
    items(tiny_data, out, pooling="mean")
    assert read and (described(out / ITEM_EMBEDDINGS_FILE) or {})["pooling"] == "mean"
    assert (out / ITEM_EMBEDDINGS_FILE).read_bytes() != first
    read.clear()
    items(tiny_data, out, pooling="mean", item_fields="title")
    assert read


def test_an_interrupted_run_goes_on(tiny_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = contents(items(tiny_data, tmp_path / "whole"))
    monkeypatch.setattr("lsvcr.training.embed_plan.PART_TOKENS", (256, 256))
    with monkeypatch.context() as patched:
        stopped = count_texts(patched, stop_before=6)
        with pytest.raises(KeyboardInterrupt):
            items(tiny_data, tmp_path / "out")
    assert 0 < len(stopped) < 32
    assert embed_parts.count_parts(tmp_path / "out" / ".embed-work" / "parts")
    read = count_texts(monkeypatch)
    out = items(tiny_data, tmp_path / "out")
    assert 0 < len(read) <= 32 - len(stopped)
    np.testing.assert_allclose(
        np.load(out / ITEM_EMBEDDINGS_FILE), np.load(tmp_path / "whole" / ITEM_EMBEDDINGS_FILE), atol=1e-5
    )
    assert whole[ITEM_KEYS_FILE] == contents(out)[ITEM_KEYS_FILE]


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        ({"pooling": "last"}, "--pooling last is for the vectors of items"),
        ({"item_fields": "title"}, "--item_fields is for the vectors of items"),
        ({"item_prompt": "hllm", "full": True}, "--full is for titles and comments"),
        ({"item_prompt": "hllm", "item_fields": "genre"}, "no column"),
    ],
)
def test_flags_that_do_not_go_together_are_refused(
    tiny_data: Path, tmp_path: Path, wrong: dict, told: str
) -> None:
    with pytest.raises(UserError, match=told):
        embed(settings(tiny_data, tmp_path / "out", **wrong))


def test_pooling_by_hand() -> None:
    """Two rows of two and no real positions; the third position is padding and loud."""
    states = torch.tensor([[[1.0, 2.0], [3.0, 6.0], [99.0, 99.0]], [[9.0, 9.0], [9.0, 9.0], [9.0, 9.0]]])
    mask = torch.tensor([[True, True, False], [False, False, False]])
    assert last_pool(states, mask).tolist() == [[3.0, 6.0], [0.0, 0.0]]
    assert mean_pool(states, mask).tolist() == [[2.0, 4.0], [0.0, 0.0]]


def test_last_pooling_has_a_gradient_and_does_not_depend_on_the_batch(tiny_llm) -> None:
    model, _ = tiny_llm
    ids = [[5, 6, 7], [8], [], [9, 10, 11, 12, 13]]
    together = encode(backbone(model.eval()), ids, pad_id=0, budget=64, pooling="last")
    alone = torch.cat([encode(backbone(model), [one], pad_id=0, budget=64, pooling="last") for one in ids])
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-5)
    together.sum().backward()
    assert model.get_input_embeddings().weight.grad[[7, 8, 13]].abs().sum() > 0
