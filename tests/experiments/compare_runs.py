"""Comparisons on the tiny world that take seconds: small models, and the worker in this process where asked for."""

import contextlib
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from accelerate.state import AcceleratorState, GradientState

from lsvcr.data.store import open_dataset
from lsvcr.experiments import compare_job, compare_speed, compare_worker
from lsvcr.experiments.compare_job import JobFailed
from lsvcr.settings import CompareSettings
from lsvcr.utils.errors import UserError
from tests.training.rank_runs import LLM_WIDTH, NARROW, write_stage_one
from tests.training.untuned_files import write_vectors

SASREC = """
hidden: 16
inner: 16
layers: 1
max_his: 6
learning_rate: 0.01
num_train_epochs: 1
per_device_train_batch_size: 8
"""
SEARCHED = SASREC + "search:\n  learning_rate: [0.01, 0.03, 0.003]\n  dropout: [0.1, 0.3]\n"
LSVCR = """
hidden: 16
layers: 1
heads: 2
inner: 32
text_width: 8
max_position: 8
max_phis_len: 6
max_chis_len: 6
num_train_epochs: 1
per_device_train_batch_size: 16
neg_comment_num: 3
search:
  learning_rate: [0.001, 0.005]
"""
BROKEN = SASREC + "heads: 3\n"
"""Width 16 and 3 heads: the model itself refuses, when it is trained."""


def write_world(folder: Path, tiny_data: Path) -> Path:
    """The tiny world with text vectors (`data`), a stage-one run (`aligned`) and YAML files (`config`)."""
    data = folder / "data"
    shutil.copytree(tiny_data, data)
    dataset = open_dataset(data)
    write_vectors(data, dataset, LLM_WIDTH)
    write_stage_one(folder / "aligned")
    for name, rows in zip(NARROW, (dataset.n_videos + 1, dataset.n_comments + 1), strict=True):
        table = np.random.default_rng(rows).normal(size=(rows, 8)).astype(np.float32)
        table[0] = 0
        np.save(folder / "aligned" / name, table)
    files = {
        "baselines/sasrec": SASREC,
        "baselines/searched": SEARCHED,
        "baselines/broken": BROKEN,
        "compare/lsvcr": LSVCR,
    }
    for name, text in files.items():
        file = folder / "config" / f"{name}.yaml"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    return folder


def asked(world: Path, models: str, **changes: Any) -> CompareSettings:
    """A comparison of some models in the world of `write_world`, with one seed, into its folder `out`."""
    fields: dict[str, Any] = {
        "data": str(world / "data"),
        "out": str(world / "out"),
        "configs": str(world / "config"),
        "seeds": 1,
        **changes,
    }
    return CompareSettings(models=models, **fields)


def flags(settings: CompareSettings) -> list[str]:
    """The command line of settings."""
    return [
        word for name, value in vars(settings).items() if value != "" for word in (f"--{name}", str(value))
    ]


class InProcess:
    """Does the workers' work in this process, which saves the start of one; `jobs` are the names of what it did."""

    def __init__(self) -> None:
        self.jobs: list[str] = []

    def __call__(self, words: list[str], log: Path, tell: Callable[[str], None], threads: int = 0) -> None:
        """As `compare_job.run_worker`."""
        log.parent.mkdir(parents=True, exist_ok=True)
        self.jobs.append(words[0] if words[0] == "--speed" else Path(words[0]).parts[-3])
        with log.open("a") as stream, contextlib.redirect_stdout(stream):
            try:
                if words[0] == "--speed":
                    compare_speed.time_runs(Path(words[1]))
                else:
                    compare_worker.work(Path(words[0]))
            except UserError as error:
                raise JobFailed(str(error)) from None

    def trained(self) -> list[str]:
        """Names of the rows whose models were trained, once a model; the list starts anew."""
        found = [name for name in self.jobs if name != "--speed"]
        self.jobs.clear()
        return found


def in_process(patch: pytest.MonkeyPatch) -> InProcess:
    """Let workers run in this process until `patch` is undone."""
    worker = InProcess()
    for module in (compare_job, compare_speed):
        patch.setattr(module, "run_worker", worker)
    return worker


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """Models as small as these only wait for a second thread."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def forget_accelerate() -> None:
    """Accelerate keeps device and precision for the process: the next test that trains starts anew."""
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()
