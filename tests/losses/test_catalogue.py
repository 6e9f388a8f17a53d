"""The softmax over a whole catalogue in blocks: the plain value and gradients, without the table of scores."""

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from lsvcr.losses.info_nce import info_nce
from lsvcr.losses.ranking import full_softmax

TAU = 0.07
Result = tuple[Tensor, Tensor, Tensor]


def inputs(rows: int, videos: int, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(rows + videos)
    users, items = torch.randn(rows, 5, generator=generator), torch.randn(videos + 1, 5, generator=generator)
    targets = torch.randint(1, videos + 1, (rows,), generator=generator)
    return users.to(dtype).requires_grad_(), items.to(dtype).requires_grad_(), targets


def with_gradients(loss: Tensor, users: Tensor, items: Tensor) -> Result:
    (loss * 3).backward()
    assert users.grad is not None and items.grad is not None
    return loss.detach(), users.grad, items.grad


def plain(users: Tensor, items: Tensor, targets: Tensor, temperature: float = TAU) -> Result:
    return with_gradients(info_nce(users, items[1:], targets - 1, None, temperature), users, items)


def blocked(users: Tensor, items: Tensor, targets: Tensor, block: int, temperature: float = TAU) -> Result:
    return with_gradients(full_softmax(users, items, targets, temperature, block), users, items)


def compare(found: Result, expected: Result, rtol: float, atol: float) -> None:
    for name, a, b in zip(("loss", "gradient by users", "gradient by items"), found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=rtol, atol=atol, msg=lambda text, n=name: f"{n}: {text}")


@pytest.mark.parametrize("block", [1, 40, 37 * 100, 37 * 101, 1 << 21])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_value_and_gradients_are_those_of_cross_entropy(block: int, dtype: torch.dtype) -> None:
    """One item a block, a last block of one item, exactly one block, and more room than items."""
    exact = dtype == torch.float64
    compare(
        blocked(*inputs(37, 101, dtype), block),
        plain(*inputs(37, 101, dtype)),
        rtol=1e-10 if exact else 2e-5,
        atol=1e-12 if exact else 1e-6,
    )


@pytest.mark.parametrize("block", [4, 13, 1000])
def test_gradients_are_those_of_finite_differences(block: int) -> None:
    users, items, targets = inputs(4, 9, torch.float64)
    assert torch.autograd.gradcheck(lambda a, b: full_softmax(a, b, targets, 0.3, block), (users, items))


def test_nothing_of_the_size_of_the_scores_is_made_and_each_is_computed_twice() -> None:
    """64 x 1,000 scores in blocks of 64 x 30: 34 blocks, each one product forward and three backward."""
    users, items, targets = inputs(64, 1000)

    class Watch(TorchDispatchMode):
        largest, products = 0, 0

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            result = func(*args, **(kwargs or {}))
            if isinstance(result, Tensor):
                self.largest = max(self.largest, result.numel())
            self.products += func in (
                torch.ops.aten.mm.out,
                torch.ops.aten.mm.default,
                torch.ops.aten.addmm_.default,
            )
            return result

    with Watch() as watch:
        full_softmax(users, items, targets, TAU, 64 * 30).backward()
    assert watch.largest == items.numel() < 64 * 1000
    assert watch.products == 4 * 34


def test_padding_is_no_candidate_and_gets_no_gradient() -> None:
    users, items, targets = inputs(3, 6)
    with torch.no_grad():
        items[0] = users[0] * 100  # would win
    found = blocked(users, items, targets, 7)
    users, items, targets = inputs(3, 6)
    compare(found, plain(users, items, targets), rtol=1e-5, atol=1e-6)
    assert torch.equal(found[2][0], torch.zeros(5))


def test_a_vector_of_zeros_scores_zero_as_everywhere() -> None:
    results = []
    for way in (lambda *x: blocked(*x, 5), plain):
        users, items, targets = inputs(4, 6, torch.float64)
        with torch.no_grad():
            items[2] = 0
        results.append(way(users, items, targets))
    compare(results[0], results[1], rtol=1e-10, atol=1e-12)


def test_scores_beyond_the_range_of_the_exponential_function() -> None:
    """Cosines over 0.001 reach 1,000 in single precision; the loss in double precision is the measure."""
    found, exact = inputs(6, 20), inputs(6, 20, torch.float64)
    loss = full_softmax(*found, 0.001, 18)
    assert loss.item() > 100
    assert loss.item() == pytest.approx(plain(*exact, 0.001)[0].item(), rel=1e-5)


def test_half_precision_and_no_rows() -> None:
    users, items, targets = inputs(4, 9)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        halves = full_softmax(users.bfloat16(), items.bfloat16(), targets, TAU, 8)
    assert halves.dtype == torch.float32
    rounded = [x.detach().bfloat16().float() for x in (users, items)]
    torch.testing.assert_close(halves, full_softmax(*rounded, targets, TAU, 8))
    users, items, targets = inputs(0, 9)
    loss, _, by_items = blocked(users, items, targets, 8)
    assert loss.item() == 0 and torch.equal(by_items, torch.zeros_like(items))
