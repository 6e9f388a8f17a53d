"""HLLM's item texts: prompt, fields, what is left out, and columns that are not there."""

from pathlib import Path

import numpy as np
import pytest

from lsvcr.data.item_texts import HLLM_PROMPT, ItemTexts, item_fields, item_text
from lsvcr.data.store import Dataset
from lsvcr.utils.errors import UserError
from tests.tiny_world import VIDEOS


def test_fields_follow_each_other_without_a_separator() -> None:
    found = item_text({"title": "Heat", "category": "Crime", "author": "M. Mann"})
    assert found == f"{HLLM_PROMPT}title: Heatcategory: Crimeauthor: M. Mann"


def test_empty_fields_are_left_out_and_nothing_at_all_is_no_text() -> None:
    assert item_text({"title": "Heat", "category": " ", "author": None}) == f"{HLLM_PROMPT}title: Heat"
    assert item_text({"title": "", "category": None}) == ""


def test_texts_of_a_dataset_by_index(tiny_dataset: Dataset) -> None:
    """Index 1 is video 0; the last video has a category and no title."""
    texts = ItemTexts(tiny_dataset, ["title", "category"])
    assert len(texts) == VIDEOS + 1
    assert texts.take(np.array([2, 0, VIDEOS])) == [
        f"{HLLM_PROMPT}title: pasta part 0category: pasta",
        "",
        f"{HLLM_PROMPT}category: hiking",
    ]
    assert [str(raw) for raw in texts.raw_ids(np.array([1, 5]))] == ["0", "4"]


def test_a_column_of_numbers_is_read_only_where_it_is_asked_for(tiny_dataset: Dataset) -> None:
    """The tiny world's authors are numbers."""
    assert item_fields(tiny_dataset, "") == ["title", "category"]
    assert item_fields(tiny_dataset, "author, title") == ["author", "title"]
    assert ItemTexts(tiny_dataset, ["author"]).take(np.array([3])) == [f"{HLLM_PROMPT}author: 2"]


@pytest.mark.parametrize(("asked", "told"), [("titel", "no column"), ("title title", "twice")])
def test_wrong_columns_are_named_with_those_there_are(tiny_dataset: Dataset, asked: str, told: str) -> None:
    with pytest.raises(UserError, match=rf"{told}.*; it has title, category, author"):
        item_fields(tiny_dataset, asked)


def test_a_dataset_without_words_says_so(tiny_dataset: Dataset, tmp_path: Path) -> None:
    import dataclasses

    import polars as pl

    pl.DataFrame({"raw_id": ["1"], "title": [" "], "author": ["12"]}).write_parquet(
        tmp_path / "videos.parquet"
    )
    with pytest.raises(UserError, match="no text about its videos"):
        item_fields(dataclasses.replace(tiny_dataset, root=tmp_path), "")
