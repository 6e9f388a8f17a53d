"""Figures of click models by hand, and against counting every pair."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lsvcr.evaluation.clicks import auc, grouped_auc, log_loss

ROWS = st.lists(st.tuples(st.integers(0, 3), st.integers(-3, 3), st.integers(0, 1)), max_size=40)


def pairs(rows: list[tuple[float, int]]) -> float | None:
    """The share of pairs that are won, one after the other."""
    clicks, passes = ([s for s, label in rows if label == wanted] for wanted in (1, 0))
    won = [1.0 if c > p else 0.5 if c == p else 0.0 for c in clicks for p in passes]
    return sum(won) / len(won) if won else None


def test_auc_by_hand() -> None:
    """Clicks at 3, 2, 1 and passes at 2, 0: won 2 of 2, half and one of 2, one of 2."""
    assert auc(np.array([3, 2, 0, 2, 1.0]), np.array([1, 1, 0, 0, 1])) == 4.5 / 6
    assert auc(np.array([1.0, 2.0]), np.array([0, 1])) == 1.0
    assert auc(np.array([2.0, 1.0]), np.array([0, 1])) == 0.0
    assert auc(np.full(10, 0.3), np.arange(10) % 2) == 0.5


def test_one_class_has_no_auc() -> None:
    assert auc(np.array([1.0, 2.0]), np.array([1, 1])) is None
    assert auc(np.zeros(0), np.zeros(0)) is None
    assert grouped_auc(np.zeros(0), np.zeros(0), np.zeros(0, dtype=np.int64)) == (None, 0, 0)


def test_grouped_auc_by_hand() -> None:
    """User 1: 2 of 2 pairs over 3 rows; user 2: 0 of 1 over 2 rows; user 3 has clicks alone."""
    users = np.array([2, 1, 1, 3, 2, 1])
    scores = np.array([0.9, 0.1, 0.2, 0.5, 0.3, 0.4])
    labels = np.array([0, 0, 1, 1, 1, 1])
    found = grouped_auc(scores, labels, users)
    assert found == ((1.0 * 3 + 0.0 * 2) / 5, 2, 1)


def test_scores_of_users_are_never_compared_with_each_other() -> None:
    """A user's own bias changes the AUC and not the grouped one."""
    users = np.repeat([0, 1], 4)
    labels = np.array([0, 1, 0, 1, 0, 1, 1, 1])
    scores = np.array([1, 2, 3, 4, 1, 2, 3, 4.0])
    moved = scores + 100.0 * users
    assert grouped_auc(scores, labels, users) == grouped_auc(moved, labels, users)
    assert auc(scores, labels) != auc(moved, labels)


@settings(max_examples=200, deadline=None)
@given(ROWS)
def test_as_counting_every_pair(rows: list[tuple[int, int, int]]) -> None:
    """Scores of seven values over forty rows: ties everywhere."""
    users, scores, labels = (np.array([row[i] for row in rows], dtype=np.int64) for i in range(3))
    plain = pairs([(score, label) for _, score, label in rows])
    assert auc(scores.astype(float), labels) == (None if plain is None else pytest.approx(plain, abs=1e-12))
    own = {u: pairs([row[1:] for row in rows if row[0] == u]) for u in set(users.tolist())}
    sizes = {u: int((users == u).sum()) for u, value in own.items() if value is not None}
    found = grouped_auc(scores, labels, users)
    assert (found.users, found.left_out) == (len(sizes), len(own) - len(sizes))
    if sizes:
        wanted = sum(own[u] * size for u, size in sizes.items()) / sum(sizes.values())
        assert found.value == pytest.approx(wanted, abs=1e-12)


def test_the_order_of_rows_changes_no_digit() -> None:
    rng = np.random.default_rng(1)
    users, labels = rng.integers(0, 9, 500), rng.integers(0, 2, 500)
    scores = rng.normal(size=500).round(1)
    shuffled = rng.permutation(500)
    one = grouped_auc(scores, labels, users)
    assert one == grouped_auc(scores[shuffled], labels[shuffled], users[shuffled])
    assert auc(scores, labels) == auc(scores[shuffled], labels[shuffled])


def test_torchmetrics_agrees() -> None:
    torch = pytest.importorskip("torch")
    functional = pytest.importorskip("torchmetrics.functional.classification")
    rng = np.random.default_rng(2)
    scores, labels = rng.normal(size=300).round(1), rng.integers(0, 2, 300)
    theirs = functional.binary_auroc(torch.from_numpy(scores).sigmoid(), torch.from_numpy(labels))
    assert auc(scores, labels) == pytest.approx(float(theirs), abs=1e-6)


def test_log_loss_by_hand() -> None:
    """Probabilities 1/2 and 3/4: a pass and a click, a click and a pass."""
    three = np.log(3.0)
    assert log_loss(np.array([0.0, three]), np.array([0, 1])) == pytest.approx(
        (np.log(2) + np.log(4 / 3)) / 2
    )
    assert log_loss(np.array([0.0, three]), np.array([1, 0])) == pytest.approx((np.log(2) + np.log(4)) / 2)
    assert log_loss(np.array([1000.0, -1000.0]), np.array([1, 0])) == 0.0
    assert log_loss(np.array([-1000.0]), np.array([1])) == 1000.0
    assert log_loss(np.zeros(0), np.zeros(0)) is None
