"""A raw CSV file as typed Polars columns, with the exact place and reason of every row that is broken.

Polars reads the file once, streaming, every field as text, and casts the needed columns itself, so that a
value that does not fit is known by its row. Only when something is wrong does Python's csv reader walk the
file to find the line: quoted fields may hold line breaks, so rows and lines differ.
"""

import csv
import io
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from lsvcr.data.sources.columns import WORDS, Column, is_good, typed
from lsvcr.data.sources.logs import LISTED, ROW, BadRows, drop_repeated
from lsvcr.data.sources.raw_bytes import UNREADABLE, cut_short, holds, on_disk, open_raw, read_through
from lsvcr.data.sources.spill import Spill
from lsvcr.utils.errors import UserError
from lsvcr.utils.io import is_disk_full

_MARKS = {";": "semicolons", "\t": "tabs", "|": "bars", "::": "double colons", ",": "commas"}
_EXTRA = "\nbeyond the header"
_FAULT = "\nfault"
_TOO_MANY = 100
_PERHAPS_TOO_FEW = 101
"""The last field is empty: a short row, or a whole one with an empty end; Polars reads both alike."""

_CR = "\udc0d"
"""Stands for a CR inside a row, where Python's csv reader would end it and Polars does not; no text decodes to it."""

_BACKSLASH, _ESCAPED_QUOTE = "\\", '\\"'


class CsvTable:
    """One CSV file with a header row, UTF-8 with or without BOM, plain or gzip; lines end in LF or CRLF.

    Args:
        path: the file; where it is not there, the one with `.gz` behind its name.
        columns: what is needed of it.
        lossy: read bytes that are no UTF-8 as U+FFFD instead of stopping.
        separator: one character.

    Raises:
        UserError: no such file, empty file, another delimiter or line end, or a needed column is not in the header.
    """

    def __init__(
        self, path: Path, columns: Sequence[Column], lossy: bool = False, separator: str = ","
    ) -> None:
        self.path = on_disk(path)
        self.name = self.path.name
        self._columns = tuple(columns)
        self._separator = separator
        self._lossy = lossy
        self._header = self._read_header()
        self._columns = tuple(column for column in columns if self.has(column.name))

    def has(self, name: str) -> bool:
        """Whether the header names this column."""
        return name in self._header

    def collect(self, bad: BadRows, keep: pl.Expr | None = None) -> tuple[pl.DataFrame, int]:
        """Read the file once.

        Args:
            bad: where broken rows are reported.
            keep: only rows where this holds come back (an expression over the needed columns); rows that
                are broken are reported whether it holds or not.

        Returns:
            The needed columns typed by their kind, with `ROW`, in file order; and the number of rows in
            the file, blank lines not counted.

        Raises:
            UserError: a broken row (see `BadRows`), or damage that hides where rows end.
        """
        frame, size, _ = self.collect_part(bad, keep)
        return frame, size

    def collect_and_spill(
        self, bad: BadRows, keep: pl.Expr, spill: Spill, columns: Sequence[pl.Expr]
    ) -> tuple[pl.DataFrame, int]:
        """As `collect`, and in the same reading `ROW` and `columns` of every whole row go to `spill`."""
        frame, size, _ = self._collect(bad, keep, spill, columns)
        return frame, size

    def collect_part(self, bad: BadRows, keep: pl.Expr | None = None) -> tuple[pl.DataFrame, int, int]:
        """As `collect`, for a file that others follow; third comes the number that its next row would have."""
        return self._collect(bad, keep, None, ())

    def _collect(
        self, bad: BadRows, keep: pl.Expr | None, spill: Spill | None, columns: Sequence[pl.Expr]
    ) -> tuple[pl.DataFrame, int, int]:
        rows = self._scan()
        wanted = rows if keep is None else rows.filter(keep | (pl.col(_FAULT) > 0))
        has_backslash = [
            pl.col(column.name).str.contains(_BACKSLASH, literal=True)
            for column in self._columns
            if column.kind in ("text", "key")
        ]
        sizes_query = rows.select(
            pl.len(),
            (pl.col(ROW).max() + 1).fill_null(0),
            pl.any_horizontal(False, *has_backslash).any().alias(_BACKSLASH),
        )
        queries = [wanted, sizes_query]
        if spill is not None:
            whole = rows.filter(pl.col(_FAULT).is_in([0, _PERHAPS_TOO_FEW]))
            queries.append(spill.sink(whole.select(ROW, *columns)))
        try:
            frame, sizes, *_ = pl.collect_all(queries, engine="streaming")
        except (pl.exceptions.ComputeError, pl.exceptions.SchemaError, OSError) as error:
            if is_disk_full(error):
                raise
            raise self._damage(str(error)) from None
        if not frame[ROW].is_sorted():
            frame = frame.sort(ROW)
        size, end, has_backslash = sizes.row(0)
        if has_backslash or (frame[_FAULT] == _TOO_MANY).any():
            self._refuse_escaped_quotes()
        frame, short = self._without_faults(frame, bad)
        if spill is not None:
            spill.leave_out(short)
        if keep is not None:
            frame = frame.filter(keep)
        return frame, int(size), int(end)

    def collect_unique(self, key: str, bad: BadRows) -> pl.DataFrame:
        """As `collect`, for a file with one row an id: an id that comes again is a broken row."""
        frame, _ = self.collect(bad)
        return drop_repeated(frame, key, self, bad)

    def places(self, rows: Sequence[int]) -> list[str]:
        """`file, line n` for each of `rows` (ascending)."""
        return [f"{self.path}, line {line}" for line, _ in self._find(rows)]

    def _read_header(self) -> list[str]:
        if not self.path.is_file():
            raise UserError(f"{self.path} is missing; the raw folder must hold {self.name}")
        try:
            with open_raw(self.path) as stream:
                line = stream.readline().decode("utf-8-sig").rstrip("\r\n")
            if "\r" in line:
                raise UserError(
                    f"{self.path}: its lines end in CR alone; write them with LF or CRLF (tr '\\r' '\\n')"
                )
            header = next(csv.reader([line], delimiter=self._separator), [])
        except (UnicodeDecodeError, csv.Error) as error:
            raise UserError(
                f"{self.path}, line 1: the header cannot be read as UTF-8 CSV ({error})"
            ) from None
        except UNREADABLE as error:
            raise cut_short(self.path, error) from None
        if not header:
            raise UserError(f"{self.path} is empty; it must start with a header row")
        repeated = [name for name in dict.fromkeys(header) if header.count(name) > 1]
        if repeated:
            raise UserError(f"{self.path}, line 1: the header names {repeated[0]!r} twice; rename one")
        needed = [column.name for column in self._columns if not column.optional]
        missing = [name for name in needed if name not in header]
        if not missing:
            return header
        for mark, word in _MARKS.items():
            if len(header) == 1 and mark in line:
                raise UserError(
                    f"{self.path}, line 1: the fields are separated by {word}; "
                    f"write the file with {_MARKS.get(self._separator, repr(self._separator))}"
                )
        raise UserError(
            f"{self.path}, line 1: no column {', '.join(missing)} in the header ({', '.join(header)}); "
            f"the file must have {', '.join(needed)}"
        )

    def _scan(self) -> pl.LazyFrame:
        """Typed needed columns with `ROW` and `_FAULT`: 0, 1 + the index of the bad column, or a constant."""
        rows = pl.scan_csv(
            self.path,
            has_header=False,
            separator=self._separator,
            skip_lines=1,
            schema=dict.fromkeys([*self._header, _EXTRA], pl.String()),
            truncate_ragged_lines=True,
            missing_columns="insert",
            extra_columns="ignore",
            encoding="utf8-lossy" if self._lossy else "utf8",
            row_index_name=ROW,
            glob=False,
        )
        names = [column.name for column in self._columns]
        last = self._header[-1]
        rows = rows.filter(~pl.all_horizontal(pl.col({*names, last}).is_null()))
        fault: Any = pl.when(pl.col(_EXTRA).is_not_null()).then(_TOO_MANY)
        for index, column in enumerate(self._columns):
            if column.kind != "text":
                fault = fault.when(~is_good(column)).then(1 + index)
        fault = fault.when(pl.col(last).is_null()).then(_PERHAPS_TOO_FEW)
        values = [typed(column).alias(column.name) for column in self._columns]
        return rows.select(ROW, *values, fault.otherwise(0).cast(pl.UInt8).alias(_FAULT))

    def _without_faults(self, frame: pl.DataFrame, bad: BadRows) -> tuple[pl.DataFrame, list[int]]:
        """The whole rows, and the numbers of those that end too early, which Polars cannot tell."""
        suspects = frame.filter(pl.col(_FAULT) == _PERHAPS_TOO_FEW)[ROW].to_numpy()
        short = [
            row
            for row, (_, fields) in zip(suspects, self._find(suspects), strict=True)
            if self._is_short(fields)
        ]
        is_short = pl.Series(np.isin(frame[ROW].to_numpy(), short))
        is_broken = frame[_FAULT].is_between(1, _TOO_MANY) | is_short
        broken = frame.filter(is_broken)
        if broken.height:
            first = broken.head(LISTED)
            found = self._find(first[ROW].to_list())
            lines = [
                f"{self.path}, line {line}: {self._reason(fields, fault)}"
                for (line, fields), fault in zip(found, first[_FAULT], strict=True)
            ]
            bad.add(self.name, broken.height, lines)
            frame = frame.filter(~is_broken)
        return frame.drop(_FAULT), short

    def _is_short(self, fields: list[str]) -> bool:
        return len(fields) < len(self._header)

    def _reason(self, fields: list[str], fault: int) -> str:
        if self._is_short(fields) or fault == _TOO_MANY:
            amount = "few" if self._is_short(fields) else "many"
            quoting = "" if amount == "few" else "; text with a comma must stand in quotes"
            return f"{len(fields)} fields are too {amount}, the header has {len(self._header)}{quoting}"
        column = self._columns[fault - 1]
        value = fields[self._header.index(column.name)]
        shown = "empty" if not value else repr(value if len(value) <= 40 else value[:40] + "...")
        return f"{column.name} is {shown}, expected {WORDS[column.kind]}"

    def _find(self, rows: Sequence[int] | np.ndarray) -> Iterator[tuple[int, list[str]]]:
        """(line, fields) of each of `rows` (ascending), walking the file once."""
        wanted = iter(rows)
        target = next(wanted, None)
        if target is None:
            return
        for row, (line, fields) in enumerate(self._walk()):
            if row == target:
                yield line, fields
                target = next(wanted, None)
                if target is None:
                    return

    def _walk(self) -> Iterator[tuple[int, list[str]]]:
        """(first line, fields) of every row of data, blank lines as empty rows."""
        with _open_text(self.path) as stream:
            reader = self._reader(_lines(stream))
            next(reader, None)
            line = reader.line_num
            for fields in reader:
                yield line + 1, [field.replace(_CR, "\r") for field in fields]
                line = reader.line_num

    def _reader(self, lines: Iterable[str], strict: bool = False) -> Any:
        csv.field_size_limit(1 << 30)
        return csv.reader(lines, strict=strict, delimiter=self._separator)

    def _damage(self, message: str) -> UserError:
        """Find where Polars lost its way: a file cut short, bytes that are no UTF-8, quotes that do not match."""
        read_through(self.path)
        line = _first_undecodable_line(self.path)
        if line and not self._lossy:
            return UserError(
                f"{self.path}, line {line}: not UTF-8. Convert the file (iconv -f LATIN1 -t UTF-8), or pass "
                "--skip-bad-rows to read such bytes as U+FFFD"
            )
        line, is_escaped = next(self._bad_quotes(), (0, False))
        if is_escaped:
            return self._escaped(line)
        if line:
            return UserError(
                f"{self.path}, line {line}: the quotes do not match, so it is unclear where the row ends. "
                "Mend the line: a field with a quote, comma or line break stands in quotes, and a quote "
                "inside it is doubled"
            )
        return UserError(f"{self.path} cannot be read as CSV: {message.splitlines()[0]}")

    def _refuse_escaped_quotes(self) -> None:
        """Polars drops the quotes of `"a \\"b\\" c"` without a word, and a comma between them ends the field."""
        if not holds(self.path, _ESCAPED_QUOTE.encode()):
            return
        for line, is_escaped in self._bad_quotes():
            if is_escaped:
                raise self._escaped(line)

    def _escaped(self, line: int) -> UserError:
        return UserError(
            f"{self.path}, line {line}: a quote inside a quoted field has a backslash before it, as Spark writes "
            'unless told otherwise; it must be doubled. Write the file again with .option("escape", "\\"") '
            "(SQL: OPTIONS (escape '\"')); the source `tables` reads Parquet, too"
        )

    def _bad_quotes(self) -> Iterator[tuple[int, bool]]:
        """First line of every row whose quotes are not CSV's, and whether there are backslashes before them."""
        with _open_text(self.path) as stream:
            held: list[str] = []
            lines = (held.append(line) or line for line in _lines(stream))  # type: ignore[func-returns-value]
            reader = self._reader(lines, strict=True)
            start = 1
            while True:
                try:
                    # A quote in the middle of an unquoted field is legal to Python's reader alone.
                    is_good = next(reader, None) is None or len(held) > 1 or held[0].count('"') % 2 == 0
                except csv.Error:
                    is_good = False
                if not is_good:
                    # The lines between may be rows that an open quote has swallowed.
                    yield start, _ESCAPED_QUOTE in held[0] or _ESCAPED_QUOTE in held[-1]
                if not held:
                    return
                held.clear()
                start = reader.line_num + 1


def _first_undecodable_line(path: Path) -> int:
    """Number of the first line that is not UTF-8; 0 if all are."""
    with open_raw(path) as stream:
        for number, line in enumerate(stream, start=1):
            try:
                line.decode("utf-8")
            except UnicodeDecodeError:
                return number
    return 0


def _open_text(path: Path) -> io.TextIOWrapper:
    return io.TextIOWrapper(open_raw(path), encoding="utf-8-sig", errors="replace", newline="\n")


def _lines(stream: Iterable[str]) -> Iterator[str]:
    """The lines with `_CR` for every CR but that of a CRLF."""
    for line in stream:
        body = line.removesuffix("\n").removesuffix("\r")
        yield body.replace("\r", _CR) + line[len(body) :]
