"""A raw file with one JSON object a line as typed Polars columns.

A line that is no JSON may be a Python literal (`{'a': None}`), as some old releases have them. Lines are parsed in
blocks, so that memory holds the wanted fields alone.
"""

import ast
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl

from lsvcr.data.sources.columns import WORDS, Column, Kind, is_good, typed
from lsvcr.data.sources.logs import LISTED, ROW, BadRows
from lsvcr.data.sources.raw_bytes import UNREADABLE, cut_short, open_raw
from lsvcr.utils.errors import UserError

_BLOCK = 100_000
_FAULT = "fault"


@dataclass(frozen=True)
class Field:
    """One wanted key of the objects.

    Attributes:
        key: its name, and that of the column.
        kind: how the value is read; see `columns.Kind`.
        needed: False where an object may lack it, which counts as empty.
        convert: turns the parsed value into a text or number first; it must bear any value.
    """

    key: str
    kind: Kind
    needed: bool = True
    convert: Callable[[Any], Any] | None = None


class JsonTable:
    """One file of JSON lines, UTF-8, plain or gzip (`.gz`).

    Raises:
        UserError: no such file.
    """

    def __init__(self, path: Path, fields: Sequence[Field]) -> None:
        self.path = path
        self.name = path.name
        self._fields = tuple(fields)
        if not path.is_file():
            raise UserError(f"{path} is missing; the raw folder must hold {self.name}")

    def collect(self, bad: BadRows) -> tuple[pl.DataFrame, int]:
        """Read the file once.

        Returns:
            The wanted fields typed by their kind, with `ROW` (u32, counts lines from 0), in file order; and the
            number of lines, blank ones not counted.

        Raises:
            UserError: a broken line (see `BadRows`), an empty file, or one that ends too early.
        """
        faults = _Faults(self.path)
        frames = []
        block: list[tuple[int, list[str | None]]] = []
        size = 0
        for row, line in self._lines():
            size += 1
            try:
                block.append((row, self._values(_parsed(line))))
            except ValueError as error:
                faults.add(row, str(error))
            if len(block) == _BLOCK:
                frames.append(self._frame(block, faults))
                block = []
        if not size:
            raise UserError(f"{self.path} is empty; it must hold one JSON object a line")
        frames.append(self._frame(block, faults))
        faults.report(self.name, bad)
        return pl.concat(frames), size

    def places(self, rows: Sequence[int]) -> list[str]:
        """`file, line n` for each of `rows`."""
        return [_place(self.path, row) for row in rows]

    def _lines(self) -> Iterator[tuple[int, bytes]]:
        try:
            with open_raw(self.path) as stream:
                for row, line in enumerate(stream):
                    if not row:
                        line = line.removeprefix(b"\xef\xbb\xbf")
                    line = line.strip()
                    if line:
                        yield row, line
        except UNREADABLE as error:
            raise cut_short(self.path, error) from None

    def _values(self, entry: dict[str, Any]) -> list[str | None]:
        """The wanted values as text.

        Raises:
            ValueError: a needed key is missing, or a value is an object or a list.
        """
        values: list[str | None] = []
        for field in self._fields:
            value = entry.get(field.key)
            if value is None and field.needed and field.key not in entry:
                raise ValueError(f"the object has no key {field.key} (it has {', '.join(map(str, entry))})")
            if field.convert is not None:
                value = field.convert(value)
            if isinstance(value, dict | list):
                raise ValueError(f"{field.key} is a {type(value).__name__}, expected {WORDS[field.kind]}")
            if value is not None and not isinstance(value, str):
                value = str(value)
            values.append(value or None)  # as in CSV, an empty text is no value
        return values

    def _frame(self, block: Sequence[tuple[int, list[str | None]]], faults: "_Faults") -> pl.DataFrame:
        """One block, typed; its values that do not fit are added to `faults`."""
        columns = [Column(field.key, field.kind) for field in self._fields]
        texts = pl.DataFrame(
            {ROW: pl.Series([row for row, _ in block], dtype=pl.UInt32)}
            | {
                column.name: _strings([values[index] for _, values in block])
                for index, column in enumerate(columns)
            }
        )
        fault: Any = pl.when(False).then(0)
        for index, column in enumerate(columns, start=1):
            fault = fault.when(~is_good(column)).then(index)
        texts = texts.with_columns(fault.otherwise(0).alias(_FAULT))
        for entry in texts.filter(pl.col(_FAULT) > 0).iter_rows(named=True):
            column = columns[entry[_FAULT] - 1]
            value = entry[column.name]
            shown = "empty" if value is None else repr(value if len(value) <= 40 else value[:40] + "...")
            faults.add(entry[ROW], f"{column.name} is {shown}, expected {WORDS[column.kind]}")
        return texts.filter(pl.col(_FAULT) == 0).select(
            ROW, *(typed(column).alias(column.name) for column in columns)
        )


class _Faults:
    """Broken lines of one file: how many, and the reasons of the first ones."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._reasons: dict[int, str] = {}
        self._total = 0

    def add(self, row: int, reason: str) -> None:
        """One more. Within a block, lines that do not parse come before lines that do not fit."""
        self._total += 1
        self._reasons[row] = reason
        if len(self._reasons) > LISTED:
            del self._reasons[max(self._reasons)]

    def report(self, file: str, bad: BadRows) -> None:
        """Tell `bad`, first line first."""
        lines = [f"{_place(self._path, row)}: {reason}" for row, reason in sorted(self._reasons.items())]
        bad.add(file, self._total, lines)


def _place(path: Path, row: int) -> str:
    return f"{path}, line {row + 1}"


def _parsed(line: bytes) -> dict[str, Any]:
    """The object in one line.

    Raises:
        ValueError: it is neither JSON nor a Python literal, or no object.
    """
    try:
        text = line.decode()
    except UnicodeDecodeError:
        raise ValueError("not UTF-8; download the file again, or convert it") from None
    try:
        entry = json.loads(text)
    except (ValueError, RecursionError) as error:
        entry = _literal(text, error)
    if not isinstance(entry, dict):
        raise ValueError("not a JSON object; the file must have one object a line")
    return entry


def _literal(text: str, error: Exception) -> Any:
    """A Python literal, of which old releases are made; `error` is what JSON said."""
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        what = f"{error.msg}, column {error.colno}" if isinstance(error, json.JSONDecodeError) else error
        raise ValueError(f"not valid JSON ({what})") from None


def _strings(values: list[str | None]) -> pl.Series:
    """A column of text; half of a surrogate pair, which JSON can name and UTF-8 cannot, becomes a question mark."""
    try:
        return pl.Series(values, dtype=pl.String)
    except UnicodeEncodeError:
        clean = [value and value.encode(errors="replace").decode() for value in values]
        return pl.Series(clean, dtype=pl.String)
