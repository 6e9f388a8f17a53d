"""The work folder of an embedding run, and how its files come to where they are read.

Until all is complete nothing outside the work folder changes. The last moves are written down before the first of
them is made, so that a run killed between two of them is brought to its end by the next one.
"""

import errno
import fcntl
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lsvcr.data.vectors import read_manifest
from lsvcr.schema import EMBED_WORK_DIR, EMBEDDINGS_MANIFEST_FILE
from lsvcr.training.embed_parts import count_parts, remove_unfinished
from lsvcr.utils.distributed import barrier, is_main
from lsvcr.utils.errors import UserError
from lsvcr.utils.io import read_json, write_json
from lsvcr.utils.logging import get_logger

_PARTS = "parts"
_STATE = "state.json"
_MOVES = "moves.json"

GIGABYTE = 1e9

_log = get_logger(__name__)


@dataclass
class Work:
    """The work folder of a run."""

    folder: Path
    moved: bool = False
    """A killed run's last moves were made now."""
    needed: int = 0
    """Bytes the run needs in all, 0 while that is not known."""

    @property
    def parts(self) -> Path:
        """The folder of the finished parts."""
        return self.folder / _PARTS


@contextmanager
def work_folder(target: Path) -> Iterator[Work]:
    """A folder inside `target` that all processes share.

    It holds what an interrupted run of any settings has left; see `claim`. What this run leaves in it stays if
    there are finished parts among it.

    Raises:
        UserError: `target` cannot be written to, is not shared, is full, or another run is at work there.
    """
    work, lock = Work(target / EMBED_WORK_DIR), -1
    if is_main():
        lock = _opened(work)
    barrier()
    if not work.folder.is_dir():
        raise UserError(
            f"{target} is another folder on this machine: --output_dir must be one that all machines share"
        )
    try:
        yield work
        barrier()
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise UserError(_full(work, error.strerror)) from error
    finally:
        if is_main():
            _leave(work)
            os.close(lock)


def claim(work: Work, run: Mapping[str, Any]) -> None:
    """Make the work folder that of a run; the first process calls it.

    Args:
        work: the work folder.
        run: all that the vectors depend on, as JSON has it. What a run of something else has left is thrown away.
    """
    parts, state = work.parts, work.folder / _STATE
    done = count_parts(parts)
    if done:
        other = _changed(state, run)
        if other:
            _log.info(
                "%s: an interrupted run of something else left %d part files: thrown away (%s)",
                work.folder,
                done,
                "; ".join(other),
            )
            shutil.rmtree(parts)
    for path in work.folder.iterdir():
        if path.is_file() and path != state:
            path.unlink()
    parts.mkdir(exist_ok=True)
    remove_unfinished(parts)
    write_json(state, dict(run))


def check_space(work: Work, missing: int) -> None:
    """Stop before hours of work if `missing` bytes, those that are still to be written, do not fit.

    Raises:
        UserError: how much is needed and how much there is.
    """
    work.needed = missing
    free = shutil.disk_usage(work.folder).free
    if missing > free:
        raise UserError(_full(work, f"{free / GIGABYTE:.3f} GB are free"))


def publish(
    work: Work,
    target: Path,
    about: Mapping[str, Any],
    vectors: Mapping[str, Mapping[str, Any]],
    keys: Mapping[str, Mapping[str, Any]],
) -> None:
    """Move the complete files from `work` into `target`.

    The description goes first: while the others move, and if a machine dies then, a reader finds files that do not
    match it, and says so. Files of earlier runs that stay are still described.

    Args:
        work: holds the files.
        target: receives them.
        about: what the description says of all vectors.
        vectors, keys: what it says of each file.
    """
    earlier = _earlier(target)
    manifest = {
        **about,
        "files": {**earlier["files"], **{name: {**about, **entry} for name, entry in vectors.items()}},
        "keys": {**earlier["keys"], **{name: dict(entry) for name, entry in keys.items()}},
    }
    # Vectors last: scripts take the last file of vectors for the sign that all are there.
    names = [*keys, *vectors]
    for name in names:
        with open(work.folder / name, "rb") as stream:
            os.fsync(stream.fileno())
    write_json(work.folder / _MOVES, {"manifest": manifest, "files": names})
    _finish_moves(work.folder, target)


def _finish_moves(work: Path, target: Path) -> bool:
    """Make the moves that are written down and not made yet; False if none are written down."""
    if not (work / _MOVES).is_file():
        return False
    moves = read_json(work / _MOVES)
    write_json(target / EMBEDDINGS_MANIFEST_FILE, moves["manifest"])
    for name in moves["files"]:
        # What is not here any more was moved before the run was killed.
        with suppress(FileNotFoundError):
            os.replace(work / name, target / name)
    shutil.rmtree(work / _PARTS, ignore_errors=True)
    # The last to go: until then all this can be done again.
    (work / _MOVES).unlink()
    return True


def _opened(work: Work) -> int:
    """Make the folder, bring what a killed run was about to publish to its end, and return the folder's lock."""
    target = work.folder.parent
    try:
        lock = _take(work.folder)
        work.moved = _finish_moves(work.folder, target)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise UserError(_full(work, error.strerror)) from error
        raise UserError(f"cannot write to {target} ({error.strerror}): give another --output_dir") from error
    return lock


def _take(folder: Path) -> int:
    """Make `folder` and hold its lock, which the system frees however the process ends."""
    folder.mkdir(parents=True, exist_ok=True)
    lock = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(lock)
        raise UserError(f"another `lsvcr embed` is writing to {folder.parent}: wait for it") from None
    except OSError:
        pass  # a file system without locks
    # A folder's rights do not tell everything: now a file is written, not after an hour.
    (folder / "writable").touch()
    (folder / "writable").unlink()
    return lock


def _leave(work: Work) -> None:
    """Remove the work folder unless it holds what another run can use."""
    if count_parts(work.parts):
        _log.info("%s", _kept(work))
    elif not (work.folder / _MOVES).is_file():
        shutil.rmtree(work.folder, ignore_errors=True)


def _full(work: Work, reason: str | None) -> str:
    needed = f"{work.needed / GIGABYTE:.3f} GB of vectors" if work.needed else "the vectors"
    return (
        f"{work.folder.parent}: no space for {needed} ({reason}): free some or give another --output_dir. "
        + _kept(work)
    )


def _kept(work: Work) -> str:
    done = count_parts(work.parts)
    if not done:
        return "Nothing there has changed"
    return f"{done} finished part files are kept in {work.folder}: the same command, given again, goes on from there"


def _changed(state: Path, run: Mapping[str, Any]) -> list[str]:
    """What the run that wrote `state` and this one differ in, as `field: value there, value here`."""
    try:
        there = read_json(state)
    except UserError:
        there = None
    if not isinstance(there, dict):
        return ["it does not say of what"]
    return [
        f"{field} {str(there.get(field))[:12]} there, {str(run.get(field))[:12]} here"
        for field in dict.fromkeys([*there, *run])
        if there.get(field) != run.get(field)
    ]


def _earlier(target: Path) -> dict[str, dict[str, Any]]:
    """What the description says of files that are there."""
    try:
        manifest = read_manifest(target)
    except UserError:
        manifest = {}
    return {
        kind: {name: entry for name, entry in manifest.get(kind, {}).items() if (target / name).is_file()}
        for kind in ("files", "keys")
    }
