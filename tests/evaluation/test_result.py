"""Per-row values on disk, intervals, paired tests."""

import json
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file
from scipy import stats

from lsvcr.evaluation.result import Fingerprint, Result, bootstrap_interval, load_rows, save_rows
from lsvcr.evaluation.significance import paired, paired_all, paired_t_test
from lsvcr.utils.errors import UserError

PRINT = Fingerprint("rec", "test", "full", "all videos", "kept", "expected", "abc")


def result(values: np.ndarray) -> Result:
    rows = np.arange(len(values)) * 2
    return Result(PRINT, rows, {"ndcg@10": values}, {"cold": rows % 4 == 0}, rows_without_positives=3)


def test_rows_survive_the_disk(tmp_path: Path) -> None:
    original = result(np.random.default_rng(0).random(9))
    save_rows(tmp_path / "rows.safetensors", original)
    again = load_rows(tmp_path / "rows.safetensors")
    assert again.fingerprint == PRINT
    assert again.summary() == original.summary()
    assert np.array_equal(again.rows, original.rows)
    more = replace(original, overall={"coverage@10": 1 / 3})
    save_rows(tmp_path / "rows.safetensors", more)
    assert load_rows(tmp_path / "rows.safetensors").overall == {"coverage@10": 1 / 3}


def test_rows_of_an_earlier_version_still_load(tmp_path: Path) -> None:
    """They know nothing of figures of all rows, and of the slices only the cold one."""
    tensors = {
        "rows": np.array([0, 2]),
        "metric/ndcg@10": np.array([0.5, 1.0]),
        "slice/cold": np.array([0, 1], dtype=np.uint8),
    }
    about = {
        "fingerprint": json.dumps(asdict(PRINT)),
        "counts": json.dumps({"rows_without_positives": 3, "positives_not_listed": 0}),
    }
    save_file(tensors, tmp_path / "rows.safetensors", metadata=about)
    old = load_rows(tmp_path / "rows.safetensors")
    assert (old.fingerprint, old.rows_without_positives, old.overall) == (PRINT, 3, {})
    assert (old.mean("ndcg@10"), old.mean("ndcg@10", "cold")) == (0.75, 1)
    assert old.summary()["slices"]["cold"]["rows"] == 1


def test_other_files_are_refused(tmp_path: Path) -> None:
    (tmp_path / "x.safetensors").write_bytes(b"not at all")
    with pytest.raises(UserError, match=r"x\.safetensors"):
        load_rows(tmp_path / "x.safetensors")
    with pytest.raises(UserError):
        load_rows(tmp_path / "absent.safetensors")


def test_interval_covers_the_truth_about_as_often_as_it_says() -> None:
    """Coin flips of known probability; 95 % of the intervals hold it, give or take chance."""
    rng = np.random.default_rng(1)
    table = (rng.random((150, 60)) < 0.3).astype(float)
    low, high = bootstrap_interval(table)
    assert 0.85 <= ((low <= 0.3) & (high >= 0.3)).mean() <= 1.0


@pytest.mark.parametrize("rows", [3, 30, 5000])
@pytest.mark.parametrize("shift", [0.0, 0.05, 0.5])
def test_t_test_agrees_with_scipy(rows: int, shift: float) -> None:
    gap = np.random.default_rng(rows).normal(shift, 1, rows)
    assert paired_t_test(gap) == pytest.approx(stats.ttest_1samp(gap, 0).pvalue, rel=1e-6, abs=1e-12)


def test_paired_sees_a_small_gap_that_single_intervals_hide() -> None:
    rng = np.random.default_rng(2)
    base = rng.random(400)
    better = result(base + 0.01 + rng.normal(0, 0.02, 400))
    comparison = paired(better, result(base), "ndcg@10")
    assert comparison.difference == pytest.approx(0.01, abs=0.005)
    assert 0 < comparison.interval[0] < comparison.interval[1]
    assert comparison.bootstrap_p < 0.01
    assert comparison.t_p < 0.01
    assert paired(better, result(base), "ndcg@10", "cold").rows == 200
    same = paired(better, better, "ndcg@10")
    assert (same.difference, same.bootstrap_p, same.t_p) == (0, 1, 1)


def test_several_metrics_at_once_are_each_alone() -> None:
    rng = np.random.default_rng(3)
    a, b = (
        replace(result(rng.random(60)), values={name: rng.random(60) for name in ("ndcg@10", "map@5")})
        for _ in range(2)
    )
    for together in paired_all(a, b, ("ndcg@10", "map@5")):
        alone = paired(a, b, together.metric)
        assert (together.rows, together.difference, together.t_p) == (60, alone.difference, alone.t_p)
        assert together.interval == pytest.approx(alone.interval)
        assert together.bootstrap_p == alone.bootstrap_p


def test_different_rows_or_protocols_cannot_be_paired() -> None:
    one = result(np.ones(4))
    with pytest.raises(UserError, match="same rows"):
        paired(one, replace(one, rows=one.rows + 1), "ndcg@10")
    with pytest.raises(UserError, match="split"):
        paired(one, replace(one, fingerprint=replace(PRINT, split="val")), "ndcg@10")
