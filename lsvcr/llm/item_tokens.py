"""What HLLM's item LLM reads of each video, as token ids; the texts are those of `lsvcr.data.item_texts`."""

from collections.abc import Sequence

import numpy as np
from transformers import PreTrainedTokenizerBase

from lsvcr.data.item_texts import ItemTexts
from lsvcr.data.store import Dataset
from lsvcr.llm.encoder import tokenize

_SLICE = 8192
"""Texts tokenised together."""


class TokenTable:
    """Token ids of all videos, in one array.

    Args:
        rows: ids of each by index, of which index 0 is padding and has none.
    """

    def __init__(self, rows: Sequence[Sequence[int]]) -> None:
        self.lengths = np.fromiter(map(len, rows), np.int64, len(rows))
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
    """Token ids of the texts of all videos, cut on the right at `longest`; a video without words has none."""
    texts = ItemTexts(dataset, fields)
    rows: list[list[int]] = []
    for start in range(0, dataset.n_videos + 1, _SLICE):
        places = np.arange(start, min(start + _SLICE, dataset.n_videos + 1))
        rows += tokenize(tokenizer, texts.take(places), longest)
    return TokenTable(rows)
