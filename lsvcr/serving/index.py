"""Search in the stored item vectors: one product with all of them, then the exact best."""

from collections.abc import Sequence

import numpy as np

from lsvcr.schema import PAD
from lsvcr.serving.bundle import StoredRows
from lsvcr.serving.topk import best

_SCORES = 1 << 24
"""Scores kept at once (64 MiB): more users than fit are taken in parts."""

Found = tuple[np.ndarray, np.ndarray]
"""Rows (m,) int64, best first, and their scores (m,) float32."""


class ExactIndex:
    """Every row is looked at.

    Args:
        rows: stored vectors, row 0 padding, which is never found.
    """

    def __init__(self, rows: StoredRows) -> None:
        self._rows = rows

    def __len__(self) -> int:
        return len(self._rows.values)

    def search(self, users: np.ndarray, ks: Sequence[int], without: Sequence[np.ndarray]) -> list[Found]:
        """The best rows of each user.

        Args:
            users: (B, d) float32 unit vectors.
            ks: how many for each.
            without: rows (any number, int64) that each must not get; rows past the end are ignored.

        Returns:
            For each user at most k rows: fewer where there are no more.
        """
        found: list[Found] = []
        step = max(1, _SCORES // max(1, len(self)))
        for start in range(0, len(users), step):
            scores = self._scores(users[start : start + step])
            scores[:, PAD] = -np.inf
            for own, k, rows in zip(
                scores, ks[start : start + step], without[start : start + step], strict=True
            ):
                own[rows[rows < len(own)]] = -np.inf
                places = best(own, k)
                found.append((places, own[places]))
        return found

    def scores(self, user: np.ndarray, rows: np.ndarray) -> np.ndarray:
        """Scores of one user (d,) with chosen rows (m,) -> (m,) float32."""
        found: np.ndarray = self._rows.take(rows) @ user
        return found

    def _scores(self, users: np.ndarray) -> np.ndarray:
        """(B, n + 1) float32."""
        values, scale = self._rows
        if len(users) == 1:  # a matrix times a vector reads the rows in their order
            product = (values.astype(np.float32, copy=False) @ users[0])[None, :]
        else:
            product = users @ values.astype(np.float32, copy=False).T
        return product if scale is None else product * scale
