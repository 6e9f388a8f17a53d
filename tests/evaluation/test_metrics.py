"""Metrics against fractions worked by hand, and against all orders of the ties."""

import doctest
from itertools import permutations
from math import log2

import numpy as np
import pytest

from lsvcr.evaluation import lists, metrics
from lsvcr.evaluation.metrics import (
    LARGEST_K,
    METRICS,
    Ranks,
    average_precision,
    compute,
    hit_rate,
    mrr,
    ndcg,
    parse_metric,
    precision,
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
    assert hit_rate(places, 5).tolist() == [1, 1, 1, 0]
    assert precision(places, 5) == pytest.approx([1 / 5, 1 / 5, 1 / 5, 0])
    assert average_precision(places, 5).tolist() == [1, 1 / 2, 1 / 5, 0]


def test_with_one_positive_some_metrics_are_others() -> None:
    """Ranks and ties of every kind: HR is recall, MAP is MRR, precision is recall / K."""
    rng = np.random.default_rng(4)
    places = single(rng.integers(0, 12, 200), rng.integers(0, 9, 200))
    for k in (1, 3, 10, 25):
        assert hit_rate(places, k) == pytest.approx(recall(places, k), abs=1e-12)
        assert average_precision(places, k) == pytest.approx(mrr(places, k), abs=1e-12)
        assert precision(places, k) == pytest.approx(recall(places, k) / k)


def test_several_positives() -> None:
    """Positives at ranks 1, 3 and 7 of one row: recall divides by three, IDCG has min(K, 3) terms."""
    places = ranks([[(0, 1), (2, 1), (6, 1)]])
    assert recall(places, 5) == pytest.approx([2 / 3])
    assert ndcg(places, 5) == pytest.approx([(1 + 1 / log2(4)) / (1 + 1 / log2(3) + 1 / log2(4))])
    assert ndcg(places, 2) == pytest.approx([1 / (1 + 1 / log2(3))])
    assert mrr(places, 5).tolist() == [1]
    assert hit_rate(places, 5).tolist() == [1]
    assert precision(places, 5) == pytest.approx([2 / 5])
    assert average_precision(places, 5) == pytest.approx([(1 / 1 + 2 / 3) / 3])
    assert average_precision(places, 2) == pytest.approx([(1 / 1) / 2])
    assert average_precision(places, 10) == pytest.approx([(1 / 1 + 2 / 3 + 3 / 7) / 3])


def test_positives_at_the_top_give_exactly_one() -> None:
    """Also as many that a rounded sum would miss it, and more of them than K."""
    for positives in (1, 3, 49, 100):
        places = ranks([[(i, 1) for i in range(positives)]])
        for k in (1, 10, 49, 100):
            assert average_precision(places, k).tolist() == [1]
            assert hit_rate(places, k).tolist() == [1]
            assert precision(places, k) == pytest.approx([min(positives, k) / k])


def places_of(scores: list[int], right: list[int]) -> Ranks:
    """Ranks of one row, by definition."""
    return ranks([[(sum(s > scores[i] for s in scores), scores.count(scores[i])) for i in right]])


def mean_over_orders(name: str, k: int, scores: list[int], right: list[int]) -> float:
    """A metric without ties, averaged over all orders of the candidates that their scores allow."""
    falling = sorted(scores, reverse=True)
    metric, _ = parse_metric(f"{name}@{k}")
    orders = [o for o in permutations(range(len(scores))) if [scores[i] for i in o] == falling]
    return float(metric(ranks([[(order.index(i), 1) for i in right] for order in orders]), k).mean())


def test_ties_give_the_mean_over_all_orders() -> None:
    """Two positives on threes and one on the one, and random scores: brute force over the orders."""
    rng = np.random.default_rng(0)
    cases = [([5, 3, 3, 3, 1], [1, 3, 4])]
    for number in range(25):
        scores = rng.integers(0, 1 + number % 4, 6).tolist()
        cases.append((scores, rng.choice(6, 1 + number % 5, replace=False).tolist()))
    for scores, right in cases:
        places = places_of(scores, right)
        for name in METRICS:
            for k in (1, 2, 3, 5, 8):
                metric, _ = parse_metric(f"{name}@{k}")
                expected = mean_over_orders(name, k, scores, right)
                assert metric(places, k)[0] == pytest.approx(expected, abs=1e-12), (name, k, scores, right)


def test_rows_do_not_touch_one_another() -> None:
    """A row's value is the same alone and among others, listed positives or not."""
    rng = np.random.default_rng(1)
    rows = []
    for number in range(40):
        scores = rng.integers(0, 6, 12).tolist()
        own = places_of(scores, rng.choice(12, number % 5, replace=False).tolist())
        rows.append(
            [(int(h), int(t) if rng.random() < 0.8 else 0) for h, t in zip(own.higher, own.tied, strict=True)]
        )
    together = ranks(rows)
    for name in METRICS:
        metric, _ = parse_metric(f"{name}@4")
        alone = [float(metric(ranks([row]), 4)[0]) for row in rows]
        assert metric(together, 4).tolist() == alone, name


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
        assert average_precision(places, k)[0] == pytest.approx(mrr(places, k)[0])
        assert hit_rate(places, k)[0] == pytest.approx(top / candidates)
        assert precision(places, k)[0] == pytest.approx(top / candidates / k)


def test_rows_without_positives_and_unlisted_positives_are_zero_not_nan() -> None:
    places = ranks([[], [(0, 0)], [(0, 1), (0, 0)]])
    for values in compute(places, tuple(f"{name}@5" for name in METRICS)).values():
        assert np.isfinite(values).all()
        assert values[:2].tolist() == [0, 0]
    assert recall(places, 5)[2] == 1 / 2


def test_all_positives_beyond_more_candidates_than_k() -> None:
    assert mrr(ranks([[(3, 2), (3, 2)]]), 3).tolist() == [0]
    assert mrr(ranks([[(0, 2), (0, 2)]]), 10) == pytest.approx([1])


@pytest.mark.parametrize("name", METRICS)
def test_a_k_beyond_all_candidates_costs_no_more_than_they_do(name: str) -> None:
    places = ranks([[(0, 2), (3, 1)], [(1, 4)], [], [(0, 0)], [(6, 1)]])
    for k in (7, 8, LARGEST_K):
        found = compute(places, (f"{name}@{k}",))[f"{name}@{k}"]
        expected = compute(places, (f"{name}@7",))[f"{name}@7"]
        assert np.allclose(found, expected * (7 / k if name == "precision" else 1), rtol=1e-12, atol=0)


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("ndcg@010", "write ndcg@10, without a 0"),
        ("mrr@100000000000", "a K of at most 2,147,483,647"),
        (f"recall@{'9' * 5000}", "a K of at most 2,147,483,647"),
        ("recall@000", "a K of at least 1"),
    ],
)
def test_a_k_has_one_spelling_and_a_bound(name: str, told: str) -> None:
    with pytest.raises(UserError, match=told):
        compute(single([0]), (name,))
    with pytest.raises(UserError, match=told):
        lists.split_metrics(["ndcg@10", name])


@pytest.mark.parametrize("name", ["ndgc@5", "ndcg", "ndcg@0", "ndcg@x", "recall@-1"])
def test_misspelt_metric_is_named(name: str) -> None:
    with pytest.raises(UserError, match="ndcg|recall"):
        parse_metric(name)


@pytest.mark.parametrize("module", [metrics, lists], ids=lambda module: module.__name__)
def test_examples_in_the_text_are_true(module: object) -> None:
    done = doctest.testmod(module)  # type: ignore[arg-type]
    assert done.attempted > 0 and done.failed == 0
