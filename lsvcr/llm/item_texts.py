"""What HLLM's item LLM reads of each video (Chen et al. 2024, arXiv 2409.12740), as token ids."""

from collections.abc import Sequence

import numpy as np
from transformers import PreTrainedTokenizerBase

from lsvcr.data.store import Dataset
from lsvcr.llm.encoder import tokenize
from lsvcr.schema import RAW_ID
from lsvcr.utils.errors import UserError

ITEM_PROMPT = "Compress the following sentence into embedding: "
"""In front of every text, as published."""

_SLICE = 8192
"""Texts tokenised together."""


def field_names(fields: str) -> list[str]:
    """The columns that a setting such as `title,category` names, each once.

    Raises:
        UserError: none.
    """
    names = list(dict.fromkeys(fields.replace(",", " ").split()))
    if not names or RAW_ID in names:
        raise UserError(f"--item_fields {fields!r}: name columns with words in them, such as title,category")
    return names


def item_texts(dataset: Dataset, fields: Sequence[str]) -> list[str]:
    """The prompt and behind it `key: value` of every column that says something, with nothing between them.

    Entry i is video i + 1's. A video of which nothing is known has the prompt alone.

    Raises:
        UserError: the dataset's videos have no such column.
    """
    columns = [dataset.column("videos", name).to_list() for name in fields]
    return [
        ITEM_PROMPT
        + "".join(
            f"{name}: {value}"
            for name, value in zip(fields, values, strict=True)
            if value is not None and str(value).strip()
        )
        for values in zip(*columns, strict=True)
    ]


class TokenTable:
    """Token ids of all videos, in one array.

    Args:
        rows: ids of each, of video 1 first.
    """

    def __init__(self, rows: Sequence[Sequence[int]]) -> None:
        # Index 0 is padding, which has no text.
        self.lengths = np.fromiter((0, *map(len, rows)), np.int64, len(rows) + 1)
        self._ends = np.cumsum(self.lengths)
        self._ids = np.fromiter((token for row in rows for token in row), np.int32, int(self._ends[-1]))

    def __len__(self) -> int:
        return len(self.lengths)

    def take(self, videos: np.ndarray) -> list[list[int]]:
        """Token ids of videos (n,), in their order."""
        ends = self._ends[videos]
        starts = ends - self.lengths[videos]
        return [self._ids[start:end].tolist() for start, end in zip(starts, ends, strict=True)]


def item_tokens(
    tokenizer: PreTrainedTokenizerBase, dataset: Dataset, fields: Sequence[str], longest: int
) -> TokenTable:
    """Token ids of all videos, cut on the right at `longest`."""
    texts = item_texts(dataset, fields)
    rows: list[list[int]] = []
    for start in range(0, len(texts), _SLICE):
        rows += tokenize(tokenizer, texts[start : start + _SLICE], longest)
    return TokenTable(rows)
