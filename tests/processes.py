"""Processes that tests start, and what they ask about them."""

import multiprocessing.forkserver
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch.multiprocessing as mp

_IMPORTED = ["lsvcr.training.rank", "lsvcr.training.align"]


def run_together(work: Callable[..., None], arguments: tuple[Any, ...], processes: int) -> None:
    """`work(rank, *arguments)` in each of `processes` new processes; returns when all have ended well.

    They are forked from one that has done nothing but the imports, which take three to eight seconds.
    """
    multiprocessing.forkserver.set_forkserver_preload(_IMPORTED)
    mp.start_processes(
        _call, (work, dict(os.environ), arguments), nprocs=processes, start_method="forkserver"
    )


def _call(
    rank: int, work: Callable[..., None], environment: dict[str, str], arguments: tuple[Any, ...]
) -> None:
    """The process that they are forked from has the environment of the first call."""
    os.environ.clear()
    os.environ.update(environment)
    work(rank, *arguments)


def alive(pid: int) -> bool:
    """Is it there, and no zombie that waits for its parent?"""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False
