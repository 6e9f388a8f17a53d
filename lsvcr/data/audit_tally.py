"""What a check of the audit says, and how failing rows are counted over chunks."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

ROWS = 1 << 18
"""Rows looked at together: some tens of megabytes."""

SENTENCES = {
    "files_as_prepared": "every file still has the hash that the manifest notes",
    "offsets_in_order": "offsets start at 0, never fall and end with the array",
    "items_in_range": "indices lie in the catalogue",
    "events_in_time_order": "the events of a user are sorted by time",
    "each_event_once": "no user has the same event twice",
    "clicks_are_0_or_1": "an impression was clicked (1) or not (0)",
    "comments_under_their_video": "the video of a comment event is the comment's own",
    "pointers_inside": "user and target exist, and both histories end inside the user's own events",
    "video_history_before_cut": "every liked video in the history is strictly earlier than the cut",
    "comment_history_before_cut": "every comment in the history is strictly earlier than the cut",
    "video_history_complete": "the like behind the history is not earlier than the cut",
    "comment_history_complete": "the comment behind the history is not earlier than the cut",
    "no_held_out_in_history": "no history holds what its own task holds out of its user",
    "no_held_out_in_joint_history": "no history that stage one sees holds what either task holds out of its user",
    "no_held_out_target": "no held-out target is a target here too",
    "split_order": "the cut lies in the time of its split",
    "targets_before_split_end": "every target is earlier than the end of its split",
    "target_at_cut": "the target is an event of the user, not in the history, and the cut is its time",
    "positives_of_the_video": "the positives stand under the watched video",
    "one_row_a_user": "a user has one sample here at most",
    "counts_leave_out_held_out": "training counts leave out what is held out",
    "candidates_in_range": "candidates are in the catalogue, none is padding",
    "candidates_distinct": "no candidate stands twice in a row",
    "candidates_hold_positives": "each positive stands exactly once among its row's candidates",
    "candidates_of_the_video": "the candidates are comments of the watched video",
}
"""What holds where a check passes, by its name."""

BASIS = {"offsets_in_order", "items_in_range", "pointers_inside", "candidates_in_range"}
"""Where one of these fails, rows lead to places that do not exist: whoever reads them may stop with an error."""


@dataclass(frozen=True)
class Check:
    """The outcome of one check on one table."""

    name: str
    """Key of `SENTENCES`."""
    where: str
    """The table, such as `rec.train` or `events.video`."""
    rows: int
    """Rows looked at."""
    failed: int
    """Rows that fail."""
    first: int | str | None
    """The first row that fails (a file's name where rows are files)."""

    @property
    def is_basis(self) -> bool:
        """Readers of the data rely on it."""
        return self.name in BASIS

    def to_json(self) -> dict[str, Any]:
        """All fields, with the sentence and `ok`."""
        return {"ok": not self.failed, **self.__dict__, "says": SENTENCES[self.name]}


class Tally:
    """Counts failing rows of one table, chunk by chunk.

    Args:
        where: the table.
        rows: how many rows it has.
    """

    def __init__(self, where: str, rows: int) -> None:
        self._where, self._rows = where, rows
        self._failed: dict[str, int] = {}
        self._first: dict[str, int] = {}

    def mark(self, name: str, numbers: np.ndarray, bad: np.ndarray) -> None:
        """Rows `numbers` (n,), rising, were looked at; those where `bad` (n,) holds fail."""
        failed = int(np.count_nonzero(bad))
        self._failed[name] = self._failed.get(name, 0) + failed
        if failed and name not in self._first:
            self._first[name] = int(numbers[np.argmax(bad)])

    def checks(self) -> list[Check]:
        """One check for each name that was marked."""
        return [
            Check(name, self._where, self._rows, failed, self._first.get(name))
            for name, failed in self._failed.items()
        ]


def chunks(total: int, rows: int = ROWS) -> Iterator[tuple[int, int]]:
    """(start, stop) of consecutive chunks of `total` rows."""
    for start in range(0, total, rows):
        yield start, min(start + rows, total)
