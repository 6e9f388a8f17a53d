"""Losses with sampled negatives: hand-worked numbers, and the whole catalogue's loss as what they estimate."""

import itertools
import math
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from lsvcr.losses.ranking import full_softmax, gbce_beta, sampled_binary, sampled_softmax
from lsvcr.models.rank_loss import SampledLoss

USERS = torch.tensor([[1.0, 0.0], [0.0, 2.0]], dtype=torch.float64)
POSITIVES = torch.tensor([[3.0, 4.0], [0.0, 5.0]], dtype=torch.float64)  # cosines .6 and 1
NEGATIVES = torch.tensor(
    [[0.0, 1.0], [-1.0, 0.0]], dtype=torch.float64
)  # cosines 0, -1 of row 0; 1, 0 of row 1
TAU = 0.5  # scores: own 1.2 and 2; others 0, -2 and 2, 0


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Thousands of tiny products: threads would only wait for one another."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def yes(score: float) -> float:
    """-log sigmoid."""
    return math.log(1 + math.exp(-score))


def no(score: float) -> float:
    """-log(1 - sigmoid)."""
    return math.log(1 + math.exp(score))


def test_softmax_over_target_and_draws() -> None:
    first = math.log((math.exp(1.2) + 1 + math.exp(-2)) / math.exp(1.2))
    second = math.log((math.exp(2) + math.exp(2) + 1) / math.exp(2))
    found = sampled_softmax(USERS, POSITIVES, NEGATIVES, temperature=TAU)
    assert found.item() == pytest.approx((first + second) / 2, rel=1e-12)


def test_softmax_divides_a_draw_by_its_expected_count() -> None:
    """The first draw is expected twice, the second half a time; the target is there once."""
    first = math.log((math.exp(1.2) + 1 / 2 + math.exp(-2) * 2) / math.exp(1.2))
    second = math.log((math.exp(2) + math.exp(2) / 2 + 1 * 2) / math.exp(2))
    counts = torch.tensor([2.0, 0.5]).log()
    found = sampled_softmax(USERS, POSITIVES, NEGATIVES, None, TAU, counts)
    assert found.item() == pytest.approx((first + second) / 2, rel=1e-7)


def test_binary_cross_entropy() -> None:
    first = (yes(1.2) + no(0) + no(-2)) / 3
    second = (yes(2) + no(2) + no(0)) / 3
    found = sampled_binary(USERS, POSITIVES, NEGATIVES, temperature=TAU)
    assert found.item() == pytest.approx((first + second) / 2, rel=1e-12)
    one = sampled_binary(USERS, POSITIVES, NEGATIVES[1:], temperature=TAU)
    assert one.item() == pytest.approx((yes(1.2) + no(-2) + yes(2) + no(0)) / 4, rel=1e-12)


def test_binary_cross_entropy_leaves_out_draws_of_the_target() -> None:
    drop = torch.tensor([[True, False], [True, True]])
    expected = ((yes(1.2) + no(-2)) / 2 + yes(2) / 1) / 2
    found = sampled_binary(USERS, POSITIVES, NEGATIVES, drop, TAU)
    assert found.item() == pytest.approx(expected, rel=1e-12)


def test_gbce_weighs_the_target_by_its_exponent() -> None:
    """2 of 10 negatives at t = .75: beta = 1 - .75 x .8 = .4, and log(sigmoid(s)^.4) = .4 log sigmoid(s)."""
    beta = gbce_beta(2, 11, 0.75)
    assert beta == pytest.approx(0.4)
    first = -(math.log((1 / (1 + math.exp(-1.2))) ** 0.4) - no(0) - no(-2)) / 3
    second = -(math.log((1 / (1 + math.exp(-2))) ** 0.4) - no(2) - no(0)) / 3
    found = sampled_binary(USERS, POSITIVES, NEGATIVES, None, TAU, beta)
    assert found.item() == pytest.approx((first + second) / 2, rel=1e-12)


@pytest.mark.parametrize("k, n", [(1, 3417), (256, 3417), (99, 100)])
@pytest.mark.parametrize("t", [0.0, 0.3, 0.75, 1.0])
def test_gbce_beta_is_the_papers_expression(k: int, n: int, t: float) -> None:
    alpha = k / (n - 1)
    assert gbce_beta(k, n, t) == pytest.approx(alpha * (t * (1 - 1 / alpha) + 1 / alpha), rel=1e-12)
    assert gbce_beta(k, n, 0) == 1
    assert gbce_beta(k, n, 1) == pytest.approx(alpha)


def test_at_the_optimum_gbce_scores_are_calibrated() -> None:
    """What t = 1 promises: of a user who takes item i with probability p_i, sigmoid(s_i) = p_i has no gradient.

    The expectation over target and 2 of 4 negatives, drawn without replacement, is computed in full.
    """
    shares = [0.4, 0.3, 0.15, 0.1, 0.05]
    scores = torch.tensor([math.log(p / (1 - p)) for p in shares], dtype=torch.float64, requires_grad=True)
    beta, loss = gbce_beta(2, 5, 1.0), torch.zeros((), dtype=torch.float64)
    for target, share in enumerate(shares):
        pairs = list(itertools.combinations([i for i in range(5) if i != target], 2))
        for pair in pairs:
            row = -beta * torch.nn.functional.logsigmoid(scores[target])
            row = row - sum(torch.nn.functional.logsigmoid(-scores[i]) for i in pair)
            loss = loss + share / len(pairs) * row
    loss.backward()
    torch.testing.assert_close(scores.grad, torch.zeros(5, dtype=torch.float64))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_binary_losses_stay_exact_at_large_scores(dtype: torch.dtype) -> None:
    """At temperature .001 a wrong score costs 1,000 and a right one nothing; the gradients are neither zero nor NaN."""
    users = torch.tensor([[1.0, 0.0]], dtype=dtype, requires_grad=True)
    away, near = torch.tensor([[-1.0, 0.2]], dtype=dtype), torch.tensor([[1.0, 0.2]], dtype=dtype)
    loss = sampled_binary(users, away, near, temperature=0.001, beta=0.4)
    cosine = 1 / math.sqrt(1.04)
    assert loss.item() == pytest.approx((0.4 * 1000 * cosine + 1000 * cosine) / 2, rel=1e-6)
    loss.backward()
    assert users.grad is not None and users.grad.isfinite().all() and users.grad.abs().sum() > 1
    assert sampled_binary(users, near, away, temperature=0.001, beta=0.4).item() == 0


def test_no_rows() -> None:
    users = USERS[:0].clone().requires_grad_()
    loss = sampled_binary(users, POSITIVES[:0], NEGATIVES)
    loss.backward()
    assert loss.item() == 0


def test_gradients() -> None:
    users, items = (
        torch.randn(3, 4, generator=torch.Generator().manual_seed(s), dtype=torch.float64).requires_grad_()
        for s in (0, 1)
    )
    drop, counts = torch.eye(3, dtype=torch.bool), torch.tensor([0.2, 3.0, 1.0], dtype=torch.float64).log()
    check = torch.autograd.gradcheck
    assert check(lambda a, b: sampled_softmax(a, b, b.flip(0), drop, TAU, counts), (users, items))
    assert check(lambda a, b: sampled_binary(a, b, b.flip(0), drop, TAU, 0.4), (users, items))


# What the samples stand for


def toy() -> tuple[Tensor, Tensor, Tensor]:
    """Vectors of 3 kinds of users and of 6 items (row 0: padding), and how often each kind takes each item, (3, 6)."""
    generator = torch.Generator().manual_seed(5)
    users, items = (torch.randn(n, 4, generator=generator, dtype=torch.float64) for n in (3, 7))
    taken = torch.tensor(
        [[20.0, 3, 2, 1, 1, 1], [12, 9, 1, 1, 3, 2], [14, 1, 1, 1, 1, 8]], dtype=torch.float64
    )
    return users, items, taken / taken.sum(dim=1, keepdim=True)


@pytest.mark.parametrize("shares", [[0.5, 0.2, 0.1, 0.1, 0.05, 0.05], [1 / 6] * 6])
@pytest.mark.parametrize("target", [1, 4])
def test_the_corrected_sum_has_the_catalogues_as_its_expectation(shares: list[float], target: int) -> None:
    """Over all 36 ordered pairs of draws, weighed by their probability: exact, not in the limit."""
    users, items, _ = toy()
    log_probability = torch.tensor([1.0, *shares], dtype=torch.float64).log()
    loss, targets = SampledLoss(None, log_probability), torch.tensor([target])
    user, own = users[:1], items[[target]]
    score = torch.cosine_similarity(user, own).item() / TAU
    expected_sum = 0.0
    for pair in itertools.product(range(1, 7), repeat=2):
        drawn = torch.tensor(pair)
        value = loss(user, own, items[drawn], targets, drawn, TAU).item()
        expected_sum += shares[pair[0] - 1] * shares[pair[1] - 1] * math.exp(value + score)
    whole = full_softmax(user, items, targets, TAU).item()
    assert expected_sum == pytest.approx(math.exp(whole + score), rel=1e-9)


def gradient(loss: Tensor, items: Tensor) -> Tensor:
    return torch.autograd.grad(loss, items)[0]


def whole_gradient(users: Tensor, items: Tensor, taken: Tensor) -> Tensor:
    """Gradient of the expected loss over the whole catalogue, every kind of user being as frequent."""
    parts = [
        taken[kind, video - 1] / 3 * full_softmax(users[[kind]], items, torch.tensor([video]), TAU)
        for kind in range(3)
        for video in range(1, 7)
    ]
    return gradient(torch.stack(parts).sum(), items)


def mean_gradient(sampler: str, corrected: bool, rows: int, draws: int, batches: int) -> Tensor:
    """Mean over random batches of the gradient by the items."""
    users, items, taken = toy()
    items.requires_grad_()
    shares = taken.mean(dim=0) if sampler == "in_batch" else torch.tensor([8.0, 4, 2, 2, 1, 1]).double() / 18
    log_probability = torch.cat([torch.zeros(1, dtype=torch.float64), shares.log()]) if corrected else None
    loss = SampledLoss(None, log_probability, sampler == "in_batch")
    generator, total = torch.Generator().manual_seed(1), torch.zeros_like(items)
    for _ in range(batches):
        kinds = torch.randint(3, (rows,), generator=generator)
        targets = torch.multinomial(taken[kinds], 1, generator=generator).squeeze(1) + 1
        drawn = targets
        if sampler != "in_batch":
            drawn = torch.multinomial(shares, draws, replacement=True, generator=generator) + 1
        total += gradient(loss(users[kinds], items[targets], items[drawn], targets, drawn, TAU), items)
    return total / batches


@pytest.mark.parametrize("sampler", ["in_batch", "skewed"])
def test_the_corrected_gradient_is_the_catalogues_in_expectation(sampler: str) -> None:
    """Without the correction popular items are pushed away too often, and the gradient is another one."""
    users, items, taken = toy()
    expected = whole_gradient(users, items.requires_grad_(), taken)
    corrected, raw = (mean_gradient(sampler, flag, 256, 256, 150) for flag in (True, False))
    off = (corrected - expected).norm() / expected.norm()
    assert off < 0.03
    assert (raw - expected).norm() / expected.norm() > 0.2


def test_the_whole_catalogue_as_draws_is_the_whole_softmax() -> None:
    users, items, _ = toy()
    targets, everything = torch.tensor([2, 6, 1]), torch.arange(1, 7)
    whole = full_softmax(users, items, targets, TAU)
    for log_probability in (None, torch.full((7,), -math.log(6.0), dtype=torch.float64)):
        found = SampledLoss(None, log_probability)(
            users, items[targets], items[everything], targets, everything, TAU
        )
        torch.testing.assert_close(found, whole)


def test_in_batch_rows_with_the_same_target_are_no_negatives_of_each_other() -> None:
    """Rows 0 and 2 share a target; three rows expect each other row's target 2 x its share."""
    users, items, _ = toy()
    targets = torch.tensor([3, 1, 3])
    shares = torch.tensor([1.0, 0.25, 0.05, 0.5, 0.1, 0.05, 0.05], dtype=torch.float64)
    found = SampledLoss(None, shares.log(), in_batch=True)(
        users, items[targets], items[targets], targets, targets, TAU
    )
    scores = torch.exp(torch.cosine_similarity(users[:, None], items[None], dim=-1) / TAU)
    rows = [
        torch.log1p(scores[0, 1] / (2 * 0.25) / scores[0, 3]),
        torch.log1p(2 * scores[1, 3] / (2 * 0.5) / scores[1, 1]),
        torch.log1p(scores[2, 1] / (2 * 0.25) / scores[2, 3]),
    ]
    torch.testing.assert_close(found, torch.stack(rows).mean())


def test_a_batch_of_one_has_no_other_row_to_learn_from() -> None:
    users, items, _ = toy()
    alone, target = users[:1].requires_grad_(), torch.tensor([2])
    loss = SampledLoss(None, torch.zeros(7), in_batch=True)(
        alone, items[target], items[target], target, target, TAU
    )
    loss.backward()
    assert loss.item() == 0 and torch.equal(alone.grad, torch.zeros_like(alone))
