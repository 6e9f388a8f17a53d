"""One run a folder at a time."""

import fcntl
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from lsvcr.utils.distributed import is_main
from lsvcr.utils.errors import UserError
from lsvcr.utils.io import explained
from lsvcr.utils.logging import get_logger

LOCK_FILE = ".lock"
_ENDING = 2.0
"""Seconds for which a process that was killed may still hold its lock: until the last of its threads has ended."""

logger = get_logger(__name__)


@contextmanager
def run_lock(run: Path) -> Iterator[None]:
    """Keep two runs from writing to one folder. The lock ends with the process, however it ends.

    Every process of a run enters; the main one holds the lock.

    Args:
        run: the folder; made if it is not there.

    Raises:
        UserError: another process trains there, or the folder cannot be written to.
    """
    if run.is_file():
        raise UserError(f"{run} is a file: use another --output_dir, or remove it")
    with explained(run):
        run.mkdir(parents=True, exist_ok=True)
    if not is_main():
        yield
        return
    with explained(run):
        lock = (run / LOCK_FILE).open("a")
    with lock:
        try:
            _take(lock.fileno())
        except BlockingIOError:
            raise UserError(
                f"another run is training in {run}: wait for it or end it, or use another --output_dir"
            ) from None
        except OSError:
            logger.warning(f"{run} is on a file system without locks: see that no other run writes there")
        yield


def _take(lock: int) -> None:
    """Lock an open file.

    Raises:
        BlockingIOError: another process holds it, and not because it is just ending.
        OSError: there are no locks here.
    """
    last = time.monotonic() + _ENDING
    while True:
        try:
            return fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > last:
                raise
            time.sleep(0.05)
