"""Item vectors as they are stored: whole, halved, or as 8-bit numbers with a scale of each row."""

import ctypes
import mmap
import sys
from contextlib import suppress
from typing import Literal, NamedTuple

import numpy as np

RowKind = Literal["float32", "float16", "int8"]
"""How item vectors are stored."""

Score = Literal["cosine", "inner product"]
"""What a part ranks by: of vectors of length 1, or of any vectors."""


class StoredRows(NamedTuple):
    """Item vectors as they are stored; row 0 is padding."""

    values: np.ndarray
    """(n + 1, d) float32, float16 or int8."""
    scale: np.ndarray | None
    """(n + 1,) float32: a row of int8 times its scale is the vector. None for floats."""

    def take(self, rows: np.ndarray | slice) -> np.ndarray:
        """The vectors of `rows` (m,), or of a range of them, as (m, d) float32."""
        chosen = self.values[rows] if isinstance(rows, slice) else self.values.take(rows, axis=0)
        values = chosen.astype(np.float32, copy=False)
        return values if self.scale is None else values * self.scale[rows, None]


def stored_rows(vectors: np.ndarray, rows: RowKind) -> StoredRows:
    """Vectors (n, d) float32 as they are stored."""
    if rows != "int8":
        return StoredRows(np.ascontiguousarray(vectors, dtype=rows), None)
    scale = np.abs(vectors).max(axis=1, initial=0.0).astype(np.float32) / np.float32(127)
    divisor = np.where(scale == 0, np.float32(1), scale)
    return StoredRows(np.rint(vectors / divisor[:, None]).astype(np.int8), scale)


def let_go(array: np.ndarray) -> None:
    """Take out of the process's memory what it does not need once an array was read whole.

    That is the pages of the array and what was freed meanwhile, which the C library keeps otherwise.
    """
    unmap(array)
    if sys.platform == "linux":
        with suppress(AttributeError, OSError):  # a C library that has no such function
            ctypes.CDLL(None).malloc_trim(0)


def unmap(array: np.ndarray) -> None:
    """Take the pages of an array in a mapped file out of the process's memory; later reads bring them back."""
    base = array
    while isinstance(base, np.ndarray) and not isinstance(base, np.memmap):
        base = base.base  # type: ignore[assignment]
    if isinstance(base, np.memmap) and base.mode == "r" and hasattr(mmap, "MADV_DONTNEED"):
        base._mmap.madvise(mmap.MADV_DONTNEED)  # type: ignore[attr-defined]
