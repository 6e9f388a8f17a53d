"""The next state of a moving catalogue: changes are tried on a draft, and `Draft.finish` makes a snapshot of it.

What a change means, on top of what `snapshot` says of rows:

- A video that is put gets a new row: vectors of its title alone (the part of its vectors that a bundle's video has from
  its id is dropped), or those of the bundle's row with another title. Its comments stay with it.
- A video of the bundle that is removed takes its comments out of sight, and brings them back when it is put again.
- A video that only changes know of is as good as never put once it is removed, and so are its comments. Whoever keeps
  the record of them puts them again after it (`Draft.remove_video` tells which).
- A comment that is put gets a new row in the list of its video, behind those that are liked as much.

A change costs the same however many came before it, but for the list of a video's comments and for the array of hidden
rows, which are copied.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np

from lsvcr.schema import Task
from lsvcr.serving.bundle import Bundle
from lsvcr.serving.encoder import TowerRows
from lsvcr.serving.growing import GONE, GrowingRows, Layers, Prefix, with_rows, without_rows
from lsvcr.serving.ids import UNKNOWN
from lsvcr.serving.snapshot import AddedRows, Snapshot, Table
from lsvcr.serving.types import RawId

_NORM_EPS = 1e-8
"""As in training: a zero vector stays zero and scores 0 with everyone."""
_NO_ROWS = np.zeros(0, dtype=np.int64)


Rows = Mapping[Task, TowerRows]
"""Where the vectors of a new row come from: what each part's tower made of its text, each field (d,) float32."""


class NewVideo(NamedTuple):
    """A video to put; `rows` None = with the vectors that the bundle has for this id."""

    id: RawId
    title: str
    rows: Rows | None


class NewComment(NamedTuple):
    """A comment to put under a video; `rows` as for `NewVideo`."""

    id: RawId
    video: RawId
    text: str
    likes: int
    rows: Rows | None


class _Buffers:
    """The growing arrays behind all snapshots of one catalogue."""

    def __init__(self, bundle: Bundle) -> None:
        self.vectors = {
            task: {field: GrowingRows((bundle.hidden,), np.float32) for field in AddedRows._fields}
            for task in bundle.parts
        }
        self.comment_video = GrowingRows((), np.int64)
        self.likes = GrowingRows((), np.int64)


@dataclass(frozen=True)
class State:
    """What changes are made to: a snapshot, and what only a writer needs to know."""

    snapshot: Snapshot
    first: Layers[RawId, int]
    """The first row of each video that the bundle has not: what `added_comment_video` says of its comments."""
    buffers: _Buffers

    @classmethod
    def of(cls, bundle: Bundle) -> "State":
        """The bundle as it is. Several states of one bundle share nothing."""
        snapshot = Snapshot.of(bundle)
        nothing: dict[str, Any] = {"places": Layers(), "replaced": Layers()}
        tables = [
            replace(table, added_ids=Prefix([], 0), added_texts=Prefix([], 0), **nothing)
            for table in (snapshot.videos, snapshot.comments)
        ]
        snapshot = replace(snapshot, videos=tables[0], comments=tables[1], lists=Layers())
        return cls(snapshot, Layers(), _Buffers(bundle))


class _TableDraft:
    """Rows of one kind that come and go."""

    def __init__(self, table: Table, width: int) -> None:
        """`width` is d, the width of all vectors."""
        self.table = table
        self.width = width
        self.ids: list[RawId] = []
        self.texts: list[str] = []
        self.rows: list[Rows | None] = []
        self.places: dict[RawId, Any] = {}
        self.replaced: dict[int, Any] = {}
        self._hidden: dict[int, bool] = {}
        self._base: dict[RawId, int] = {}

    def base_row(self, raw: RawId) -> int:
        """The bundle's row of an id, or `UNKNOWN`."""
        found = self._base.get(raw)
        if found is None:
            found = self._base[raw] = int(self.table.base.find([raw])[0])
        return found

    def look_up(self, ids: Sequence[RawId]) -> None:
        """Find the bundle's rows of ids that `base_row` will be asked for: much cheaper than one by one."""
        self._base.update(zip(ids, self.table.base.find(ids).tolist(), strict=True))

    def row(self, raw: RawId) -> int:
        """The row that an id has in histories: its added one, or the bundle's, hidden or not; or `UNKNOWN`."""
        place = self.places.get(raw)
        if place is None:
            place = self.table.places.get(raw)
        return self.base_row(raw) if place is None or place is GONE else int(place)

    def live(self, raw: RawId) -> int:
        """The row of an id that is not hidden, or `UNKNOWN`."""
        row = self.row(raw)
        return UNKNOWN if row == UNKNOWN or self.is_hidden(row) else row

    def is_hidden(self, row: int) -> bool:
        """True for a row that is removed or replaced."""
        known = self._hidden.get(row)
        if known is not None:
            return known
        place = int(np.searchsorted(self.table.hidden, row))
        return place < len(self.table.hidden) and int(self.table.hidden[place]) == row

    def id(self, row: int) -> RawId:
        """The id of a row."""
        return self.table.id(row) if row < len(self.table) else self.ids[row - len(self.table)]

    def current(self, row: int) -> int:
        """The row that the id of a first row has now."""
        found = self.replaced.get(row)
        if found is None:
            found = self.table.replaced.get(row)
        return row if found is None or found is GONE else int(found)

    def add(self, raw: RawId, text: str, rows: Rows | None) -> int:
        """A new row for an id; who held it so far is hidden."""
        old = self.row(raw)
        if old != UNKNOWN:
            self.hide(old)
        row = len(self.table) + len(self.ids)
        self.ids.append(raw)
        self.texts.append(text)
        self.rows.append(rows)
        self.places[raw] = row
        return row

    def remove(self, raw: RawId) -> None:
        """Hide the row of an id; the id stands for the bundle's row again, if there is one."""
        self.hide(self.row(raw))
        self.places[raw] = GONE
        base = self.base_row(raw)
        if base != UNKNOWN:
            self.replaced[base] = GONE

    def hide(self, row: int, hidden: bool = True) -> None:
        """Hide a row, or show it again."""
        self._hidden[row] = hidden

    def vectors(self, task: Task, made: "_Made", stored: "_Stored") -> np.ndarray:
        """Vectors of the new rows, (m, d) float32: from what the tower made, or from the bundle's rows of their ids."""
        vectors = np.zeros((len(self.rows), self.width), dtype=np.float32)
        kept = [place for place, rows in enumerate(self.rows) if rows is None]
        for place, rows in enumerate(self.rows):
            if rows is not None:
                vectors[place] = made(rows[task])
        if kept:
            vectors[kept] = stored(self.table.base.find([self.ids[place] for place in kept]))
        return vectors

    def finish(self) -> Table:
        """The table with all changes."""
        table = self.table
        ids, texts = table.added_ids, table.added_texts
        places, replaced = table.places, table.replaced
        assert isinstance(ids, Prefix) and isinstance(texts, Prefix), "a table of State.of"
        assert isinstance(places, Layers) and isinstance(replaced, Layers), "a table of State.of"
        hidden = without_rows(table.hidden, [row for row, is_hidden in self._hidden.items() if not is_hidden])
        return replace(
            table,
            added_ids=ids.followed_by(self.ids),
            added_texts=texts.followed_by(self.texts),
            places=places.changed(self.places),
            replaced=replaced.changed(self.replaced),
            hidden=with_rows(hidden, [row for row, is_hidden in self._hidden.items() if is_hidden]),
        )


_Made = Callable[[TowerRows], np.ndarray]
_Stored = Callable[[np.ndarray], np.ndarray | float]


class _Edit(NamedTuple):
    """Rows that left a list of comments and rows that came to it."""

    left: set[int]
    came: list[int]


class Draft:
    """Changes to a state, one after the other; the state itself stays as it is.

    Ids are those of the bundle's kind throughout.
    """

    def __init__(self, state: State) -> None:
        self._state = state
        self._videos = _TableDraft(state.snapshot.videos, state.snapshot.bundle.hidden)
        self._comments = _TableDraft(state.snapshot.comments, state.snapshot.bundle.hidden)
        self._first: dict[RawId, Any] = {}
        self._own: list[int] = []
        self._likes: list[int] = []
        self._lists: dict[int, Any] = {}
        self._edits: dict[int, _Edit] = {}

    def look_up(self, videos: Sequence[RawId] = (), comments: Sequence[RawId] = ()) -> None:
        """Announce ids that many changes are about: they are found in the bundle at once."""
        self._videos.look_up(videos)
        self._comments.look_up(comments)

    def has_video(self, raw: RawId) -> bool:
        """True for a video that can be recommended."""
        return self._videos.live(raw) != UNKNOWN

    def has_row(self, raw: RawId) -> bool:
        """True for a video that comments can belong to: one that is there, or a removed one of the bundle."""
        return self._videos.row(raw) != UNKNOWN

    def has_comment(self, raw: RawId) -> bool:
        """True for a comment that is there, if out of sight with its removed video."""
        row = self._comments.row(raw)
        return row != UNKNOWN and row in self._list_of(self._video_of(row))

    def put_video(self, new: NewVideo) -> None:
        """Add a video, or put it in the place of the one with its id."""
        old, base = self._videos.row(new.id), self._videos.base_row(new.id)
        is_back = old == base != UNKNOWN and self._videos.is_hidden(old)
        row = self._videos.add(new.id, new.title, new.rows)
        if old == UNKNOWN:
            self._first[new.id] = row
            return
        comments = self._list_of(old)
        if is_back:
            for comment in comments.tolist():
                self._comments.hide(comment, hidden=False)
        self._lists[old], self._lists[row] = GONE, comments
        self._videos.replaced[self._first_row(new.id)] = row

    def remove_video(self, raw: RawId) -> list[RawId]:
        """Take away a video that is there; returns the comments that are as good as never put now."""
        row, base = self._videos.row(raw), self._videos.base_row(raw)
        comments = self._list_of(row)
        first = self._first_row(raw)
        self._videos.remove(raw)
        self._lists[row] = GONE
        for comment in comments.tolist():
            self._comments.hide(comment)
        if base != UNKNOWN:
            self._lists[base] = comments
            return []
        self._videos.replaced[first] = GONE
        self._first[raw] = GONE
        lost = [self._comments.id(comment) for comment in comments.tolist()]
        for comment in lost:
            self._comments.remove(comment)
        return lost

    def put_comment(self, new: NewComment) -> None:
        """Add a comment, or put it in the place of the one with its id; its video `has_row`."""
        self._leave_list(new.id)
        base = self._comments.base_row(new.id)
        row = self._comments.add(new.id, new.text, new.rows)
        if base != UNKNOWN:
            self._comments.replaced[base] = row
        video = self._videos.row(new.video)
        self._own.append(self._first_row(new.video))
        self._likes.append(new.likes)
        self._edits.setdefault(video, _Edit(set(), [])).came.append(row)
        if self._videos.is_hidden(video):
            self._comments.hide(row)

    def remove_comment(self, raw: RawId) -> None:
        """Take away a comment, if there is one."""
        if self._comments.row(raw) != UNKNOWN:
            self._leave_list(raw)
            self._comments.remove(raw)

    def finish(self) -> State:
        """The state with all changes. Of the drafts of one state only the last to be finished may be used."""
        before = self._state.snapshot
        base = len(before.bundle.comments)
        at = len(before.comments) - base
        buffers = self._state.buffers
        for video in list(self._edits):
            self._list_of(video)
        assert isinstance(before.lists, Layers), "a snapshot of State.of"
        snapshot = replace(
            before,
            videos=self._videos.finish(),
            comments=self._comments.finish(),
            added={task: self._vectors(task) for task in before.added},
            added_comment_video=buffers.comment_video.put(at, np.array(self._own, dtype=np.int64)),
            added_likes=buffers.likes.put(at, np.array(self._likes, dtype=np.int64)),
            lists=before.lists.changed(self._lists),
        )
        return State(snapshot, self._state.first.changed(self._first), buffers)

    def _first_row(self, raw: RawId) -> int:
        """What the comments of a video say it is: the bundle's row, or the first one it was given."""
        base = self._videos.base_row(raw)
        if base != UNKNOWN:
            return base
        found = self._first.get(raw)
        return int(self._state.first[raw] if found is None else found)

    def _video_of(self, comment: int) -> int:
        """The video row that a comment row belongs to now."""
        snapshot = self._state.snapshot
        base = len(snapshot.bundle.comments)
        if comment < base:
            first = int(snapshot.bundle.comment_video[comment])
        elif comment < len(snapshot.comments):
            first = int(snapshot.added_comment_video[comment - base])
        else:
            first = self._own[comment - len(snapshot.comments)]
        return self._videos.current(first)

    def _leave_list(self, raw: RawId) -> None:
        row = self._comments.row(raw)
        if row != UNKNOWN:
            self._edits.setdefault(self._video_of(row), _Edit(set(), [])).left.add(row)

    def _list_of(self, video: int) -> np.ndarray:
        """Comments of a video row, most liked first, those out of sight with a removed video too; (n,) int64."""
        listed = self._lists.get(video)
        if listed is None:
            snapshot = self._state.snapshot
            listed = snapshot.comments_of(video) if video < len(snapshot.videos) else _NO_ROWS
        elif listed is GONE:
            listed = _NO_ROWS
        edit = self._edits.pop(video, None)
        if edit is None:
            found: np.ndarray = listed
            return found
        came = [row for row in edit.came if row not in edit.left]
        rows = np.concatenate([listed, np.array(came, dtype=np.int64)])
        rows = rows[~np.isin(rows, list(edit.left))]
        self._lists[video] = rows[np.argsort(-self._likes_of(rows), kind="stable")]
        result: np.ndarray = self._lists[video]
        return result

    def _likes_of(self, comments: np.ndarray) -> np.ndarray:
        snapshot = self._state.snapshot
        known = comments < len(snapshot.comments)
        likes = snapshot.likes(np.where(known, comments, 0))
        for place in np.flatnonzero(~known).tolist():
            likes[place] = self._likes[int(comments[place]) - len(snapshot.comments)]
        return likes

    def _vectors(self, task: Task) -> AddedRows:
        """The vectors of all added rows of a part, the new ones among them."""
        growing, part = self._state.buffers.vectors[task], self._state.snapshot.bundle.parts[task]
        videos, comments = self._videos, self._comments
        ranked = videos if task is Task.REC else comments

        def grown(field: str, of: _TableDraft, made: _Made, stored: _Stored) -> np.ndarray:
            return growing[field].put(len(of.table.added_ids), of.vectors(task, made, stored))

        return AddedRows(
            items=grown("items", ranked, lambda rows: _unit(rows.projected), part.items.take),
            entries=grown("entries", videos, lambda rows: rows.entry, _taken_from(part.entries)),
            shown=grown("shown", comments, lambda rows: rows.shown, _taken_from(part.shown)),
            watched=grown("watched", videos, lambda rows: rows.projected, _taken_from(part.watched)),
        )


def _taken_from(table: np.ndarray | None) -> "_Stored":
    """Rows of a table, or zeros of a part that has no such table and never asks for it."""
    return lambda rows: 0.0 if table is None else table[rows]


def _unit(vectors: np.ndarray) -> np.ndarray:
    lengths = np.linalg.norm(vectors, axis=-1, keepdims=True)
    found: np.ndarray = vectors / np.maximum(lengths, _NORM_EPS)
    return found
