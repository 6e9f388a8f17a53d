"""Ranks by counting higher scores: no sort, chunk by chunk, exact.

A score is the dot product of two float32 vectors, summed in float64 and rounded to float32. The rounding
absorbs the order of summation, which differs between matrix shapes, so that neither the chunk size nor a
candidate's place changes a comparison, and equal vectors tie.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

PAIRS_AT_ONCE = 1 << 18
"""Scores of (row, candidate) pairs that the ragged path holds at once."""


@dataclass(frozen=True)
class Counts:
    """For each positive: candidates above it and candidates of its score.

    Attributes:
        higher: (P,) int64.
        tied: (P,) int64, the positive itself included; 0 where it is not among the candidates.
    """

    higher: Tensor
    tied: Tensor


def pair_scores(users: Tensor, user_rows: Tensor, items: Tensor, item_rows: Tensor) -> Tensor:
    """Scores of pairs: users (B, w), items (n, w) float; row numbers (M,) int64 -> (M,) float32."""
    parts = []
    for start in range(0, len(user_rows), PAIRS_AT_ONCE):
        stop = start + PAIRS_AT_ONCE
        left, right = users[user_rows[start:stop]].double(), items[item_rows[start:stop]].double()
        parts.append((left * right).sum(-1).float())
    return torch.cat(parts) if parts else users.new_zeros(0, dtype=torch.float32)


def count_catalogue(
    users: Tensor,
    items: Tensor,
    rows: Tensor,
    positives: Tensor,
    seen: tuple[Tensor, Tensor] | None,
    chunk: int,
) -> Counts:
    """Rank positives against every item but padding.

    Args:
        users: (B, w) float32 user vectors.
        items: (n + 1, w) float32 item vectors; row 0 is padding and never ranks.
        rows: (P,) int64, the user row of each positive, rising.
        positives: (P,) int64 item indices.
        seen: user rows (S,) and item indices (S,) that do not rank, or None. A positive always ranks itself.
        chunk: items scored at once.
    """
    targets = pair_scores(users, rows, items, positives)
    higher, tied = torch.zeros_like(positives), torch.ones_like(positives)
    left = users.double()
    one_each = torch.equal(rows, torch.arange(len(users), device=rows.device))
    for start in range(1, len(items), chunk):
        scores = (left @ items[start : start + chunk].double().T).float()
        if seen is not None:
            _forget(scores, seen, start)
        scores = scores if one_each else scores[rows]
        own = (positives - start).clamp(0, scores.shape[1] - 1)
        inside = (positives >= start) & (positives < start + scores.shape[1])
        # A positive is no rival of itself, whatever its score came to in this product.
        current = scores.gather(1, own[:, None])
        scores.scatter_(1, own[:, None], torch.where(inside[:, None], -torch.inf, current))
        higher += torch.count_nonzero(scores > targets[:, None], dim=1)
        tied += torch.count_nonzero(scores == targets[:, None], dim=1)
    return Counts(higher, tied)


def _forget(scores: Tensor, seen: tuple[Tensor, Tensor], start: int) -> None:
    """Take the seen items of this chunk out of the race, in place."""
    rows, items = seen
    here = (items >= start) & (items < start + scores.shape[1])
    scores[rows[here], items[here] - start] = -torch.inf


def count_listed(
    users: Tensor, items: Tensor, rows: Tensor, positives: Tensor, lists: Tensor, candidates: Tensor
) -> Counts:
    """Rank positives against each row's own list of candidates.

    Args:
        users: (B, w) float32 user vectors.
        items: (n + 1, w) float32 item vectors.
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
