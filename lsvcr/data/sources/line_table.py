"""A raw file with one row a line and no quoting (`::`, TAB, `|`) as typed Polars columns.

Polars reads the lines once, streaming, and splits and casts them itself, so that a row that does not fit is known
by its line.
"""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import polars as pl

from lsvcr.data.sources.columns import WORDS, Column, is_good, typed
from lsvcr.data.sources.logs import LISTED, ROW, BadRows, drop_repeated
from lsvcr.data.sources.raw_bytes import UNREADABLE, cut_short, on_disk, open_raw
from lsvcr.utils.errors import UserError

_LINE = "line"
_EXTRA = "__beyond_the_last__"
_FAULT = "fault"
_TOO_MANY = 100
_TOO_FEW = 101
_UNREADABLE_LINES = (pl.exceptions.ComputeError, OSError)


class LineTable:
    """One file without header, UTF-8 with or without BOM, plain or gzip (`.gz`).

    Lines end in LF or CRLF; blank ones are passed.

    Args:
        path: the file; where it is not there, the one with `.gz` behind its name.
        columns: what is needed of it.
        names: every field of a line, in order.
        separator: what stands between two fields.
        free: the one field whose text may hold the separator.
        encoding: what a file that is no UTF-8 is read as; None refuses it.
        lossy: read bytes of no known encoding as U+FFFD.

    Raises:
        UserError: no such file, or an empty or damaged one.
    """

    def __init__(
        self,
        path: Path,
        columns: Sequence[Column],
        names: Sequence[str],
        separator: str,
        *,
        free: str | None = None,
        encoding: str | None = None,
        lossy: bool = False,
    ) -> None:
        self.path = path = on_disk(path)
        self.name = path.name
        self._columns = tuple(columns)
        self._names = tuple(names)
        self._separator = separator
        self._free = free
        self._encoding = encoding
        self._lossy = lossy
        if not path.is_file():
            raise UserError(f"{path} is missing; the raw folder must hold {self.name}")
        try:
            with open_raw(path) as stream:
                if not stream.read(1):
                    raise UserError(f"{path} is empty; nothing can be read")
        except UNREADABLE as error:
            raise cut_short(path, error) from None

    def collect(self, bad: BadRows, keep: pl.Expr | None = None) -> tuple[pl.DataFrame, int]:
        """Read the file once; see `CsvTable.collect`. `ROW` counts lines from 0.

        Raises:
            UserError: a broken row (see `BadRows`), or bytes that cannot be read.
        """
        try:
            frame, size = self._rows(pl.scan_lines(self.path, row_index_name=ROW, glob=False), keep)
        except _UNREADABLE_LINES:
            frame, size = self._rows(pl.scan_lines(self._decoded(), row_index_name=ROW), keep)
        broken = frame.filter(pl.col(_FAULT) > 0)
        first = broken.head(LISTED).select(ROW, _LINE, _FAULT).iter_rows()
        lines = [f"{self.path}, line {row + 1}: {self._reason(line, fault)}" for row, line, fault in first]
        bad.add(self.name, broken.height, lines)
        return frame.filter(pl.col(_FAULT) == 0).drop(_LINE, _FAULT), size

    def collect_unique(self, key: str, bad: BadRows) -> pl.DataFrame:
        """As `collect`, for a file with one row an id: an id that comes again is a broken row."""
        frame, _ = self.collect(bad)
        return drop_repeated(frame, key, self, bad)

    def places(self, rows: Sequence[int]) -> list[str]:
        """`file, line n` for each of `rows`."""
        return [f"{self.path}, line {row + 1}" for row in rows]

    def _rows(self, lines: pl.LazyFrame, keep: pl.Expr | None) -> tuple[pl.DataFrame, int]:
        """(typed needed columns with `ROW`, `_FAULT` and, where there is one, the line; number of rows)."""
        lines = lines.with_columns(pl.col(_LINE).str.strip_prefix("\ufeff")).filter(pl.col(_LINE) != "")
        rows = lines.with_columns(self._split().struct.unnest())
        last = pl.col(self._names[-1])
        shape: Any = pl.when(last.is_null()).then(_TOO_FEW)
        if self._free is None:
            shape = shape.when(pl.col(_EXTRA).is_not_null()).then(_TOO_MANY)
        # As in CSV, an empty field is no value; from here on a missing one looks the same.
        empty = [pl.col(column.name).replace("", None) for column in self._columns]
        rows = rows.with_columns(shape.otherwise(0).alias(_FAULT), *empty)
        fault: Any = pl.when(pl.col(_FAULT) > 0).then(pl.col(_FAULT))
        for index, column in enumerate(self._columns, start=1):
            fault = fault.when(~is_good(column)).then(index)
        fault = fault.otherwise(0)
        values = [typed(column).alias(column.name) for column in self._columns]
        rows = rows.select(ROW, *values, fault.alias(_FAULT), pl.when(fault > 0).then(pl.col(_LINE)))
        wanted = rows if keep is None else rows.filter(keep | (pl.col(_FAULT) > 0))
        frame, size = pl.collect_all([wanted, rows.select(pl.len())], engine="streaming")
        return frame.sort(ROW), int(size.item())

    def _split(self) -> pl.Expr:
        """A struct of the fields; those that a line lacks are null."""
        line, names = pl.col(_LINE), self._names
        if self._free is None:
            return line.str.splitn(self._separator, len(names) + 1).struct.rename_fields([*names, _EXTRA])
        if self._free == names[-1]:
            return line.str.splitn(self._separator, len(names)).struct.rename_fields(names)
        mark = re.escape(self._separator)
        fields = ["(.*)" if name == self._free else "(.*?)" for name in names]
        return line.str.extract_groups(f"^{mark.join(fields)}$").struct.rename_fields(names)

    def _decoded(self) -> bytes:
        """The whole file as UTF-8, for one that Polars cannot read as it is."""
        try:
            with open_raw(self.path) as stream:
                raw = stream.read()
        except UNREADABLE as error:
            raise cut_short(self.path, error) from None
        if self._encoding is not None:
            return raw.decode(self._encoding).encode()
        if self._lossy:
            return raw.decode(errors="replace").encode()
        try:
            raw.decode()
        except UnicodeDecodeError as error:
            line = raw.count(b"\n", 0, error.start) + 1
            raise UserError(
                f"{self.path}, line {line}: not UTF-8. Convert the file "
                "(iconv -f LATIN1 -t UTF-8), or pass --skip-bad-rows to read such bytes as U+FFFD"
            ) from None
        return raw

    def _reason(self, line: str, fault: int) -> str:
        fields = self._fields(line)
        if fault in (_TOO_FEW, _TOO_MANY):
            amount = "few" if fault == _TOO_FEW else "many"
            return (
                f"{len(fields)} fields are too {amount}, a line has {len(self._names)} "
                f"with {self._separator!r} between them ({', '.join(self._names)})"
            )
        column = self._columns[fault - 1]
        value = fields[self._names.index(column.name)]
        shown = "empty" if not value else repr(value if len(value) <= 40 else value[:40] + "...")
        return f"{column.name} is {shown}, expected {WORDS[column.kind]}"

    def _fields(self, line: str) -> list[str]:
        """What `_split` finds in one line."""
        fields = line.split(self._separator)
        beyond = len(fields) - len(self._names)
        if self._free is not None and beyond > 0:
            start = self._names.index(self._free)
            held = slice(start, start + beyond + 1)
            fields[held] = [self._separator.join(fields[held])]
        return fields
