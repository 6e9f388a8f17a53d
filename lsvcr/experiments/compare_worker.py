"""The process of one model of a comparison: `python -m lsvcr.experiments.compare_worker JOB`, started by compare_job.

It ends when its standard input does, so that no kill of the command leaves it behind.
"""

import os
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from lsvcr.utils.errors import exit_code
from lsvcr.utils.io import read_json, write_json

ORPHANED_CODE = 70
"""Exit code of a worker whose command has gone."""


def main(words: list[str]) -> None:
    """Train and measure what the job file `words[0]` names; `--speed FILE` times finished models instead."""
    threading.Thread(target=_end_with_the_command, daemon=True).start()
    from lsvcr.utils.logging import quiet_third_party

    quiet_third_party()
    if words[0] == "--speed":
        from lsvcr.experiments.compare_speed import time_runs

        time_runs(Path(words[1]))
    else:
        work(Path(words[0]))


def work(file: Path) -> None:
    """Train, measure on validation and write `outcome.json` beside the job file, last of all.

    Raises:
        UserError: whatever training refuses.
    """
    from lsvcr.experiments.compare_job import ASK_LLM, COMMENTS, OUTCOME_FILE, Job

    job = Job(**read_json(file))
    if job.kind in ASK_LLM:
        from lsvcr.experiments.compare_llm_work import ask_llm

        outcome = ask_llm(job)
    elif job.kind == COMMENTS:
        outcome = _count_comments(job)
    else:
        outcome = _trained(job)
        _validate(job)
    write_json(job.folder / OUTCOME_FILE, outcome)


def _end_with_the_command() -> None:
    # Not through sys.stdin: its lock would be held when the interpreter ends.
    while os.read(0, 1024):
        pass
    os._exit(ORPHANED_CODE)


def _trained(job: Any) -> dict[str, Any]:
    from lsvcr.experiments.compare_job import REGISTRY
    from lsvcr.schema import HLLM

    if job.kind == HLLM:
        from lsvcr.experiments.compare_llm_work import train_hllm

        return train_hllm(job)
    return _registered(job) if job.kind == REGISTRY else _stage_two(job)


def _registered(job: Any) -> dict[str, Any]:
    from lsvcr.baselines.registry import find
    from lsvcr.training.baseline import run_built
    from lsvcr.training.baseline_setup import TrainedSetup, set_up
    from lsvcr.training.rank import start_accelerator

    settings = replace(find(job.entry).settings(**job.settings), output_dir=str(job.run))
    accelerator = start_accelerator()
    started = time.perf_counter()
    setup = set_up(job.entry, settings)
    seconds = time.perf_counter() - started
    run_built(accelerator, setup)
    if not isinstance(setup, TrainedSetup):
        return {"seconds": seconds, "parameters": 0, "epoch": 0}
    return _of_training(job, setup)


def _stage_two(job: Any) -> dict[str, Any]:
    from lsvcr.settings import RankSettings
    from lsvcr.training.rank import run_setup, start_accelerator
    from lsvcr.training.rank_setup import set_up

    accelerator = start_accelerator()
    setup = set_up(RankSettings(**{**job.settings, "output_dir": str(job.run)}))
    run_setup(accelerator, setup)
    return _of_training(job, setup)


def _of_training(job: Any, setup: Any) -> dict[str, Any]:
    """Seconds in training steps, over all the times that the run was interrupted, from its log."""
    from lsvcr.experiments.report_log import read_log
    from lsvcr.schema import BEST_DIR, MANIFEST_FILE, METRICS_LOG_FILE

    speeds = read_log(job.run / METRICS_LOG_FILE).series["train/samples_per_second"]
    rows = len(setup.training())
    trained = (p for p in setup.model.parameters() if p.requires_grad)
    return {
        "seconds": sum(rows / speed for speed in speeds.values() if speed),
        "parameters": sum(p.numel() for p in trained),
        "epoch": read_json(job.run / BEST_DIR / MANIFEST_FILE)["progress"]["epoch"],
    }


def _validate(job: Any) -> None:
    """The rows of the best checkpoint on validation."""
    from lsvcr.evaluation.result import save_rows
    from lsvcr.experiments.compare_job import VALIDATION_FILE
    from lsvcr.training.rank_evaluate import evaluate_rows

    found = evaluate_rows(str(job.run), job.settings["data_path"], "val", job.protocol, (job.metric,), False)[
        2
    ]
    save_rows(job.folder / VALIDATION_FILE, found[job.protocol])


def _count_comments(job: Any) -> dict[str, Any]:
    """Popularity of comments, which is no model of the registry: its rows are all there is to keep."""
    from lsvcr.baselines.popularity import popularity
    from lsvcr.data.rank import RankData
    from lsvcr.data.store import open_dataset
    from lsvcr.evaluation.evaluator import evaluate
    from lsvcr.evaluation.metrics import DEFAULT_METRICS
    from lsvcr.evaluation.result import save_rows
    from lsvcr.experiments.compare_job import VALIDATION_FILE
    from lsvcr.schema import Split, Task
    from lsvcr.settings import FittedSettings
    from lsvcr.training.rank_evaluate import protocols
    from lsvcr.training.rank_state import ROWS_FILE

    started = time.perf_counter()
    dataset, task = open_dataset(job.settings["data_path"]), Task(job.task)
    scorer = popularity(dataset, task, job.by)
    seconds = time.perf_counter() - started
    chosen = protocols(FittedSettings(**job.settings))
    job.run.mkdir(parents=True, exist_ok=True)
    for name, result in evaluate(
        scorer, RankData(dataset, task, Split.TEST), chosen, metrics=DEFAULT_METRICS
    ).items():
        save_rows(job.run / ROWS_FILE.format(name=name), result)
    own = {job.protocol: chosen[job.protocol]}
    validation = evaluate(scorer, RankData(dataset, task, Split.VAL), own, metrics=(job.metric,))
    save_rows(job.folder / VALIDATION_FILE, validation[job.protocol])
    return {"seconds": seconds, "parameters": 0, "epoch": 0}


if __name__ == "__main__":
    sys.exit(exit_code(main, sys.argv[1:]))
