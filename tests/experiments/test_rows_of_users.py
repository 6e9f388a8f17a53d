"""Every command that compares, on a temporal split: rows of one user are no independent evidence."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from lsvcr.baselines.popularity import evaluate_popularity
from lsvcr.data.store import Dataset
from lsvcr.evaluation.protocol import FULL
from lsvcr.evaluation.result import Result, save_rows
from lsvcr.evaluation.significance import paired
from lsvcr.experiments import against, compare_figures
from lsvcr.experiments.compare import compare
from lsvcr.experiments.gain import measure_gain
from lsvcr.experiments.runs import load_run, with_users
from lsvcr.experiments.table import compare_runs, print_table
from lsvcr.schema import Split, Task
from tests.experiments.compare_runs import asked, forget_accelerate, in_process, one_thread
from tests.experiments.fabricated import write_run

NDCG = "ndcg@10"


def results(data: Dataset, task: Task = Task.REC) -> tuple[Result, Result]:
    """Two models between which each user has a taste, the same in all of the rows."""
    popular = evaluate_popularity(data, task, Split.TEST, protocols={"": FULL})[""]
    assert popular.users is not None and popular.count_users() < len(popular.rows)
    rng = np.random.default_rng(1)
    taste = rng.normal(0.1, 0.2, data.n_users + 1)[popular.users]
    first = {name: rng.random(len(popular.rows)) for name in popular.values}
    second = {name: values + taste for name, values in first.items()}
    return replace(popular, values=second), replace(popular, values=first)


def of_an_earlier_version(result: Result) -> Result:
    """Its rows do not say whose they are."""
    return replace(result, users=None)


@pytest.fixture
def runs(several_rows: Dataset, tmp_path: Path) -> tuple[str, str]:
    """Two runs of an earlier version."""
    return tuple(
        str(write_run(tmp_path / name / "Rec", of_an_earlier_version(content)).parent)
        for name, content in zip(("a", "b"), results(several_rows), strict=True)
    )  # type: ignore[return-value]


def test_a_dataset_says_whose_the_rows_of_an_earlier_version_are(
    several_rows: Dataset, tiny_dataset: Dataset
) -> None:
    for task in Task:
        known, _ = results(several_rows, task)
        old = of_an_earlier_version(known)
        assert np.array_equal(with_users(old, several_rows).users, known.users)
        assert with_users(old, tiny_dataset) is old and with_users(known, several_rows) is known


def test_the_table_is_over_users_as_it_says(several_rows: Dataset, runs: tuple[str, str], capsys) -> None:
    report = compare_runs(str(several_rows.root), {"b": runs[1], "a": runs[0]})
    a, b = results(several_rows)
    known = paired(a, b, NDCG)
    found = report["last_minus_previous"]["rec"][NDCG]
    assert (found["interval"], found["users"]) == (list(known.interval), a.count_users())
    over_rows = paired(of_an_earlier_version(a), of_an_earlier_version(b), NDCG)
    assert known.interval != over_rows.interval and known.t_p > over_rows.t_p
    print_table(report)
    assert "95 % interval over users" in capsys.readouterr().out


def test_against_says_what_it_takes_for_independent(
    several_rows: Dataset, runs: tuple[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    a, b = results(several_rows)
    one, other = (f"{run}/Rec" for run in runs)

    def asked_for(left: str, right: str, **fields: str) -> tuple[dict, str]:
        report = against.compare(left, right, against.Question(protocol="full", **fields))
        against.print_comparison(report)
        return report["protocols"]["full"], " ".join(capsys.readouterr().out.split())

    blind, told = asked_for(one, other)
    assert blind["users"] is None and "Each row counts as a user of its own" in told
    over_rows = paired(of_an_earlier_version(a), of_an_earlier_version(b), NDCG)
    assert blind["metrics"][NDCG]["t_p"] == pytest.approx(over_rows.t_p)
    known = paired(a, b, NDCG)
    newer = str(write_run(tmp_path / "newer", a))
    for found, told in (asked_for(one, other, data=str(several_rows.root)), asked_for(newer, other)):
        assert found["users"] == known.users < found["rows"] == known.rows
        assert found["metrics"][NDCG]["t_p"] == pytest.approx(known.t_p)
        assert found["metrics"][NDCG]["interval"] == pytest.approx(known.interval)
        assert f"The {known.rows} rows are of {known.users} users: intervals and tests are over users" in told
    for name, content in (("left", a), ("right", b)):
        write_run(tmp_path / name, replace(content, slices={"cold": a.users == a.users[0]}))
    found, _ = asked_for(str(tmp_path / "left"), str(tmp_path / "right"))
    assert found["slices"]["cold"]["users"] == 1 and found["slices"]["cold"]["metrics"][NDCG]["t_p"] is None


def test_gains_resample_users(several_rows: Dataset) -> None:
    """Equally many rows a user, that are all alike, are worth one row."""
    several, alone = [], []
    for seed in range(2):
        a, b = results(several_rows)
        values = np.random.default_rng(seed).random(20)
        mark = {"slices": {}, "fingerprint": a.fingerprint}
        for repeated, kept in ((3, several), (1, alone)):
            rows = np.arange(20 * repeated)
            content = {NDCG: np.repeat(values, repeated)}
            users = np.repeat(np.arange(20), repeated)
            kept.append(replace(a, rows=rows, values=content, users=users, **mark))
    zeros = [
        [replace(result, values={NDCG: np.zeros(len(result.rows))}) for result in arm]
        for arm in (several, alone)
    ]
    many, few = measure_gain(several, zeros[0], NDCG), measure_gain(alone, zeros[1], NDCG)
    assert (many.rows, many.users, few.rows, few.users) == (60, 20, 20, 20)
    assert many.interval == pytest.approx(few.interval)
    unknown = [of_an_earlier_version(result) for result in alone]
    assert measure_gain(unknown, zeros[1], NDCG) == few


def test_figures_of_a_comparison_are_over_users(several_rows: Dataset) -> None:
    a, b = results(several_rows)
    one_user = a.users == a.users[0]
    a, b = (replace(result, slices={"cold": one_user}) for result in (a, b))
    found = compare_figures.compared({"a": [a, a], "b": [b, b]}, [NDCG], NDCG, "b")["a"]
    known = paired(a, b, NDCG)
    entry = found["metrics"][NDCG]
    assert (entry["rows"], entry["users"]) == (known.rows, known.users)
    assert entry["versus"]["t_p"] == pytest.approx(known.t_p)
    assert entry["versus"]["interval"] == pytest.approx(known.interval)
    assert entry["interval"] == pytest.approx(a.summary()["metrics"][NDCG]["interval"])
    assert found["cold"] is None, "the rows of one user have no interval"


@pytest.mark.parametrize(("task", "model"), [("Rec", "popularity"), ("CommRank", "comment_popularity")])
def test_a_comparison_knows_the_users_of_earlier_runs(
    several_rows: Dataset, tmp_path: Path, task: str, model: str
) -> None:
    settings = asked(tmp_path, model, data=str(several_rows.root), task=task)
    with pytest.MonkeyPatch.context() as patch, one_thread():
        in_process(patch)
        report = compare(settings)
        (row,) = report["rows"]
        run = Path(row["runs"][0])
        save_rows(run / "rows_full.safetensors", of_an_earlier_version(load_run(run)))
        again = compare(settings)
    forget_accelerate()
    entry = row["metrics"][NDCG]
    assert entry["users"] < entry["rows"]
    assert again["rows"][0]["metrics"] == row["metrics"]
    assert "percentile bootstrap over the users" in report["statistics"][0]
