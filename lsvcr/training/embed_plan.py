"""Which text is read when: decided from texts, settings and an earlier export alone, before any vector is made.

The plan is the same for any number of processes, and so is every part of the work; processes only share them out.
All of it lies in arrays on disk: at no time is there a Python list of all texts, of all ids or of all rows.
"""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from lsvcr.training import embed_shared
from lsvcr.training.embed_shared import load, of_main, shared
from lsvcr.utils.logging import progress

WINDOW = 65_536
"""Distinct texts, by first appearance, that are sorted by length together. Those of a part come from one window,
so reading them touches a few neighbouring row groups and not the whole file."""
PART_TOKENS = (4096, 1 << 18)
"""Fewest and most tokens of a part; between them 1/128 of all tokens, so that processes have equal shares."""
PART_TEXTS, PART_BYTES = 16_384, 1 << 26
"""Most texts of a part, and most bytes of its vectors, which one process holds in memory."""
EMPTY = -1
"""In `Plan.source`: a row without text."""
_KEPT = -2

_ARRAYS = ("source", "first", "order", "units", "tokens")


class TextTable(Protocol):
    """Texts by index; index 0 is the empty text."""

    def __len__(self) -> int: ...

    def take(self, rows: np.ndarray) -> list[str]:
        """The texts of `rows`, in that order."""

    def raw_ids(self, rows: np.ndarray) -> list[Any]:
        """The ids of `rows` in the raw files."""


@dataclass(frozen=True)
class Plan:
    """How one table of texts is embedded. K distinct texts are to be read, numbered by first appearance."""

    keys: np.ndarray
    """(3, n_rows) uint64: a hash of each row's raw id, and two of its text; zeros for an empty one."""
    source: np.ndarray
    """(n_rows,) int32: where a row's vector comes from: the number of a text to read, EMPTY, or see `kept`."""
    first: np.ndarray
    """(K,) int32: the row each distinct text first stands in."""
    lengths: np.ndarray
    """(K,) int32: its tokens; 0 for a text in which the tokeniser finds nothing, whose vector is zero."""
    order: np.ndarray
    """int32: the texts with tokens in the order in which they are read, part by part."""
    units: np.ndarray
    """(U + 1,) int64: part u reads `order[units[u] : units[u + 1]]`."""
    tokens: np.ndarray
    """(U,) int64: tokens of each part."""

    @property
    def n_rows(self) -> int:
        """Rows of the table, row 0 included."""
        return len(self.source)

    @property
    def n_units(self) -> int:
        """Parts."""
        return len(self.tokens)

    def texts(self, unit: int) -> np.ndarray:
        """The texts of a part, longest first."""
        return np.asarray(self.order[self.units[unit] : self.units[unit + 1]])


def kept(source: np.ndarray) -> np.ndarray:
    """For entries of `Plan.source`: the row of the earlier export the vector is taken from, below 0 for none."""
    return _KEPT - source


def make_plan(
    work: Path,
    name: str,
    texts: TextTable,
    count_tokens: Callable[[list[str]], list[int]],
    vector_bytes: int,
    earlier_rows: Callable[[np.ndarray], np.ndarray] | None = None,
) -> Plan:
    """Read all texts, in slices, to find the distinct ones, and those to be read once more to count tokens.

    Both passes are shared out over the processes. Every process must call this and gets the whole plan.

    Args:
        work: folder that all processes see; receives the plan's arrays.
        name: of the table, for files and progress lines.
        texts: the table.
        count_tokens: tokens of each of the given texts.
        vector_bytes: bytes of one text's vectors.
        earlier_rows: gives the row of an earlier export for each row of `keys`, -1 for none; asked on the first
            process only.

    Raises:
        OSError: there is no space for the arrays.
    """
    # Rows are counted in 32 bits here, as in the dataset.
    assert len(texts) < 1 << 31
    with progress(len(texts), f"reading {name}") as bar:

        def digest(low: int, high: int) -> np.ndarray:
            found = _digests(texts, low, high)
            bar.advance(high - low)
            return found

        keys = shared(work, f"{name}-keys", (3, len(texts)), np.uint64, digest)

    def sources() -> dict[str, np.ndarray]:
        number, first = number_distinct(keys[1], keys[2])
        if earlier_rows is not None:
            number, first = _without_known(number, first, earlier_rows(keys))
        return {f"{name}-source": number, f"{name}-first": first}

    of_main(work, sources, (f"{name}-source", f"{name}-first"))
    first = load(work, f"{name}-first")
    with progress(len(first), f"counting tokens of {name}") as bar:

        def count(low: int, high: int) -> np.ndarray:
            found = np.array(count_tokens(texts.take(first[low:high])), dtype=np.int32)
            bar.advance(high - low)
            return found

        lengths = shared(work, f"{name}-lengths", (len(first),), np.int32, count)
    names = ("order", "units", "tokens")
    of_main(
        work,
        lambda: {
            f"{name}-{part}": array for part, array in zip(names, cut(lengths, vector_bytes), strict=True)
        },
        tuple(f"{name}-{part}" for part in names),
    )
    arrays = {part: load(work, f"{name}-{part}") for part in _ARRAYS}
    return Plan(keys=keys, lengths=lengths, **arrays)


def _digests(texts: TextTable, low: int, high: int) -> np.ndarray:
    """(3, n) uint64 for rows [low, high): 64 bits for the raw id, 128 for the text.

    16 million texts: that two of them share 128 bits has odds of 1 in 10^24. A shared id hash costs nothing but
    one text that is read again. Row 0 and texts of nothing but white space have zeros.
    """
    rows = np.arange(low, high)
    ids = b"".join(_digest(str(raw), 8) for raw in texts.raw_ids(rows))
    digests = b"".join(_digest(text, 16) if text.strip() else bytes(16) for text in texts.take(rows))
    found = np.empty((3, high - low), dtype=np.uint64)
    found[0] = np.frombuffer(ids, dtype="<u8")
    found[1:] = np.frombuffer(digests, dtype="<u8").reshape(-1, 2).T
    return found


def _digest(text: str, size: int) -> bytes:
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=size).digest()


def number_distinct(high: np.ndarray, low: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Number texts by first appearance.

    Args:
        high: (n,) uint64, one half of each text's digest; 0 in both halves is no text.
        low: (n,) uint64, the other half.

    Returns:
        The number of each row's text (n,) int32, EMPTY for none, and the first row of each number (K,) int32.
    """
    order = np.argsort(high, kind="stable").astype(np.int32)
    starts, clash = _group_starts(high, low, order)
    if clash:
        # Two texts share 64 bits: one in 10^5 tables of 16 million. Sorting by all 128 takes more memory.
        order = np.lexsort((low, high)).astype(np.int32)
        starts = _group_starts(high, low, order)[0]
    # The sort is stable: a group's first entry is the text's first row.
    firsts = order[starts]
    group = np.cumsum(starts, dtype=np.int32) - 1
    has_text = (high[firsts] != 0) | (low[firsts] != 0)
    by_appearance = np.argsort(np.where(has_text, firsts, np.iinfo(np.int32).max), kind="stable")
    number_of = np.empty(len(firsts), dtype=np.int32)
    number_of[by_appearance] = np.arange(len(firsts), dtype=np.int32)
    number_of[~has_text] = EMPTY
    number = np.empty(len(order), dtype=np.int32)
    number[order] = number_of[group]
    return number, firsts[by_appearance][: int(has_text.sum())]


def _group_starts(high: np.ndarray, low: np.ndarray, order: np.ndarray) -> tuple[np.ndarray, bool]:
    """(n,) bool: where in `order` another text begins; and whether texts that differ share their high half."""
    starts, clash = np.ones(len(order), dtype=bool), False
    for begin in range(1, len(order), embed_shared.CHUNK):
        here = order[begin : begin + embed_shared.CHUNK]
        before = order[begin - 1 : begin - 1 + len(here)]
        other_high, other_low = high[here] != high[before], low[here] != low[before]
        clash |= bool((other_low & ~other_high).any())
        starts[begin : begin + len(here)] = other_high | other_low
    return starts, clash


def _without_known(
    number: np.ndarray, first: np.ndarray, earlier: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Take the vectors of texts that an earlier export has from there, and number only the others.

    Args:
        number, first: as `number_distinct` returns them.
        earlier: (n,) int32, the row of the earlier export that has each row's id and text; -1 for none.
    """
    known = np.full(len(first), -1, dtype=np.int32)
    there = (earlier >= 0) & (number != EMPTY)
    # A text that is known anywhere is known everywhere: equal texts have equal vectors.
    known[number[there]] = earlier[there]
    is_new = known < 0
    new_number = np.cumsum(is_new, dtype=np.int32) - 1
    source_of = np.where(is_new, new_number, _KEPT - known)
    source = np.full(len(number), EMPTY, dtype=np.int32)
    has_text = number != EMPTY
    source[has_text] = source_of[number[has_text]]
    return source, first[is_new]


def cut(lengths: np.ndarray, vector_bytes: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Cut texts into parts of similar cost and similar length, independent of processes and token budget.

    Args:
        lengths: (K,) int32, tokens of each text; texts without tokens are in no part.
        vector_bytes: bytes of one text's vectors.

    Returns:
        `order`, `units` and `tokens` of `Plan`.
    """
    low, high = PART_TOKENS
    most_tokens = min(max(int(lengths.sum(dtype=np.int64)) // 128, low), high)
    most_texts = max(1, min(PART_TEXTS, PART_BYTES // vector_bytes))
    orders, units, tokens = [np.empty(0, dtype=np.int32)], [0], []
    for begin in range(0, len(lengths), WINDOW):
        window = np.asarray(lengths[begin : begin + WINDOW])
        order = np.argsort(-window, kind="stable")[: np.count_nonzero(window)]
        sums = np.concatenate([[0], np.cumsum(window[order], dtype=np.int64)])
        start = 0
        while start < len(order):
            enough = int(np.searchsorted(sums, sums[start] + most_tokens, side="right")) - 1
            stop = max(start + 1, min(enough, start + most_texts))
            tokens.append(int(sums[stop] - sums[start]))
            units.append(units[-1] + stop - start)
            start = stop
        orders.append((order + begin).astype(np.int32))
    return np.concatenate(orders), np.array(units, dtype=np.int64), np.array(tokens, dtype=np.int64)
