"""Which text is encoded when, and by whom: decided from the texts alone, before any model runs.

The plan is the same for any number of processes, and so are the batches; processes only share them out. Texts
are read in chunks: at no time is there a Python list of all of them.
"""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from lsvcr.llm.encoder import token_budget_batches
from lsvcr.utils.distributed import gather_rows, rank, world_size

CHUNK_TEXTS = 8192


class TextTable(Protocol):
    """Texts by index; index 0 is the empty text."""

    def __len__(self) -> int: ...

    def take(self, indices: Sequence[int] | np.ndarray) -> list[str]:
        """The texts of `indices`, in that order."""


@dataclass(frozen=True)
class Plan:
    """How one table of texts is embedded. K distinct texts are numbered by first appearance."""

    n_rows: int
    """Rows of the table, row 0 included."""
    first: np.ndarray
    """(K,) int64: the row each distinct text first stands in."""
    lengths: np.ndarray
    """(K,) int32: its tokens."""
    rows: np.ndarray
    """int64: all rows with text, those of distinct text 0 first, then those of 1, ..."""
    offsets: np.ndarray
    """(K + 1,) int64: the rows of distinct text k are `rows[offsets[k] : offsets[k + 1]]`."""
    batches: list[np.ndarray]
    """Distinct texts of each batch, longest first."""

    def share(self, of: int, processes: int) -> list[np.ndarray]:
        """The batches of process `of`. Each costs about the same tokens, so dealing them out is fair."""
        return self.batches[of::processes]

    def tokens(self, batches: list[np.ndarray]) -> int:
        """Real tokens in `batches`."""
        return int(sum(int(self.lengths[batch].sum()) for batch in batches))

    def scatter(self, texts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Table rows of distinct `texts` (n,), and for each of these rows its place in `texts`."""
        counts = self.offsets[texts + 1] - self.offsets[texts]
        place = np.repeat(np.arange(len(texts)), counts)
        within = np.arange(len(place)) - np.repeat(np.cumsum(counts) - counts, counts)
        return self.rows[self.offsets[texts][place] + within], place


def make_plan(texts: TextTable, count_tokens: Callable[[list[str]], list[int]], budget: int) -> Plan:
    """Read all texts twice, in chunks: to find the distinct ones, and to count the tokens of those.

    Both passes are shared out over the processes; every process gets the whole plan.

    Args:
        texts: the table.
        count_tokens: tokens of each of the given texts.
        budget: tokens of a batch, padding included.
    """
    number, first = _number_distinct(_digests(texts))
    lengths = _lengths(texts, first, count_tokens)
    order = np.argsort(number, kind="stable")
    rows = order[np.count_nonzero(number < 0) :]
    offsets = np.concatenate([[0], np.cumsum(np.bincount(number[rows], minlength=len(first)))])
    return Plan(
        n_rows=len(texts),
        first=first,
        lengths=lengths,
        rows=rows,
        offsets=offsets.astype(np.int64),
        batches=token_budget_batches(lengths, budget),
    )


def _my_slice(total: int) -> tuple[int, int]:
    """This process's part of `total` things, in order."""
    return total * rank() // world_size(), total * (rank() + 1) // world_size()


def _chunks(start: int, stop: int) -> list[tuple[int, int]]:
    return [(at, min(at + CHUNK_TEXTS, stop)) for at in range(start, stop, CHUNK_TEXTS)]


def _digests(texts: TextTable) -> np.ndarray:
    """(n, 2) uint64: 128 bits that stand for each text (16 million texts: a clash has odds of 1 in 10^24).

    Zeros for texts of nothing but white space.
    """
    start, stop = _my_slice(len(texts))
    mine = np.zeros((stop - start, 2), dtype=np.uint64)
    for low, high in _chunks(start, stop):
        digests = b"".join(map(_digest, texts.take(np.arange(low, high))))
        mine[low - start : high - start] = np.frombuffer(digests, dtype=np.uint64).reshape(-1, 2)
    # The process group carries signed integers.
    return gather_rows(np.arange(start, stop), mine.view(np.int64))[1].view(np.uint64)


def _digest(text: str) -> bytes:
    if not text.strip():
        return bytes(16)
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).digest()


def _number_distinct(digests: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Number of each row's text (n,) int64, -1 for none, and the first row of each number (K,) int64."""
    order = np.lexsort((digests[:, 1], digests[:, 0]))
    ordered = digests[order]
    starts = np.concatenate([[True], (ordered[1:] != ordered[:-1]).any(axis=1)])
    group = np.empty(len(digests), dtype=np.int64)
    group[order] = np.cumsum(starts) - 1
    # The sort is stable: a group's first entry is the text's first row.
    firsts = order[starts]
    has_text = digests[firsts].any(axis=1)
    by_appearance = np.argsort(np.where(has_text, firsts, len(digests) + 1), kind="stable")
    number = np.empty(len(firsts), dtype=np.int64)
    number[by_appearance] = np.arange(len(firsts))
    number[~has_text] = -1
    return number[group], firsts[by_appearance][: int(has_text.sum())]


def _lengths(
    texts: TextTable, first: np.ndarray, count_tokens: Callable[[list[str]], list[int]]
) -> np.ndarray:
    start, stop = _my_slice(len(first))
    mine = np.zeros(stop - start, dtype=np.int32)
    for low, high in _chunks(start, stop):
        mine[low - start : high - start] = count_tokens(texts.take(first[low:high]))
    return gather_rows(np.arange(start, stop), mine)[1]
