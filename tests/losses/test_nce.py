"""NCE with a learned temperature: hand-worked numbers, the filter by id, the bounds of the scale."""

import math

import pytest
import torch

from lsvcr.losses.info_nce import info_nce
from lsvcr.losses.nce import (
    LARGEST_SCALE,
    false_negatives,
    learned_scale,
    nce,
    sampled_nce,
    start_log_scale,
)

QUERIES = torch.tensor([[1.0, 0.0], [0.0, 2.0]], dtype=torch.float64)
KEYS = torch.tensor([[3.0, 4.0], [0.0, 5.0], [-1.0, 0.0]], dtype=torch.float64)
# Cosines .6, 0, -1 of the first query, .8, 1, 0 of the second.
LABELS = torch.tensor([0, 1])
LOG_TWO = torch.tensor(math.log(2.0), dtype=torch.float64)  # logits 1.2, 0, -2 and 1.6, 2, 0


def share(own: float, *others: float) -> float:
    """-log of the softmax share of the first."""
    return math.log(sum(math.exp(score) for score in (own, *others)) / math.exp(own))


def test_every_other_key_is_a_negative() -> None:
    expected = (share(1.2, 0, -2) + share(2, 1.6, 0)) / 2
    assert nce(QUERIES, KEYS, LABELS, LOG_TWO).item() == pytest.approx(expected, rel=1e-12)


def test_dropped_keys_count_nothing_and_the_own_one_always_counts() -> None:
    drop = torch.tensor([[True, True, False], [False, True, True]])
    expected = (share(1.2, -2) + share(2, 1.6)) / 2
    assert nce(QUERIES, KEYS, LABELS, LOG_TWO, drop).item() == pytest.approx(expected, rel=1e-12)


def test_a_query_without_negatives_counts_nothing_but_a_row() -> None:
    drop = torch.tensor([[True, True, True], [False, False, False]])
    found = nce(QUERIES, KEYS, LABELS, LOG_TWO, drop)
    assert found.item() == pytest.approx(share(2, 1.6, 0) / 2, rel=1e-12)


def test_negatives_are_corrected_by_their_expected_counts() -> None:
    """Expected 3, 2 and half a time: exp(score) is divided by that, but for the own key."""
    expected = (
        math.log((math.exp(1.2) + 1 / 2 + math.exp(-2) * 2) / math.exp(1.2))
        + math.log((math.exp(1.6) / 3 + math.exp(2) + 1 * 2) / math.exp(2))
    ) / 2
    counts = torch.tensor([3.0, 2.0, 0.5], dtype=torch.float64).log()
    assert nce(QUERIES, KEYS, LABELS, LOG_TWO, None, counts).item() == pytest.approx(expected, rel=1e-12)


def test_value_and_gradients_are_those_of_info_nce_at_that_temperature() -> None:
    generator = torch.Generator().manual_seed(0)
    queries, keys = (torch.randn(n, 4, generator=generator).requires_grad_() for n in (6, 9))
    labels, drop = torch.arange(6) % 4, torch.rand(6, 9, generator=generator) < 0.3
    ours = nce(queries, keys, labels, start_log_scale(0.2), drop)
    theirs = info_nce(queries, keys, labels, drop, temperature=0.2)
    torch.testing.assert_close(ours, theirs)
    for one, other in zip(
        torch.autograd.grad(ours, [queries, keys]), torch.autograd.grad(theirs, [queries, keys]), strict=True
    ):
        torch.testing.assert_close(one, other)


def test_sampled_negatives_are_shared_and_other_targets_are_none() -> None:
    """Against (-1, 0) and (0, 5): cosines -1, 0 of the first query; 0, 1 of the second, which is its target."""
    negatives, drop = KEYS[[2, 1]], torch.tensor([[False, False], [False, True]])
    found = sampled_nce(QUERIES, KEYS[:2], negatives, LOG_TWO, drop)
    assert found.item() == pytest.approx((share(1.2, -2, 0) + share(2, 0)) / 2, rel=1e-12)
    counts = torch.tensor([0.5, 4.0], dtype=torch.float64).log()
    first = math.log((math.exp(1.2) + math.exp(-2) * 2 + 1 / 4) / math.exp(1.2))
    second = math.log((math.exp(2) + 1 * 2) / math.exp(2))
    found = sampled_nce(QUERIES, KEYS[:2], negatives, LOG_TWO, drop, counts)
    assert found.item() == pytest.approx((first + second) / 2, rel=1e-12)


def test_no_query_gives_zero_with_a_gradient() -> None:
    keys, log_scale = KEYS.clone().requires_grad_(), LOG_TWO.clone().requires_grad_()
    loss = nce(QUERIES[:0], keys, LABELS[:0], log_scale)
    loss.backward()
    assert loss.item() == 0 and not keys.grad.any() and log_scale.grad.item() == 0


def test_low_precision_gives_single_precision_scores() -> None:
    loss = nce(QUERIES.bfloat16(), KEYS.bfloat16(), LABELS, LOG_TWO.float())
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx((share(1.2, 0, -2) + share(2, 1.6, 0)) / 2, rel=1e-6)


def test_own_items_and_padding_are_no_negatives() -> None:
    """Keys 7, 0, 3, 7, 9, 2 of rows [3, 9] and [7, 5, 2], the second asked twice."""
    keys = torch.tensor([7, 0, 3, 7, 9, 2])
    found = false_negatives(keys, torch.tensor([[3, 9, 0], [7, 5, 2]]), torch.tensor([1, 0, 1]))
    first = [False, True, True, False, True, False]  # padding, 3 and 9
    second = [True, True, False, True, False, True]  # both 7, padding and 2
    assert found.tolist() == [second, first, second]


def test_filter_equals_plain_loops() -> None:
    generator = torch.Generator().manual_seed(1)
    keys = torch.randint(0, 30, (40,), generator=generator)
    histories = torch.randint(0, 60, (5, 12), generator=generator)
    owners = torch.tensor([0, 0, 1, 3, 4, 2])
    found = false_negatives(keys, histories, owners)
    expected = [
        [int(key) == 0 or int(key) in set(histories[owner].tolist()) for key in keys] for owner in owners
    ]
    assert found.tolist() == expected


def test_filter_without_keys_or_rows() -> None:
    none = torch.zeros(0, dtype=torch.int64)
    assert false_negatives(none, torch.tensor([[1, 2]]), torch.tensor([0, 0])).shape == (2, 0)
    assert false_negatives(torch.tensor([1, 2]), torch.zeros(0, 3, dtype=torch.int64), none).shape == (0, 2)


def test_scale_starts_at_the_temperature_and_stays_within_its_bounds() -> None:
    assert learned_scale(start_log_scale()).item() == pytest.approx(1 / 0.07)
    assert learned_scale(torch.tensor(7.0)).item() == pytest.approx(LARGEST_SCALE)
    assert learned_scale(torch.tensor(-3.0)).item() == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("start", "sign", "moves"),
    [(7.0, 1.0, True), (7.0, -1.0, False), (-3.0, -1.0, True), (-3.0, 1.0, False), (2.0, 1.0, True)],
)
def test_a_bound_lets_the_scale_back_in_but_not_further_out(start: float, sign: float, moves: bool) -> None:
    """Descent lowers the parameter where the gradient is positive."""
    log_scale = torch.tensor(start, requires_grad=True)
    (sign * learned_scale(log_scale)).backward()
    assert log_scale.grad is not None
    assert bool(log_scale.grad != 0) is moves


def test_learning_the_scale_lowers_the_loss() -> None:
    log_scale = torch.tensor(0.0, requires_grad=True)
    first = nce(QUERIES.float(), KEYS.float(), LABELS, log_scale)
    first.backward()
    with torch.no_grad():
        log_scale -= log_scale.grad
    assert log_scale > 0 and nce(QUERIES.float(), KEYS.float(), LABELS, log_scale) < first
