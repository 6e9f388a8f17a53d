"""Arrays that several processes make together, on disk in the run's work folder and mapped by all of them.

No array passes between processes, and none has to be in memory: what is mapped is the system's to keep or to drop.
"""

from collections.abc import Callable
from pathlib import Path

import numpy as np

from lsvcr.utils.distributed import barrier, is_main, rank, world_size
from lsvcr.utils.io import create_npy

CHUNK = 8192
"""Entries that are made, or copied, at a time."""


def shared(
    work: Path,
    name: str,
    shape: tuple[int, ...],
    dtype: type,
    fill: Callable[[int, int], np.ndarray],
) -> np.ndarray:
    """An array whose last axis is shared out over the processes; every process must call this.

    Args:
        work: folder that all processes see.
        name: of the file, without its suffix.
        shape: of the whole array.
        dtype: of its entries.
        fill: gives entries [low, high) of the last axis, at most `CHUNK` of them.

    Returns:
        The whole array on every process, read-only and memory-mapped.

    Raises:
        OSError: there is no space for it.
    """
    total = shape[-1]
    start, stop = _share(rank(), total)
    # A file for each process: several never write to one page, on one machine or on many.
    mine = _piece(work, name, rank())
    create_npy(mine, dtype, (*shape[:-1], stop - start))
    for low in range(start, stop, CHUNK):
        _put(mine, low - start, fill(low, min(low + CHUNK, stop)))
    barrier()
    if is_main():
        whole = work / f"{name}.npy"
        create_npy(whole, dtype, shape)
        for process in range(world_size()):
            piece, (at, end) = _piece(work, name, process), _share(process, total)
            for low in range(0, end - at, CHUNK):
                _put(whole, at + low, np.load(piece, mmap_mode="r")[..., low : low + CHUNK])
            piece.unlink()
    barrier()
    return load(work, name)


def of_main(work: Path, compute: Callable[[], dict[str, np.ndarray]], names: tuple[str, ...]) -> None:
    """Let the first process compute arrays and write them for all, see `load`; every process must call this."""
    if is_main():
        found = compute()
        for name in names:
            np.save(work / f"{name}.npy", found[name])
    barrier()


def load(work: Path, name: str) -> np.ndarray:
    """Map an array that `shared` or `of_main` wrote."""
    array: np.ndarray = np.load(work / f"{name}.npy", mmap_mode="r")
    return array


def _put(path: Path, at: int, part: np.ndarray) -> None:
    """Write `part` at place `at` of the last axis. The mapping lives no longer: its pages would count as ours."""
    np.load(path, mmap_mode="r+")[..., at : at + part.shape[-1]] = part


def _piece(work: Path, name: str, process: int) -> Path:
    return work / f"{name}.{process}.npy"


def _share(process: int, total: int) -> tuple[int, int]:
    """The part of `total` entries that is `process`'s."""
    return total * process // world_size(), total * (process + 1) // world_size()
