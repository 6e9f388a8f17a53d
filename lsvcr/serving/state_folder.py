"""The folder that keeps changes: one process has it, and it is no part of a bundle."""

import errno
import fcntl
import os
from pathlib import Path

from lsvcr.utils.errors import UserError

LOCK_FILE = "lock"


def locked(root: Path) -> int:
    """Make the folder if need be and take its lock, which the system releases however the process ends.

    Raises:
        UserError: another process has it, or the folder cannot be used.
    """
    path = root / LOCK_FILE
    try:
        missing = [folder for folder in (root, *root.parents) if not folder.exists()]
        root.mkdir(parents=True, exist_ok=True)
        for folder in missing:  # or a power cut could take the folder with all that is safe in it
            sync_folder(folder)
        handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    except OSError as error:
        raise UserError(f"{root} cannot be used as state: {error.strerror}; choose another folder") from error
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.ftruncate(handle, 0)
        os.pwrite(handle, b"%d\n" % os.getpid(), 0)
    except BlockingIOError:
        holder = os.pread(handle, 32, 0).decode("ascii", "replace").strip() or "unknown"
        os.close(handle)
        raise UserError(
            f"{root} is in use by process {holder}: one state folder serves one process; stop that one or choose "
            "another folder"
        ) from None
    except OSError as error:
        os.close(handle)
        raise UserError(
            f"{path} cannot be locked: {error.strerror}; choose a folder on a local disk"
        ) from error
    return handle


def check_there(handle: int, path: Path) -> None:
    """See that an open file still has its name: what is written to one that has been removed is lost.

    Raises:
        FileNotFoundError: there is no such file any more, or another one.
        OSError: it cannot be looked at.
    """
    if not os.path.samestat(os.fstat(handle), os.stat(path)):
        raise FileNotFoundError(errno.ENOENT, "it is another file now", str(path))


def refuse_inside(state: str | Path, bundle: str | Path) -> None:
    """Keep changes out of a bundle's folder, which is replaced as a whole.

    Raises:
        UserError: the state folder is the bundle's, or lies inside it.
    """
    inner, outer = (Path(os.path.realpath(path)) for path in (state, bundle))
    if inner.is_relative_to(outer):
        raise UserError(
            f"the state folder {state} lies inside the bundle {bundle} and would go with it when another takes its "
            "place; choose a folder outside, and move the one that is there if it holds changes"
        )


def sync_folder(path: Path) -> None:
    """Have the name of a file or folder on disk, for which its parent is flushed."""
    handle = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
