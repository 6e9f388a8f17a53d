"""Raw ids to rows and back, without a Python dict of all ids: sorted arrays that are memory-mapped and searched.

Whole numbers: `ids.npy` (n + 1,) int64 by row, `sorted.npy` (n,) int64 ascending, `order.npy` (n,) int32 their rows.
Texts: `ids.offsets.npy` and `ids.bytes.npy` (see `texts`), `hashes.npy` (n,) uint64 ascending, `order.npy` (n,) int32.
"""

import hashlib
import re
import reprlib
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from lsvcr.serving.errors import BadRequest
from lsvcr.serving.texts import TextTable, pack_texts
from lsvcr.serving.types import RawId
from lsvcr.utils.io import load_npy

UNKNOWN = -1
"""Row of an id that is not in the map."""

_INT64 = range(-(2**63), 2**63)
_DIGITS = re.compile(r"-?[0-9]{1,20}")


def id_arrays(ids: Sequence[RawId] | np.ndarray) -> dict[str, np.ndarray]:
    """The arrays of an `IdMap` by file name; entry i of `ids` gets row i + 1.

    Args:
        ids: all whole numbers (an integer array is one), or all texts.

    Raises:
        ValueError: an id stands twice, or the ids are of both kinds, or neither.
    """
    listed = ids.tolist() if isinstance(ids, np.ndarray) else list(ids)
    if all(type(one) is int for one in listed):
        return _number_arrays(np.array(listed, dtype=np.int64))
    if all(isinstance(one, str) for one in listed):
        return _text_arrays([str(one) for one in listed])
    raise ValueError("the ids of a table are all whole numbers or all texts")


def _number_arrays(ids: np.ndarray) -> dict[str, np.ndarray]:
    order = np.argsort(ids, kind="stable")
    ascending = ids[order]
    _refuse_twice(ascending[1:][ascending[1:] == ascending[:-1]])
    return {
        "ids.npy": np.concatenate([np.zeros(1, np.int64), ids]),
        "sorted.npy": ascending,
        "order.npy": (order + 1).astype(np.int32),
    }


def _text_arrays(ids: list[str]) -> dict[str, np.ndarray]:
    if len(set(ids)) < len(ids):
        _refuse_twice(np.array([one for one, times in Counter(ids).items() if times > 1]))
    offsets, content = pack_texts(ids)
    hashes = np.fromiter((_hash(one.encode("utf-8", errors="replace")) for one in ids), np.uint64, len(ids))
    order = np.argsort(hashes, kind="stable")
    return {
        "ids.offsets.npy": offsets,
        "ids.bytes.npy": content,
        "hashes.npy": hashes[order],
        "order.npy": (order + 1).astype(np.int32),
    }


def _refuse_twice(ids: np.ndarray) -> None:
    if len(ids):
        raise ValueError(f"the id {ids.tolist()[0]!r} stands twice")


def _encoded(text: str) -> bytes:
    """An id as it is stored.

    Raises:
        BadRequest: it has half a character.
    """
    try:
        return text.encode("utf-8")
    except UnicodeEncodeError:
        raise BadRequest("an id has half of a surrogate pair, which is no character") from None


def _hash(text: bytes) -> int:
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "little")


class IdMap:
    """Rows 1 .. n by raw id; `len` counts row 0 too, which is padding.

    Args:
        order: (n,) int32, rows in the order of `keys`.
        keys: (n,) ascending: int64 ids, or uint64 hashes of the texts.
        by_row: (n + 1,) int64 ids by row, or the table of texts.
    """

    def __init__(self, order: np.ndarray, keys: np.ndarray, by_row: np.ndarray | TextTable) -> None:
        self._order, self._keys, self._by_row = order, keys, by_row

    @classmethod
    def open(cls, folder: Path) -> "IdMap":
        """The map in a folder of a bundle, memory-mapped."""
        order = np.asarray(load_npy(folder / "order.npy"))
        if (folder / "ids.npy").exists():
            keys, by_row = (np.asarray(load_npy(folder / name)) for name in ("sorted.npy", "ids.npy"))
            return cls(order, keys, by_row)
        return cls(order, np.asarray(load_npy(folder / "hashes.npy")), TextTable.open(folder / "ids"))

    @property
    def numbers(self) -> bool:
        """True where the ids are whole numbers, False where they are texts."""
        return not isinstance(self._by_row, TextTable)

    def __len__(self) -> int:
        return len(self._by_row)

    def __getitem__(self, row: int) -> RawId:
        return self._by_row[row] if isinstance(self._by_row, TextTable) else int(self._by_row[row])

    def take(self, rows: np.ndarray) -> list[RawId]:
        """The ids of rows (n,)."""
        if isinstance(self._by_row, TextTable):
            return [self._by_row[row] for row in rows.tolist()]
        found: list[RawId] = self._by_row.take(rows).tolist()
        return found

    def normalise(self, raw: Any) -> RawId:
        """The id in this map's kind: digits become a number where ids are numbers, a number its digits where texts.

        A text that is no number stays one where ids are numbers, and is unknown there.

        Raises:
            BadRequest: neither a whole number nor a text, or a text with half a character.
        """
        if isinstance(raw, int | np.integer) and not isinstance(raw, bool):
            return int(raw) if self.numbers else str(raw)
        if not isinstance(raw, str):
            raise BadRequest(f"an id is a whole number or a text, not {reprlib.repr(raw)}")
        if self.numbers and _DIGITS.fullmatch(raw):
            return int(raw)
        if not raw.isascii():
            _encoded(raw)
        return raw

    def find(self, ids: Sequence[RawId]) -> np.ndarray:
        """Rows of ids, (n,) int64; `UNKNOWN` for those that are not here.

        Raises:
            BadRequest: an id is neither a whole number nor a text, or a text with half a character.
        """
        if not len(ids):
            return np.zeros(0, dtype=np.int64)
        if not isinstance(self._by_row, TextTable):
            return self._find_numbers(ids)
        return self._find_texts(
            [one if type(one) is str else str(self.normalise(one)) for one in ids], self._by_row
        )

    def _find_numbers(self, ids: Sequence[RawId]) -> np.ndarray:
        try:
            # NumPy would take digits of any script, and True, for a number.
            asked = np.array(ids, dtype=np.int64) if set(map(type, ids)) <= {int} else None
        except OverflowError:
            asked = None
        if asked is None:
            numbers = [self.normalise(one) for one in ids]
            fits = [isinstance(one, int) and one in _INT64 for one in numbers]
            rows = np.full(len(ids), UNKNOWN, dtype=np.int64)
            rows[fits] = self._find_numbers([one for one, fit in zip(numbers, fits, strict=True) if fit])
            return rows
        if not len(self._keys) or not len(asked):
            return np.full(len(asked), UNKNOWN, dtype=np.int64)
        places = np.minimum(self._keys.searchsorted(asked), len(self._keys) - 1)
        rows = self._order.take(places).astype(np.int64)
        rows[self._keys.take(places) != asked] = UNKNOWN
        return rows

    def _find_texts(self, ids: Sequence[str], texts: TextTable) -> np.ndarray:
        wanted = list(map(_encoded, ids))
        hashes = np.fromiter(map(_hash, wanted), np.uint64, len(wanted))
        first = np.searchsorted(self._keys, hashes)
        last = np.searchsorted(self._keys, hashes, side="right")
        rows = np.full(len(ids), UNKNOWN, dtype=np.int64)
        known = np.flatnonzero(first < last)
        nearest = self._order[first[known]].astype(np.int64)
        rows[known] = nearest
        for place, found in zip(known.tolist(), texts.raw_many(nearest), strict=True):
            if found != wanted[place]:  # two texts may share a hash
                others = self._order[first[place] + 1 : last[place]].tolist()
                same = [row for row in others if texts.raw(row) == wanted[place]]
                rows[place] = same[0] if same else UNKNOWN
        return rows

    def starting_with(self, prefix: str, limit: int) -> list[RawId]:
        """At most `limit` ids whose text or digits begin with `prefix`: texts by row, numbers ascending.

        Raises:
            BadRequest: a prefix with half a character.
        """
        start = _encoded(prefix)
        if isinstance(self._by_row, TextTable):
            return [self._by_row[row] for row in self._by_row.starting_with(start, limit)]
        if not prefix:
            return self.take(np.arange(1, min(limit + 1, len(self))))
        return self._numbers_starting_with(prefix, limit)

    def _numbers_starting_with(self, prefix: str, limit: int) -> list[RawId]:
        sign, digits = (-1, prefix[1:]) if prefix.startswith("-") else (1, prefix)
        if not (digits.isascii() and digits.isdigit()) or (digits[0] == "0" and len(digits) > 1):
            return []
        low = int(digits)
        if low == 0 and sign < 0:
            return []
        ranges = [(low, low)] if low == 0 else [(low * 10**n, (low + 1) * 10**n - 1) for n in range(19)]
        found: list[RawId] = []
        for first, last in ranges:
            low_end, high_end = (first, last) if sign > 0 else (-last, -first)
            low_end, high_end = max(low_end, _INT64[0]), min(high_end, _INT64[-1])
            if low_end <= high_end:
                start = np.searchsorted(self._keys, np.int64(low_end))
                end = np.searchsorted(self._keys, np.int64(high_end), side="right")
                found += self._keys[start : min(end, start + limit)].tolist()
        return sorted(found, key=int)[:limit]
