"""Reading and writing artefacts so that a killed process never leaves half of one.

Folders and files are written under a temporary sibling name and renamed when they are complete.
The writer holds a lock on the temporary name; a name nobody holds is the leftover of a killed
process and is removed (or, for a folder moved aside during a swap, put back) by the next writer.
"""

import errno
import fcntl
import glob
import hashlib
import json
import os
import re
import secrets
import shutil
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

import numpy as np

from lsvcr.utils.errors import UserError

_CHUNK = 1 << 20
_MOUNTED = "something is mounted there, so that it cannot be replaced; choose another place, such as a folder inside it"
_WRITING = {
    errno.ENOSPC: "no space left; free some or choose another place",
    errno.EDQUOT: "your quota is used up; free some space or choose another place",
    errno.EBUSY: _MOUNTED,
}
_SHORT = "no space left, or your quota is used up; free some or choose another place"
_CUT_SHORT = re.compile(
    rf"\(os error ({errno.ENOSPC}|{errno.EDQUOT})\)|\d+ requested and \d+ written|thrift: transport error"
)
"""What Polars, safetensors and NumPy say of a full disk: their errors have no number. The last is Polars' where the end
of a Parquet file does not fit any more."""
_UNREACHABLE = {
    errno.EACCES: "permission denied; choose another place or change its rights",
    errno.EPERM: "permission denied; choose another place or change its rights",
    errno.EROFS: "the file system is read-only; choose another place",
    errno.ENOTDIR: "a parent of it is a file; choose another place",
    errno.EEXIST: "a parent of it is a file; choose another place",
}


@contextmanager
def atomic_dir(path: str | Path) -> Iterator[Path]:
    """Yield an empty folder that becomes `path` when the block ends without an exception.

    A folder already at `path` is replaced as a whole; a file there raises. On any exception,
    Ctrl-C included, the temporary folder is removed and `path` stays as it was.

    Raises:
        UserError: the parent cannot be written to, `path` is a file or a mount point, or the disk is full.
    """
    target = Path(os.path.realpath(path))
    if target.is_file():  # one look: another writer may be about to exchange it
        raise UserError(f"{target} is a file: choose another folder or remove it")
    _refuse_mounted(target)
    with explained(target, _WRITING | _UNREACHABLE):
        target.parent.mkdir(parents=True, exist_ok=True)
        _recover(target)
        temporary, lock = _claim(target, Path.mkdir)
    try:
        with explained(target, _WRITING):
            yield temporary
            _swap(temporary, target)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    finally:
        os.close(lock)


@contextmanager
def atomic_file(path: str | Path) -> Iterator[Path]:
    """Yield a temporary file name in the same folder that becomes `path` when the block ends well.

    Raises:
        UserError: the folder cannot be written to, or the disk is full.
    """
    target = Path(os.path.realpath(path))
    with explained(target, _WRITING | _UNREACHABLE):
        target.parent.mkdir(parents=True, exist_ok=True)
        _recover(target)
        temporary, lock = _claim(target, Path.touch)
    try:
        with explained(target, _WRITING):
            yield temporary
            os.replace(temporary, target)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    finally:
        os.close(lock)


def check_replaceable(out: str | Path, what: str, own: Collection[str]) -> None:
    """Refuse, before the work, a folder that `atomic_dir` would replace although there are other files in it.

    Args:
        out: the folder given with --out; it need not be there.
        what: what may be replaced, in words.
        own: its files, relative to `out`; a name with "/" at its end stands for all below it. Empty where what
            is there is something else.

    Raises:
        UserError: a file is not among `own`, the folder cannot be looked through, or it is a mount point.
    """
    _refuse_mounted(Path(os.path.realpath(out)))
    below = tuple(name for name in own if name.endswith("/"))
    for name in _entries(Path(out)):
        if name not in own and not name.startswith(below):
            raise UserError(
                f"--out {out} holds other files than {what}: {name}. The folder would be replaced as a whole; give a "
                "new or empty one, or move them away"
            )


def recover(path: str | Path) -> None:
    """Undo what a killed `atomic_dir(path)` or `atomic_file(path)` left half done; without one, nothing happens.

    For who only reads: a kill in the middle of an exchange leaves the folder under another name, from where the next
    writer would bring it back.
    """
    _recover(Path(os.path.realpath(path)))


def write_json(path: str | Path, content: Any) -> None:
    """Write `content` as indented UTF-8 JSON, atomically. NaN and infinity raise ValueError."""
    text = json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    with atomic_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def read_json(path: str | Path) -> Any:
    """Read a JSON file.

    Raises:
        UserError: the file is missing or is not JSON (with the line that broke it).
    """
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path} does not exist") from None
    except json.JSONDecodeError as broken:
        where = f"{path}, line {broken.lineno}"
        raise UserError(f"{where}: not valid JSON ({broken.msg}); make it again") from None
    except (OSError, UnicodeDecodeError) as broken:
        raise UserError(f"{path} cannot be read: {broken}") from None


def sha256_file(path: str | Path) -> str:
    """Hexadecimal SHA-256 of a file's bytes, read in chunks."""
    digest = hashlib.sha256()
    with open(path, "rb") as stream:
        while chunk := stream.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def sha256_text(text: str) -> str:
    """Hexadecimal SHA-256 of the UTF-8 bytes of `text`."""
    return hashlib.sha256(text.encode("utf-8")).hexdigest()


def load_npy(path: str | Path, mmap: bool = True) -> np.ndarray:
    """Open a `.npy` file, memory-mapped and read-only by default. Pickled content is refused.

    Raises:
        UserError: the file is missing, cut short or not a `.npy` file.
    """
    try:
        return np.load(path, mmap_mode="r" if mmap else None, allow_pickle=False)
    except FileNotFoundError:
        raise UserError(f"{path} does not exist") from None
    except (ValueError, EOFError, OSError) as broken:
        raise UserError(f"{path} is damaged or not a .npy file ({broken}); make it again") from None


def create_npy(path: str | Path, dtype: Any, shape: tuple[int, ...]) -> np.memmap:
    """A mapped `.npy` file of zeros with its room on the disk taken.

    Otherwise writing to the map of a full disk would kill the process.

    Raises:
        OSError: there is not enough room.
    """
    array = np.lib.format.open_memmap(path, mode="w+", dtype=dtype, shape=shape)
    with open(path, "r+b") as stream:
        take_room(stream, os.fstat(stream.fileno()).st_size)
    return array


def take_room(stream: IO[bytes], size: int) -> None:
    """Take the disk's room for the first `size` bytes of a file now, where the system can.

    Raises:
        OSError: there is not enough.
    """
    if hasattr(os, "posix_fallocate"):
        os.posix_fallocate(stream.fileno(), 0, size)


def is_disk_full(error: BaseException) -> bool:
    """True where an error, or the one that a UserError put into words, says of a full disk or a used-up quota."""
    if isinstance(error, UserError):
        return error.__cause__ is not None and is_disk_full(error.__cause__)
    if isinstance(error, OSError) and error.errno is not None:
        return error.errno in (errno.ENOSPC, errno.EDQUOT)
    return _CUT_SHORT.search(str(error)) is not None


def _entries(folder: Path) -> Iterator[str]:
    """Files and links below `folder`, relative to it, in order, its own first; folders as such do not count."""

    def fail(error: OSError) -> None:
        if not isinstance(error, FileNotFoundError | NotADirectoryError):
            raise UserError(
                f"{error.filename} cannot be looked through: {error.strerror}; choose another place"
            )

    for place, folders, files in os.walk(folder, onerror=fail):
        folders.sort()
        links = [name for name in folders if os.path.islink(os.path.join(place, name))]
        for name in sorted(files + links):
            yield Path(place, name).relative_to(folder).as_posix()


def _refuse_mounted(target: Path) -> None:
    """Raise a UserError for a folder that no other can be renamed to."""
    if os.path.ismount(target):
        raise UserError(f"cannot write {target}: {_MOUNTED}")


def _sibling(target: Path, kind: str) -> Path:
    """A fresh hidden name beside `target`, on the same file system so that a rename is atomic.

    The name keeps the suffix, because some writers (`numpy.save`) add one that they miss.
    """
    return target.parent / f".{kind}-{secrets.token_hex(4)}-{target.name}"


def _siblings(target: Path, kind: str) -> list[Path]:
    return sorted(target.parent.glob(f".{kind}-{'?' * 8}-{glob.escape(target.name)}"))


def _claim(target: Path, create: Callable[[Path], None]) -> tuple[Path, int]:
    """A temporary sibling that is locked before others can see it under a name they might clean up."""
    unseen = _sibling(target, "new")
    create(unseen)
    lock = _lock(unseen)
    temporary = _sibling(target, "tmp")
    os.rename(unseen, temporary)
    return temporary, lock


def _lock(path: Path) -> int:
    """Open and lock `path`; the system releases the lock when the process ends, however it ends."""
    handle = os.open(path, os.O_RDONLY)
    # A file system without locks raises OSError: only two simultaneous writers of one artefact
    # would then miss each other.
    with suppress(OSError):
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    return handle


def _is_stale(path: Path) -> bool:
    """True when no living process holds the lock on `path`."""
    try:
        handle = os.open(path, os.O_RDONLY)
    except OSError:
        return False
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    finally:
        os.close(handle)
    return True


def _swap(temporary: Path, target: Path) -> None:
    """Put `temporary` in `target`'s place; what was there is moved aside first and deleted last."""
    aside: list[tuple[Path, int]] = []
    try:
        while not _takes_place(temporary, target):
            with suppress(FileNotFoundError):
                lock = _lock(target)
                aside.append((_sibling(target, "old"), lock))
                os.rename(target, aside[-1][0])
    except BaseException:
        if aside and not target.exists():
            os.rename(aside.pop()[0], target)
        raise
    finally:
        for old, lock in aside:
            shutil.rmtree(old, ignore_errors=True)
            os.close(lock)


def _takes_place(temporary: Path, target: Path) -> bool:
    """Rename; False when a folder with content is in the way."""
    try:
        os.rename(temporary, target)
    except OSError as error:
        if error.errno in (errno.ENOTEMPTY, errno.EEXIST):
            return False
        raise
    return True


def _recover(target: Path) -> None:
    """Undo a swap that was killed half-way and delete what killed writers left beside `target`."""
    for old in filter(_is_stale, _siblings(target, "old")):
        # Another process may be doing the same: whoever comes second finds nothing to do.
        with suppress(OSError):
            if not target.exists():
                os.rename(old, target)
        shutil.rmtree(old, ignore_errors=True)
    for stale in filter(_is_stale, _siblings(target, "tmp")):
        if stale.is_dir():
            shutil.rmtree(stale, ignore_errors=True)
        else:
            stale.unlink(missing_ok=True)


@contextmanager
def explained(target: Path, reasons: dict[int, str] = _WRITING | _UNREACHABLE) -> Iterator[None]:
    """Turn the errors of writing `target` that a user can mend into messages; others pass.

    Args:
        target: for the message.
        reasons: what to say, by `errno`.

    Raises:
        UserError: one of `reasons`, or a full disk.
    """
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        if getattr(error, "errno", None) is not None:
            reason = reasons.get(error.errno)  # type: ignore[attr-defined]
        else:
            reason = _SHORT if is_disk_full(error) else None
        if reason is None:
            raise
        raise UserError(f"cannot write {target}: {reason}") from error
