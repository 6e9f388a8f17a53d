"""Ranking metrics as pure functions of ranks: one value a row, exact under ties.

A metric under ties is its expectation over all orders of the tied candidates. A model that scores everything
alike therefore gets exactly chance level, wherever the target stands in the list, and no order of candidates
can flatter anyone.
"""

from collections.abc import Callable
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


def expected_rank(ranks: Ranks) -> np.ndarray:
    """Mean rank of each positive over all orders of its ties: higher + (tied + 1) / 2.

    Returns:
        (P,) float64, 1 is the top; infinity for a positive that is not among the candidates.

    >>> expected_rank(single([0, 3], [1, 4])).tolist()
    [1.0, 5.5]
    """
    return np.where(ranks.tied > 0, ranks.higher + (ranks.tied + 1) / 2, np.inf)


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
    rows = np.repeat(np.arange(len(ranks.positives)), ranks.positives)
    listed = ranks.tied > 0
    above = np.full(len(ranks.positives), np.iinfo(np.int64).max)
    np.minimum.at(above, rows[listed], ranks.higher[listed])
    best = listed & (ranks.higher == above[rows])
    positives = np.bincount(rows[best], minlength=len(above))
    group = np.zeros_like(above)
    group[rows[best]] = ranks.tied[best]
    above = np.where(positives > 0, above, k)
    value, missed = np.zeros(len(above)), (positives > 0).astype(np.float64)
    for j in range(1, k + 1):
        places = group - j + 1
        here = np.clip(positives / np.maximum(places, 1), 0.0, 1.0)
        value += np.where(above + j <= k, missed * here / (above + j), 0.0)
        missed *= 1.0 - here
    return value


METRICS: dict[str, Callable[[Ranks, int], np.ndarray]] = {"recall": recall, "ndcg": ndcg, "mrr": mrr}

DEFAULT_METRICS = ("recall@1", "recall@5", "recall@10", "ndcg@5", "ndcg@10", "mrr@5", "mrr@10")
"""What the LSVCR paper's protocol reports."""


def parse_metric(name: str) -> tuple[Callable[[Ranks, int], np.ndarray], int]:
    """`ndcg@10` (any case) -> the function and K.

    Raises:
        UserError: another form, an unknown metric (the nearest is named), or K below 1.

    >>> parse_metric("NDCG@5")[1]
    5
    """
    word, _, number = name.lower().partition("@")
    if word not in METRICS:
        raise UserError(
            f"unknown metric {name!r}; {nearest(word, METRICS) or 'known: ' + ', '.join(METRICS)}"
        )
    if not number.isdigit() or int(number) < 1:
        raise UserError(f"metric {name!r} needs a K of at least 1, as in {word}@10")
    return METRICS[word], int(number)


def compute(ranks: Ranks, names: tuple[str, ...]) -> dict[str, np.ndarray]:
    """Per-row values of several metrics: name -> (n,) float64."""
    values = {}
    for name in names:
        metric, k = parse_metric(name)
        values[name.lower()] = metric(ranks, k)
    return values
