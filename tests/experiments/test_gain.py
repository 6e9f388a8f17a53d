"""The gain of one arm over another: means by hand, intervals where the resampled means can be counted."""

from dataclasses import replace

import numpy as np
import pytest

from lsvcr.experiments.gain import measure_gain
from lsvcr.utils.errors import UserError
from tests.experiments.fabricated import result


def test_means_and_gains_by_hand():
    aligned = [result([1.0, 0.5, 0.0, 0.5]), result([1.0, 1.0, 0.0, 0.0])]
    control = [result([0.5, 0.5, 0.0, 0.0]), result([1.0, 0.0, 0.0, 0.0])]
    gain = measure_gain(aligned, control, "ndcg@10")
    assert gain.rows == 4
    assert (gain.aligned, gain.control) == (1 / 2, 1 / 4)
    assert gain.gain == 1 / 4
    assert gain.by_seed == (1 / 4, 1 / 4)
    assert gain.interval[0] < 1 / 4 < gain.interval[1]


def test_the_same_gap_everywhere_leaves_no_doubt():
    gain = measure_gain([result([0.75, 0.5])] * 3, [result([0.5, 0.25])] * 3, "mrr@10")
    assert gain.interval == pytest.approx((0.25, 0.25))


def test_seeds_are_resampled():
    # Every row of seed 1 gains 0, of seed 2 gains 1: a drawn pair of seeds means 0, 1/2 or 1, with 1/4, 1/2, 1/4.
    zero, one = result([0.0] * 5), result([1.0] * 5)
    gain = measure_gain([zero, one], [zero, zero], "ndcg@10")
    assert gain.gain == 1 / 2
    assert gain.by_seed == (0, 1)
    assert gain.interval == pytest.approx((0, 1))


def test_rows_are_resampled():
    # Two rows that gain 0 and 1: again 0, 1/2 or 1.
    gain = measure_gain([result([0.0, 1.0])], [result([0.0, 0.0])], "ndcg@10")
    assert gain.interval == (0, 1)


def test_seed_i_is_compared_with_seed_i():
    # Both arms have the same values in the same order: whatever is drawn, nothing is gained.
    arm = [result([0.0, 1.0]), result([1.0, 0.0])]
    gain = measure_gain(arm, arm, "ndcg@10")
    assert (gain.gain, gain.interval) == (0, (0, 0))


def test_the_interval_narrows_with_rows_and_is_repeatable():
    rng = np.random.default_rng(1)
    widths = []
    for rows in (50, 5000):
        values = rng.random(rows).tolist()
        gain = measure_gain([result(values)], [result([0.5] * rows)], "ndcg@10")
        assert gain == measure_gain([result(values)], [result([0.5] * rows)], "ndcg@10")
        widths.append(gain.interval[1] - gain.interval[0])
    # A hundred times the rows: about a tenth of the width; normal theory gives 4 x 0.289 / sqrt(rows).
    assert widths[0] == pytest.approx(4 * 0.289 / 50**0.5, rel=0.25)
    assert widths[1] == pytest.approx(4 * 0.289 / 5000**0.5, rel=0.25)


def test_a_slice_counts_alone():
    cold = [False, True, True]
    gain = measure_gain([result([0.0, 1.0, 0.5], cold)], [result([1.0, 0.5, 0.0], cold)], "ndcg@10", "cold")
    assert (gain.rows, gain.aligned, gain.control, gain.gain) == (2, 3 / 4, 1 / 4, 1 / 2)


def test_an_empty_slice_is_refused():
    arm = [result([1.0], cold=[False])]
    with pytest.raises(UserError, match="no test row is in the slice cold"):
        measure_gain(arm, arm, "ndcg@10", "cold")


@pytest.mark.parametrize(("aligned", "control"), [(0, 0), (2, 1), (0, 1)])
def test_as_many_seeds_on_both_sides(aligned, control):
    with pytest.raises(UserError, match=f"{aligned} aligned and {control} control runs"):
        measure_gain([result([1.0])] * aligned, [result([1.0])] * control, "ndcg@10")


def test_another_protocol_is_refused():
    with pytest.raises(
        UserError, match="aligned run 1 and control run 1 cannot stand in one table.*data_hash"
    ):
        measure_gain([result([1.0])], [result([1.0], data_hash="other")], "ndcg@10")


def test_other_rows_are_refused():
    other = replace(result([1.0, 0.0]), rows=np.array([0, 2]))
    with pytest.raises(UserError, match="same test rows"):
        measure_gain([result([1.0, 0.0])], [other], "ndcg@10")
