"""What requests are answered from: the bundle's tables, rows that were added since, and rows that are gone.

A snapshot never changes. A request takes the current one once and works on it to its end; who changes the catalogue
makes the next one and publishes it (`Recommender.publish`), one writer at a time:

    draft = Draft(state)  # State.of(bundle) at first
    draft.put_video(NewVideo(id, title, {task: rows of its tower for task ...}))
    draft.remove_comment(id)
    state = draft.finish()
    recommender.publish(state.snapshot)

(see `draft`; `catalogue` does this, and keeps a journal).

Rows 0 .. n are the bundle's; added ones follow in the order they came. No row is ever reused: an id that is put again
gets a new row, and its earlier row is hidden. A hidden row is never recommended, ranked or shown. The row of a removed
id of the bundle still counts in histories, where it says something about the user; a removed id that was added is
unknown, as if it had never been there. The comments of a removed video go with it, and come back with it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np

from lsvcr.schema import Task
from lsvcr.serving.bundle import Bundle, PartFiles
from lsvcr.serving.ids import UNKNOWN, IdMap
from lsvcr.serving.texts import TextTable
from lsvcr.serving.types import RawId

_NONE: Mapping[Any, Any] = MappingProxyType({})
_NO_ROWS = np.zeros(0, dtype=np.int64)


@dataclass(frozen=True)
class Table:
    """Ids and texts of all videos, or of all comments.

    Attributes:
        base, base_texts: those of the bundle.
        added_ids, added_texts: of the rows after them.
        places: the row of each added id that is not removed.
        replaced: a hidden row whose id was put again -> the row it got then.
        hidden: (h,) int64 ascending, rows that are removed or replaced.
    """

    base: IdMap
    base_texts: TextTable
    added_ids: Sequence[RawId] = ()
    added_texts: Sequence[str] = ()
    places: Mapping[RawId, int] = field(default_factory=lambda: _NONE)
    replaced: Mapping[int, int] = field(default_factory=lambda: _NONE)
    hidden: np.ndarray = field(default_factory=lambda: _NO_ROWS)

    def __len__(self) -> int:
        """Rows, padding and hidden ones included."""
        return len(self.base) + len(self.added_ids)

    @property
    def n_live(self) -> int:
        """What can be recommended, ranked or shown."""
        return len(self) - 1 - len(self.hidden)

    def id(self, row: int) -> RawId:
        """The raw id of a row."""
        return self.base[row] if row < len(self.base) else self.added_ids[row - len(self.base)]

    def text(self, row: int) -> str:
        """The title or text of a row."""
        return self.base_texts[row] if row < len(self.base) else self.added_texts[row - len(self.base)]

    def ids(self, rows: np.ndarray) -> list[RawId]:
        """The raw ids of rows (n,)."""
        return self.base.take(rows) if self.are_stored(rows) else list(map(self.id, rows.tolist()))

    def texts(self, rows: np.ndarray) -> list[str]:
        """The titles or texts of rows (n,)."""
        if not self.are_stored(rows):
            return list(map(self.text, rows.tolist()))
        return [str(raw, "utf-8") for raw in self.base_texts.raw_many(rows)]

    def are_stored(self, rows: np.ndarray) -> bool:
        """No row is an added one."""
        return not self.added_ids or not (rows >= len(self.base)).any()

    def find(self, ids: Sequence[RawId]) -> np.ndarray:
        """Rows of ids as they count in histories (see above), (n,) int64; `UNKNOWN` = -1 where there is none.

        Raises:
            BadRequest: an id is neither a whole number nor a text.
        """
        rows = self.base.find(ids)
        if self.places:
            for place, raw in enumerate(ids):
                rows[place] = self.places.get(self.base.normalise(raw), rows[place])
        return rows

    def find_live(self, ids: Sequence[RawId]) -> np.ndarray:
        """As `find`, with `UNKNOWN` for hidden rows too."""
        rows = self.find(ids)
        return np.where(self.is_live(rows), rows, UNKNOWN)

    def is_live(self, rows: np.ndarray) -> np.ndarray:
        """(n,) bool: True for rows that are neither hidden nor `UNKNOWN` nor padding."""
        live: np.ndarray = rows > 0
        if len(self.hidden):
            places = np.minimum(np.searchsorted(self.hidden, rows), len(self.hidden) - 1)
            live &= self.hidden[places] != rows
        return live

    def current(self, rows: np.ndarray) -> np.ndarray:
        """Rows of the same ids now: those that were put again have moved."""
        if not self.replaced:
            return rows
        return np.array([self._current(row) for row in rows.tolist()], dtype=np.int64)

    def _current(self, row: int) -> int:
        while row in self.replaced:  # put again several times
            row = self.replaced[row]
        return row


class AddedRows(NamedTuple):
    """Vectors of the added rows for one part, float32, as those in `bundle.PartFiles` go on."""

    items: np.ndarray
    """(added videos or comments, d), of unit length where scores are cosines."""
    entries: np.ndarray
    """(added videos, d)."""
    shown: np.ndarray
    """(added comments, d)."""
    watched: np.ndarray
    """(added videos, d)."""


@dataclass(frozen=True)
class Snapshot:
    """One state of the catalogue.

    Attributes:
        bundle: what it stands on.
        videos, comments: ids and texts.
        added: vectors of the added rows, for each part.
        added_comment_video, added_likes: (added comments,) int64.
        lists: comments of a video row, most liked first and without hidden ones, where they differ from the bundle's.
    """

    bundle: Bundle
    videos: Table
    comments: Table
    added: Mapping[Task, AddedRows]
    added_comment_video: np.ndarray
    added_likes: np.ndarray
    lists: Mapping[int, np.ndarray]

    @classmethod
    def of(cls, bundle: Bundle) -> "Snapshot":
        """The bundle as it is."""
        nothing = np.zeros((0, bundle.hidden), dtype=np.float32)
        return cls(
            bundle=bundle,
            videos=Table(bundle.videos, bundle.titles),
            comments=Table(bundle.comments, bundle.texts),
            added={task: AddedRows(nothing, nothing, nothing, nothing) for task in bundle.parts},
            added_comment_video=_NO_ROWS,
            added_likes=_NO_ROWS,
            lists=_NONE,
        )

    def comments_of(self, video: int) -> np.ndarray:
        """Comments of a video row that are not hidden, most liked first, (n,) int64."""
        listed = self.lists.get(video)
        if listed is not None:
            return listed
        if video >= len(self.videos.base):
            return _NO_ROWS
        return self.bundle.lists.row(video).astype(np.int64)

    def top_comments(self, videos: np.ndarray) -> np.ndarray:
        """The most liked comment of each video row, (n,) int64; 0 = it has none."""
        top = self.bundle.top_comment
        found = top[videos if self.videos.are_stored(videos) else np.where(videos < len(top), videos, 0)]
        found = found.astype(np.int64)
        if self.lists:
            for place, video in enumerate(videos.tolist()):
                listed = self.lists.get(video)
                if listed is not None:
                    found[place] = listed[0] if len(listed) else 0
        return found

    def comment_videos(self, comments: np.ndarray) -> np.ndarray:
        """The video row that each comment row belongs to now, (n,) int64."""
        found = _joined(self.bundle.comment_video, self.added_comment_video, comments)
        return self.videos.current(found.astype(np.int64))

    def likes(self, comments: np.ndarray) -> np.ndarray:
        """Likes of comment rows, (n,) int64."""
        return _joined(self.bundle.likes, self.added_likes, comments).astype(np.int64)

    def entries(self, task: Task, videos: np.ndarray) -> np.ndarray:
        """Video rows as steps of a history, (n, d) float32."""
        return _joined(self._part(task).entries, self.added[task].entries, videos)

    def shown(self, task: Task, comments: np.ndarray) -> np.ndarray:
        """What comment rows add to their step, (n, d) float32; row 0 is zeros. Only where the part has it."""
        base = self._part(task).shown
        assert base is not None, "a model that ignores comments"
        return _joined(base, self.added[task].shown, comments)

    def watched(self, videos: np.ndarray) -> np.ndarray:
        """Watched videos as questions to CommRank, (n, d) float32."""
        base = self._part(Task.COMM_RANK).watched
        assert base is not None, "open_bundle has seen to it"
        return _joined(base, self.added[Task.COMM_RANK].watched, videos)

    def items(self, task: Task, rows: np.ndarray) -> np.ndarray:
        """Vectors of what the part ranks, (n, d) float32."""
        base = self._part(task).items
        stored = len(base.values)
        if not len(rows) or rows.max() < stored:
            return base.take(rows)
        found = base.take(np.where(rows < stored, rows, 0))
        found[rows >= stored] = self.added[task].items[rows[rows >= stored] - stored]
        return found

    def _part(self, task: Task) -> PartFiles:
        return self.bundle.parts[task]


def _joined(base: np.ndarray, added: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """Rows of the table that `base` and `added` make together."""
    if not len(rows) or rows.max() < len(base):
        return base.take(rows, axis=0)  # a fifth of the time of base[rows]
    found = base[np.where(rows < len(base), rows, 0)]
    later = rows >= len(base)
    found[later] = added[rows[later] - len(base)]
    return found
