"""Typed columns of raw files: every field arrives as text and is cast here, so that what does not fit is known."""

from dataclasses import dataclass
from typing import Literal

import polars as pl

Kind = Literal["id", "key", "milliseconds", "seconds", "flag", "number", "count", "text"]
"""How a column is read: id -> int64; key -> str, not empty; milliseconds and seconds -> int64 Unix ms, not negative; flag -> bool
from 0 or 1; number -> float64; count -> int64, not negative, empty is 0; text -> str, empty allowed."""

WORDS: dict[str, str] = {
    "id": "a whole number",
    "key": "an id",
    "milliseconds": "a time in Unix milliseconds, not negative",
    "seconds": "a time in Unix seconds, not negative",
    "flag": "0 or 1",
    "number": "a number",
    "count": "a number, not negative",
}


@dataclass(frozen=True)
class Column:
    """A column that is needed, by its name in the header."""

    name: str
    kind: Kind


def typed(column: Column) -> pl.Expr:
    """The column by its kind; null where it does not fit."""
    text = pl.col(column.name)
    number = text.cast(pl.Float64, strict=False)
    if column.kind == "id":
        return text.cast(pl.Int64, strict=False)
    if column.kind == "key":
        return text
    if column.kind == "text":
        return text.fill_null("")
    if column.kind == "flag":
        return number == 1
    if column.kind == "number":
        return number
    if column.kind == "seconds":
        number = number * 1000
    if column.kind == "count":
        number = number.fill_null(0)
    # A double holds whole milliseconds exactly for the next 280,000 years.
    return number.round().cast(pl.Int64, strict=False)


def is_good(column: Column) -> pl.Expr:
    """Never null: whether the raw text of the column fits its kind."""
    text = pl.col(column.name)
    number = text.cast(pl.Float64, strict=False)
    if column.kind == "id":
        return text.cast(pl.Int64, strict=False).is_not_null()
    if column.kind == "key":
        return text.is_not_null() & (text != "")
    if column.kind == "flag":
        return number.is_in([0.0, 1.0]).fill_null(False)
    if column.kind == "number":
        return number.is_finite().fill_null(False)
    fits = (number.is_finite() & (number >= 0) & (number < 2**53)).fill_null(False)
    return fits | text.is_null() if column.kind == "count" else fits
