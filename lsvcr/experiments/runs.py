"""Finished runs of stage two and of `lsvcr train`, found by folder: the input of every table and comparison."""

from pathlib import Path

from lsvcr.evaluation.result import Result, load_rows
from lsvcr.schema import Task
from lsvcr.training.rank_state import ROWS_FILE
from lsvcr.utils.errors import UserError


def load_run(folder: str | Path, protocol: str = "full") -> Result:
    """Per-row test results of a finished run.

    Args:
        folder: the run's output folder.
        protocol: `full` or `sampled`.

    Raises:
        UserError: the folder holds no finished run.
    """
    rows = Path(folder) / ROWS_FILE.format(name=protocol)
    if not rows.is_file():
        raise UserError(
            f"{folder} holds no finished run ({rows.name} is missing); run finetune.py or `lsvcr train` to its end"
        )
    return load_rows(rows)


def load_task_runs(folder: str | Path, protocol: str = "full") -> dict[Task, Result]:
    """Results of the runs in `folder`/Rec and `folder`/CommRank, or of the run that `folder` is; others are left out.

    Raises:
        UserError: none of them is there, or a folder holds a run of the other task.
    """
    if (Path(folder) / ROWS_FILE.format(name=protocol)).is_file():
        own = load_run(folder, protocol)
        return {Task(own.fingerprint.task): own}
    found = {}
    for task in Task:
        run = Path(folder) / task.label
        if not run.is_dir():
            continue
        found[task] = load_run(run, protocol)
        if found[task].fingerprint.task != task.value:
            raise UserError(
                f"{run} holds a run of {Task(found[task].fingerprint.task).label}, not of {task.label}"
            )
    if not found:
        raise UserError(f"{folder} is no finished run, and has no folder Rec or CommRank with one")
    return found
