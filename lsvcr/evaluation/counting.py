"""Ranks by counting higher scores: no sort, chunk by chunk, exact.

A score is the dot product of two float32 vectors, summed in float64 and rounded to float32. The rounding
absorbs the order of summation, which differs between matrix shapes, so that neither the chunk size nor a
candidate's place changes a comparison, and equal vectors tie. Most candidates are so far from the positive that a
product in float32 alone decides; only those near it are scored exactly.
"""

import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache

import numpy as np
import torch
from torch import Tensor

PAIRS_AT_ONCE = 1 << 18
"""Scores of (row, candidate) pairs that the ragged path holds at once."""

SLAB = 32
"""Rows that a thread counts at once: with 4,096 scores each they stay in a core's cache for the second border."""


@dataclass(frozen=True)
class Counts:
    """For each positive: candidates above it and candidates of its score.

    Attributes:
        higher: (P,) int64.
        tied: (P,) int64, the positive itself included; 0 where it is not among the candidates.
    """

    higher: Tensor
    tied: Tensor


def pair_scores(users: Tensor, user_rows: Tensor, items: Tensor | None, item_rows: Tensor) -> Tensor:
    """Scores of pairs: users (B, w), items (n, w) float; row numbers (M,) int64 -> (M,) float32.

    Without items `users` are scores already: (B, n).
    """
    if items is None:
        return users[user_rows, item_rows].float()
    parts = []
    for start in range(0, len(user_rows), PAIRS_AT_ONCE):
        stop = start + PAIRS_AT_ONCE
        left, right = users[user_rows[start:stop]].double(), items[item_rows[start:stop]].double()
        parts.append((left * right).sum(-1).float())
    return torch.cat(parts) if parts else users.new_zeros(0, dtype=torch.float32)


def count_catalogue(
    users: Tensor,
    items: Tensor | None,
    rows: Tensor,
    positives: Tensor,
    seen: tuple[Tensor, Tensor] | None,
    chunk: int,
) -> Counts:
    """Rank positives against every item but padding.

    Args:
        users: (B, w) float32 user vectors; (B, n + 1) scores without `items`.
        items: (n + 1, w) float32 item vectors; row 0 is padding and never ranks. None: users are scores.
        rows: (P,) int64, the user row of each positive, rising.
        positives: (P,) int64 item indices.
        seen: user rows (S,) and item indices (S,) that do not rank, or None. A positive always ranks itself.
        chunk: items scored at once.
    """
    targets = pair_scores(users, rows, items, positives)
    if items is None:
        return _count_scores(users, targets, rows, positives, seen)
    higher, tied = torch.zeros_like(positives), torch.ones_like(positives)
    doubt = _largest_error(users, items)[rows]
    left = users.float()
    for start in range(1, len(items), chunk):
        part = items[start : start + chunk].float()
        scores = _rivals(left @ part.T, rows, positives, seen, start)
        above, maybe = _count_higher(scores, targets + doubt, targets - doubt)
        higher += above
        open_rows = torch.nonzero(maybe > above).flatten()
        if len(open_rows):
            low, high = ((targets + way * doubt)[open_rows, None] for way in (-1, 1))
            near = (scores[open_rows] > low) & (scores[open_rows] <= high)
            columns = torch.nonzero(near.any(dim=0)).flatten()
            exact = (users[rows[open_rows]].double() @ part[columns].double().T).float()
            near, own = near[:, columns], targets[open_rows, None]
            higher[open_rows] += torch.count_nonzero(near & (exact > own), dim=1)
            tied[open_rows] += torch.count_nonzero(near & (exact == own), dim=1)
    return Counts(higher, tied)


def _count_scores(
    scores: Tensor, targets: Tensor, rows: Tensor, positives: Tensor, seen: tuple[Tensor, Tensor] | None
) -> Counts:
    """As `count_catalogue`, from scores (B, n + 1) and those of the positives (P,)."""
    rivals = _rivals(scores[:, 1:].float().clone(), rows, positives, seen, 1)
    tied = 1 + torch.count_nonzero(rivals == targets[:, None], dim=1)
    (higher,) = _count_higher(rivals, targets)
    return Counts(higher, tied)


def _largest_error(users: Tensor, items: Tensor) -> Tensor:
    """(B,) how far a float32 product can be from the score: |u| |v| times the bound of Higham 2002, section 3.1, twice
    over, and the roundings of the score itself and of its bounds. Infinite where products are not rounded to float32.
    """
    if torch.get_float32_matmul_precision() != "highest":
        return torch.full_like(users[:, 0], torch.inf, dtype=torch.float32)
    bound = (users.shape[1] + 4) * torch.finfo(torch.float32).eps
    longest = torch.linalg.vector_norm(items.float(), dim=1).max()
    return torch.linalg.vector_norm(users.float(), dim=1) * longest * bound


def _rivals(
    scores: Tensor, rows: Tensor, positives: Tensor, seen: tuple[Tensor, Tensor] | None, start: int
) -> Tensor:
    """Scores (B, chunk) of users -> (P, chunk) of positives' rows, without what does not rank and themselves."""
    if seen is not None:
        forget(scores, seen, start)
    if len(rows) != len(scores) or not torch.equal(rows, torch.arange(len(scores), device=rows.device)):
        scores = scores[rows]
    own = torch.nonzero((positives >= start) & (positives < start + scores.shape[1])).flatten()
    # A positive is no rival of itself, whatever its score came to in this product.
    scores[own, positives[own] - start] = -torch.inf
    return scores


def _count_higher(scores: Tensor, *borders: Tensor) -> list[Tensor]:
    """How many of each row's scores (P, n) are above its border (P,), for each of the borders: (P,) int64."""
    if scores.device.type != "cpu":
        return [torch.count_nonzero(scores > border[:, None], dim=1) for border in borders]
    rows, limits = scores.numpy(), [border.numpy() for border in borders]
    slabs = [slice(start, start + SLAB) for start in range(0, max(1, len(rows)), SLAB)]
    counts = _threads(torch.get_num_threads(), os.getpid()).map(
        lambda slab: [_count_above(rows[slab], limit[slab]) for limit in limits], slabs
    )
    return [torch.from_numpy(np.concatenate(parts)) for parts in zip(*counts, strict=True)]


def _count_above(scores: np.ndarray, border: np.ndarray) -> np.ndarray:
    """(P, n) and (P,) -> (P,) int64. numpy compares and counts bytes ten times as fast as torch on a CPU."""
    above = scores > border[:, None]
    return np.fromiter(map(np.count_nonzero, above), dtype=np.int64, count=len(above))


@cache
def _threads(count: int, process: int) -> ThreadPoolExecutor:
    """Kept from chunk to chunk, by process: a forked one has none of its parent's threads. numpy lets other threads run
    while it compares."""
    return ThreadPoolExecutor(count, thread_name_prefix="counting")


def forget(scores: Tensor, seen: tuple[Tensor, Tensor], start: int) -> None:
    """Take what does not rank out of a chunk's scores, in place.

    Args:
        scores: (B, n) float32 of the items `start` .. `start` + n - 1.
        seen: user rows (S,) and item indices (S,) int64.
        start: index of the chunk's first item.
    """
    rows, items = seen
    here = (items >= start) & (items < start + scores.shape[1])
    scores[rows[here], items[here] - start] = -torch.inf


def count_listed(
    users: Tensor,
    items: Tensor | None,
    rows: Tensor,
    positives: Tensor,
    lists: Tensor,
    candidates: Tensor,
) -> Counts:
    """Rank positives against each row's own list of candidates.

    Args:
        users: (B, w) float32 user vectors; (B, n + 1) scores without `items`.
        items: (n + 1, w) float32 item vectors; None: users are scores.
        rows: (P,) int64, the user row of each positive, rising.
        positives: (P,) int64 item indices.
        lists: (B + 1,) int64 offsets into `candidates`.
        candidates: (M,) int64 item indices, distinct within a row, no padding.
    """
    lengths = lists.diff()
    owner = torch.repeat_interleave(torch.arange(len(lengths), device=lists.device), lengths)
    scores = pair_scores(users, owner, items, candidates)
    targets = pair_scores(users, rows, items, positives)
    higher, tied, listed = (torch.zeros_like(positives) for _ in range(3))
    for part in _slices(lengths[rows]):
        spans = lengths[rows[part]]
        positive = torch.repeat_interleave(torch.arange(part.start, part.stop, device=lists.device), spans)
        first = torch.repeat_interleave(lists[rows[part]] - (spans.cumsum(0) - spans), spans)
        pair = first + torch.arange(len(first), device=lists.device)
        own = candidates[pair] == positives[positive]
        above = (scores[pair] > targets[positive]) & ~own
        equal = (scores[pair] == targets[positive]) & ~own
        higher.index_add_(0, positive, above.long())
        tied.index_add_(0, positive, equal.long())
        listed.index_add_(0, positive, own.long())
    return Counts(higher, torch.where(listed > 0, tied + 1, torch.zeros_like(tied)))


def _slices(spans: Tensor) -> list[slice]:
    """Cut positives into runs whose candidate lists hold about PAIRS_AT_ONCE pairs together."""
    total = len(spans)
    if total == 0:
        return []
    run = (spans.cumsum(0) - 1) // PAIRS_AT_ONCE
    borders = (torch.nonzero(run.diff()).flatten() + 1).tolist()
    return [slice(a, b) for a, b in zip([0, *borders], [*borders, total], strict=True)]
