"""Vector files: written in parts by every process, merged and checked by the first, published at the end.

A part is a file of its own, so processes never write to the same page, on one machine or on many with a shared
file system. Until all is complete nothing outside the work folder changes.
"""

import fcntl
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np

from lsvcr.data.vectors import CHUNK_ROWS, first_not_finite, read_manifest
from lsvcr.schema import EMBEDDINGS_MANIFEST_FILE
from lsvcr.training.embed_plan import Plan
from lsvcr.utils.distributed import barrier, is_main
from lsvcr.utils.errors import UserError
from lsvcr.utils.io import sha256_file, write_json

_WORK = ".embed-work"


@contextmanager
def work_folder(target: Path) -> Iterator[Path]:
    """An empty folder inside `target` that all processes share; gone afterwards, whatever happens.

    What a killed run left is removed first.

    Raises:
        UserError: `target` cannot be written to, is not shared, or another run is at work there.
    """
    work, lock = target / _WORK, -1
    if is_main():
        lock = _take(work)
    barrier()
    if not work.is_dir():
        raise UserError(
            f"{target} is another folder on this machine: --output_dir must be one that all machines share"
        )
    try:
        yield work
        barrier()
    finally:
        if is_main():
            shutil.rmtree(work, ignore_errors=True)
            os.close(lock)


def _take(work: Path) -> int:
    """Make `work` empty and hold its lock, which the system frees however the process ends."""
    try:
        work.mkdir(parents=True, exist_ok=True)
        lock = os.open(work, os.O_RDONLY)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(f"another `lsvcr embed` is writing to {work.parent}: wait for it") from None
        except OSError:
            pass  # a file system without locks
        for entry in work.iterdir():
            entry.unlink()
    except OSError as error:
        raise UserError(
            f"cannot write to {work.parent} ({error.strerror}): give another --output_dir"
        ) from error
    return lock


def create_npy(path: Path, rows: int, width: int) -> np.memmap:
    """A new float32 (rows, width) file of zeros, mapped for writing, with its space on the disk reserved.

    Without the reservation a full disk would kill the process in the middle of a write.

    Raises:
        UserError: there is not enough space.
    """
    array = np.lib.format.open_memmap(path, mode="w+", dtype=np.float32, shape=(rows, width))
    with open(path, "r+b") as stream:
        try:
            os.posix_fallocate(stream.fileno(), 0, max(1, path.stat().st_size))
        except OSError as error:
            path.unlink()
            size = rows * width * 4 / 1e9
            raise UserError(
                f"{path.parent.parent}: no space for {size:.1f} GB of vectors ({error.strerror})"
            ) from error
    return array


def part_path(work: Path, name: str, process: int) -> Path:
    """Where process number `process` puts its vectors of file `name`, in the order of its batches."""
    return work / f"part-{process}-{name}"


def merge(work: Path, name: str, plan: Plan, width: int, processes: int) -> None:
    """Join all parts of file `name` to one (n_rows, width) file in `work`.

    Raises:
        UserError: a row was written twice or never, or holds NaN or infinity.
    """
    merged = create_npy(work / name, plan.n_rows, width)
    written = np.zeros(plan.n_rows, dtype=np.uint8)
    for process in range(processes):
        batches = plan.share(process, processes)
        if not batches:
            continue
        texts = np.concatenate(batches)
        part = np.load(part_path(work, name, process), mmap_mode="r")
        if part.shape != (len(texts), width):
            raise UserError(
                f"process {process} wrote {part.shape} of {(len(texts), width)} to {name}: run again"
            )
        for start in range(0, len(texts), CHUNK_ROWS):
            rows, place = plan.scatter(texts[start : start + CHUNK_ROWS])
            vectors = np.asarray(part[start : start + CHUNK_ROWS])
            bad = first_not_finite(vectors)
            if bad is not None:
                raise UserError(f"{name}, row {plan.first[texts[start + bad]]}: NaN or infinity; run again")
            merged[rows] = vectors[place]
            np.add.at(written, rows, 1)
    wanted = np.zeros(plan.n_rows, dtype=np.uint8)
    wanted[plan.scatter(np.flatnonzero(plan.lengths > 0))[0]] = 1
    wrong = np.flatnonzero(written != wanted)
    if len(wrong):
        raise UserError(
            f"{name}, row {wrong[0]}: written {written[wrong[0]]} times ({len(wrong)} rows): run again"
        )
    merged.flush()


def publish(work: Path, target: Path, about: dict[str, Any], plans: dict[str, tuple[Plan, int]]) -> None:
    """Move the merged files into `target`.

    The description goes first: whoever is killed between two moves leaves a file that does not match it, which
    every reader notices. Files of earlier runs that stay are still described.

    Args:
        work: holds the merged files.
        target: receives them.
        about: what the description says of every file.
        plans: by file name, its plan and width.
    """
    earlier = {name: entry for name, entry in _earlier(target).items() if (target / name).is_file()}
    ours = {
        name: {**about, "rows": plan.n_rows, "width": width, "sha256": sha256_file(work / name)}
        for name, (plan, width) in plans.items()
    }
    for name in ours:
        with open(work / name, "rb") as stream:
            os.fsync(stream.fileno())
    write_json(target / EMBEDDINGS_MANIFEST_FILE, {**about, "files": {**earlier, **ours}})
    for name in ours:
        os.replace(work / name, target / name)


def _earlier(target: Path) -> dict[str, Any]:
    with suppress(UserError):
        return dict(read_manifest(target)["files"])
    return {}
