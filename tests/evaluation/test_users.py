"""Intervals and tests where users have several rows: by hand, as ever with one row a user, and honest with five."""

import json
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from scipy import stats

from lsvcr.baselines.popularity import evaluate_popularity
from lsvcr.data.store import Dataset
from lsvcr.evaluation.result import (
    RESAMPLES,
    Fingerprint,
    Result,
    bootstrap_interval,
    bootstrap_means,
    load_rows,
    save_rows,
)
from lsvcr.evaluation.significance import paired, paired_t_test
from lsvcr.schema import Split, Task
from lsvcr.utils.errors import UserError

PRINT = Fingerprint("rec", "test", "full", "all videos", "kept", "expected", "abc")
NDCG = "ndcg@10"


def result(values: np.ndarray, users: np.ndarray | None = None) -> Result:
    rows = np.arange(len(values))
    return Result(PRINT, rows, {NDCG: values}, {"cold": rows % 3 == 0}, users=users)


def row_means(table: np.ndarray) -> np.ndarray:
    """The bootstrap over rows, as it was before rows had users."""
    rng = np.random.default_rng((2024, len(table)))
    means = np.empty((RESAMPLES, table.shape[1]))
    for number in range(RESAMPLES):
        counts = np.bincount(rng.integers(0, len(table), len(table)), minlength=len(table))
        means[number] = counts @ table
    return means / len(table)


@pytest.mark.parametrize("users", [None, np.arange(50), np.random.default_rng(1).permutation(50)])
def test_one_row_a_user_gives_what_rows_gave_to_the_last_digit(users: np.ndarray | None) -> None:
    rng = np.random.default_rng(0)
    table = rng.random((50, 3))
    assert np.array_equal(bootstrap_means(table, users), row_means(table))
    gap = rng.normal(0.1, 1, 50)
    plain = gap.mean() / (gap.std(ddof=1) / np.sqrt(50))
    assert paired_t_test(gap, users) == pytest.approx(2 * stats.t.sf(abs(plain), 49), rel=1e-9)
    a, b = table[:, 0], table[:, 1]
    for part in (None, "cold"):
        told = paired(result(a, users), result(b, users), NDCG, part)
        assert told == paired(result(a), result(b), NDCG, part)
    assert result(a, users).summary()["metrics"] == result(a).summary()["metrics"]


def test_equally_many_rows_a_user_are_as_good_as_their_mean() -> None:
    """Whatever order the rows have."""
    rng = np.random.default_rng(2)
    of_users = rng.normal(0.2, 1, (40, 4))
    order = rng.permutation(160)
    gap, users = of_users.reshape(-1)[order], np.repeat(np.arange(40) * 7, 4)[order]
    assert bootstrap_means(gap[:, None], users) == pytest.approx(row_means(of_users.mean(axis=1)[:, None]))
    expected = stats.ttest_1samp(of_users.mean(axis=1), 0).pvalue
    assert paired_t_test(gap, users) == pytest.approx(expected, rel=1e-9)
    found = paired(result(gap, users), result(np.zeros(160), users), NDCG)
    assert (found.rows, found.users, found.t_p) == (160, 40, pytest.approx(expected, rel=1e-9))


def test_a_drawn_user_comes_with_all_rows() -> None:
    """Unequal users: the mean is over rows, and the sums that make up its error are of users."""
    users = np.array([5, 5, 5, 9, 2, 2])
    values = np.array([1.0, 0.0, 1.0, 0.0, 1.0, 1.0])
    sums, sizes = {5: 2.0, 9: 0.0, 2: 2.0}, {5: 3, 9: 1, 2: 2}
    possible = {
        (sums[a] + sums[b] + sums[c]) / (sizes[a] + sizes[b] + sizes[c])
        for a in sums
        for b in sums
        for c in sums
    }
    means = bootstrap_means(values[:, None], users)[:, 0]
    assert set(means.round(12)) == {round(mean, 12) for mean in possible}
    rest = [sums[user] - sizes[user] * values.mean() for user in sums]
    error = np.sqrt(3 / 2 * np.square(rest).sum()) / 6
    expected = 2 * stats.t.sf(values.mean() / error, 2)
    assert paired_t_test(values, users) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("rows", [1, 5])
def test_false_alarms_are_as_rare_as_promised(rows: int) -> None:
    """Two models that are equal on average, though every user has a taste for one of them."""
    rng, users = np.random.default_rng(0), np.repeat(np.arange(100), rows)
    alarms = {"t-test": 0, "interval": 0, "t-test of rows": 0}
    for _ in range(400):
        gap = rng.normal(0, 0.2, 100)[users] + rng.normal(0, 0.3, len(users))
        alarms["t-test"] += paired_t_test(gap, users) < 0.05
        low, high = np.quantile(bootstrap_means(gap[:, None], users, resamples=300), [0.025, 0.975])
        alarms["interval"] += low > 0 or high < 0
        alarms["t-test of rows"] += paired_t_test(gap) < 0.05
    shares = {name: count / 400 for name, count in alarms.items()}
    assert 0.02 < shares["t-test"] < 0.08 and 0.02 < shares["interval"] < 0.09, shares
    assert (shares["t-test of rows"] > 0.15) == (rows == 5), shares


def test_rows_of_one_user_say_nothing_of_others() -> None:
    one = result(np.arange(6.0), np.full(6, 3))
    with pytest.raises(UserError, match="6 rows of 1 users are too few"):
        paired(one, one, NDCG)
    # Whose the rows are is known if either file says it.
    with pytest.raises(UserError, match="2 rows of 1 users are too few"):
        paired(replace(one, users=None), one, NDCG, "cold")


def test_users_survive_the_disk_and_an_earlier_version_has_none(tmp_path: Path) -> None:
    file = tmp_path / "rows.safetensors"
    own = result(np.arange(6.0), np.array([1, 1, 4, 4, 4, 9]))
    save_rows(file, own)
    again = load_rows(file)
    assert again.users is not None and again.users.tolist() == [1, 1, 4, 4, 4, 9]
    summary = again.summary()
    assert (summary["rows"], summary["users"], summary["slices"]["cold"]["users"]) == (6, 3, 2)
    tensors = {name: array for name, array in load_file(file).items() if name != "users"}
    about = {
        "fingerprint": json.dumps(asdict(PRINT)),
        "counts": json.dumps({"rows_without_positives": 0, "positives_not_listed": 0}),
    }
    save_file(tensors, file, metadata=about)
    old = load_rows(file)
    assert old.users is None and old.summary()["users"] is None and old.count_users() == 6
    assert old.summary()["metrics"] == result(np.arange(6.0)).summary()["metrics"]


@pytest.mark.parametrize("task", list(Task))
def test_the_evaluator_tells_whose_the_rows_are(
    several_rows: Dataset, tiny_dataset: Dataset, task: Task
) -> None:
    found = evaluate_popularity(several_rows, task, Split.TEST)["full"]
    samples = several_rows.samples(task, Split.TEST)
    assert found.users is not None and np.array_equal(found.users, samples.user[found.rows])
    assert found.summary()["users"] == len(np.unique(found.users)) < len(found.rows)
    over_rows = bootstrap_interval(np.stack(list(found.values.values()), axis=1))[0]
    over_users = [entry["interval"][0] for entry in found.summary()["metrics"].values()]
    assert over_rows.tolist() != over_users
    # Under leave-last, for comments too, a user has one.
    last = evaluate_popularity(tiny_dataset, task, Split.TEST)["full"]
    assert last.users is not None and last.count_users() == len(last.rows)
