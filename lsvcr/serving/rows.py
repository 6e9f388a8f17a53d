"""Item vectors as they are stored: whole, halved, or as 8-bit numbers with a scale of each row."""

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

    def take(self, rows: np.ndarray) -> np.ndarray:
        """The vectors of `rows` (m,) as (m, d) float32."""
        values = self.values[rows].astype(np.float32)
        return values if self.scale is None else values * self.scale[rows, None]


def stored_rows(vectors: np.ndarray, rows: RowKind) -> StoredRows:
    """Vectors (n, d) float32 as they are stored."""
    if rows != "int8":
        return StoredRows(np.ascontiguousarray(vectors, dtype=rows), None)
    scale = np.abs(vectors).max(axis=1, initial=0.0).astype(np.float32) / np.float32(127)
    divisor = np.where(scale == 0, np.float32(1), scale)
    return StoredRows(np.rint(vectors / divisor[:, None]).astype(np.int8), scale)
