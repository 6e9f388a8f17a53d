"""Metrics against fractions worked by hand, and against all orders of the ties."""

from itertools import permutations
from math import log2

import numpy as np
import pytest

from lsvcr.evaluation.metrics import (
    METRICS,
    Ranks,
    compute,
    expected_rank,
    mrr,
    ndcg,
    parse_metric,
    recall,
    single,
)
from lsvcr.utils.errors import UserError


def ranks(rows: list[list[tuple[int, int]]]) -> Ranks:
    """Rows of (higher, tied) pairs."""
    flat = [pair for row in rows for pair in row]
    offsets = np.cumsum([0, *(len(row) for row in rows)])
    return Ranks(
        offsets,
        np.array([h for h, _ in flat], dtype=np.int64),
        np.array([t for _, t in flat], dtype=np.int64),
    )


def test_single_positive() -> None:
    places = single([0, 1, 4, 5])
    assert recall(places, 5).tolist() == [1, 1, 1, 0]
    assert ndcg(places, 5) == pytest.approx([1, 1 / log2(3), 1 / log2(6), 0])
    assert mrr(places, 5) == pytest.approx([1, 1 / 2, 1 / 5, 0])


def test_several_positives() -> None:
    """Positives at ranks 1, 3 and 7 of one row: recall divides by three, IDCG has min(K, 3) terms."""
    places = ranks([[(0, 1), (2, 1), (6, 1)]])
    assert recall(places, 5) == pytest.approx([2 / 3])
    assert ndcg(places, 5) == pytest.approx([(1 + 1 / log2(4)) / (1 + 1 / log2(3) + 1 / log2(4))])
    assert ndcg(places, 2) == pytest.approx([1 / (1 + 1 / log2(3))])
    assert mrr(places, 5).tolist() == [1]


def test_ties_give_the_mean_over_all_orders() -> None:
    """Scores 5, 3, 3, 3, 1 with positives on two of the threes and the one: brute force over the orders."""
    scores, right = [5, 3, 3, 3, 1], {1, 3, 4}
    places = ranks([[(1, 3), (1, 3), (4, 1)]])
    orders = {
        order
        for order in permutations(range(5))
        if [scores[i] for i in order] == sorted(scores, reverse=True)
    }
    for name in METRICS:
        for k in (1, 2, 3, 5):
            metric, _ = parse_metric(f"{name}@{k}")
            exact = [metric(ranks([[(order.index(i), 1) for i in sorted(right)]]), k)[0] for order in orders]
            assert metric(places, k)[0] == pytest.approx(np.mean(exact)), (name, k)


@pytest.mark.parametrize("candidates", [4, 100])
def test_constant_scores_give_chance_level(candidates: int) -> None:
    """All candidates tie; whichever of them is the target, the figure is that of a random order."""
    places = single([0], [candidates])
    for k in (1, 5, 10):
        top = min(k, candidates)
        assert recall(places, k)[0] == pytest.approx(top / candidates)
        assert ndcg(places, k)[0] == pytest.approx(
            sum(1 / log2(r + 1) for r in range(1, top + 1)) / candidates
        )
        assert mrr(places, k)[0] == pytest.approx(sum(1 / r for r in range(1, top + 1)) / candidates)


def test_rows_without_positives_and_unlisted_positives_are_zero_not_nan() -> None:
    places = ranks([[], [(0, 0)], [(0, 1), (0, 0)]])
    for values in compute(places, ("recall@5", "ndcg@5", "mrr@5")).values():
        assert np.isfinite(values).all()
        assert values[:2].tolist() == [0, 0]
    assert recall(places, 5)[2] == 1 / 2
    assert expected_rank(places).tolist() == [np.inf, 1, np.inf]


def test_all_positives_beyond_more_candidates_than_k() -> None:
    assert mrr(ranks([[(3, 2), (3, 2)]]), 3).tolist() == [0]
    assert mrr(ranks([[(0, 2), (0, 2)]]), 10) == pytest.approx([1])


@pytest.mark.parametrize("name", ["ndgc@5", "ndcg", "ndcg@0", "ndcg@x", "recall@-1"])
def test_misspelt_metric_is_named(name: str) -> None:
    with pytest.raises(UserError, match="ndcg|recall"):
        parse_metric(name)
