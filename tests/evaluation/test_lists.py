"""What is recommended: lists against sorting, and every figure against all orders of the ties."""

from itertools import product
from math import log2

import numpy as np
import pytest
import torch

from lsvcr.evaluation import lists, metrics
from lsvcr.evaluation.lists import Banned, ListTally, best, gini

CPU = torch.device("cpu")
COUNTS = np.array([0, 7, 0, 3, 5, 1, 0])
"""Training interactions of six items, after padding."""


def tally(
    scores: list[list[float]],
    names: list[str],
    counts: np.ndarray = COUNTS,
    targets: list[int] | None = None,
    banned: Banned = None,
    chunk: int = 4,
) -> tuple[dict[str, np.ndarray], dict[str, float]]:
    """Figures of users whose scores (B, N) are given: user vectors are the scores, item vectors one-hot."""
    users = torch.tensor(scores)
    items = torch.cat([torch.full((1, users.shape[1]), 99.0), torch.eye(users.shape[1])])
    right = np.array(targets or [1] * len(users))
    own = ListTally(names, counts, right, CPU)
    own.add(np.arange(len(users)), users, items, banned, chunk)
    return own.finish()


def every_list(row: list[float], k: int) -> list[list[int]]:
    """The lists of K that orders of the ties give, each as often as it comes up, items counted from 1."""
    last = sorted(row, reverse=True)[min(k, len(row)) - 1]
    sure = [i + 1 for i, score in enumerate(row) if score > last]
    tied = [i + 1 for i, score in enumerate(row) if score == last]
    free = min(k, len(row)) - len(sure)
    chosen = {frozenset(c) for c in product(tied, repeat=free) if len(set(c)) == free}
    return [[*sure, *c] for c in chosen]


@pytest.mark.parametrize("k", [1, 2, 4, 6, 9])
def test_every_figure_is_the_mean_over_all_orders_of_the_ties(k: int) -> None:
    """Three rows with ties of several kinds: every combination of their lists, counted by hand."""
    scores = [[3.0, 2.0, 2.0, 2.0, 1.0, 1.0], [1.0, 1.0, 1.0, 1.0, 1.0, 4.0], [6.0, 5.0, 4.0, 3.0, 2.0, 1.0]]
    names = [f"{word}@{k}" for word in lists.LIST_METRICS]
    values, overall = tally(scores, names, targets=[1, 3, 4])
    by_row = [every_list(row, k) for row in scores]
    total, n = COUNTS.sum(), len(COUNTS) - 1
    for row, own in enumerate(by_row):
        arp = np.mean([np.mean(COUNTS[chosen]) for chosen in own])
        novelty = np.mean([np.mean([-log2((COUNTS[i] + 1) / (total + n)) for i in chosen]) for chosen in own])
        assert values[f"arp@{k}"][row] == pytest.approx(arp)
        assert values[f"novelty@{k}"][row] == pytest.approx(novelty)
        # The targets have 7, 3 and 5 interactions.
        assert values[f"popularity_bias@{k}"][row] == pytest.approx(arp / 5)
    worlds = list(product(*by_row))
    covered = np.mean([len({i for chosen in world for i in chosen}) / n for world in worlds])
    assert overall[f"coverage@{k}"] == pytest.approx(covered)
    exposure = np.zeros(n + 1)
    for own in by_row:
        for chosen in own:
            exposure[chosen] += 1 / len(own)
    assert overall[f"gini@{k}"] == pytest.approx(gini(exposure[1:]))


def test_without_ties_by_hand() -> None:
    """Two lists of two: items 1 and 2, items 1 and 3 of six."""
    scores = [[9.0, 8.0, 3.0, 2.0, 1.0, 0.0], [9.0, 3.0, 8.0, 2.0, 1.0, 0.0]]
    values, overall = tally(scores, ["coverage@2", "gini@2", "arp@2", "novelty@2"])
    assert overall["coverage@2"] == 3 / 6
    assert values["arp@2"].tolist() == [(7 + 0) / 2, (7 + 3) / 2]
    # 16 interactions and one more for each of the six.
    assert values["novelty@2"] == pytest.approx(
        [(log2(22 / 8) + log2(22 / 1)) / 2, (log2(22 / 8) + log2(22 / 4)) / 2]
    )
    # Sum over all pairs of |e(i) - e(j)| / (2 N^2 mean) with exposures 2, 1, 1, 0, 0, 0.
    exposure = np.array([2, 1, 1, 0, 0, 0])
    pairs = np.abs(exposure[:, None] - exposure[None, :]).sum()
    assert overall["gini@2"] == pytest.approx(pairs / (2 * 36 * exposure.mean()))


def test_a_constant_scorer_recommends_evenly() -> None:
    rows, n, k = 5, 6, 2
    values, overall = tally([[1.0] * n] * rows, [f"{word}@{k}" for word in lists.LIST_METRICS])
    assert overall["gini@2"] == pytest.approx(0, abs=1e-12)
    assert overall["coverage@2"] == pytest.approx(1 - (1 - k / n) ** rows)
    assert values["arp@2"] == pytest.approx(np.full(rows, COUNTS.sum() / n))


def test_one_list_for_all_covers_k_items_and_is_concentrated() -> None:
    _, overall = tally([[6.0, 5.0, 4.0, 3.0, 2.0, 1.0]] * 50, ["coverage@1", "gini@1"])
    assert overall == {"coverage@1": 1 / 6, "gini@1": pytest.approx(5 / 6)}


def test_a_k_beyond_the_catalogue_is_the_whole_of_it() -> None:
    scores, banned = [[6.0, 6.0, 4.0, 3.0, 3.0, 3.0], [1.0] * 6], (torch.tensor([0, 0]), torch.tensor([1, 4]))
    words, most = lists.LIST_METRICS, metrics.LARGEST_K
    values, overall = tally(scores, [f"{word}@{k}" for word in words for k in (6, 7, most)], banned=banned)
    for k in (7, most):
        for word in lists.PER_ROW:
            assert values[f"{word}@{k}"].tolist() == values[f"{word}@6"].tolist()
        for word in lists.OVERALL:
            assert overall[f"{word}@{k}"] == overall[f"{word}@6"]
    assert overall["coverage@6"] == 1 and values["arp@6"][1] == COUNTS.sum() / 6


def test_what_is_banned_is_not_recommended_and_short_lists_count_as_they_are() -> None:
    """The first row has two candidates left, the second none."""
    rows = torch.tensor([0, 0, 0, 0, *[1] * 6])
    ids = torch.tensor([1, 2, 3, 6, 1, 2, 3, 4, 5, 6])
    values, overall = tally(
        [[6.0, 5.0, 4.0, 3.0, 2.0, 1.0]] * 2, ["arp@3", "novelty@3", "coverage@3"], banned=(rows, ids)
    )
    assert values["arp@3"].tolist() == [(5 + 1) / 2, 0]
    assert values["novelty@3"][1] == 0
    assert overall["coverage@3"] == 2 / 6


def test_targets_without_interactions_leave_the_average_itself() -> None:
    values, _ = tally([[6.0, 5.0, 4.0, 3.0, 2.0, 1.0]], ["arp@3", "popularity_bias@3"], targets=[2])
    assert values["popularity_bias@3"].tolist() == values["arp@3"].tolist() == [10 / 3]


@pytest.mark.parametrize("chunk", [1, 7, 64, 1000])
def test_best_equals_sorting(chunk: int) -> None:
    generator = torch.Generator().manual_seed(0)
    users, items = torch.randn(20, 16, generator=generator), torch.randn(201, 16, generator=generator)
    scores, places = best(users, items, None, 11, chunk)
    exact, order = (users.double() @ items[1:].double().T).float().sort(dim=1, descending=True)
    assert torch.equal(scores, exact[:, :11])
    assert torch.equal(places, order[:, :11] + 1)


def test_more_places_than_items_stay_empty() -> None:
    scores, _ = best(torch.ones(1, 1), torch.tensor([[9.0], [2.0], [1.0]]), None, 4, 10)
    assert scores.tolist() == [[2, 1, -torch.inf, -torch.inf]]


def test_rows_with_ties_are_shared_out_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    scores = np.random.default_rng(0).integers(0, 3, (9, 6)).astype(float).tolist()
    names = [f"{word}@{k}" for word in lists.LIST_METRICS for k in (2, 3)]
    whole = tally(scores, names)
    monkeypatch.setattr(lists, "SCORES_AT_ONCE", 14)  # two rows of seven
    parts = tally(scores, names, chunk=1)
    assert whole[1] == parts[1]
    assert all(np.array_equal(whole[0][name], parts[0][name]) for name in whole[0])
