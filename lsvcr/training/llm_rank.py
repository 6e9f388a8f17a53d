"""`lsvcr evaluate-llm`: stage one's LLM itself as a recommender, by the evaluator and the rows of all others.

See `llm_users` for the space in which its users and the items lie.
"""

from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lsvcr.baselines.generative_state import check_one_process
from lsvcr.data.rank import RankBatch, RankData
from lsvcr.data.store import Dataset, open_dataset
from lsvcr.evaluation.evaluator import evaluate
from lsvcr.evaluation.metrics import DEFAULT_METRICS
from lsvcr.evaluation.protocol import FULL, Drawn, Protocol, draw
from lsvcr.evaluation.result import save_rows
from lsvcr.nn.similarity import unit
from lsvcr.schema import METRICS_FILE, STAGE_ONE, Split, Task
from lsvcr.settings import EvaluateLlmSettings
from lsvcr.settings.bounds import check_bounds
from lsvcr.training.llm_users import PromptReader, Source, item_vectors, open_source, read_users
from lsvcr.training.rank_state import ROWS_FILE
from lsvcr.utils.io import write_json
from lsvcr.utils.logging import get_logger
from lsvcr.utils.precision import compute_dtype

LLM_DIR, USERS_DIR = "llm", "users"
MODEL = "llm-aligned"
"""`model` in the report."""
ALIKE = 0.95
"""Mean cosine of two users above which they are told to be nearly the same."""

_log = get_logger(__name__)


class UserTable:
    """A `Scorer` whose user vectors are known by row.

    Args:
        rows: (n,) int64 sample numbers, rising.
        users: (n, d) float32, of length 1.
        items: (N + 1, d) likewise, on the same device.
    """

    def __init__(self, rows: np.ndarray, users: Tensor, items: Tensor) -> None:
        self._rows, self._users, self._items = rows, users, items

    def user_vectors(self, batch: RankBatch) -> Tensor:
        """(B, d)."""
        return self._users[np.searchsorted(self._rows, batch.rows.cpu().numpy())]

    def item_vectors(self) -> Tensor:
        """(N + 1, d)."""
        return self._items


def evaluate_llm(settings: EvaluateLlmSettings, metrics: tuple[str, ...] = DEFAULT_METRICS) -> dict[str, Any]:
    """Measure the LLM of a stage-one run on the stored samples; an interrupted reading goes on.

    The folder that it writes is read by `lsvcr table` and `--against` like that of a run: `rows_full.safetensors`,
    `rows_sampled.safetensors`, `metrics.json`; and `users/`, the vectors that have been read.

    Args:
        settings: of the command.
        metrics: of the report and the rows.

    Returns:
        What `metrics.json` holds.

    Raises:
        UserError: no stage-one run, one without text vectors or of another dataset, or whatever the LLM refuses.
    """
    check_one_process("evaluate-llm")
    check_bounds(settings)
    task, split = Task.parse(settings.task), Split(settings.split)
    source = open_source(settings.run, task)
    dataset = open_dataset(settings.data)
    data = RankData(dataset, task, split)
    drawn = draw(len(data), settings.max_rows, settings.seed, split)
    out = output_folder(settings, drawn)
    items = item_vectors(source, dataset, task)
    rows = np.arange(len(data)) if drawn is None else drawn.rows
    about = _about(settings, source, dataset)
    if settings.overwrite:
        for file in (out / USERS_DIR).glob("*.safetensors"):
            file.unlink()
    users, reading = read_users(
        out / USERS_DIR, about, rows, lambda: PromptReader(source, settings, dataset, task, split)
    )
    directions = unit(torch.from_numpy(users))
    alike = mean_cosine(directions)
    if alike > ALIKE:
        _log.warning(
            "the LLM's user vectors are nearly all the same (mean cosine %.3f): stage one has hardly taught it to tell "
            "users apart",
            alike,
        )
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    scorer = UserTable(rows, directions.to(device), items.to(device))
    results = evaluate(scorer, data, _protocols(settings), metrics=metrics, device=device, drawn=drawn)
    report = {
        "model": MODEL,
        "kind": STAGE_ONE,
        "task": task.value,
        "task_label": task.label,
        "split": next(iter(results.values())).fingerprint.split,
        "data_hash": dataset.data_hash,
        "checkpoint": {"path": str(source.folder), "manifest": source.digest},
        "reading": {**asdict(reading), "ms_a_row": 1000 * reading.seconds / max(1, reading.prompts)},
        "users_mean_cosine": alike,
        "protocols": {name: result.summary() for name, result in results.items()},
        "folder": str(out),
    }
    for name, result in results.items():
        save_rows(out / ROWS_FILE.format(name=name), result)
    write_json(out / METRICS_FILE, report)
    return report


def mean_cosine(directions: Tensor) -> float:
    """Mean cosine of two different rows of (n, d) unit vectors; 0 where there is one row."""
    count = len(directions)
    together = float(directions.double().sum(dim=0).square().sum())
    return (together - count) / (count * (count - 1)) if count > 1 else 0.0


def output_folder(settings: EvaluateLlmSettings, drawn: Drawn | None) -> Path:
    """Where figures and vectors go: what was measured on other rows lies elsewhere."""
    if settings.out:
        return Path(settings.out)
    name = settings.split if drawn is None else f"{settings.split}-{len(drawn.rows)}-{settings.seed}"
    return Path(settings.run) / LLM_DIR / name / Task.parse(settings.task).label


def _protocols(settings: EvaluateLlmSettings) -> dict[str, Protocol]:
    return {"full": FULL, "sampled": Protocol("sampled", settings.max_candidate_num)}


def _about(settings: EvaluateLlmSettings, source: Source, dataset: Dataset) -> dict[str, Any]:
    """What a user vector depends on beside its row."""
    return {
        "checkpoint": source.digest,
        "data_hash": dataset.data_hash,
        "task": settings.task,
        "split": settings.split,
        "precision": str(compute_dtype(settings.bf16)).removeprefix("torch."),
    }
