"""All token sequences that spell a title, as one sorted table: what may follow a prefix is a slice of it."""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

_END = -1
"""Fills up a row behind its sequence; smaller than any id, so that it sorts first."""


class Node(NamedTuple):
    """Sequences low ... high - 1 of the sorted table share their first `depth` tokens."""

    low: int
    high: int
    depth: int


class TitleTrie:
    """A prefix tree over token sequences.

    Args:
        sequences: each ends with `end`, which stands nowhere else in it.
        end: the end token.

    Raises:
        ValueError: no sequence, or one that does not end so.
    """

    def __init__(self, sequences: Iterable[Sequence[int]], end: int) -> None:
        rows = sorted({tuple(sequence) for sequence in sequences})
        if not rows or any(row[-1:] != (end,) or end in row[:-1] for row in rows):
            raise ValueError("a trie needs sequences, each with one end token, at its end")
        self._end = end
        self._table = np.full((len(rows), max(map(len, rows))), _END, dtype=np.int32)
        for number, row in enumerate(rows):
            self._table[number, : len(row)] = row
        self._known: dict[Node, np.ndarray] = {}

    def __len__(self) -> int:
        return len(self._table)

    @property
    def root(self) -> Node:
        """Where every sequence begins."""
        return Node(0, len(self._table), 0)

    def next_tokens(self, node: Node) -> np.ndarray:
        """Ids (n,) int32, rising, that go on from `node`; none behind an end."""
        if node.low >= node.high or node.depth >= self._table.shape[1]:
            return np.zeros(0, dtype=np.int32)
        if node not in self._known:
            found = np.unique(self._table[node.low : node.high, node.depth])
            self._known[node] = found[found != _END]
        return self._known[node]

    def step(self, node: Node, token: int) -> Node:
        """The node behind `token`; an empty one where no sequence goes on so."""
        if node.low >= node.high or node.depth >= self._table.shape[1]:
            return Node(0, 0, node.depth + 1)
        column = self._table[node.low : node.high, node.depth]
        low, high = np.searchsorted(column, [token, token + 1])
        return Node(node.low + int(low), node.low + int(high), node.depth + 1)

    def mask(self, nodes: Sequence[Node], vocabulary: int) -> Tensor:
        """(len(nodes), vocabulary) float32: 0 for ids that go on from each node, else -inf."""
        penalty = torch.full((len(nodes), vocabulary), -torch.inf)
        for row, node in zip(penalty, nodes, strict=True):
            row[torch.from_numpy(self.next_tokens(node).astype(np.int64))] = 0.0
        return penalty
