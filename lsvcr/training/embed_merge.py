"""Parts, and what an earlier export had, joined to one file of vectors, row by row and checked on the way."""

import hashlib
import io
from pathlib import Path
from typing import Any

import numpy as np

from lsvcr.data.vectors import first_not_finite
from lsvcr.training.embed_parts import Parts
from lsvcr.training.embed_plan import EMPTY, Plan, kept
from lsvcr.utils.errors import UserError
from lsvcr.utils.io import take_room
from lsvcr.utils.logging import get_logger, progress

_CHUNK_BYTES = 1 << 25
"""Bytes of vectors that are put together at a time."""

_log = get_logger(__name__)


class Merger:
    """Joins the parts of one table; made once, used for each of its files.

    Holds 5 bytes a distinct text, and while it writes 5 a row more.

    Args:
        plan: of the table.
        parts: all finished.
    """

    def __init__(self, plan: Plan, parts: Parts) -> None:
        self._plan, self._parts = plan, parts
        texts = len(plan.first)
        self._place = np.zeros(texts, dtype=np.int32)
        self._place[plan.order] = np.arange(len(plan.order), dtype=np.int32)
        self._times = np.zeros(texts, dtype=np.uint8)
        np.add.at(self._times, plan.order, 1)

    def write(self, path: Path, width: int, earlier: Path | None) -> dict[str, Any]:
        """Write a file of vectors, (n_rows, width) float32, to `path`, whose name is the file's.

        Args:
            earlier: the file of the earlier export from which rows are taken, if there is one.

        Returns:
            What `embeddings.json` says of it: rows, width, sha256, empty_texts, zero_rows (row 0 not counted) and
            norms (least, median and greatest of the rows with text; None if there are none).

        Raises:
            UserError: a row was written twice or never, or holds NaN or infinity.
            OSError: the disk is full.
        """
        name, n_rows = path.name, self._plan.n_rows
        norms, written = np.zeros(n_rows, dtype=np.float32), np.zeros(n_rows, dtype=np.uint8)
        at_a_time = max(1, _CHUNK_BYTES // (4 * width))
        header = _header(n_rows, width)
        digest = hashlib.sha256(header)
        with open(path, "wb") as stream, progress(n_rows, f"joining {name} (rows)") as bar:
            # Take the whole space on the disk now, rather than find it full at the last row.
            take_room(stream, len(header) + n_rows * width * 4)
            stream.write(header)
            for start in range(0, n_rows, at_a_time):
                stop = min(start + at_a_time, n_rows)
                rows = self._rows(name, width, start, stop, earlier, written)
                bad = first_not_finite(rows)
                if bad is not None:
                    raise UserError(f"{name}, row {start + bad}: NaN or infinity; {_again(path)}")
                norms[start:stop] = np.sqrt(np.einsum("ij,ij->i", rows, rows, dtype=np.float64))
                data = rows.reshape(-1).view(np.uint8).data
                digest.update(data)
                stream.write(data)
                bar.advance(stop - start)
        _check_coverage(path, written)
        return {
            "rows": n_rows,
            "width": width,
            "sha256": digest.hexdigest(),
            **self._statistics(name, norms),
        }

    def _rows(
        self, name: str, width: int, start: int, stop: int, earlier: Path | None, written: np.ndarray
    ) -> np.ndarray:
        """Rows [start, stop) of the file, counted in `written`."""
        source = np.asarray(self._plan.source[start:stop])
        rows = np.zeros((stop - start, width), dtype="<f4")
        times = written[start:stop]
        times[source == EMPTY] += 1
        old = np.flatnonzero(kept(source) >= 0)
        if earlier is not None and len(old):
            rows[old] = np.load(earlier, mmap_mode="r")[kept(source[old])]
            times[old] += 1
        read = np.flatnonzero(source >= 0)
        texts = source[read]
        nothing = self._plan.lengths[texts] == 0
        times[read[nothing]] += 1
        times[read] += self._times[texts]
        read, place = read[~nothing], self._place[texts[~nothing]]
        by_place = np.argsort(place, kind="stable")
        read, place = read[by_place], place[by_place]
        at = 0
        while at < len(place):
            unit = int(np.searchsorted(self._plan.units, place[at], side="right")) - 1
            end = int(np.searchsorted(place, self._plan.units[unit + 1]))
            # Mapped anew each time: pages of all parts together would count as memory of this process.
            rows[read[at:end]] = self._parts.rows(name, unit)[place[at:end] - self._plan.units[unit]]
            at = end
        return rows

    def _statistics(self, name: str, norms: np.ndarray) -> dict[str, Any]:
        plan = self._plan
        empty = np.asarray(plan.source) == EMPTY
        texts = np.asarray(plan.source) >= 0
        empty[texts] = plan.lengths[plan.source[texts]] == 0
        zeros = int(np.count_nonzero(norms[1:] == 0))
        empty_texts = int(np.count_nonzero(empty[1:]))
        if zeros > empty_texts:
            _log.warning("%s: %d rows with text are zero all the same", name, zeros - empty_texts)
        real = norms[~empty]
        spread = {"min": real.min(), "median": np.median(real), "max": real.max()} if len(real) else None
        return {
            "empty_texts": empty_texts,
            "zero_rows": zeros,
            "norms": {key: float(value) for key, value in spread.items()} if spread else None,
        }


def _check_coverage(path: Path, written: np.ndarray) -> None:
    wrong = np.flatnonzero(written != 1)
    if len(wrong):
        raise UserError(
            f"{path.name}, row {wrong[0]}: written {written[wrong[0]]} times ({len(wrong)} such rows); "
            + _again(path)
        )


def _again(path: Path) -> str:
    return f"remove {path.parent} and run again"


def _header(rows: int, width: int) -> bytes:
    """How a `.npy` file of float32 (rows, width) begins."""
    stream = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        stream, {"descr": "<f4", "fortran_order": False, "shape": (rows, width)}
    )
    return stream.getvalue()
