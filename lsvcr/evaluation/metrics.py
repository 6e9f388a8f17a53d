"""Ranking metrics as pure functions of ranks: one value a row, exact under ties.

A metric under ties is its expectation over all orders of the tied candidates. A model that scores everything
alike therefore gets exactly chance level, wherever the target stands in the list, and no order of candidates
can flatter anyone.
"""

from collections.abc import Callable, Collection
from dataclasses import dataclass

import numpy as np

from lsvcr.utils.arguments import nearest
from lsvcr.utils.errors import UserError


@dataclass(frozen=True)
class Ranks:
    """Where each positive of each row stands among the row's candidates.

    Attributes:
        offsets: (n + 1,) int64; the positives of row i are `offsets[i]:offsets[i + 1]`.
        higher: (P,) int64; candidates that score higher than the positive (other positives included).
        tied: (P,) int64; candidates that score the same, the positive itself included, so at least 1;
            0 marks a positive that is not among the candidates: a miss at any K.
    """

    offsets: np.ndarray
    higher: np.ndarray
    tied: np.ndarray

    @property
    def positives(self) -> np.ndarray:
        """(n,) int64: number of positives of each row."""
        return np.diff(self.offsets)

    def sums(self, values: np.ndarray) -> np.ndarray:
        """(P,) values a positive -> (n,) float64 sums a row; 0 for a row without positives."""
        rows = np.repeat(np.arange(len(self.positives)), self.positives)
        return np.bincount(rows, weights=values, minlength=len(self.positives))


def single(higher: np.ndarray | list[int], tied: np.ndarray | list[int] | None = None) -> Ranks:
    """Ranks of rows with one positive each: `higher` (n,), `tied` (n,) or None for no ties."""
    above = np.asarray(higher, dtype=np.int64)
    same = np.ones_like(above) if tied is None else np.asarray(tied, dtype=np.int64)
    return Ranks(np.arange(len(above) + 1), above, same)


def recall(ranks: Ranks, k: int) -> np.ndarray:
    """Recall@K = expected number of positives among the first K / number of positives.

    With h candidates above and g tied (itself included), a positive is among the first K with probability
    min(max(K - h, 0), g) / g.

    Returns:
        (n,) float64; 0 for a row without positives.

    >>> recall(single([0, 4, 5]), 5).tolist()
    [1.0, 1.0, 0.0]
    >>> recall(single([0], [100]), 10).tolist()  # 100 candidates of one score: chance level
    [0.1]
    """
    group = np.maximum(ranks.tied, 1)
    hits = np.clip(k - ranks.higher, 0, ranks.tied) / group
    return ranks.sums(hits) / np.maximum(ranks.positives, 1)


def ndcg(ranks: Ranks, k: int) -> np.ndarray:
    """NDCG@K = DCG@K / IDCG@K, DCG@K = sum of 1 / log2(rank + 1) over positives of rank <= K.

    IDCG@K is the DCG of min(K, number of positives) positives at the top. The expectation over ties is exact,
    because DCG is a sum over positives.

    Returns:
        (n,) float64; 0 for a row without positives.

    >>> ndcg(single([0, 2, 5]), 5).round(6).tolist()
    [1.0, 0.5, 0.0]
    """
    k = _reached(ranks, k)
    discounts = np.concatenate([[0.0], np.cumsum(1.0 / np.log2(np.arange(2, k + 2)))])
    first, last = np.minimum(ranks.higher, k), np.minimum(ranks.higher + ranks.tied, k)
    gains = (discounts[last] - discounts[first]) / np.maximum(ranks.tied, 1)
    ideal = discounts[np.clip(ranks.positives, 1, k)]
    return ranks.sums(gains) / ideal


def mrr(ranks: Ranks, k: int) -> np.ndarray:
    """MRR@K = expectation of 1 / (rank of the best positive), 0 where that rank is beyond K.

    With h candidates above the best positives' score, g of that score and p positives among the g, the best
    rank is h + j with probability C(g - j, p - 1) / C(g, p).

    Returns:
        (n,) float64; 0 for a row without positives.

    >>> mrr(single([0, 3, 10]), 10).tolist()
    [1.0, 0.25, 0.0]
    >>> mrr(single([0], [2]), 10).tolist()  # first or second, equally likely
    [0.75]
    """
    above, group, positives = _best_group(ranks)
    value, missed = np.zeros(len(above)), (positives > 0).astype(np.float64)
    for j in range(1, _places(above, group, k) + 1):
        here = _chance(positives, group - j + 1)
        value += np.where(above + j <= k, missed * here / (above + j), 0.0)
        missed *= 1.0 - here
    return value


def hit_rate(ranks: Ranks, k: int) -> np.ndarray:
    """HR@K = probability that at least one positive is among the first K.

    Only the best positives' group counts, see `mrr`: where its places reach beyond K, no lower group begins before.
    With one positive it is Recall@K.

    Returns:
        (n,) float64; 0 for a row without positives.

    >>> hit_rate(single([0, 9, 10]), 10).tolist()
    [1.0, 1.0, 0.0]
    >>> two = Ranks(np.array([0, 2]), np.array([0, 0]), np.array([4, 4]))  # two positives among four of one score
    >>> hit_rate(two, 2).round(6).tolist()  # both others come first in 1 of 6 pairs
    [0.833333]
    """
    above, group, positives = _best_group(ranks)
    missed = np.ones(len(above))
    for j in range(1, _places(above, group, k) + 1):
        missed *= np.where(above + j <= k, 1.0 - _chance(positives, group - j + 1), 1.0)
    return 1.0 - missed


def _reached(ranks: Ranks, k: int) -> int:
    """K, or the last place that any positive can take if that is less: no table need be longer."""
    most = max((ranks.higher + ranks.tied).max(initial=1), ranks.positives.max(initial=1))
    return min(k, int(most))


def _places(above: np.ndarray, group: np.ndarray, k: int) -> int:
    """How many places count, from the first of each best group: those within the group and among the first K."""
    return int(np.minimum(group, k - above).max(initial=0))


def _best_group(ranks: Ranks) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """For each row the candidates above its best positives' score, those of that score and the positives among them.

    Returns:
        Three (n,) int64; zeros for a row without a listed positive.
    """
    rows = np.repeat(np.arange(len(ranks.positives)), ranks.positives)
    listed = ranks.tied > 0
    above = np.full(len(ranks.positives), np.iinfo(np.int64).max)
    np.minimum.at(above, rows[listed], ranks.higher[listed])
    best = listed & (ranks.higher == above[rows])
    positives = np.bincount(rows[best], minlength=len(above))
    group = np.zeros_like(above)
    group[rows[best]] = ranks.tied[best]
    return np.where(positives > 0, above, 0), group, positives


def _chance(positives: np.ndarray, places: np.ndarray) -> np.ndarray:
    """Probability that the next of `places` candidates is one of `positives`, none having come before: (n,)."""
    return np.clip(positives / np.maximum(places, 1), 0.0, 1.0)


def precision(ranks: Ranks, k: int) -> np.ndarray:
    """Precision@K = expected number of positives among the first K / K, also where there are fewer candidates.

    Returns:
        (n,) float64; 0 for a row without positives. The best that a row of p positives can reach is min(p, K) / K.

    >>> precision(single([0, 4, 5]), 5).tolist()
    [0.2, 0.2, 0.0]
    """
    return recall(ranks, k) * ranks.positives / k


def average_precision(ranks: Ranks, k: int) -> np.ndarray:
    """AP@K, whose mean over rows is MAP@K: sum over positives of rank r <= K of (positives of rank <= r) / r, divided
    by min(K, number of positives), so that positives at the top give 1.

    (trec_eval divides by the number of positives, however small K is.) The expectation over ties is exact. A positive
    with h candidates above, a of them positives, and g of its score, p of them positives, stands at place j of its g
    with probability 1 / g; then (j - 1)(p - 1) / (g - 1) of the other p - 1 are expected before it. It adds

        1 / g * sum over j <= min(g, K - h) of (a + 1 + (j - 1) c) / (h + j),   c = (p - 1) / (g - 1).

    Returns:
        (n,) float64; 0 for a row without positives.

    >>> average_precision(single([0, 3, 10]), 10).tolist()  # with one positive it is MRR@K
    [1.0, 0.25, 0.0]
    """
    k = _reached(ranks, k)
    listed = np.flatnonzero(ranks.tied > 0)
    rows = np.repeat(np.arange(len(ranks.positives)), ranks.positives)[listed]
    higher, tied = ranks.higher[listed], ranks.tied[listed]
    before, alike = _rivals(rows, higher)
    harmonic = np.concatenate([[0.0], np.cumsum(1.0 / np.arange(1, k + 1))])
    first, last = np.minimum(higher, k), np.minimum(higher + tied, k)
    between = (alike - 1) / np.maximum(tied - 1, 1)
    # (j - 1) / (h + j) = 1 - (h + 1) / (h + j), so harmonic numbers do for the whole sum.
    shared = (before + 1 - between * (higher + 1)) * (harmonic[last] - harmonic[first])
    gains = (shared + between * (last - first)) / tied
    # Without ties there is nothing to expect, and no difference of sums to round.
    alone = np.where(higher < k, (before + 1) / (higher + 1), 0.0)
    gains = np.where(tied == 1, alone, gains)
    sums = np.bincount(rows, weights=gains, minlength=len(ranks.positives))
    return sums / np.clip(ranks.positives, 1, k)


def _rivals(rows: np.ndarray, higher: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """For each positive the positives of its row with a higher score, and those with the same, itself included.

    Args:
        rows: (P,) int64, row of each positive.
        higher: (P,) int64, candidates above it; equal within a row exactly for equal scores.

    Returns:
        Two (P,) int64.
    """
    order = np.lexsort((higher, rows))
    row, score = rows[order], higher[order]
    new_row = np.diff(row, prepend=-1) != 0
    new_group = new_row | (np.diff(score, prepend=-1) != 0)
    group = np.cumsum(new_group) - 1
    row_start, group_start = np.flatnonzero(new_row), np.flatnonzero(new_group)
    before, alike = np.empty_like(rows), np.empty_like(rows)
    before[order] = group_start[group] - row_start[np.cumsum(new_row) - 1]
    alike[order] = np.bincount(group)[group] if len(group) else 0
    return before, alike


METRICS: dict[str, Callable[[Ranks, int], np.ndarray]] = {
    "recall": recall,
    "hr": hit_rate,
    "precision": precision,
    "ndcg": ndcg,
    "mrr": mrr,
    "map": average_precision,
}

LARGEST_K = 2**31 - 1
"""Item indices are int32: no list is longer."""

DEFAULT_METRICS = ("recall@1", "recall@5", "recall@10", "ndcg@5", "ndcg@10", "mrr@5", "mrr@10")
"""What the LSVCR paper's protocol reports."""


def parse_metric(name: str) -> tuple[Callable[[Ranks, int], np.ndarray], int]:
    """`ndcg@10` (any case) -> the function and K.

    Raises:
        UserError: another form, an unknown metric (the nearest is named), or K below 1 or above `LARGEST_K`.

    >>> parse_metric("NDCG@5")[1]
    5
    """
    word, k = split_name(name, METRICS)
    return METRICS[word], k


def split_name(name: str, known: Collection[str]) -> tuple[str, int]:
    """`NDCG@5` -> ("ndcg", 5), where `known` holds the word.

    A metric has one name, by which results are looked up, so that no K begins with a 0.

    Raises:
        UserError: another form, an unknown word (the nearest is named), or K below 1 or above `LARGEST_K`.

    >>> split_name("Recall@20", METRICS)
    ('recall', 20)
    """
    word, _, number = name.lower().partition("@")
    if word not in known:
        raise UserError(f"unknown metric {name!r}; {nearest(word, known) or 'known: ' + ', '.join(known)}")
    digits = number.lstrip("0")
    if not (number.isascii() and number.isdigit() and digits):
        raise UserError(f"metric {name!r} needs a K of at least 1, as in {word}@10")
    if len(digits) > len(str(LARGEST_K)) or int(digits) > LARGEST_K:
        raise UserError(f"metric {word}@{digits[:20]} needs a K of at most {LARGEST_K:,}; no list is longer")
    if digits != number:
        raise UserError(f"metric {name!r}: write {word}@{digits}, without a 0 before K")
    return word, int(digits)


def compute(ranks: Ranks, names: tuple[str, ...]) -> dict[str, np.ndarray]:
    """Per-row values of several metrics: name -> (n,) float64."""
    values = {}
    for name in names:
        metric, k = parse_metric(name)
        values[name.lower()] = metric(ranks, k)
    return values
