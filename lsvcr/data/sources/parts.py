"""A table in one file or in many, as Spark and Hive write them: `videos/`, `likes/day=2024-05-31/part-0000.csv`."""

from bisect import bisect_right
from collections.abc import Sequence
from pathlib import Path

import polars as pl

from lsvcr.data.sources.columns import Column
from lsvcr.data.sources.csv_table import CsvTable
from lsvcr.data.sources.logs import ROW, BadRows, drop_repeated
from lsvcr.data.sources.parquet_table import ParquetTable
from lsvcr.data.sources.raw_bytes import is_empty, on_disk
from lsvcr.data.sources.spill import Spill
from lsvcr.utils.errors import UserError

SUFFIXES = (".parquet", ".csv", ".csv.gz")


class PartedTable:
    """All files of one table; rows are counted through them in the order of their paths.

    Args:
        path: a file, or a folder that holds files of one kind at any depth. Names that begin with `_` or `.` are
            markers of the writer and passed over, and so are empty files.
        columns: what is needed; a column may also stand in a folder's name, `day=2024-05-31`, of Parquet files.
        lossy: read bytes that are no UTF-8 as U+FFFD.
        separator: of CSV files.

    Raises:
        UserError: no file, or one that cannot be read or lacks a column.
    """

    def __init__(
        self, path: Path, columns: Sequence[Column], lossy: bool = False, separator: str = ","
    ) -> None:
        self.name = path.name
        self._parts: list[CsvTable | ParquetTable] = [
            ParquetTable(file, columns, _partition(file, path))
            if file.name.endswith(".parquet")
            else CsvTable(file, columns, lossy, separator)
            for file in _files(path)
        ]
        self._starts: list[int] = []

    def collect(self, bad: BadRows, keep: pl.Expr | None = None) -> tuple[pl.DataFrame, int]:
        """Read every file once; see `CsvTable.collect`."""
        frames, total, start = [], 0, 0
        self._starts = []
        for part in self._parts:
            frame, size, end = part.collect_part(bad, keep)
            frames.append(frame.with_columns((pl.col(ROW) + start).cast(pl.UInt32)))
            self._starts.append(start)
            total, start = total + size, start + end
        return pl.concat(frames), total

    def spill(self, bad: BadRows, keep: pl.Expr | None, spill: Spill, columns: Sequence[pl.Expr]) -> int:
        """Send `columns` of the rows where `keep` holds to `spill`, a file at a time; returns the rows in the files."""
        total = 0
        for part in self._parts:
            frame, size, _ = part.collect_part(bad, keep)
            spill.write(frame.select(columns))
            total += size
        return total

    def collect_unique(self, key: str, bad: BadRows) -> pl.DataFrame:
        """See `CsvTable.collect_unique`; an id must not come again in another file either."""
        frame, _ = self.collect(bad)
        return drop_repeated(frame, key, self, bad)

    def places(self, rows: Sequence[int]) -> list[str]:
        """`file, line n` (Parquet: `file, row n`) for each of `rows` (ascending), once they have been collected."""
        by_part: dict[int, list[int]] = {}
        for row in rows:
            part = bisect_right(self._starts, row) - 1
            by_part.setdefault(part, []).append(row - self._starts[part])
        return [place for part, own in by_part.items() for place in self._parts[part].places(own)]


def _files(path: Path) -> list[Path]:
    path = on_disk(path)
    if path.is_file():
        if not path.name.endswith(SUFFIXES):
            raise UserError(f"{path} is neither CSV nor Parquet; its name must end in {', '.join(SUFFIXES)}")
        return [path]
    if not path.is_dir():
        raise UserError(f"{path} is missing; correct its `files` in the column map")
    inside = [
        file
        for file in sorted(path.rglob("*"))
        if file.is_file() and not any(part[0] in "_." for part in file.relative_to(path).parts)
    ]
    files = [file for file in inside if file.name.endswith(SUFFIXES) and not is_empty(file)]
    if not files:
        raise UserError(f"{path} holds no file that ends in {', '.join(SUFFIXES)}")
    return files


def _partition(file: Path, root: Path) -> dict[str, str]:
    """`likes/day=2024-05-31/part.parquet` -> {"day": "2024-05-31"}."""
    if file == root:
        return {}
    folders = file.relative_to(root).parts[:-1]
    return dict(folder.split("=", 1) for folder in folders if "=" in folder)
