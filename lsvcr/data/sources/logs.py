"""What every source produces, and what happens to its broken rows."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import polars as pl

from lsvcr.utils.errors import UserError

ROW = "\nrow"
"""Input row of an entry in its raw file, counted from 0 without the header; breaks ties of equal times.

No header holds a line feed, so no raw column is called like this or like other columns that readers add."""

LISTED = 20
"""This many broken rows are listed one by one; the others are counted."""

REMEDY = "Mend the raw file, or pass --skip-bad-rows to leave such rows out and have them counted"


class Origin(Protocol):
    """The raw file behind a frame: it can say where a row stands."""

    name: str

    def places(self, rows: Sequence[int]) -> list[str]:
        """`file, line n` for each of `rows` (ascending values of `ROW`)."""


@dataclass(frozen=True)
class RawLogs:
    """One normalised set of frames, whatever the source. Every frame has a column `ROW` (u32).

    users: raw_id. videos: raw_id, title, category, author. comments: raw_id, content, video (raw id), likes.
    video_events: user, video (raw ids), time (int64 Unix ms), one row a like.
    comment_events: user, comment, video (raw ids), time, one row a like or reply.
    Raw ids are int64 or strings, the same type wherever the same thing is named. `origins` leads from a
    frame's name to its raw file; `counts` has figures of the raw files for the manifest. Equal times of a user are
    ordered by input row, or, where `rows_have_order` is False, by the id of the video or comment.
    """

    users: pl.DataFrame
    videos: pl.DataFrame
    comments: pl.DataFrame
    video_events: pl.DataFrame
    comment_events: pl.DataFrame
    origins: Mapping[str, Origin]
    counts: dict[str, int] = field(default_factory=dict)
    rows_have_order: bool = True


class BadRows:
    """Stops at broken rows with file, line and remedy, or counts them and lists the first ones."""

    def __init__(self, skip: bool) -> None:
        self.skip = skip
        self._counts: dict[str, int] = {}
        self._listed: dict[str, list[str]] = {}

    def add(self, file: str, total: int, lines: Sequence[str]) -> None:
        """Report `total` broken rows of `file`; `lines` says where the first ones are and what is wrong.

        Raises:
            UserError: unless broken rows are to be skipped.
        """
        if not total:
            return
        if not self.skip:
            more = f" ({total:,} such rows in {file})" if total > 1 else ""
            raise UserError(f"{lines[0]}{more}. {REMEDY}")
        self._counts[file] = self._counts.get(file, 0) + total
        listed = self._listed.setdefault(file, [])
        listed.extend(lines[: LISTED - len(listed)])

    @property
    def total(self) -> int:
        """Rows left out so far."""
        return sum(self._counts.values())

    def summary(self) -> dict[str, Any]:
        """For the manifest: `{file: {"rows": how many were left out, "first": what was wrong}}`."""
        return {
            file: {"rows": count, "first": self._listed[file]} for file, count in sorted(self._counts.items())
        }


def drop_bad(
    frame: pl.DataFrame, bad: pl.Series, origin: Origin, reasons: pl.Expr, rows: BadRows
) -> pl.DataFrame:
    """Report the rows of `frame` marked in `bad` (bool) to `rows` and return the others.

    Args:
        reasons: an expression over `frame` that says in words what is wrong with a marked row.
    """
    total = int(bad.sum())
    if not total:
        return frame
    first = frame.filter(bad).sort(ROW).head(LISTED).select(ROW, reasons.alias("reason"))
    places = origin.places(first[ROW].to_list())
    lines = [f"{place}: {reason}" for place, reason in zip(places, first["reason"], strict=True)]
    rows.add(origin.name, total, lines)
    return frame.filter(~bad)


def drop_repeated(frame: pl.DataFrame, key: str, origin: Origin, rows: BadRows) -> pl.DataFrame:
    """Report rows whose `key` stood in an earlier row already and return the others."""
    again = ~frame[key].is_first_distinct()
    return drop_bad(frame, again, origin, pl.format(f"{key} {{}} stands here a second time", key), rows)
