"""The softmax of inner products against torch's own, value and gradients, however it is cut."""

import pytest
import torch
import torch.nn.functional as F

from lsvcr.losses import linear
from lsvcr.losses.linear import linear_cross_entropy
from lsvcr.losses.scores import binary_of_scores, softmax_of_scores


def case(rows: int = 70, items: int = 50) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    made = torch.Generator().manual_seed(0)
    users = torch.randn(rows, 8, generator=made, dtype=torch.float64, requires_grad=True)
    table = torch.randn(items + 1, 8, generator=made, dtype=torch.float64, requires_grad=True)
    return users, table, torch.randint(1, items + 1, (rows,), generator=made)


@pytest.mark.parametrize("max_logits", [None, 50 * 70, 50 * 33, 50 * 3, 1])
def test_value_and_gradients_are_those_of_the_plain_loss(max_logits: int | None) -> None:
    """From one block to single rows; the smallest are handed to the blocks of items."""
    users, table, targets = case()
    plain = 3 * F.cross_entropy(users @ table[1:].T, targets - 1)
    wanted = torch.autograd.grad(plain, (users, table))
    made = 3 * linear_cross_entropy(users, table, targets, max_logits)
    found = torch.autograd.grad(made, (users, table))
    torch.testing.assert_close(made, plain)
    for one, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(one, other)
    assert not found[1][0].any()  # padding is no candidate


def test_few_rows_of_a_large_catalogue_stay_in_one_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    users, table, targets = case(rows=20)
    monkeypatch.setattr(linear, "catalogue_cross_entropy", None)
    plain = F.cross_entropy(users @ table[1:].T, targets - 1)
    torch.testing.assert_close(linear_cross_entropy(users, table, targets, 50), plain)


def test_no_rows_give_nothing_and_no_gradient_is_made_where_none_is_wanted() -> None:
    users, table, targets = case()
    none = linear_cross_entropy(users[:0], table, targets[:0])
    none.backward()
    assert float(none.detach()) == 0 and not table.grad.any()
    with torch.no_grad():
        plain = F.cross_entropy(users @ table[1:].T, targets - 1)
        torch.testing.assert_close(linear_cross_entropy(users, table, targets), plain)


def test_under_autocast_logits_stay_in_single_precision() -> None:
    users, table, targets = (x.float() if x.is_floating_point() else x for x in case())
    plain = F.cross_entropy(users @ table[1:].T, targets - 1)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        made = linear_cross_entropy(users, table, targets)
    torch.testing.assert_close(made, plain, rtol=1e-6, atol=0)


def test_losses_of_scores_by_hand() -> None:
    """A target of score ln 3 against scores ln 1 and ln 2, then with the latter dropped."""
    own, others = torch.tensor([3.0]).log(), torch.tensor([[1.0, 2.0]]).log()
    last = torch.tensor([[False, True]])
    assert float(softmax_of_scores(own, others).exp()) == pytest.approx(6 / 3)
    assert float(softmax_of_scores(own, others, last).exp()) == pytest.approx(4 / 3)
    # sigmoid(ln x) = x / (1 + x)
    assert float((-3 * binary_of_scores(own, others)).exp()) == pytest.approx(3 / 4 * 1 / 2 * 1 / 3)
    assert float((-2 * binary_of_scores(own, others, last)).exp()) == pytest.approx(3 / 4 * 1 / 2)
    weighted = binary_of_scores(own, others, beta=0.5)
    assert float((-3 * weighted).exp()) == pytest.approx((3 / 4) ** 0.5 * 1 / 2 * 1 / 3)
    nothing = binary_of_scores(own[:0], others[:0])
    assert float(nothing) == 0
