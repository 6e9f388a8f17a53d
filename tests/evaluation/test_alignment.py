"""CKA and uniformity: known cases and the formulas written out."""

import math

import pytest
import torch

from lsvcr.evaluation.alignment import linear_cka, uniformity
from lsvcr.nn.similarity import unit


def random(rows: int, width: int, seed: int) -> torch.Tensor:
    return torch.randn(rows, width, generator=torch.Generator().manual_seed(seed))


def test_cka_ignores_rotation_scale_and_shift() -> None:
    x = random(40, 6, 1)
    turned = 3.0 * x @ torch.linalg.qr(random(6, 6, 2))[0] + 5.0
    assert linear_cka(x, turned) == pytest.approx(1.0)
    assert linear_cka(x, x * torch.arange(1, 7)) < 0.99  # one scale for all, not one each


def test_cka_is_the_normalised_hsic() -> None:
    x, y = random(30, 4, 3), random(30, 7, 4)
    centre = torch.eye(30) - 1 / 30
    kernels = [centre @ (side @ side.T) @ centre for side in (x, y)]

    def hsic(a: torch.Tensor, b: torch.Tensor) -> float:
        return float((a * b).sum())

    expected = hsic(*kernels) / math.sqrt(hsic(kernels[0], kernels[0]) * hsic(kernels[1], kernels[1]))
    assert linear_cka(x, y) == pytest.approx(expected, rel=1e-4)
    assert linear_cka(random(5000, 4, 5), random(5000, 7, 6)) < 0.01


def test_cka_of_vectors_that_are_all_the_same_is_zero() -> None:
    assert linear_cka(torch.ones(5, 3), random(5, 3, 7)) == 0.0


def test_uniformity_by_hand() -> None:
    assert uniformity(torch.tensor([[1.0, 0.0], [1.0, 0.0], [1.0, 0.0]])) == 0.0
    # Opposite vectors are at distance 2, crossed ones at the root of 2.
    cross = torch.tensor([[1.0, 0.0], [-1.0, 0.0], [0.0, 1.0]])
    assert uniformity(cross) == pytest.approx(math.log((math.exp(-8) + 2 * math.exp(-4)) / 3), rel=1e-5)
    spread = uniformity(unit(random(500, 64, 8)))
    assert spread == pytest.approx(-4, abs=0.2) and spread < uniformity(unit(random(500, 64, 8) + 1))
