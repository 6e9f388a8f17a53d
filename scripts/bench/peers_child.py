"""What the processes of peers.py that run another system share: their job, their data, their clock, their answer.

They run in an environment of their own, without `lsvcr`: an adapter (`peers_NAME.py`) imports its system and this file
and is started as `python peers_NAME.py JOB.json`. Ours (`peers_ours.py`) does too where speed alone is measured.
"""

import json
import os
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class Job:
    """What a system is asked to do.

    Attributes:
        peer, model, loss: whose, `sasrec` or `bert4rec`, and `softmax`, `bce` or `gbce`.
        folder: see peers_data.py.
        out: where scores and result are written.
        timed: measure the speed alone: a few epochs without validation, and users answered, but no scores.
        epochs: at most.
        patience: validations without a better NDCG@10.
        seed: of everything random.
        length, width, layers, heads, dropout: of the model.
        batch, learning_rate: of training.
        negatives: of the losses that need some.
    """

    peer: str
    model: str
    loss: str
    folder: str
    out: str
    timed: bool
    epochs: int
    patience: int
    seed: int
    length: int = 50
    width: int = 64
    layers: int = 2
    heads: int = 2
    dropout: float = 0.2
    batch: int = 128
    learning_rate: float = 1e-3
    negatives: int = 1


@dataclass
class Clock:
    """Seconds of each epoch's training, on the wall and of the processor, and the targets that had a loss in it."""

    wall: list[float] = field(default_factory=list)
    cpu: list[float] = field(default_factory=list)
    targets: list[int] = field(default_factory=list)
    _start: tuple[float, float] = (0.0, 0.0)
    _counted: int = 0

    def start(self) -> None:
        """An epoch begins."""
        self._start, self._counted = _now(), 0
        for values in (self.wall, self.cpu, self.targets):
            values.append(0)

    def step(self, targets: int) -> None:
        """A batch with so many targets is done."""
        wall, cpu = _now()
        self._counted += targets
        self.wall[-1], self.cpu[-1] = wall - self._start[0], cpu - self._start[1]
        self.targets[-1] = self._counted


def _now() -> tuple[float, float]:
    times = os.times()
    return time.perf_counter(), times.user + times.system + times.children_user + times.children_system


@dataclass(frozen=True)
class Split:
    """The three parts as frames of user, item, time; `users` and `items` are all raw ids, rising."""

    train: "pd.DataFrame"
    val: "pd.DataFrame"
    test: "pd.DataFrame"
    users: np.ndarray
    items: np.ndarray

    @property
    def known(self) -> "pd.DataFrame":
        """What may be known when the test is answered: train and val."""
        import pandas as pd

        return pd.concat([self.train, self.val], ignore_index=True)


def read_split(folder: str | Path) -> Split:
    """The split of such a folder."""
    import pandas as pd

    parts = [pd.read_csv(Path(folder) / f"{name}.csv") for name in ("train", "val", "test")]
    every = pd.concat(parts)
    return Split(*parts, np.sort(every["user"].unique()), np.sort(every["item"].unique()))


def ndcg10(ranks: np.ndarray) -> float:
    """NDCG@10 of one target a row, from how many items stand before it: what picks the best epoch."""
    return float(np.where(ranks < 10, 1 / np.log2(ranks + 2), 0).mean())


def seconds_of(action: Callable[[], Any], turns: int = 3) -> float:
    """The median time that `action` takes, once it has been done before."""
    action()
    found = []
    for _ in range(turns):
        start = time.perf_counter()
        action()
        found.append(time.perf_counter() - start)
    return float(np.median(found))


@dataclass
class Result:
    """What a process hands back.

    Attributes:
        clock: of the training.
        best_epoch: counted from 1; 0 = not chosen by validation.
        scores: (users, items) float32, rows and columns by rising raw ids; None where only speed was asked for.
        answer_s: seconds to find the first ten unseen items of all test users.
        note: what a reader must know.
    """

    clock: Clock
    best_epoch: int = 0
    scores: np.ndarray | None = None
    answer_s: float = 0.0
    note: str = ""


def write_result(
    job: Job, package: str, clock: Clock, best_epoch: int = 0, answer_s: float = 0.0, note: str = ""
) -> None:
    """Write `result.json` beside the job's scores: what was measured, epoch by epoch, and what was learned from it."""
    users = read_users(job.folder)
    told = {
        "version": version(package),
        "epochs": len(clock.wall),
        "best_epoch": best_epoch,
        "wall": clock.wall,
        "cpu": clock.cpu,
        "targets": clock.targets,
        "users_per_s": users / answer_s if answer_s else 0.0,
        "note": note,
    }
    out = Path(job.out)
    out.mkdir(parents=True, exist_ok=True)
    (out / "result.json").write_text(json.dumps(told))


def read_users(folder: str | Path) -> int:
    """How many users the test asks for: one a line of `test.csv`."""
    return len((Path(folder) / "test.csv").read_text().splitlines()) - 1


def main(package: str, run: Callable[[Job, Split], Result]) -> None:
    """Read the job that the command line names, run it, and write `scores.npy` and `result.json`."""
    job = Job(**json.loads(Path(sys.argv[1]).read_text()))
    Path(job.out).mkdir(parents=True, exist_ok=True)
    result = run(job, read_split(job.folder))
    if result.scores is not None:
        np.save(Path(job.out) / "scores.npy", result.scores.astype(np.float32))
    write_result(job, package, result.clock, result.best_epoch, result.answer_s, result.note)
