"""Whether times can be those of a log, or were read in another unit than they were written in."""

from dataclasses import dataclass
from datetime import datetime, timezone

import numpy as np

YEARS = (1990, 2100)
"""Times outside of them are no calendar times."""

_FIRST, _END = (int(datetime(year, 1, 1, tzinfo=timezone.utc).timestamp() * 1000) for year in YEARS)
_MISREAD = {
    1_000: "a thousand times too small, as if seconds had been read as milliseconds",
    1_000_000: "a million times too small, as if seconds had been read as microseconds",
    1 / 1_000: "a thousand times too large, as if milliseconds had been read as seconds",
    1 / 1_000_000: "a million times too large, as if microseconds had been read as seconds",
}
"""Factor that makes calendar times of them -> what they look like."""


@dataclass(frozen=True)
class Outside:
    """How many of `total` times are no calendar times, and one in the middle of these, in Unix ms."""

    rows: int
    total: int
    middle: int

    def says(self, what: str) -> str:
        """A sentence with the unit that is probably wrong and the remedy; `what` has these times."""
        looks = (words for factor, words in _MISREAD.items() if _FIRST <= self.middle * factor < _END)
        like = "".join(f", {words}" for words in looks)
        return (
            f"{self.rows:,} of {self.total:,} {what} lie outside of the years {YEARS[0]} to {YEARS[1]}{like}; unless "
            "they are counters, put the raw times (or `unit` in the column map) right and run `lsvcr prepare` again"
        )


def outside(times: np.ndarray) -> Outside | None:
    """What there is to say about int64 Unix ms (n,); None where all are calendar times."""
    wrong = times[(times < _FIRST) | (times >= _END)]
    if not len(wrong):
        return None
    return Outside(len(wrong), len(times), int(np.partition(wrong, len(wrong) // 2)[len(wrong) // 2]))


def date(milliseconds: int) -> str | None:
    """ISO date in UTC, None for a time that no log has."""
    if not _FIRST <= milliseconds < _END:
        return None
    return datetime.fromtimestamp(milliseconds / 1000, tz=timezone.utc).date().isoformat()
