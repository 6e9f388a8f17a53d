"""The checkpoints a stage-one run keeps: which one an interrupted run goes on from, and room for them on the disk.

RUN/last/          the newest
RUN/step-000200/   under `save_total_limit` N > 1 the N newest ones, last/ among them; its files are hard links to
                   last/'s, so that they take no room of their own
RUN/best/          never removed
"""

import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

from torch import Tensor

from lsvcr.schema import BEST_DIR, LAST_DIR, MANIFEST_FILE
from lsvcr.utils.errors import UserError
from lsvcr.utils.io import atomic_dir, is_disk_full, read_json, recover, sha256_file
from lsvcr.utils.logging import get_logger

FILES = "files"
"""Key of the manifest: SHA-256 of every other file, by its place in the folder."""

_STEP = "step-"
_MB = 1e6

logger = get_logger(__name__)


class FullDiskError(UserError):
    """There is no room for a checkpoint."""


def file_hashes(folder: Path) -> dict[str, str]:
    """SHA-256 of every file of a checkpoint folder but its manifest, as it can be read back from the disk."""
    kept = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != MANIFEST_FILE)
    return {path.relative_to(folder).as_posix(): sha256_file(path) for path in kept}


def settle(folder: Path) -> None:
    """Have every file of `folder` on the disk, so that what is read next comes from there where the system can."""
    for path in (path for path in folder.rglob("*") if path.is_file()):
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
            if hasattr(os, "posix_fadvise"):
                os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_DONTNEED)
        finally:
            os.close(handle)


def check_intact(folder: Path) -> None:
    """Compare the files of a checkpoint with the hashes its manifest has.

    Raises:
        UserError: names the first file that is missing or has changed.
    """
    for name, digest in read_json(folder / MANIFEST_FILE)[FILES].items():
        if not (folder / name).is_file():
            raise UserError(f"{folder / name} is missing")
        if sha256_file(folder / name) != digest:
            raise UserError(f"{folder / name} is damaged: its checksum is not the one it was written with")


def interrupted(run: Path) -> bool:
    """True where `run` holds checkpoints to go on from, good or not. Undoes what a kill left half done."""
    recover(run / LAST_DIR)
    return bool(_newest_first(run))


def newest_good(run: Path) -> Path:
    """The newest checkpoint whose files are what was written; says so where newer ones are damaged.

    Raises:
        UserError: none is; names the damaged file and the ways out.
    """
    damages: list[str] = []
    for folder in _newest_first(run):
        try:
            check_intact(folder)
        except (UserError, KeyError, TypeError, AttributeError) as damage:
            told = (
                str(damage) if isinstance(damage, UserError) else f"{folder / MANIFEST_FILE} has no checksums"
            )
            damages.append(told)
            continue
        if damages:
            logger.warning(f"{'; '.join(damages)}: the run goes on from {folder}, the newest that is whole")
        return folder
    raise UserError(
        f"{'; '.join(damages)}: put back a copy of the folder, use another --output_dir, or start anew with "
        "--resume False (--save_total_limit 2 or more would have kept an older checkpoint to go on from)"
    )


def keep_step(run: Path, limit: int) -> None:
    """Keep last/ as a step of its own too, then remove all but the `limit` newest steps.

    Args:
        run: its last/ is whole.
        limit: 0 or 1 keeps no steps; those of an earlier limit are removed.
    """
    step = int(read_json(run / LAST_DIR / MANIFEST_FILE)["step"])
    if limit > 1:
        newest = run / f"{_STEP}{step:06d}"
        with atomic_dir(newest) as temporary, full_disk_told(run):
            if _link(run / LAST_DIR, temporary):
                settle(temporary)
                check_intact(temporary)
    # Later ones are of before a run went on from an older checkpoint: it makes them again.
    kept = [folder for folder in _steps(run) if _number(folder) <= step][-limit:] if limit > 1 else []
    for old in set(_steps(run)) - set(kept):
        shutil.rmtree(old)


def forget(run: Path) -> None:
    """Remove every checkpoint of an earlier run."""
    for folder in (run / LAST_DIR, run / BEST_DIR, *_steps(run)):
        shutil.rmtree(folder, ignore_errors=True)


def checkpoint_bytes(tensors: Mapping[str, Tensor]) -> int:
    """What tensors take in a file."""
    return sum(value.numel() * value.element_size() for value in tensors.values())


def warn_if_tight(run: Path, last: int, best: int, limit: int) -> None:
    """Say before hours of training that the disk cannot hold their checkpoints.

    Args:
        run: the run's folder, which exists.
        last, best: bytes of one checkpoint in last/ and in best/.
        limit: `save_total_limit`.
    """
    # The next one is written whole before the one it replaces is removed.
    needed = (max(limit, 1) + 1) * last + 2 * best
    there = {file.stat().st_ino: file.stat().st_size for file in _checkpoint_files(run)}
    free = shutil.disk_usage(run).free
    if free + sum(there.values()) < needed:
        logger.warning(
            f"the disk of {run} has {_megabytes(free)} free, but the checkpoints of this run take about "
            f"{_megabytes(needed)}: free some, or use another --output_dir"
        )


@contextmanager
def full_disk_told(run: Path, needed: int = 0) -> Iterator[None]:
    """Turn a full disk while the block writes below `run` into a message with what is needed and what is left.

    Args:
        run: the run's folder.
        needed: bytes the block writes; 0 = a few.

    Raises:
        FullDiskError: the disk is full, or the quota used up.
    """
    try:
        yield
    except FullDiskError:
        raise
    except Exception as error:
        if not is_disk_full(error):
            raise
        # What is there of the unfinished one is removed when the block has ended.
        free = shutil.disk_usage(run).free + sum(file.stat().st_size for file in _unfinished_files(run))
        wanted = (
            f"the next checkpoint takes {_megabytes(needed)}, {_megabytes(free)} are free" if needed else ""
        )
        raise FullDiskError(
            f"the disk of {run} is full{': ' if wanted else ''}{wanted}. Free some space and run the same command "
            f"again: {_left(run)}"
        ) from error


def _left(run: Path) -> str:
    folders = _newest_first(run)
    if not folders:
        return "it starts from the beginning, no checkpoint had been written yet"
    return f"it goes on from step {read_json(folders[0] / MANIFEST_FILE)['step']}, {folders[0]} is intact"


def _megabytes(size: float) -> str:
    return f"{size / _MB:,.1f} MB" if size < 100 * _MB else f"{size / _MB:,.0f} MB"


def _steps(run: Path) -> list[Path]:
    """Folders of kept steps, oldest first."""
    found = [path for path in run.glob(f"{_STEP}*") if path.is_dir() and path.name[len(_STEP) :].isdigit()]
    return sorted(found, key=_number)


def _number(step: Path) -> int:
    return int(step.name[len(_STEP) :])


def _newest_first(run: Path) -> list[Path]:
    last = run / LAST_DIR
    return [*([last] if last.is_dir() else []), *reversed(_steps(run))]


def _link(source: Path, target: Path) -> bool:
    """Fill the folder `target` with hard links to the files of `source`; True if some had to be copied instead."""
    copied = False
    for file in (path for path in source.rglob("*") if path.is_file()):
        place = target / file.relative_to(source)
        place.parent.mkdir(parents=True, exist_ok=True)
        try:
            os.link(file, place)
        except OSError:  # a file system without links, such as FAT and some network ones
            shutil.copy2(file, place)
            copied = True
    return copied


def _checkpoint_files(run: Path) -> list[Path]:
    folders = (run / LAST_DIR, run / BEST_DIR, *_steps(run))
    return [file for folder in folders for file in folder.rglob("*") if file.is_file()]


def _unfinished_files(run: Path) -> list[Path]:
    found: list[Path] = []
    for folder in run.glob(".tmp-*"):
        with suppress(OSError):
            found += [path for path in folder.rglob("*") if path.is_file()]
    return found
