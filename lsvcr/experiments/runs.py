"""Finished runs of stage two and of `lsvcr train`, found by folder: the input of every table and comparison."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from lsvcr.data.people import people_of
from lsvcr.data.store import Dataset
from lsvcr.evaluation.evaluator import CatalogueScorer
from lsvcr.evaluation.result import Result, load_rows
from lsvcr.schema import Split, Task
from lsvcr.training.rank_evaluate import checkpoint_folder
from lsvcr.training.rank_restore import restore
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


def with_users(result: Result, dataset: Dataset) -> Result:
    """A result whose rows say whose they are; as it is, if they do already or it is of another dataset.

    Files of an earlier version do not say it, but the dataset does.
    """
    mark = result.fingerprint
    if result.users is not None or mark.data_hash != dataset.data_hash:
        return result
    users = people_of(dataset, Task(mark.task), Split(mark.split.partition(" ")[0]))
    return replace(result, users=users[result.rows])


def collaborative_scores(
    folder: str | Path, dataset: Dataset, split: Split
) -> Callable[[np.ndarray], np.ndarray]:
    """Scores of the whole catalogue by a run on Rec, of stage two or of `lsvcr train`.

    Returns:
        Sample numbers (B,) of `split` -> (B, N + 1) float32.

    Raises:
        UserError: no checkpoint, or one of another dataset or task.
    """
    setup, _ = restore(checkpoint_folder(str(folder)), dataset)
    if setup.task is not Task.REC:
        raise UserError(f"{folder} ranks comments; give a run on Rec")
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model, data = setup.model.to(device).eval(), setup.data(split)
    with torch.no_grad():
        items = None if isinstance(model, CatalogueScorer) else model.item_vectors().float()

    @torch.no_grad()
    def scores(rows: np.ndarray) -> np.ndarray:
        batch = data.evaluation(rows).to(device)
        found = (
            model.catalogue_scores(batch) if items is None else model.user_vectors(batch).float() @ items.T
        )
        return found.cpu().numpy()

    return scores
