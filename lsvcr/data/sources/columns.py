"""Typed columns of raw files: each value is cast here, so that one which does not fit is known by its row."""

from dataclasses import dataclass
from typing import Literal

import polars as pl

Kind = Literal[
    "id",
    "key",
    "milliseconds",
    "seconds",
    "microseconds",
    "datetime",
    "flag",
    "mark",
    "number",
    "count",
    "text",
]
"""How a column is read.

id -> int64. key -> str, not empty. milliseconds, seconds, microseconds and datetime (ISO 8601, UTC where it names
no zone) -> int64 Unix ms, not negative. flag -> bool from 0, 1, true or false. mark -> a flag, null where empty.
number -> float64. count -> int64, not negative, empty is 0. text -> str, empty allowed.
"""

WORDS: dict[str, str] = {
    "id": "a whole number (ids that are text: prepare them as `tables`)",
    "key": "an id",
    "milliseconds": "a time in Unix milliseconds, not negative",
    "seconds": "a time in Unix seconds, not negative",
    "microseconds": "a time in Unix microseconds, not negative",
    "datetime": "a date and time such as 2024-05-31 18:00:00",
    "flag": "0 or 1",
    "mark": "0, 1 or empty",
    "number": "a number",
    "count": "a number, not negative",
    "text": "a text",
}

_TO_MS = {"milliseconds": 1.0, "seconds": 1000.0, "microseconds": 0.001}


@dataclass(frozen=True)
class Column:
    """A column that is needed, by its name in the header; an optional one may be absent (CSV files alone)."""

    name: str
    kind: Kind
    optional: bool = False


def typed(column: Column, dtype: pl.DataType | None = None) -> pl.Expr:
    """The column by its kind; null where it does not fit.

    Args:
        dtype: what the raw file holds; None = text. A column of another type than its kind's is cast, never parsed.
    """
    dtype = dtype or pl.String()
    raw = pl.col(column.name)
    kind = column.kind
    if kind == "id":
        return raw.cast(pl.Int64, strict=False)
    if kind == "key":
        return raw.cast(pl.String)
    if kind == "text":
        return raw.cast(pl.String).fill_null("")
    if kind in ("flag", "mark"):
        return _flag(raw, dtype)
    if dtype.is_temporal():
        return raw.dt.epoch("ms")
    if kind == "datetime":
        return _moment(raw.cast(pl.String))
    number = raw.cast(pl.Float64, strict=False)
    if kind == "number":
        return number
    if kind == "count":
        number = number.fill_null(0)
    # A double holds whole milliseconds exactly for the next 280,000 years.
    return (number * _TO_MS.get(kind, 1.0)).round().cast(pl.Int64, strict=False)


def is_good(column: Column, dtype: pl.DataType | None = None) -> pl.Expr:
    """Never null: whether what the raw file holds fits the column's kind."""
    dtype = dtype or pl.String()
    raw = pl.col(column.name)
    kind = column.kind
    if kind == "text":
        return pl.lit(True)
    if kind == "key":
        return raw.is_not_null() & (raw.cast(pl.String) != "")
    if kind in ("id", "flag"):
        return typed(column, dtype).is_not_null()
    if kind == "mark":
        return typed(column, dtype).is_not_null() | raw.is_null()
    if kind == "datetime" or dtype.is_temporal():
        return (typed(column, dtype) >= 0).fill_null(False)
    number = raw.cast(pl.Float64, strict=False)
    if kind == "number":
        return number.is_finite().fill_null(False)
    fits = (number.is_finite() & (number >= 0) & (number < 2**53)).fill_null(False)
    return fits | raw.is_null() if kind == "count" else fits


def _flag(raw: pl.Expr, dtype: pl.DataType) -> pl.Expr:
    if dtype == pl.Boolean:
        return raw
    number = raw.cast(pl.Float64, strict=False)
    by_number = pl.when(number.is_in([0.0, 1.0])).then(number == 1)
    if dtype != pl.String:
        return by_number
    word = raw.str.to_lowercase()
    return by_number.when(word.is_in(["true", "false"])).then(word == "true")


def _moment(text: pl.Expr) -> pl.Expr:
    """Unix ms of ISO 8601 text; formats are named one by one, because guessing looks at a chunk's first value."""
    plain = text.str.replace("T", " ", literal=True)
    zoneless = plain.str.strip_suffix("Z")
    found = [
        zoneless.str.to_datetime("%Y-%m-%d %H:%M:%S%.f", time_unit="ms", strict=False),
        plain.str.to_datetime("%Y-%m-%d %H:%M:%S%.f%#z", time_unit="ms", strict=False).dt.replace_time_zone(
            None
        ),
        zoneless.str.to_date("%Y-%m-%d", strict=False).cast(pl.Datetime("ms")),
    ]
    return pl.coalesce(found).dt.epoch("ms")
