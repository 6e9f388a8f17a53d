"""Runs of train.py that are killed with SIGKILL again and again, for `test_align_kill.py`.

    python tests/training/kill_runs.py FOLDER DATASET

Everything is imported once; each run is a fork (or two that meet through gloo), so that a kill costs seconds. What
was found goes to `found.json`.
"""

import json
import os
import random
import signal
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import deepspeed
import torch

import train
from lsvcr.training import align
from lsvcr.utils.logging import quiet_third_party
from tests.ports import free_port

BEFORE_THE_FORKS = (deepspeed, align)
"""What takes seconds to import."""

STEPS = 6
FLAGS = {
    "model_name_or_path": "tiny-random", "hidden": 16, "inner": 32, "text_width": 16, "max_phis_len": 3,
    "max_chis_len": 3, "max_source_length": 900, "eval_pool": 4, "max_steps": STEPS, "save_steps": 1,
    "eval_steps": 2, "save_total_limit": 2, "logging_steps": 3, "gradient_checkpointing": False, "bf16": False,
    "report_to": "none",
}  # fmt: skip
LONGEST = 120.0
"""Seconds after which a run that should have ended, or come to a moment, is given up."""

Moment = Callable[[Path, float], bool]
"""Says whether it has come, from the run's folder and the seconds since the start."""


def start(run: Path, data: str, processes: int) -> list[int]:
    """Fork the processes of a run; their ids."""
    port = free_port()
    children = []
    for rank in range(processes):
        child = os.fork()
        if child:
            children.append(child)
            continue
        code = 1
        try:
            if processes > 1:
                os.environ.update(
                    MASTER_ADDR="127.0.0.1", MASTER_PORT=port, WORLD_SIZE=str(processes),
                    RANK=str(rank), LOCAL_RANK=str(rank),
                )  # fmt: skip
            flags = {
                **FLAGS,
                "data_path": data,
                "output_dir": str(run),
                "per_device_train_batch_size": 2 // processes,
            }
            sys.argv = [
                "train.py",
                *(word for name, value in flags.items() for word in (f"--{name}", str(value))),
            ]
            with open(run.with_suffix(f".{rank}.txt"), "a") as told:
                os.dup2(told.fileno(), 1)
                os.dup2(told.fileno(), 2)
                train.main()
            code = 0
        finally:
            os._exit(code)
    return children


def finish(children: list[int]) -> list[int]:
    """Exit codes of processes that end by themselves."""
    return [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]


def kill_at(moment: Moment, run: Path, children: list[int]) -> dict[str, Any]:
    """Kill all processes of a run when the moment has come; what the kill left."""
    began = time.monotonic()
    try:
        while not moment(run, time.monotonic() - began):
            assert time.monotonic() - began < LONGEST
            gone, _ = os.waitpid(children[0], os.WNOHANG)
            assert not gone, (
                f"the run ended before it could be killed: {run.with_suffix('.0.txt').read_text()}"
            )
    finally:
        for child in children:
            with suppress(ProcessLookupError):
                os.kill(child, signal.SIGKILL)
    codes = finish(children)
    return {"codes": codes, "left": sorted(path.name for path in run.iterdir()) if run.is_dir() else []}


def written(run: Path, step: int) -> bool:
    """True once last/ is of `step` or later."""
    try:
        return int(json.loads((run / "last" / "manifest.json").read_text())["step"]) >= step
    except (OSError, ValueError):
        return False


def while_writing(folder: str, step: int) -> Moment:
    """While the checkpoint after `step` is being written under its temporary name."""

    def moment(run: Path, _: float) -> bool:
        return written(run, step) and any(run.glob(f".tmp-*-{folder}/*"))

    return moment


def at(step: int, seconds: float) -> Moment:
    """Some time after last/ is of `step`."""
    reached: list[float] = []

    def moment(run: Path, now: float) -> bool:
        if not reached and written(run, step):
            reached.append(now)
        return bool(reached) and now >= reached[0] + seconds

    return moment


def killed_and_straight(folder: Path, data: str, processes: int) -> dict[str, Any]:
    """One run that nobody disturbs, and one that is killed at every moment of a list before it may end."""
    chance = random.Random(processes)
    before_anything = chance.uniform(0.0, 2.0)
    one: list[Moment] = [lambda _, seconds: seconds > before_anything, while_writing("last", 0)]
    moments = [
        *(one if processes == 1 else [at(1, chance.uniform(0.0, 0.2))]),
        while_writing("best", 1) if processes == 1 else while_writing("last", 1),
        while_writing("last", 3),
    ]
    straight, cut = folder / f"straight{processes}", folder / f"cut{processes}"
    codes = finish(start(straight, data, processes))
    kills = [kill_at(moment, cut, start(cut, data, processes)) for moment in moments]
    return {"straight": codes, "kills": kills, "end": finish(start(cut, data, processes))}


def main() -> None:
    """With one process and with two."""
    folder, data = Path(sys.argv[1]), sys.argv[2]
    quiet_third_party()
    torch.set_num_threads(1)
    found = {count: killed_and_straight(folder, data, count) for count in (1, 2)}
    (folder / "found.json").write_text(json.dumps(found))


if __name__ == "__main__":
    main()
