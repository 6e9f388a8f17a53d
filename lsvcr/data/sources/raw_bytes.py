"""Raw files as bytes, gzip or plain, and what to say when one ends too early."""

import gzip
import zlib
from pathlib import Path
from typing import BinaryIO, cast

from lsvcr.utils.errors import UserError

_CHUNK = 1 << 22

UNREADABLE = (OSError, EOFError, zlib.error)
"""What reading a damaged file raises; a gzip file cut short ends in an EOFError."""


def open_raw(path: Path) -> BinaryIO:
    """Open a file for reading bytes; a `.gz` is unpacked on the way."""
    return cast(BinaryIO, gzip.open(path, "rb")) if path.suffix == ".gz" else open(path, "rb")


def on_disk(path: Path) -> Path:
    """`path`, or the file with `.gz` behind its name where that alone is there."""
    packed = path.with_name(f"{path.name}.gz")
    return packed if packed.is_file() and not path.exists() else path


def is_empty(path: Path) -> bool:
    """Whether nothing is in the file, unpacked if it is a `.gz`; a damaged one is not empty."""
    try:
        with open_raw(path) as stream:
            return not stream.read(1)
    except UNREADABLE:
        return False


def read_through(path: Path) -> None:
    """Read the whole file and forget it.

    Raises:
        UserError: it cannot be read to its end, being damaged or cut short.
    """
    try:
        with open_raw(path) as stream:
            while stream.read(_CHUNK):
                pass
    except UNREADABLE as error:
        raise cut_short(path, error) from None


def holds(path: Path, sequence: bytes) -> bool:
    """Whether these bytes stand anywhere in the file."""
    with open_raw(path) as stream:
        end = b""
        while chunk := stream.read(_CHUNK):
            if sequence in end + chunk:
                return True
            end = chunk[1 - len(sequence) :]
    return False


def cut_short(path: Path, error: BaseException) -> UserError:
    """The error for a file that cannot be read to its end."""
    what = "is no whole gzip file" if path.suffix == ".gz" else "cannot be read to its end"
    return UserError(f"{path} {what} ({error}); copy or download it again")
