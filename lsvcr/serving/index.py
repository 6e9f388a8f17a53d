"""Search in the stored item vectors. Every index here looks at all rows and finds exactly the best.

Two ways. A few rows of float32: one product. Others: a product of 8-bit whole numbers, which reads a quarter of the
bytes, rules out all rows that cannot be among the best, and those few that are left are scored
from the stored rows. docs/log.md has the times of both and of what was tried besides.
"""

from collections.abc import Sequence
from typing import Protocol

import numpy as np

from lsvcr.schema import PAD
from lsvcr.serving.rows import Score, StoredRows, let_go, stored_rows, unmap
from lsvcr.serving.topk import at_least, best, best_of_each, dots, reached_by_each
from lsvcr.serving.whole_numbers import Product, product_for

_SCORES = 1 << 22
"""Scores kept at once (16 MiB): more users than fit are taken in parts."""
_ROWS = 1 << 13
"""Rows unpacked at once: they stay in the processor's cache."""
_FEW = 1 << 15
"""Rows of float32 up to which one product with all of them takes no longer than sketches do."""
_PRODUCT = 1 << 20
"""Rows of one product. More take more memory while they are made; a fourth of these took a tenth longer a row."""
_LIKELY = 1 << 13
"""Rows of all users together that are scored at once, 2 MiB at width 64; of more, those of one user at a time."""
_MAPPED = 1 << 24
"""Bytes of a file of rows from which on its pages do not stay mapped."""
_SEARCHES = 32
"""Users after whom they are let go. The system maps 64 KiB around each row that is looked at: soon
the whole file would count as memory of this process, beside the sketches."""
ROUNDING = 1e-5
"""More than float32 rounds off in a score of unit vectors; of others, times their lengths."""

Found = tuple[np.ndarray, np.ndarray]
"""Rows (m,) int64, best first, equal scores in ascending row, and their scores (m,) float32."""


class Index(Protocol):
    """Finds the best rows for users."""

    def __len__(self) -> int:
        """Rows, padding included."""
        ...

    def search(self, users: np.ndarray, ks: Sequence[int], without: Sequence[np.ndarray]) -> list[Found]:
        """The best rows of each user.

        Args:
            users: (B, d) float32 vectors, of unit length for cosines.
            ks: how many for each, at least 1.
            without: rows (any number, int64) that each must not get; rows past the end are ignored.

        Returns:
            For each user k rows, fewer where there are no more; never padding.
        """
        ...


def open_index(rows: StoredRows, score: Score = "cosine", threads: int = 1) -> Index:
    """The index that fits how the rows are stored; `threads` of one product of whole numbers."""
    if rows.values.dtype != np.float32 or len(rows.values) > _FEW:
        return SketchIndex(rows, threads)
    return ExactIndex(rows, 1.0 if score == "cosine" else longest(rows))


class ExactIndex:
    """One product with all float32 rows (n + 1, d); row 0 is padding.

    Args:
        rows: stored rows.
        longest: length of the longest of them.
    """

    def __init__(self, rows: StoredRows, longest: float = 1.0) -> None:
        self._rows, self._longest = rows, longest

    def __len__(self) -> int:
        return len(self._rows.values)

    def search(self, users: np.ndarray, ks: Sequence[int], without: Sequence[np.ndarray]) -> list[Found]:
        """See `Index`."""
        found: list[Found] = []
        slack = ROUNDING * self._longest * _lengths(users)
        step = max(1, _SCORES // len(self))
        for start in range(0, len(users), step):
            part = slice(start, start + step)
            scores = self._scores(users[part])
            found += _best(self._rows, users[part], scores, slack[part], ks[part], without[part])
        return found

    def _scores(self, users: np.ndarray) -> np.ndarray:
        """(B, n + 1) float32, those of a row beside each other."""
        # Before a product one side is copied into another order: here the few users, the other way round all rows.
        scores: np.ndarray = (self._rows.values @ users.T).T
        return scores


class SketchIndex:
    """Rows as 8-bit whole numbers times a scale of each row, and the stored rows for those that may be the best.

    With u the user, q its rounded vector, x a row and s its sketch: u x differs from q s by at most
    |u - q| |x| + |x - s| |q|. A row whose sketch scores lower than the k-th best sketch by more than twice that is not
    among the k best.

    Args:
        rows: stored rows (n + 1, d), row 0 padding.
        threads: of one product.
    """

    def __init__(self, rows: StoredRows, threads: int = 1) -> None:
        self._rows = rows
        self._longest = self._residual = 0.0
        self._searched = 0
        self._products: list[Product] = []
        scale = np.empty(len(self), dtype=np.float32) if rows.scale is None else rows.scale
        buffer = np.empty((min(_PRODUCT, len(self)), rows.values.shape[1]), dtype=np.int8)
        product = product_for(*rows.values.shape)
        self._rounded = product.rounded
        for start in range(0, len(self), _PRODUCT):
            part = scale[start : start + _PRODUCT]
            sketch = self._sketch(start, buffer[: len(part)], part)
            self._products.append(product(sketch, part, threads))
        for stored in (rows.values, rows.scale):
            if stored is not None:
                let_go(stored)

    def __len__(self) -> int:
        return len(self._rows.values)

    def search(self, users: np.ndarray, ks: Sequence[int], without: Sequence[np.ndarray]) -> list[Found]:
        """See `Index`."""
        # The estimates go without the unit of each user, which changes no order: one pass less over all rows.
        rounded = self._rounded(users)
        slack = self._slack(users, rounded.vectors) / rounded.unit
        found: list[Found] = []
        step = max(1, _SCORES // len(self))
        for start in range(0, len(users), step):
            part = slice(start, start + step)
            sketches = self._sketches(rounded.numbers[part])
            found += _best(self._rows, users[part], sketches, slack[part], ks[part], without[part])
        self._unmap_after(len(users))
        return found

    def _unmap_after(self, users: int) -> None:
        """Let the stored rows go now and then; the count need not be right to the last user."""
        self._searched += users
        if self._searched >= _SEARCHES and self._rows.values.nbytes >= _MAPPED:
            self._searched = 0
            unmap(self._rows.values)

    def _sketch(self, first: int, out: np.ndarray, scale: np.ndarray) -> np.ndarray:
        """Fill `out` (m, d) int8 with the numbers of the rows from `first` on; `scale` (m,) too if they have none."""
        for start in range(0, len(out), _ROWS):
            part = slice(start, min(start + _ROWS, len(out)))
            rows = slice(first + part.start, first + part.stop)
            vectors = self._rows.take(rows)
            if self._rows.scale is None:
                out[part], found = stored_rows(vectors, "int8")
                assert found is not None, "rows of int8 have one"
                scale[part] = found
                self._residual = max(self._residual, _longest(vectors - out[part] * found[:, None]))
            else:
                out[part] = self._rows.values[rows]
            self._longest = max(self._longest, _longest(vectors))
        return out

    def _sketches(self, numbers: np.ndarray) -> np.ndarray:
        """Users' numbers (B, d) with all sketches, (B, n + 1) float32."""
        found = np.empty((len(numbers), len(self)), dtype=np.float32)
        for start, product in zip(range(0, len(self), _PRODUCT), self._products, strict=True):
            product(numbers, found[:, start : start + _PRODUCT])
        return found

    def _slack(self, users: np.ndarray, rounded: np.ndarray) -> np.ndarray:
        """The most by which a score and its sketch differ, (B,)."""
        off = _lengths(users - rounded) + ROUNDING * _lengths(users)
        slack: np.ndarray = self._longest * off
        return slack + self._residual * _lengths(rounded)


def _best(
    rows: StoredRows,
    users: np.ndarray,
    estimates: np.ndarray,
    slack: np.ndarray,
    ks: Sequence[int],
    without: Sequence[np.ndarray],
) -> list[Found]:
    """The best rows of each user by the scores of the stored rows; all users in one call of each NumPy function, for
    what these cost beside their work is most of a search of few rows.

    Args:
        estimates: (B, n + 1) float32, of all scores, in the order of either axis; what is left out becomes -inf.
        slack: (B,), the most by which score and estimate differ.
    """
    leave_out_each(estimates, without)
    bounds = (reached_by_each(estimates, ks) - 2 * slack).astype(np.float32)
    chosen = estimates >= bounds[:, None]
    if bounds.min() == -np.inf:
        chosen &= estimates > -np.inf
    owners, places = _places(chosen)
    if len(places) > _LIKELY:
        return [best_of(rows, user, places[owners == own], ks[own]) for own, user in enumerate(users)]
    scores = dots(rows.take(places), users[owners])
    return [(places[order], scores[order]) for order in best_of_each(scores, owners, ks)]


def _places(chosen: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """User and row of each place of (B, n) that is True, the rows of a user ascending."""
    if chosen.flags.c_contiguous:
        users, rows = np.divmod(np.flatnonzero(chosen), chosen.shape[1])
    else:
        rows, users = np.divmod(np.flatnonzero(chosen.T), chosen.shape[0])
    return users, rows


def best_of(rows: StoredRows, user: np.ndarray, likely: np.ndarray, k: int) -> Found:
    """The k best of the rows `likely` (m,), ascending, by the scores of the stored rows."""
    scores = dots(rows.take(likely), user)
    places = best(scores, k)
    return likely[places], scores[places]


def exact_scores(rows: StoredRows, user: np.ndarray) -> np.ndarray:
    """Scores of all rows with one user (d,), (n + 1,) float32; a part of the rows is unpacked at a time."""
    scores = np.empty(len(rows.values), dtype=np.float32)
    for start in range(0, len(scores), _ROWS):
        part = slice(start, start + _ROWS)
        scores[part] = rows.take(part) @ user
    return scores


def best_reaching(rows: StoredRows, user: np.ndarray, estimates: np.ndarray, bound: float, k: int) -> Found:
    """The k best of those rows whose estimate (n + 1,) reaches the bound; rows with -inf stay away."""
    likely = at_least(estimates, bound)
    if bound == -np.inf:
        likely = likely[estimates[likely] > -np.inf]
    return best_of(rows, user, likely, k)


def longest(rows: StoredRows) -> float:
    """Length of the longest row."""
    starts = range(0, len(rows.values), _ROWS)
    return max(_longest(rows.take(slice(start, start + _ROWS))) for start in starts)


def _longest(vectors: np.ndarray) -> float:
    """Length of the longest of vectors (m, d)."""
    return float(_lengths(vectors).max())


def _lengths(vectors: np.ndarray) -> np.ndarray:
    """Lengths of vectors (m, d), (m,)."""
    lengths: np.ndarray = np.sqrt(np.einsum("nd,nd->n", vectors, vectors))
    return lengths


def leave_out_each(scores: np.ndarray, rows: Sequence[np.ndarray]) -> None:
    """`leave_out` of each of scores (B, n + 1) and its rows."""
    owners = np.repeat(np.arange(len(rows)), [len(own) for own in rows])
    listed = np.concatenate(rows)
    if len(listed) and listed.max() >= scores.shape[1]:
        inside = listed < scores.shape[1]
        owners, listed = owners[inside], listed[inside]
    scores[owners, listed] = -np.inf
    scores[:, PAD] = -np.inf


def leave_out(scores: np.ndarray, rows: np.ndarray) -> None:
    """Set padding and `rows` to -inf."""
    if len(rows):
        scores[rows if rows.max() < len(scores) else rows[rows < len(scores)]] = -np.inf
    scores[PAD] = -np.inf
