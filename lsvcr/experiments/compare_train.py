"""Trains the models of a comparison, each in a process of its own, as many at a time as are asked for."""

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from functools import partial
from pathlib import Path
from typing import Any

import torch

from lsvcr.data.store import Dataset
from lsvcr.experiments.compare_figures import Row
from lsvcr.experiments.compare_job import Job, JobFailed, end_workers, perform
from lsvcr.experiments.compare_models import models_of
from lsvcr.experiments.compare_recipe import Recipe, job
from lsvcr.experiments.compare_search import trials
from lsvcr.schema import Split
from lsvcr.settings import CompareSettings
from lsvcr.utils.errors import UserError
from lsvcr.utils.logging import duration, get_logger

_LOOK_SECONDS = 0.1
"""How often the command looks whether its threads are done, or whether it was stopped."""

logger = get_logger(__name__)


class Trainer:
    """Settles the rows of a comparison, `settings.jobs` models at a time.

    Each row and each seed waits in a thread of its own for one of the places. What a model is does not depend on how
    many train beside it, but its time does.

    Args:
        dataset: open.
        settings: of the command.
    """

    def __init__(self, dataset: Dataset, settings: CompareSettings) -> None:
        self._dataset, self._settings = dataset, settings
        self._places = threading.BoundedSemaphore(settings.jobs)
        self._stopped = threading.Event()
        self._threads = max(1, torch.get_num_threads() // settings.jobs) if settings.jobs > 1 else 0

    def rows(self, recipes: Sequence[Recipe]) -> list[Row]:
        """Every row, in the order of `recipes`.

        Raises:
            KeyboardInterrupt: after the processes have been told to end.
        """
        return self._at_once([partial(self._settle, own) for own in recipes])

    def _settle(self, own: Recipe) -> Row:
        """Search a row's settings and train it with every seed; a model that fails becomes a row that says why."""
        row = Row(own)
        member = own.member
        tell = _teller(member.name)
        try:
            chosen = self._search(row, tell)
            jobs = [
                job(own, chosen, self._dataset, self._settings, place)
                for place in range(models_of(member, self._settings))
            ]
            self._train(row, jobs, tell)
        except (JobFailed, UserError) as failed:
            row.why = str(failed)
            if not self._stopped.is_set():
                logs = Path(self._settings.out) / "logs"
                logger.warning(f"{member.name} failed: {row.why} (see {logs}); the others go on")
        else:
            row.jobs, row.chosen = jobs, chosen
        return row

    def _train(self, row: Row, jobs: Sequence[Job], tell: Callable[[str], None]) -> None:
        member, seed = row.member, self._settings.seed
        labels = [
            f"{member.name}, seed {seed + place}" if member.seeded else member.name
            for place in range(len(jobs))
        ]
        self._at_once(
            [partial(self._perform, each, label, tell) for each, label in zip(jobs, labels, strict=True)]
        )

    def _search(self, row: Row, tell: Callable[[str], None]) -> Mapping[str, Any]:
        """The best settings on validation, with the first seed; every trial is noted in the row."""
        settings = self._settings
        tried = trials(row.recipe, settings.trials if row.recipe.search else 1, settings.seed)
        if len(tried) == 1:
            return tried[0]
        for number, values in enumerate(tried, start=1):
            each = job(row.recipe, values, self._dataset, settings)
            shown = ", ".join(f"{name} {value}" for name, value in values.items())
            note: dict[str, Any] = {"settings": values, "value": None, "why": "", "folder": str(each.folder)}
            row.trials.append(note)
            try:
                self._perform(each, f"{row.member.name}, trial {number} of {len(tried)}", tell, shown)
            except JobFailed as failed:
                note["why"] = str(failed)
                logger.warning(f"{row.member.name}, trial {number} failed: {failed}")
                continue
            note["value"] = each.validation().mean(settings.metric)
        found = [note for note in row.trials if note["value"] is not None]
        if not found:
            raise JobFailed(f"all {len(tried)} trials failed, the last one so: {row.trials[-1]['why']}")
        best: Mapping[str, Any] = max(found, key=lambda note: note["value"])["settings"]
        return best

    def _perform(self, each: Job, label: str, tell: Callable[[str], None], details: str = "") -> None:
        """Train a model unless that is done, when there is a place for it, and say what came of it."""
        if each.finished:
            time_taken = "done before"
        else:
            with self._places:
                if self._stopped.is_set():
                    raise JobFailed("stopped before it began")
                doing = "going on" if each.run.is_dir() else each.doing
                logger.info(f"{label}: {doing}{details and f', {details}'}")
                started = time.monotonic()
                perform(each, tell, self._threads)
            time_taken = f"in {duration(time.monotonic() - started)}"
        found = each.validation()
        rows = found.fingerprint.split.replace(Split.VAL.value, "validation", 1)  # says so where not all
        logger.info(f"{label}: {rows} {each.metric} {found.mean(each.metric):.4f}, {time_taken}")

    def _at_once(self, steps: Sequence[Callable[[], Any]]) -> list[Any]:
        """What `steps` return, each called in a thread of its own; the first error of theirs, after the last step.

        With one place they are called in their order, without a thread.
        """
        if self._settings.jobs == 1:
            return [step() for step in steps]
        with ThreadPoolExecutor(max(1, len(steps))) as pool:
            waiting: list[Future[Any]] = [pool.submit(step) for step in steps]
            try:
                # By turns: a signal that another thread receives does not wake this one.
                while wait(waiting, timeout=_LOOK_SECONDS).not_done:
                    pass
            except KeyboardInterrupt:
                self._stopped.set()
                # Again and again: a thread may be about to start a process.
                while wait(waiting, timeout=_LOOK_SECONDS).not_done:
                    end_workers()
                raise
        return [each.result() for each in waiting]


def _teller(name: str) -> Callable[[str], None]:
    return lambda line: logger.info(f"  {name}: {line}")
