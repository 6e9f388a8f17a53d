"""The finished parts of an embedding run on disk: what an interrupted run has done is not done again.

A part holds the vectors of the texts of `Plan.texts(unit)` in that order, and behind them the SHA-256 of these
bytes. It gets its name when it is complete, so a part with a name is whole unless the disk has changed it, and
the digest tells that. A part is a file of its own: processes never write to the same page, on one machine or on
many with a shared file system.
"""

import hashlib
import os
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from lsvcr.training.embed_plan import Plan
from lsvcr.utils.distributed import gather_rows, rank, world_size

_DIGEST_BYTES = 32
_CHUNK = 1 << 20
_SUFFIX, _UNFINISHED = ".part", ".tmp"


class Parts:
    """The parts of one table of texts.

    Args:
        folder: the parts folder of the run, which all processes see.
        plan: says which texts a part has.
        widths: width by name of each file that is to be made of the parts.
    """

    def __init__(self, folder: Path, plan: Plan, widths: Mapping[str, int]) -> None:
        self._folder, self._plan, self._widths = folder, plan, dict(widths)

    def write(self, unit: int, vectors: Mapping[str, np.ndarray]) -> None:
        """Write part `unit`: by file name, its vectors (n, width) float32.

        Raises:
            OSError: there is no space; no part has appeared then.
        """
        for name, rows in vectors.items():
            data = np.ascontiguousarray(rows, dtype="<f4").reshape(-1).view(np.uint8).data
            path = self._path(name, unit)
            temporary = path.with_suffix(_UNFINISHED)
            with open(temporary, "wb") as stream:
                stream.write(data)
                stream.write(hashlib.sha256(data).digest())
            os.replace(temporary, path)

    def rows(self, name: str, unit: int) -> np.memmap:
        """The vectors of part `unit` for file `name`, (n, width) float32, mapped.

        Raises:
            OSError, ValueError: there is no whole part.
        """
        shape = (len(self._plan.texts(unit)), self._widths[name])
        return np.memmap(self._path(name, unit), dtype="<f4", mode="r", shape=shape)

    def finished(self) -> np.ndarray:
        """(U,) bool: the parts whose files are all there and as they were written. Every process must call this.

        The processes share the reading out.
        """
        mine = np.arange(rank(), self._plan.n_units, world_size())
        good = np.fromiter((self._is_whole(int(unit)) for unit in mine), dtype=np.uint8, count=len(mine))
        return gather_rows(mine, good)[1].astype(bool)

    def _is_whole(self, unit: int) -> bool:
        texts = len(self._plan.texts(unit))
        return all(_holds(self._path(name, unit), texts * width * 4) for name, width in self._widths.items())

    def _path(self, name: str, unit: int) -> Path:
        return self._folder / f"{Path(name).stem}-{unit:06d}{_SUFFIX}"


def count_parts(folder: Path) -> int:
    """Finished part files in a parts folder."""
    return sum(1 for path in folder.glob(f"*{_SUFFIX}")) if folder.is_dir() else 0


def remove_unfinished(folder: Path) -> None:
    """Delete what a killed process was writing."""
    for path in folder.glob(f"*{_UNFINISHED}"):
        path.unlink()


def _holds(path: Path, size: int) -> bool:
    """True for a part of `size` bytes of vectors that are those its digest was taken of."""
    if not path.is_file() or path.stat().st_size != size + _DIGEST_BYTES:
        return False
    digest = hashlib.sha256()
    with open(path, "rb") as stream:
        left = size
        while left:
            chunk = stream.read(min(_CHUNK, left))
            digest.update(chunk)
            left -= len(chunk)
        return stream.read() == digest.digest()
