"""Finding finished stage-two runs by folder."""

import numpy as np
import pytest

from lsvcr.experiments.runs import load_run, load_task_runs
from lsvcr.schema import Task
from lsvcr.utils.errors import UserError
from tests.experiments.fabricated import result, write_run


def test_a_run_is_found_by_protocol(tmp_path):
    write_run(tmp_path, result([1.0, 0.0]))
    write_run(tmp_path, result([1.0, 1.0], protocol="sampled"), "sampled")
    assert load_run(tmp_path).mean("ndcg@10") == 1 / 2
    assert load_run(str(tmp_path), "sampled").mean("ndcg@10") == 1
    np.testing.assert_array_equal(load_run(tmp_path).rows, [0, 1])


def test_an_unfinished_run_is_named(tmp_path):
    (tmp_path / "last").mkdir()
    with pytest.raises(
        UserError, match=rf"{tmp_path} holds no finished .* run finetune.py or `lsvcr train` to its end"
    ):
        load_run(tmp_path)


def test_both_tasks_or_the_one_that_is_there(tmp_path):
    write_run(tmp_path / "Rec", result([1.0]))
    assert list(load_task_runs(tmp_path)) == [Task.REC]
    write_run(tmp_path / "CommRank", result([0.5], task="comm_rank"))
    found = load_task_runs(tmp_path)
    assert [found[task].mean("mrr@10") for task in (Task.REC, Task.COMM_RANK)] == [1, 1 / 2]


def test_a_folder_may_be_the_run_itself(tmp_path):
    write_run(tmp_path, result([0.5], task="comm_rank"))
    found = load_task_runs(tmp_path)
    assert list(found) == [Task.COMM_RANK] and found[Task.COMM_RANK].mean("mrr@10") == 1 / 2


def test_a_run_in_the_folder_of_the_other_task_is_refused(tmp_path):
    write_run(tmp_path / "CommRank", result([1.0], task="rec"))
    with pytest.raises(UserError, match="holds a run of Rec, not of CommRank"):
        load_task_runs(tmp_path)


def test_a_folder_without_tasks_is_refused(tmp_path):
    with pytest.raises(UserError, match="no folder Rec or CommRank"):
        load_task_runs(tmp_path)


def test_a_folder_with_an_unfinished_task_is_refused(tmp_path):
    write_run(tmp_path / "Rec", result([1.0]))
    (tmp_path / "CommRank").mkdir()
    with pytest.raises(UserError, match="CommRank holds no finished"):
        load_task_runs(tmp_path)
