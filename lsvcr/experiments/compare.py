"""`lsvcr compare`: many models, one protocol, one budget; what is not trained yet is trained, then set side by side."""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from lsvcr.data.store import open_dataset
from lsvcr.evaluation.metrics import DEFAULT_METRICS, parse_metric
from lsvcr.experiments.compare_figures import columns, report_of
from lsvcr.experiments.compare_models import check_samples, choose
from lsvcr.experiments.compare_page import comparison_page
from lsvcr.experiments.compare_recipe import recipe
from lsvcr.experiments.compare_speed import answer_times
from lsvcr.experiments.compare_text import markdown
from lsvcr.experiments.compare_train import Trainer
from lsvcr.schema import Task
from lsvcr.settings import CompareSettings
from lsvcr.utils.errors import UserError
from lsvcr.utils.io import atomic_file, write_json
from lsvcr.utils.logging import get_logger

REPORT_FILE = "compare.json"
MARKDOWN_FILE, PAGE_FILE = "compare.md", "compare.html"
_LOCK_FILE = ".lock"

logger = get_logger(__name__)


def compare(settings: CompareSettings) -> dict[str, Any]:
    """Train what is missing and write `compare.json`, `compare.md` and `compare.html` into `out`.

    Returns:
        What `compare.json` holds.

    Raises:
        UserError: whatever the user can mend before the first model is trained, or no model could be.
    """
    check_settings(settings)
    settings = replace(settings, metric=settings.metric.lower())
    dataset = open_dataset(settings.data)
    check_samples(dataset, Task.parse(settings.task))
    chosen, left_out = choose(settings.models, dataset, settings)
    recipes = [recipe(member, dataset, settings) for member in chosen]
    out = Path(settings.out)
    with _alone(out):
        for why in left_out.values():
            logger.info(f"left out: {why}")
        logger.info(
            f"{len(chosen)} models: {', '.join(member.name for member in chosen)}; logs in {out / 'logs'}"
        )
        try:
            rows = Trainer(dataset, settings).rows(recipes)
        except KeyboardInterrupt:
            logger.info("stopped; the same command goes on from here")
            raise
        done = {row.member.name: row.jobs[0] for row in rows if row.jobs}
        if not done:
            raise UserError(
                "no model could be trained: " + "; ".join(f"{row.member.name}: {row.why}" for row in rows)
            )
        logger.info(f"timing the answers of {len(done)} models")
        report = report_of(rows, settings, dataset, left_out, answer_times(done, out, logger.warning))
        write_json(out / REPORT_FILE, report)
        for name, text in ((MARKDOWN_FILE, markdown(report)), (PAGE_FILE, comparison_page(report))):
            with atomic_file(out / name) as temporary:
                temporary.write_text(text, encoding="utf-8", errors="replace")
    return report


def files(out: str) -> list[Path]:
    """What a comparison writes for people and programs."""
    return [Path(out) / name for name in (PAGE_FILE, MARKDOWN_FILE, REPORT_FILE)]


def check_settings(settings: CompareSettings) -> None:
    """Refuse what cannot be meant.

    Raises:
        UserError: naming the flag.
    """
    if os.environ.get("WORLD_SIZE", "1") != "1":
        raise UserError("`lsvcr compare` starts its own processes: start it without a launcher")
    bounds = {"seeds": 1, "trials": 1, "jobs": 1, "epochs": 0, "seed": 0, "max_rows": 0}
    for flag, least in bounds.items():
        if getattr(settings, flag) < least:
            raise UserError(f"--{flag} {getattr(settings, flag)} must be {least} or more")
    parse_metric(settings.metric)
    for name in columns(settings):
        if name not in DEFAULT_METRICS:
            parse_metric(name)
            raise UserError(f"--metrics {name}: tests keep {', '.join(DEFAULT_METRICS)}; take some of them")


@contextmanager
def _alone(out: Path) -> Iterator[None]:
    """Hold `out` for this command: two that train into one folder would spoil each other's runs."""
    try:
        out.mkdir(parents=True, exist_ok=True)
        handle = os.open(out / _LOCK_FILE, os.O_RDWR | os.O_CREAT)
    except OSError as broken:
        raise UserError(f"--out {out} cannot be written to: {broken.strerror}") from None
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise UserError(
                f"another `lsvcr compare` works in {out}; wait for it, or choose another --out"
            ) from None
        yield
    finally:
        os.close(handle)
