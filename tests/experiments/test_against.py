"""One run against another: from stored rows by hand, and by evaluating real ones."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from lsvcr import cli
from lsvcr.evaluation.result import Result, load_rows
from lsvcr.evaluation.significance import paired
from lsvcr.experiments.against import Question, compare, print_comparison
from lsvcr.training.rank import run
from lsvcr.utils.errors import UserError
from tests.experiments.fabricated import result, write_run
from tests.training.rank_runs import settings, write_planted

FULL = Question(protocol="full")


def random_result(seed: int, shift: float = 0.0, **changes: str) -> Result:
    """Two hundred rows, of which fifty are cold; rows are alike between seeds, up to noise and the shift."""
    base = np.random.default_rng(0).random(200)
    values = base + shift + np.random.default_rng(seed).normal(0, 0.02, 200)
    return result(values.tolist(), cold=[i < 50 for i in range(200)], **changes)


@pytest.fixture
def two(tmp_path: Path) -> tuple[str, str]:
    """Run A is better than run B by a hundredth."""
    a = write_run(tmp_path / "a", random_result(1, 0.01))
    return str(a), str(write_run(tmp_path / "b", random_result(2)))


def test_figures_are_those_of_the_paired_tests(two):
    report = compare(*two, FULL)
    assert (report["a"], report["b"], report["source"]) == (*two, "stored")
    assert (report["task"], report["split"], list(report["protocols"])) == ("rec", "test", ["full"])
    a, b = (load_rows(Path(folder) / "rows_full.safetensors") for folder in two)
    found = report["protocols"]["full"]
    for part, figures in ((None, found), ("cold", found["slices"]["cold"])):
        assert figures["rows"] == (200 if part is None else 50)
        assert list(figures["metrics"]) == ["recall@10", "ndcg@10", "mrr@10"]
        for metric, entry in figures["metrics"].items():
            known = paired(a, b, metric, part)
            assert (entry["a"], entry["b"]) == (a.mean(metric, part), b.mean(metric, part))
            assert entry["difference"] == pytest.approx(known.difference)
            assert entry["interval"] == pytest.approx(known.interval)
            assert (entry["bootstrap_p"], entry["rows"]) == (known.bootstrap_p, known.rows)
            assert entry["t_p"] == pytest.approx(known.t_p)
    assert found["metrics"]["ndcg@10"]["interval"][0] > 0 and found["metrics"]["ndcg@10"]["t_p"] < 0.01


def test_a_run_against_itself_differs_in_nothing(two):
    entry = compare(two[0], two[0], FULL)["protocols"]["full"]["metrics"]["ndcg@10"]
    assert (entry["difference"], entry["interval"], entry["bootstrap_p"], entry["t_p"]) == (0, [0, 0], 1, 1)


def test_slices_of_both_and_metrics_of_both(tmp_path, two):
    """A run of an earlier version has fewer slices and may have fewer metrics."""
    rich = random_result(3)
    rich = replace(
        rich,
        values={"map@10": rich.values["mrr@10"], **rich.values},
        slices=rich.slices | {"history_long": np.arange(200) >= 199, "history_short": np.arange(200) < 0},
    )
    newer = str(write_run(tmp_path / "newer", rich))
    assert list(compare(newer, two[0], FULL)["protocols"]["full"]["slices"]) == ["cold"]
    found = compare(newer, newer, FULL)["protocols"]["full"]
    assert list(found["metrics"]) == ["recall@10", "ndcg@10", "mrr@10", "map@10"]
    lone, none = found["slices"]["history_long"], found["slices"]["history_short"]
    assert (lone["rows"], none["rows"]) == (1, 0)
    value = float(rich.values["mrr@10"][199])
    untested = {"interval": None, "bootstrap_p": None, "t_p": None}
    assert lone["metrics"]["mrr@10"] == {"a": value, "b": value, "difference": 0, "rows": 1} | untested
    assert none["metrics"]["mrr@10"] == {"a": None, "b": None, "difference": None, "rows": 0} | untested


def test_only_the_metrics_asked_for(two):
    metrics = compare(*two, replace(FULL, metrics=("mrr@10", "ndcg@10")))["protocols"]["full"]["metrics"]
    assert list(metrics) == ["mrr@10", "ndcg@10"]
    with pytest.raises(UserError, match=r"no stored rows that answer this.*--data"):
        compare(*two, replace(FULL, metrics=("map@10",)))
    with pytest.raises(UserError, match="did you mean ndcg"):
        compare(*two, replace(FULL, metrics=("ndgc@10",)))


def test_figures_of_all_rows_are_compared_without_a_test(tmp_path):
    folders = []
    for number, coverage in enumerate((0.5, 0.25)):
        content = replace(random_result(number), overall={"coverage@10": coverage})
        folders.append(str(write_run(tmp_path / str(number), content)))
    found = compare(*folders, FULL)["protocols"]["full"]
    entry = found["metrics"]["coverage@10"]
    assert (entry["a"], entry["b"], entry["difference"], entry["interval"]) == (0.5, 0.25, 0.25, None)
    assert "coverage@10" not in found["slices"]["cold"]["metrics"]


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"data_hash": "other"}, r"data_hash \('data' against 'other'\)"),
        ({"task": "comm_rank"}, r"task \('rec' against 'comm_rank'\)"),
        ({"candidates": "stored, at most 50"}, r"candidates \('all' against 'stored, at most 50'\)"),
        ({"seen": "filtered"}, r"seen \('kept' against 'filtered'\)"),
    ],
)
def test_other_fingerprints_are_refused_in_words(tmp_path, two, changes, told):
    other = str(write_run(tmp_path / "other", random_result(4, **changes)))
    with pytest.raises(UserError, match=rf"A \(.*\) and B \(.*\) cannot stand in one table.*{told}"):
        compare(two[0], other, FULL)


def test_other_rows_are_refused(tmp_path, two):
    moved = random_result(4)
    other = str(write_run(tmp_path / "other", replace(moved, rows=moved.rows + 1)))
    with pytest.raises(UserError, match="same rows"):
        compare(two[0], other, FULL)


def test_without_rows_and_data_there_is_nothing_to_compare(tmp_path, two):
    with pytest.raises(UserError, match=r"nowhere: no stored rows.*--data"):
        compare(two[0], "nowhere", FULL)
    with pytest.raises(UserError, match="no stored rows"):
        compare(*two, replace(FULL, split="val"))
    # Both protocols are asked for, one is there.
    with pytest.raises(UserError, match="no stored rows"):
        compare(*two, Question())


def test_a_named_dataset_must_be_the_one_that_was_measured(two, tiny_data):
    with pytest.raises(UserError, match="was measured on other data"):
        compare(*two, replace(FULL, data=str(tiny_data)))


def test_the_table_has_every_part_and_every_column(two, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "40")
    print_comparison(compare(*two, FULL))
    lines = capsys.readouterr().out.splitlines()
    heads = next(line for line in lines if "metric" in line)
    for name in ("A", "B", "A - B", "95 % interval", "p, bootstrap", "p, t-test", "rows"):
        assert name in heads
    whole = next(line for line in lines if "all rows" in line).split()
    assert whole[2] == "recall@10" and whole[-1] == "200"
    assert any(line.split()[:2] == ["cold", "recall@10"] for line in lines)
    assert f"A = {two[0]}" in lines and f"B = {two[1]}" in lines


def test_command_prints_the_same_as_json(two, capsys):
    words = ["evaluate", two[0], "--against", two[1], "--protocol", "full"]
    assert cli.main([*words, "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == json.loads(json.dumps(compare(*two, FULL)))
    assert cli.main([*words, "--metrics", "NDCG@10"]) == 0
    shown = capsys.readouterr().out
    assert "ndcg@10" in shown and "mrr@10" not in shown
    assert cli.main(["evaluate", two[0], "--against", two[1], "--split", "val"]) == 2
    assert "--data" in capsys.readouterr().err


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str, str]:
    """A dataset and two short Rec runs on it, which differ in their seed."""
    root = tmp_path_factory.mktemp("real")
    data = write_planted(root / "data")
    for name, seed in (("one", 1), ("two", 2)):
        run(settings(data, root / name, num_train_epochs=1, seed=seed))
    return str(data), str(root / "one"), str(root / "two")


def test_evaluating_both_gives_what_the_stored_rows_give(real):
    data, one, two = real
    stored = compare(one, two, Question(data=data))
    # best/ is the checkpoint whose rows are stored beside it; under its own name it is evaluated.
    evaluated = compare(f"{one}/best", f"{two}/best", Question(data=data))
    assert (stored["source"], evaluated["source"]) == ("stored", "evaluated")
    assert list(stored["protocols"]) == ["full", "sampled"]
    assert stored["protocols"] == evaluated["protocols"]


def test_what_is_not_stored_is_evaluated(real):
    data, one, two = real
    asked = Question(data, "val", "full", ("map@7", "coverage@5", "popularity_bias@5"), filter_seen=True)
    report = compare(one, two, asked)
    found = report["protocols"]["full"]
    assert (report["source"], report["split"]) == ("evaluated", "val")
    assert found["fingerprint"]["seen"] == "filtered"
    assert list(found["metrics"]) == ["map@7", "popularity_bias@5", "coverage@5"]
    assert {"history_short", "comments_poor"} <= set(found["slices"])


def test_the_command_takes_metrics_protocol_and_seen_filter(real, capsys):
    data, one, _ = real
    words = ["evaluate", one, "--data", data, "--metrics", "map@3, Coverage@2", "--filter_seen"]
    assert cli.main([*words, "--json"]) == 0
    protocols = json.loads(capsys.readouterr().out)["protocols"]
    assert list(protocols["full"]["metrics"]) == ["map@3", "coverage@2"]
    assert list(protocols["sampled"]["metrics"]) == ["map@3"]
    assert {p["fingerprint"]["seen"] for p in protocols.values()} == {"filtered"}
    assert cli.main([*words, "--protocol", "full"]) == 0
    shown = capsys.readouterr().out
    assert "history_short" not in shown  # all rows are in it: that line would say nothing new
    assert "MAP@3" in shown and "COVERAGE@2" in shown and "sampled" not in shown
    assert cli.main([*words, "--protocol", "sampled"]) == 2
    assert "coverage@2" in capsys.readouterr().err


def test_videos_cannot_be_filtered_from_comments(real, tmp_path, capsys):
    data, *_ = real
    run(settings(Path(data), tmp_path, finetune_task="CommRank", num_train_epochs=1))
    assert cli.main(["evaluate", str(tmp_path), "--data", data, "--filter_seen"]) == 2
    assert "--filter_seen takes videos out of the race" in capsys.readouterr().err
