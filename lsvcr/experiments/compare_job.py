"""One model of a comparison: what it is, where it lies, and a process of its own that trains it."""

import json
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from os import environ, pathsep
from pathlib import Path
from typing import Any

import lsvcr
from lsvcr.evaluation.result import Result, load_rows
from lsvcr.experiments.runs import load_run
from lsvcr.training.rank_state import FREE
from lsvcr.utils.io import read_json, sha256_text, write_json
from lsvcr.utils.logging import PLAIN_SECONDS

RECIPE = 1
"""To be raised when training comes to give other figures: models of an earlier recipe are then trained again."""

REGISTRY, COMMENTS, ALIGNED_LLM, GENERATIVE = "registry", "comments", "llm-aligned", "generative"
"""Who trains a model, beside `schema.STAGE_TWO` and `schema.HLLM`."""

ASK_LLM = (ALIGNED_LLM, GENERATIVE)
"""Kinds that ask an LLM for every row."""

_PATHS = {"run", "data", "out"}
"""Settings beside `FREE` that are compared by content."""

JOB_FILE, OUTCOME_FILE = "job.json", "outcome.json"
VALIDATION_FILE = "rows_validation.safetensors"
RUN_DIR = "run"
_WORKER = "lsvcr.experiments.compare_worker"
_LONGEST_REASON = 400
_STAMP = re.compile(r"\d\d:\d\d:\d\d ")
_GIVE_UP_SECONDS = 20.0
"""What a process that is told to stop may take."""
_running: "set[subprocess.Popen[bytes]]" = set()
"""Processes that threads of this command wait for."""


@dataclass(frozen=True)
class Job:
    """A model to train, measured on validation and test.

    Attributes:
        name: of the row.
        entry: of the registry, if it is of `REGISTRY`.
        kind: who trains or reads it.
        by: of `COMMENTS`: what is counted.
        task: value of the task.
        metric, protocol: of the validation that settings and baselines are chosen by.
        settings: all of them, but for `output_dir`.
        inputs: by content what the settings name by path.
        data_hash: of the dataset.
        out: folder of the comparison.
    """

    name: str
    entry: str
    kind: str
    by: str
    task: str
    metric: str
    protocol: str
    settings: Mapping[str, Any]
    inputs: Mapping[str, str]
    data_hash: str
    out: str

    @cached_property
    def key(self) -> str:
        """Sixteen hexadecimal digits that stand for everything that figures depend on."""
        content = {k: v for k, v in asdict(self).items() if k not in ("out", "name", "settings")}
        content["recipe"] = RECIPE
        content["settings"] = {k: v for k, v in self.settings.items() if k not in FREE | _PATHS}
        return sha256_text(json.dumps(content, sort_keys=True))[:16]

    @property
    def folder(self) -> Path:
        """Where everything of it lies."""
        return Path(self.out) / "runs" / self.name / self.key

    @property
    def run(self) -> Path:
        """The run folder, as `lsvcr train` or finetune.py writes it."""
        return self.folder / RUN_DIR

    @property
    def log(self) -> Path:
        """What its process said."""
        return Path(self.out) / "logs" / f"{self.name}-{self.key}.log"

    @property
    def finished(self) -> bool:
        """Is it trained and measured?"""
        return (self.folder / OUTCOME_FILE).is_file()

    @property
    def doing(self) -> str:
        """What its process does first."""
        if self.kind == ALIGNED_LLM:
            return "reading"
        return "training" if "seed" in self.settings else "fitting"

    def outcome(self) -> dict[str, Any]:
        """Of a finished one: `seconds` of training, `parameters` that trained, `epoch` of the best checkpoint."""
        found: dict[str, Any] = read_json(self.folder / OUTCOME_FILE)
        return found

    def validation(self) -> Result:
        """Of a finished one: the validation rows of its best checkpoint."""
        return load_rows(self.folder / VALIDATION_FILE)

    def test(self) -> Result:
        """Of a finished one: the test rows."""
        return load_run(self.run, self.protocol)


class JobFailed(Exception):
    """A model that could not be trained, in a sentence for the table."""


def perform(job: Job, tell: Callable[[str], None], threads: int = 0) -> None:
    """Train a model in a process of its own, unless that is done; an interrupted one goes on.

    Args:
        job: the model.
        tell: gets the last thing it logged from time to time.
        threads: of its process, unless OMP_NUM_THREADS says; 0 = what the libraries choose.

    Raises:
        JobFailed: it ended without figures.
    """
    if job.finished:
        return
    write_json(job.folder / JOB_FILE, asdict(job))
    run_worker([str(job.folder / JOB_FILE)], job.log, tell, threads)
    if not job.finished:
        raise JobFailed("its process ended well, but left no figures")


def run_worker(words: list[str], log: Path, tell: Callable[[str], None], threads: int = 0) -> None:
    """Start the worker on `words` and wait; what it says goes to the end of `log`. `threads`: see `perform`.

    The worker ends when this process does, however that happens: it watches its standard input.

    Raises:
        JobFailed: it ended with another code than 0.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    here = str(Path(lsvcr.__file__).resolve().parents[1])
    paths = pathsep.join(filter(None, [here, environ.get("PYTHONPATH", "")]))
    share = {"OMP_NUM_THREADS": str(threads)} if threads else {}
    with log.open("ab") as stream:
        start = stream.tell()
        process = subprocess.Popen(
            [sys.executable, "-m", _WORKER, *words],
            stdin=subprocess.PIPE,
            stdout=stream,
            stderr=subprocess.STDOUT,
            env={**share, **environ, "PYTHONPATH": paths},
        )
    _running.add(process)
    try:
        _wait(process, log, start, tell)
    finally:
        _running.discard(process)
        assert process.stdin is not None
        process.stdin.close()
        try:
            process.wait(_GIVE_UP_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
    if process.returncode:
        raise JobFailed(_why(process.returncode, _lines(log, start)))


def end_workers() -> None:
    """End the processes that other threads of this command wait for."""
    for process in list(_running):
        process.terminate()


def _wait(process: "subprocess.Popen[bytes]", log: Path, start: int, tell: Callable[[str], None]) -> None:
    told = ""
    while True:
        try:
            process.wait(PLAIN_SECONDS)
            return
        except subprocess.TimeoutExpired:
            # What it logs; tables and the like are for who reads the whole of it.
            logged = [line for line in _lines(log, start) if _STAMP.match(line)]
            last = _STAMP.sub("", logged[-1]) if logged else ""
            if last and last != told:
                tell(last)
            told = last


def _lines(log: Path, start: int) -> list[str]:
    """What a log holds behind byte `start`, without empty lines."""
    with log.open("rb") as stream:
        stream.seek(start)
        text = stream.read().decode("utf-8", errors="replace")
    return [line.strip() for line in text.replace("\r", "\n").splitlines() if line.strip()]


def _why(code: int, lines: list[str]) -> str:
    """Why a process ended with a code other than 0, from what it said last."""
    if code < 0:
        name = signal.Signals(-code).name
        return f"its process was ended by {name}" + (", probably out of memory" if name == "SIGKILL" else "")
    said = next((line for line in reversed(lines) if line.startswith("error: ")), lines[-1] if lines else "")
    return said.removeprefix("error: ")[:_LONGEST_REASON] or f"its process ended with code {code}"
