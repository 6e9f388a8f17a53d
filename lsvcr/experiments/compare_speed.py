"""How long finished models take to answer: all in one process, in turns, so that what slows the machine slows all."""

import json
import statistics
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lsvcr.baselines.popularity import popularity
from lsvcr.data.rank import RankData
from lsvcr.data.store import Dataset, open_dataset
from lsvcr.evaluation.evaluator import CatalogueScorer
from lsvcr.evaluation.protocol import Protocol, listed_candidates
from lsvcr.experiments.compare_job import ASK_LLM, COMMENTS, Job, JobFailed, run_worker
from lsvcr.schema import BEST_DIR, PAD, Split, Task
from lsvcr.training.rank_restore import restore
from lsvcr.utils.io import read_json, sha256_text, write_json

BATCH, BATCHES, ROUNDS, LISTED = 128, 4, 5, 10
"""Users asked at once, such batches a round, rounds, and how long the answer is."""

ABOUT = (
    f"Median of {ROUNDS} rounds in which the models take turns: {BATCHES} batches of {BATCH} test rows, from the "
    f"history to the {LISTED} best; item vectors are ready."
)


def answer_times(jobs: Mapping[str, Job], out: Path, tell: Callable[[str], None]) -> dict[str, float]:
    """Milliseconds a user by row, measured in one go; kept until a model changes.

    Args:
        jobs: a finished one by row; those that ask an LLM, which takes too long for turns, have told their time.
        out: folder of the comparison.
        tell: gets a line where nothing could be measured.
    """
    jobs = {name: job for name, job in jobs.items() if job.kind not in ASK_LLM}
    if not jobs:
        return {}
    first = next(iter(jobs.values()))
    models = [
        {"name": name, "kind": job.kind, "by": job.by, "run": str(job.run)} for name, job in jobs.items()
    ]
    spec = {"data": first.settings["data_path"], "task": first.task, "models": models}
    digest = sha256_text(json.dumps([[name, job.key] for name, job in jobs.items()]))[:16]
    result = out / "speed" / f"{digest}.json"
    if not result.is_file():
        file = out / "speed" / f"{digest}-job.json"
        write_json(file, {**spec, "result": str(result)})
        try:
            run_worker(["--speed", str(file)], out / "logs" / "speed.log", tell)
        except JobFailed as failed:
            tell(f"answer times could not be measured: {failed}")
            return {}
    found: dict[str, float] = read_json(result)
    return found


def time_runs(file: Path) -> None:
    """Time the models that a job file of `answer_times` names, and write its `result`."""
    spec = read_json(file)
    dataset, task = open_dataset(spec["data"]), Task(spec["task"])
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    answers = {model["name"]: _answerer(model, dataset, task, device) for model in spec["models"]}
    seconds: dict[str, list[float]] = {name: [] for name in answers}
    with torch.no_grad():
        for number in range(ROUNDS + 1):
            for name, answer in answers.items():
                started = time.perf_counter()
                users = answer()
                if device.type == "cuda":
                    torch.cuda.synchronize()
                if number:  # the first round warms up
                    seconds[name].append((time.perf_counter() - started) / users)
    write_json(spec["result"], {name: 1000 * statistics.median(found) for name, found in seconds.items()})


def _answerer(
    model: Mapping[str, str], dataset: Dataset, task: Task, device: torch.device
) -> Callable[[], int]:
    """What answers a round of questions and tells how many they were."""
    scorer: Any
    if model["kind"] == COMMENTS:
        scorer = popularity(dataset, task, "likes" if model["by"] == "likes" else "train")
        data = RankData(dataset, task, Split.TEST)
    else:
        setup, _ = restore(Path(model["run"]) / BEST_DIR, dataset)
        setup.model.to(device).eval()
        scorer, data = setup.model, setup.data(Split.TEST)
    rows = np.arange(BATCH * BATCHES) % len(data)
    with torch.no_grad():
        items = None if isinstance(scorer, CatalogueScorer) else scorer.item_vectors().float()

    def answer() -> int:
        for start in range(0, len(rows), BATCH):
            asked = rows[start : start + BATCH]
            batch = data.evaluation(asked).to(device)
            if items is None:
                scores = scorer.catalogue_scores(batch)
            elif task is Task.REC:
                scores = scorer.user_vectors(batch).float() @ items.T
            else:
                scores = _of_comments(scorer.user_vectors(batch).float(), items, data, asked)
            scores[:, PAD] = -torch.inf
            scores.topk(min(LISTED, scores.shape[1]), dim=1)
        return len(rows)

    return answer


def _of_comments(users: Tensor, items: Tensor, data: RankData, rows: np.ndarray) -> Tensor:
    """Scores of each row's comments (B, 1 + most of a row); the first column stands for padding."""
    lists = listed_candidates(Protocol("full"), data, rows)
    counts = lists.counts
    table = np.zeros((len(rows), 1 + int(counts.max(initial=0))), dtype=np.int64)
    table[:, 1:][np.arange(table.shape[1] - 1) < counts[:, None]] = lists.flat()
    ids = torch.from_numpy(table).to(users.device)
    scores = (items[ids] @ users.unsqueeze(-1)).squeeze(-1)
    return scores.masked_fill(ids == PAD, -torch.inf)
