"""Rows of a source that are too many for memory: impressions, kept as Arrow files until they are placed."""

from collections.abc import Iterator
from pathlib import Path

import polars as pl

from lsvcr.data.sources.logs import ROW
from lsvcr.schema import TIME, USER, VIDEO

CLICKED = "clicked"
FROM_LIKES = "from_likes"
BATCH = 2_000_000
"""Rows looked at together: some hundred megabytes."""


class Spill:
    """Impressions in files of a folder: `user`, `video` (raw ids), `time` (int64 Unix ms), `clicked`,
    `from_likes` (bool: the row said nothing of a click, so that a like stood in for it).

    Args:
        folder: made when the first file is written; it belongs to this object.

    `rows_have_order`: see `RawLogs`.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._files: list[Path] = []
        self._left_out: dict[Path, list[int]] = {}
        self.rows_have_order = True

    def __bool__(self) -> bool:
        """Whether a source wrote anything here; it may be a table without rows."""
        return bool(self._files)

    def sink(self, rows: pl.LazyFrame) -> pl.LazyFrame:
        """A query that writes `rows` (with `ROW`, ascending) to the next file, to be collected with others."""
        return rows.sink_ipc(self._next(), lazy=True)

    def write(self, rows: pl.DataFrame) -> None:
        """Write `rows` to the next file."""
        rows.write_ipc(self._next())

    def leave_out(self, rows: list[int]) -> None:
        """Pass over these rows (values of `ROW`) of the file written last: they turned out to be broken."""
        if rows:
            self._left_out[self._files[-1]] = rows

    @property
    def rows(self) -> int:
        """How many rows `batches` gives."""
        written = sum(
            int(pl.scan_ipc(file, glob=False).select(pl.len()).collect().item()) for file in self._files
        )
        return written - sum(len(rows) for rows in self._left_out.values())

    def remove(self) -> None:
        """Remove the files, to free the disk."""
        for file in self._files:
            file.unlink()
        self._files, self._left_out = [], {}

    def batches(self) -> Iterator[pl.DataFrame]:
        """All rows in order, at most `BATCH` at a time."""
        for file in self._files:
            table = pl.scan_ipc(file, glob=False)
            if file in self._left_out:
                table = table.filter(~pl.col(ROW).is_in(self._left_out[file]))
            start = 0
            while True:
                batch = table.slice(start, BATCH).select(USER, VIDEO, TIME, CLICKED, FROM_LIKES).collect()
                if not batch.height:
                    break
                yield batch
                start += BATCH

    def _next(self) -> Path:
        self.folder.mkdir(exist_ok=True)
        self._files.append(self.folder / f"{len(self._files)}.arrow")
        return self._files[-1]
