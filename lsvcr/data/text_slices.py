"""Titles or comments straight from the parquet file, one row group in memory at a time.

`Dataset.titles()` keeps a whole column, which suits those who ask for any text at any time. Embedding reads all of
millions of texts a few times, in the order of the rows, and never needs more than a slice.
"""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from lsvcr.schema import PAD, RAW_ID


class TextSlices:
    """A table of texts by index; index 0 is the empty text.

    Args:
        path: `videos.parquet` or `comments.parquet` of a prepared dataset.
        column: its column of texts.
    """

    def __init__(self, path: Path, column: str) -> None:
        self._file, self._texts = pq.ParquetFile(path), column
        about = self._file.metadata
        sizes = [about.row_group(group).num_rows for group in range(about.num_row_groups)]
        self._starts = np.cumsum([0, *sizes], dtype=np.int64)
        self._held: dict[str, tuple[int, Any]] = {}

    def __len__(self) -> int:
        return int(self._starts[-1]) + 1

    def take(self, rows: np.ndarray) -> list[str]:
        """The texts of `rows` (n,), in that order. Quickest where they lie close together."""
        return self._values(self._texts, rows)

    def raw_ids(self, rows: np.ndarray) -> list[Any]:
        """The ids of `rows` (n,) in the raw files, numbers or texts; an empty text for the padding row."""
        return self._values(RAW_ID, rows)

    def _values(self, column: str, rows: np.ndarray) -> list[Any]:
        rows = np.asarray(rows, dtype=np.int64)
        found: list[Any] = [""] * len(rows)
        order = np.argsort(rows, kind="stable")
        # Index i is row i - 1 of the file.
        ordered = rows[order] - 1
        start = int(np.searchsorted(ordered, PAD))
        while start < len(ordered):
            group = int(np.searchsorted(self._starts, ordered[start], side="right")) - 1
            stop = int(np.searchsorted(ordered, self._starts[group + 1]))
            inside = pa.array(ordered[start:stop] - self._starts[group])
            values = self._group(column, group).take(inside).to_pylist()
            for place, value in zip(order[start:stop].tolist(), values, strict=True):
                found[place] = value
            start = stop
        return found

    def _group(self, column: str, group: int) -> Any:
        """A column of a row group; the latest of each column is kept."""
        if column not in self._held or self._held[column][0] != group:
            # Let go of the old one before the new one is read.
            self._held.pop(column, None)
            table = self._file.read_row_group(group, columns=[column], use_threads=False)
            self._held[column] = (group, table.column(0))
        return self._held[column][1]
