"""What a moving catalogue is kept in: cheap to change a little, and never different for who reads an earlier state.

One thread writes. Lists and arrays only grow behind the end that readers know of; mappings are replaced as a whole,
where a change costs no copy of all.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Generic, TypeVar, overload

import numpy as np

K = TypeVar("K")
V = TypeVar("V")

_FEWEST = 16
"""Rows of a first buffer."""
_RATIO = 4
"""A layer that is not this many times larger than the one on top of it is merged with it."""

GONE: Any = object()
"""Stands for the value of a key that is to be removed, see `Layers.changed`."""
_MISSING: Any = object()


class GrowingRows:
    """An array that grows at its end, in a buffer of twice the size whenever it is full."""

    def __init__(self, shape: tuple[int, ...], dtype: type) -> None:
        """
        Args:
            shape: of one row, () for numbers.
            dtype: of the numbers.
        """
        self._buffer: np.ndarray = np.empty((_FEWEST, *shape), dtype=dtype)

    def put(self, at: int, rows: np.ndarray) -> np.ndarray:
        """The first `at` rows and `rows` (m, *shape) after them, as one read-only array (at + m, *shape).

        `at` is the length that was published last: what an earlier call put behind it, for a state that was given
        up, is overwritten. Arrays returned earlier stay as they were.
        """
        count = at + len(rows)
        if count > len(self._buffer):
            larger = np.empty(
                (max(count, 2 * len(self._buffer)), *self._buffer.shape[1:]), self._buffer.dtype
            )
            larger[:at] = self._buffer[:at]
            self._buffer = larger
        self._buffer[at:count] = rows
        view = self._buffer[:count]
        view.flags.writeable = False
        return view


class Prefix(Sequence[V]):
    """The first entries of a list that may grow behind them."""

    def __init__(self, entries: list[V], count: int) -> None:
        self._entries, self._count = entries, count

    def __len__(self) -> int:
        return self._count

    @overload
    def __getitem__(self, place: int) -> V: ...
    @overload
    def __getitem__(self, place: slice) -> list[V]: ...
    def __getitem__(self, place: int | slice) -> V | list[V]:
        if isinstance(place, slice):
            return self._entries[: self._count][place]
        if not -self._count <= place < self._count:
            raise IndexError(place)
        return self._entries[place % self._count]

    def followed_by(self, further: Sequence[V]) -> "Prefix[V]":
        """These entries and `further` after them; the list behind both is one. Only of what was published last."""
        del self._entries[self._count :]
        self._entries.extend(further)
        return Prefix(self._entries, len(self._entries))


class Layers(Mapping[K, V], Generic[K, V]):
    """A mapping that never changes; `changed` makes the next one in amortised logarithmic time.

    It is a few dicts, the newest and smallest first, each several times larger than the one before it.
    """

    def __init__(self, layers: tuple[dict[K, V], ...] = ()) -> None:
        self._layers = layers

    def get(self, key: Any, default: Any = None) -> Any:
        """The value of a key, or `default`."""
        for layer in self._layers:
            found = layer.get(key, _MISSING)
            if found is not _MISSING:
                return default if found is GONE else found
        return default

    def __getitem__(self, key: K) -> V:
        found: V = self.get(key, _MISSING)
        if found is _MISSING:
            raise KeyError(key)
        return found

    def __iter__(self) -> Iterator[K]:
        return iter(self._joined())

    def __len__(self) -> int:
        return len(self._joined())

    def __bool__(self) -> bool:
        """False only for a mapping that is known to be empty without counting."""
        return bool(self._layers)

    def changed(self, changes: Mapping[K, V]) -> "Layers[K, V]":
        """This mapping with some values set, or removed where the value is `GONE`."""
        if not changes:
            return self
        top, rest = dict(changes), list(self._layers)
        while rest and _RATIO * len(top) >= len(rest[0]):
            top = {**rest.pop(0), **top}
        if not rest:
            top = {key: value for key, value in top.items() if value is not GONE}
        return Layers((top, *rest) if top else tuple(rest))

    def _joined(self) -> dict[K, V]:
        joined: dict[K, V] = {}
        for layer in reversed(self._layers):
            joined |= layer
        return {key: value for key, value in joined.items() if value is not GONE}


def with_rows(ascending: np.ndarray, rows: Sequence[int]) -> np.ndarray:
    """An ascending array (n,) int64 with `rows` in it, each once."""
    if not len(rows):
        return ascending
    wanted = np.unique(np.asarray(rows, dtype=np.int64))
    places = np.searchsorted(ascending, wanted)
    known = np.zeros(len(wanted), dtype=bool)
    inside = places < len(ascending)
    known[inside] = ascending[places[inside]] == wanted[inside]
    return np.insert(ascending, places[~known], wanted[~known])


def without_rows(ascending: np.ndarray, rows: Sequence[int]) -> np.ndarray:
    """An ascending array (n,) int64 without `rows`."""
    if not len(rows) or not len(ascending):
        return ascending
    wanted = np.asarray(rows, dtype=np.int64)
    places = np.minimum(np.searchsorted(ascending, wanted), len(ascending) - 1)
    return np.delete(ascending, np.unique(places[ascending[places] == wanted]))
