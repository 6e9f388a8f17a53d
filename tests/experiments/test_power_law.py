"""Laws that are known are found, and told honestly where there is none."""

import numpy as np
import pytest

from lsvcr.experiments.power_law import fit_power_law
from lsvcr.utils.errors import UserError

SIZES = [1e3, 1e4, 1e5, 1e6, 1e7]


@pytest.mark.parametrize(("a", "b", "c"), [(2.0, 0.3, 0.5), (0.7, 0.05, 0.0), (30.0, 0.9, 0.1)])
def test_a_law_is_found_again(a: float, b: float, c: float) -> None:
    found = fit_power_law(SIZES, [a * n**-b + c for n in SIZES])
    assert found.b == pytest.approx(b, rel=1e-2)
    assert found.r2 == pytest.approx(1.0, abs=1e-6)
    for n in SIZES:
        assert found.at(n) == pytest.approx(a * n**-b + c, rel=1e-3)


def test_three_sizes_have_no_floor() -> None:
    found = fit_power_law(SIZES[:3], [2 * n**-0.3 + 0.5 for n in SIZES[:3]])
    assert found.c == 0.0 and found.r2 < 1.0
    assert "+" not in found.told() and "3 points" in found.told()


def test_the_fit_is_no_worse_than_any_neighbour() -> None:
    rng = np.random.default_rng(0)
    losses = 3 * np.array(SIZES) ** -0.2 + 0.4 + rng.normal(0, 0.01, 5)
    found = fit_power_law(SIZES, losses)

    def squares(a: float, b: float, c: float) -> float:
        return float(((a * np.array(SIZES) ** -b + c - losses) ** 2).sum())

    own = squares(found.a, found.b, found.c)
    for change in (0.99, 1.01):
        assert own <= squares(found.a * change, found.b, found.c) + 1e-12
        assert own <= squares(found.a, found.b * change, found.c) + 1e-9
        assert own <= squares(found.a, found.b, found.c * change) + 1e-12
    assert 0.9 < found.r2 < 1.0


def test_losses_that_rise_have_no_law() -> None:
    """The best falling law is flat: it explains nothing."""
    found = fit_power_law(SIZES, [0.5, 0.6, 0.7, 0.8, 0.9])
    assert found.r2 == pytest.approx(0.0, abs=1e-6)
    assert found.at(1e3) == pytest.approx(0.7) == pytest.approx(found.at(1e7))


def test_two_sizes_are_too_few() -> None:
    with pytest.raises(UserError, match="3 different sizes or more, not 2"):
        fit_power_law([10, 10, 20], [1, 2, 3])
