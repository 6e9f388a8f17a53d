"""HLLM's text of an item: a prompt and `key: value` fields, from the columns of a prepared dataset's videos.

This is the one place for that format, whoever reads the texts: vectors made once, or an LLM that trains.
"""

import re
from collections.abc import Sequence
from typing import Any

import numpy as np

from lsvcr import schema
from lsvcr.data.store import Dataset
from lsvcr.data.text_slices import TextSlices
from lsvcr.utils.errors import UserError

HLLM_PROMPT = "Compress the following sentence into embedding: "
"""Chen et al. 2024 (arXiv 2409.12740)."""

USUAL_FIELDS = (schema.TITLE, schema.CATEGORY, schema.AUTHOR, "tag")
"""Fields where none are asked for: those of them that the dataset has."""

_LETTER = r"\p{L}"


class ItemTexts:
    """Texts of videos by index, a slice in memory at a time; index 0 is the empty text.

    A video whose fields are all empty has the empty text, too; one of its fields that is empty is left out.

    Args:
        dataset: the prepared dataset.
        fields: columns of its videos, in the order in which they are read.
        prompt: stands in front.
    """

    def __init__(self, dataset: Dataset, fields: Sequence[str], prompt: str = HLLM_PROMPT) -> None:
        path = dataset.root / schema.VIDEOS_FILE
        self._columns = {field: TextSlices(path, field) for field in fields}
        self._prompt = prompt

    def __len__(self) -> int:
        return len(self._any())

    def take(self, rows: np.ndarray) -> list[str]:
        """The texts of `rows` (n,), in that order."""
        values = [column.take(rows) for column in self._columns.values()]
        return [
            item_text(dict(zip(self._columns, own, strict=True)), self._prompt)
            for own in zip(*values, strict=True)
        ]

    def raw_ids(self, rows: np.ndarray) -> list[Any]:
        """The ids of `rows` (n,) in the raw files."""
        return self._any().raw_ids(rows)

    def _any(self) -> TextSlices:
        return next(iter(self._columns.values()))


def item_text(values: dict[str, Any], prompt: str = HLLM_PROMPT) -> str:
    """Prompt and fields, with nothing between the fields, as HLLM has it; empty where all values are.

    >>> item_text({"title": "Heat", "category": "Crime, Thriller", "author": None})
    'Compress the following sentence into embedding: title: Heatcategory: Crime, Thriller'
    """
    told = [f"{key}: {value}" for key, value in values.items() if value is not None and str(value).strip()]
    return prompt + "".join(told) if told else ""


def item_fields(dataset: Dataset, asked: str) -> list[str]:
    """The fields of a dataset's item texts.

    Args:
        dataset: the prepared dataset.
        asked: names of columns with commas or blanks between them; empty = of `USUAL_FIELDS` those that are there and
            in which there is a letter: numbers of authors tell an LLM nothing.

    Raises:
        UserError: a column that is not there or named twice, or none with a letter.
    """
    import polars as pl

    path = dataset.root / schema.VIDEOS_FILE
    there = [name for name in pl.read_parquet_schema(path) if name != schema.RAW_ID]
    named = [word for word in re.split(r"[,\s]+", asked) if word]
    if named:
        wrong = [word for word in named if word not in there or named.count(word) > 1]
        if wrong:
            raise UserError(
                f"--item_fields: {wrong[0]!r} is {'there twice' if wrong[0] in there else f'no column of {path}'}; "
                f"it has {', '.join(there)}"
            )
        return named
    found = [name for name in USUAL_FIELDS if name in there and _has_letters(dataset.column("videos", name))]
    if not found:
        raise UserError(
            f"{dataset.root} has no text about its videos ({', '.join(there)}): name columns with --item_fields"
        )
    return found


def _has_letters(column: Any) -> bool:
    import polars as pl

    return column.dtype == pl.String and bool(column.str.contains(_LETTER).any())
