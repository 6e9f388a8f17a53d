"""The statistics of a comparison, on fabricated rows, against scipy and sums by hand."""

import numpy as np
import pytest
from scipy import stats

from lsvcr.evaluation.result import Fingerprint, Result
from lsvcr.evaluation.significance import holm
from lsvcr.experiments.compare_figures import averaged, compared, main_metric
from lsvcr.utils.errors import UserError
from tests.experiments.fabricated import fingerprint

ROWS, METRICS = 400, ("recall@10", "ndcg@10")


def rows(seed: int, shift: float = 0.0, mark: Fingerprint | None = None) -> Result:
    """Values of one seed of a model: what all models find hard is shared, the rest is its own."""
    shared, own = np.random.default_rng(0), np.random.default_rng((1, seed))
    values = {
        name: np.clip(shared.random(ROWS) + shift + 0.2 * own.normal(size=ROWS), 0, 1) for name in METRICS
    }
    return Result(mark or fingerprint(), np.arange(ROWS), values, {"cold": np.arange(ROWS) % 5 == 0})


@pytest.fixture(scope="module")
def results() -> dict[str, list[Result]]:
    """Three models of three seeds: a reference, one much like it, and a better one."""
    return {
        "reference": [rows(seed) for seed in (1, 2, 3)],
        "like": [rows(seed, 0.01) for seed in (4, 5, 6)],
        "better": [rows(seed, 0.06) for seed in (7, 8, 9)],
    }


def test_means_and_spread_are_over_rows_and_seeds(results):
    found = compared(results, METRICS, "ndcg@10", "reference")
    table = np.stack([result.values["ndcg@10"] for result in results["better"]])
    entry = found["better"]["metrics"]["ndcg@10"]
    assert entry["value"] == pytest.approx(table.mean()) and entry["rows"] == ROWS
    assert entry["by_seed"] == pytest.approx(table.mean(axis=1))
    assert entry["spread"] == pytest.approx(stats.tstd(table.mean(axis=1)))
    cold = found["better"]["cold"]
    assert list(cold) == ["ndcg@10"] and cold["ndcg@10"]["rows"] == ROWS // 5
    assert cold["ndcg@10"]["value"] == pytest.approx(table[:, ::5].mean())


def test_the_interval_is_scipys_bootstrap_of_the_seed_averaged_rows(results):
    mean = np.mean([result.values["recall@10"] for result in results["like"]], axis=0)
    expected = stats.bootstrap(
        (mean,), np.mean, n_resamples=5000, method="percentile", rng=1
    ).confidence_interval
    low, high = compared(results, METRICS, "ndcg@10", None)["like"]["metrics"]["recall@10"]["interval"]
    width = expected.high - expected.low
    assert [low, high] == pytest.approx([expected.low, expected.high], abs=0.15 * width)


def test_tests_are_scipys_paired_t_tests_corrected_column_by_column(results):
    found = compared(results, METRICS, "ndcg@10", "reference")
    for metric, every in (("recall@10", 1), ("ndcg@10", 1), ("ndcg@10", 5)):
        expected, tested = [], []
        for name in ("like", "better"):
            a, b = (
                np.mean([result.values[metric][::every] for result in results[who]], axis=0)
                for who in (name, "reference")
            )
            expected.append(stats.ttest_rel(a, b))
            versus = found[name]["metrics" if every == 1 else "cold"][metric]["versus"]
            assert versus["t_p"] == pytest.approx(expected[-1].pvalue, rel=1e-6, abs=1e-12)
            assert versus["difference"] == pytest.approx((a - b).mean())
            tested.append(versus["holm_p"])
        # Holm by its definition: test i is rejected at level p if every test up to its rank is.
        p = np.array([test.pvalue for test in expected])
        by_hand = [max(min(1.0, (p >= q).sum() * q) for q in p if q <= own) for own in p]
        assert tested == pytest.approx(by_hand)
    assert found["reference"]["metrics"]["ndcg@10"]["versus"] is None
    assert found["better"]["metrics"]["ndcg@10"]["versus"]["holm_p"] < 0.05
    low, high = found["better"]["metrics"]["ndcg@10"]["versus"]["interval"]
    assert 0 < low < found["better"]["metrics"]["ndcg@10"]["versus"]["difference"] < high


@pytest.mark.parametrize(
    ("given", "corrected"),
    [
        ([0.01, 0.04, 0.03, 0.005], [0.03, 0.06, 0.06, 0.02]),
        ([0.5, 0.6], [1.0, 1.0]),
        ([0.2], [0.2]),
        ([], []),
        ([0.02, 0.02], [0.04, 0.04]),
    ],
)
def test_holm_by_hand(given, corrected):
    assert holm(given) == pytest.approx(corrected)


def test_holm_keeps_the_share_of_false_alarms():
    rng = np.random.default_rng(3)
    alarms = sum(min(holm(list(rng.random(10)))) < 0.05 for _ in range(2000))
    assert alarms / 2000 == pytest.approx(0.05, abs=0.02)


def test_without_a_baseline_nothing_is_tested(results):
    found = compared(results, METRICS, "ndcg@10", None)
    assert all(entry["versus"] is None for row in found.values() for entry in row["metrics"].values())


def test_one_seed_has_no_spread_and_cold_is_shown_where_it_is_a_part(results):
    alone = {"one": [results["like"][0]]}
    assert compared(alone, METRICS, "ndcg@10", None)["one"]["metrics"]["ndcg@10"]["spread"] is None
    for mask in (np.ones(ROWS, dtype=bool), np.zeros(ROWS, dtype=bool)):
        first = results["like"][0]
        whole = Result(first.fingerprint, first.rows, first.values, {"cold": mask})
        assert compared({"one": [whole]}, METRICS, "ndcg@10", None)["one"]["cold"] is None


def test_different_protocols_and_rows_are_refused(results):
    other = rows(1, mark=fingerprint(candidates="100"))
    with pytest.raises(UserError, match="like and other cannot stand in one table.*candidates"):
        compared({"like": results["like"], "other": [other]}, METRICS, "ndcg@10", None)
    with pytest.raises(UserError, match="seed 1 and seed 2 cannot stand in one table"):
        averaged([results["like"][0], other])
    short = Result(fingerprint(), np.arange(3), {"ndcg@10": np.zeros(3)})
    with pytest.raises(UserError, match="do not cover the same rows"):
        averaged([results["like"][0], short])


@pytest.mark.parametrize(
    "chosen, column",
    [("mrr@10", "mrr@10"), ("ndcg@20", "ndcg@10"), ("recall@50", "recall@10"), ("map@10", "recall@10")],
)
def test_the_column_with_the_test_is_the_metric_that_chose_or_most_like_it(chosen, column):
    assert main_metric(chosen, ["recall@10", "ndcg@10", "mrr@10"]) == column
