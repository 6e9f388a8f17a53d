"""Many texts in two arrays: all bytes one after another, and where each begins. Nothing is read before it is needed."""

from collections.abc import Iterable
from pathlib import Path

import numpy as np

from lsvcr.utils.io import load_npy


def pack_texts(texts: Iterable[str]) -> tuple[np.ndarray, np.ndarray]:
    """Texts of rows 1 .. n as (offsets (n + 2,) int64, bytes (total,) uint8); row 0 is the empty text.

    A text with half a surrogate pair, which is no character, gets a question mark in its place.
    """
    encoded = [text.encode("utf-8", errors="replace") for text in texts]
    offsets = np.zeros(len(encoded) + 2, dtype=np.int64)
    np.cumsum(np.fromiter(map(len, encoded), np.int64, len(encoded)), out=offsets[2:])
    return offsets, np.frombuffer(b"".join(encoded), dtype=np.uint8)


class TextTable:
    """Texts by row, row 0 empty; `len` counts row 0.

    Args:
        offsets: (n + 2,) int64.
        content: (offsets[-1],) uint8, UTF-8.
    """

    def __init__(self, offsets: np.ndarray, content: np.ndarray) -> None:
        self._offsets, self._content = offsets, memoryview(content.data)

    @classmethod
    def open(cls, stem: Path) -> "TextTable":
        """The table in `STEM.offsets.npy` and `STEM.bytes.npy`, memory-mapped."""
        return cls(*(np.asarray(load_npy(f"{stem}.{part}.npy")) for part in ("offsets", "bytes")))

    def __len__(self) -> int:
        return len(self._offsets) - 1

    def __getitem__(self, row: int) -> str:
        return str(self.raw(row), "utf-8")

    def raw(self, row: int) -> bytes:
        """The text of a row as UTF-8 bytes."""
        start, end = self._offsets[row : row + 2].tolist()
        return bytes(self._content[start:end])

    def raw_many(self, rows: np.ndarray) -> list[bytes]:
        """The texts of rows (n,) as UTF-8 bytes."""
        ends = zip(self._offsets.take(rows).tolist(), self._offsets.take(rows + 1).tolist(), strict=True)
        return [bytes(self._content[start:end]) for start, end in ends]

    def starting_with(self, prefix: bytes, limit: int) -> list[int]:
        """The first `limit` rows (from 1) whose text begins with `prefix`, UTF-8."""
        starts, ends = self._offsets[1:-1], self._offsets[2:]
        rows = np.arange(len(starts))
        content = np.frombuffer(self._content, dtype=np.uint8)
        for place, byte in enumerate(prefix):
            rows = rows[starts[rows] + place < ends[rows]]
            rows = rows[content[starts[rows] + place] == byte]
        return [int(row) + 1 for row in rows[:limit]]
