"""The table of several models, from fabricated runs on the tiny world."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from lsvcr import cli
from lsvcr.baselines.popularity import evaluate_popularity
from lsvcr.commands.judge import parse_runs
from lsvcr.data.store import open_dataset
from lsvcr.evaluation.protocol import FULL, Protocol
from lsvcr.evaluation.result import Result
from lsvcr.experiments.table import COLUMNS, compare_runs, print_table
from lsvcr.schema import Split, Task
from lsvcr.utils.errors import UserError
from tests.experiments.fabricated import write_run


@pytest.fixture(scope="session")
def popular(tiny_data: Path) -> dict[Task, Result]:
    """Popularity on the tiny world: the rows and the protocol every fabricated run shares."""
    dataset = open_dataset(tiny_data)
    return {
        task: evaluate_popularity(dataset, task, Split.TEST, protocols={"full": FULL})["full"]
        for task in Task
    }


def model(popular: dict[Task, Result], task: Task, value: float, cold: int = 2) -> Result:
    """Every metric of every row is `value`, but 1.0 in the `cold` rows that are the cold ones."""
    rows = len(popular[task].rows)
    column = np.full(rows, value)
    column[:cold] = 1.0
    slices = {"cold": np.arange(rows) < cold} if task is Task.REC else {}
    return replace(popular[task], values=dict.fromkeys(COLUMNS, column), slices=slices)


@pytest.fixture
def two_runs(tmp_path: Path, popular) -> dict[str, str]:
    """`first` is worse than `second` in every row that is not cold; `second` has no CommRank."""
    write_run(tmp_path / "first" / "Rec", model(popular, Task.REC, 0.25))
    write_run(tmp_path / "first" / "CommRank", model(popular, Task.COMM_RANK, 0.5, cold=0))
    write_run(tmp_path / "second" / "Rec", model(popular, Task.REC, 0.75))
    return {"the first": str(tmp_path / "first"), "the second": str(tmp_path / "second")}


def test_figures_and_order(tiny_data, popular, two_runs):
    models = compare_runs(str(tiny_data), two_runs)["models"]
    assert list(models) == ["popularity", "the first", "the second"]
    rows = len(popular[Task.REC].rows)
    for name in COLUMNS:
        assert models["the first"]["rec"][name] == pytest.approx((2 * 1.0 + (rows - 2) * 0.25) / rows)
        assert models["popularity"]["rec"][name] == popular[Task.REC].mean(name)
    assert models["the first"]["rec"]["cold"] == 1.0
    assert models["the first"]["comm_rank"] == dict.fromkeys(COLUMNS, 0.5)
    assert list(models["the second"]) == ["rec"]


def test_what_the_last_row_adds(tiny_data, popular, two_runs):
    gain = compare_runs(str(tiny_data), two_runs)["last_minus_previous"]
    assert (gain["of"], gain["against"]) == ("the second", "the first")
    rows = len(popular[Task.REC].rows)
    ndcg = gain["rec"]["ndcg@10"]
    assert ndcg["difference"] == pytest.approx((rows - 2) / 2 / rows)
    assert ndcg["interval"][0] <= ndcg["difference"] <= ndcg["interval"][1]
    assert ndcg["rows"] == rows
    # Both are perfect in the two cold rows.
    assert (gain["rec"]["cold"]["difference"], gain["rec"]["cold"]["rows"]) == (0, 2)
    assert "comm_rank" not in gain


def test_stored_candidates_instead_of_the_catalogue(tiny_data, tmp_path):
    dataset = open_dataset(tiny_data)
    sampled = evaluate_popularity(dataset, Task.REC, Split.TEST, protocols={"": Protocol("sampled")})[""]
    write_run(tmp_path / "Rec", sampled, "sampled")
    models = compare_runs(str(tiny_data), {"mine": str(tmp_path)}, "sampled")["models"]
    assert models["mine"]["rec"] == models["popularity"]["rec"]
    with pytest.raises(UserError, match="rows_full.safetensors is missing"):
        compare_runs(str(tiny_data), {"mine": str(tmp_path)})


def test_one_run_is_compared_with_nothing(tiny_data, two_runs):
    report = compare_runs(str(tiny_data), {"alone": two_runs["the first"]})
    assert report["last_minus_previous"] == {}
    assert list(report["models"]) == ["popularity", "alone"]


def test_a_run_on_other_data_is_refused(tiny_data, popular, tmp_path):
    content = model(popular, Task.REC, 0.5)
    other = replace(content, fingerprint=replace(content.fingerprint, data_hash="other"))
    write_run(tmp_path / "Rec", other)
    with pytest.raises(UserError, match="popularity and mine cannot stand in one table.*data_hash"):
        compare_runs(str(tiny_data), {"mine": str(tmp_path)})


def test_print_shows_every_model_and_the_gain(tiny_data, two_runs, capsys, monkeypatch):
    # Narrower than the table: lines may break there, but no name and no figure is shortened.
    monkeypatch.setenv("COLUMNS", "60")
    print_table(compare_runs(str(tiny_data), two_runs))
    shown = capsys.readouterr().out
    for part in ("popularity", "the first", "the second", "Recall@10", "NDCG@10", "MRR@10", "cold videos"):
        assert part in shown
    # The missing task is a dash, not a zero.
    assert [line.split()[-3:] for line in shown.splitlines() if "the second" in line][0] == ["-", "-", "-"]
    assert "What 'the second' adds over 'the first'" in shown
    assert "Rec, cold videos: +0.0000" in shown


def test_command_prints_json(tiny_data, two_runs, capsys):
    words = [f"{label}={folder}" for label, folder in two_runs.items()]
    assert cli.main(["table", words[0], "--json", words[1], "--data", str(tiny_data)]) == 0
    assert json.loads(capsys.readouterr().out) == json.loads(
        json.dumps(compare_runs(str(tiny_data), two_runs))
    )


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["ids"], "'ids' does not have the form LABEL=FOLDER"),
        (["=demo/ids"], "does not have the form"),
        (["ids="], "does not have the form"),
        (["ids=a", "ids=b"], "a row 'ids' already: give b another label"),
        (["popularity=a"], "a row 'popularity' already"),
        ([], "at least one LABEL=FOLDER"),
        (["ids=a", "--jsn"], "did you mean --json?"),
    ],
)
def test_malformed_words_are_explained(words, told, capsys):
    assert cli.main(["table", "--data", "nowhere", *words]) == 2
    assert told in capsys.readouterr().err


def test_data_is_needed(capsys):
    assert cli.main(["table", "ids=a"]) == 2
    assert "lsvcr table needs --data" in capsys.readouterr().err


def test_a_label_may_have_blanks_and_a_folder_an_equals_sign():
    assert parse_runs(["both stages = runs/lr=1"]) == {"both stages": "runs/lr=1"}
