"""The next snapshot from the current one: videos and comments that come and go. Nothing here is in place.

Each function copies what it changes (the vectors of all added rows among them), so many changes are made in one call
where they can be, such as when a journal is replayed.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from lsvcr.schema import Task
from lsvcr.serving.encoder import TowerRows
from lsvcr.serving.errors import BadRequest, UnknownId
from lsvcr.serving.ids import UNKNOWN
from lsvcr.serving.snapshot import AddedRows, Snapshot, Table
from lsvcr.serving.types import RawId

_NORM_EPS = 1e-8
"""As in training: a zero vector stays zero and scores 0 with everyone."""
_NONE = np.zeros(0, dtype=np.int64)


@dataclass(frozen=True)
class NewVideo:
    """A video to add, or to put in the place of the one with its id.

    Attributes:
        rows: for every part of the bundle what its tower makes of the title, each field (d,) float32.
    """

    id: RawId
    title: str
    rows: Mapping[Task, TowerRows]


@dataclass(frozen=True)
class NewComment:
    """A comment to add to a video, or to put in the place of the one with its id; `rows` as for `NewVideo`."""

    id: RawId
    video: RawId
    text: str
    likes: int
    rows: Mapping[Task, TowerRows]


def put_videos(snapshot: Snapshot, videos: Sequence[NewVideo]) -> Snapshot:
    """Add videos; of two with one id the later stays. A video that is put again keeps its comments.

    Raises:
        BadRequest: an id that is not of the bundle's kind.
    """
    if not videos:
        return snapshot
    table, moved = _put(snapshot.videos, [(video.id, video.title) for video in videos])
    lists = dict(snapshot.lists)
    for old, new in moved:
        lists[new] = lists[old] if old in lists else snapshot.comments_of(old)
        lists[old] = _NONE
    added = {
        task: AddedRows(
            items=_after(own.items, _unit(rows.projected)) if task is Task.REC else own.items,
            entries=_after(own.entries, rows.entry),
            shown=own.shown,
            watched=_after(own.watched, rows.projected),
        )
        for task, own, rows in _stacked(snapshot, [video.rows for video in videos])
    }
    return replace(snapshot, videos=table, added=added, lists=lists)


def put_comments(snapshot: Snapshot, comments: Sequence[NewComment]) -> Snapshot:
    """Add comments; of two with one id the later stays. Equally liked ones come in the order they were added.

    Raises:
        UnknownId: a comment's video is not there.
        BadRequest: an id that is not of the bundle's kind.
    """
    if not comments:
        return snapshot
    videos = snapshot.videos.find_live([comment.video for comment in comments])
    if (videos == UNKNOWN).any():
        raise UnknownId(f"no video {comments[int(np.argmin(videos))].video!r} in this bundle")
    first = len(snapshot.comments)
    table, moved = _put(snapshot.comments, [(comment.id, comment.text) for comment in comments])
    added = {
        task: AddedRows(
            items=_after(own.items, _unit(rows.projected)) if task is Task.COMM_RANK else own.items,
            entries=own.entries,
            shown=_after(own.shown, rows.shown),
            watched=own.watched,
        )
        for task, own, rows in _stacked(snapshot, [comment.rows for comment in comments])
    }
    likes = np.array([comment.likes for comment in comments], dtype=np.int64)
    following = replace(
        snapshot,
        comments=table,
        added=added,
        added_comment_video=_after(snapshot.added_comment_video, videos),
        added_likes=_after(snapshot.added_likes, likes),
    )
    left = snapshot.comment_videos(np.array([old for old, _ in moved if old < first], dtype=np.int64))
    rows = first + np.arange(len(comments))
    come = {video: rows[videos == video] for video in np.unique(videos).tolist()}
    return _listed(snapshot, following, come, left.tolist())


def remove_videos(snapshot: Snapshot, ids: Sequence[RawId]) -> Snapshot:
    """Take videos away, and their comments with them; ids that are not there are ignored."""
    rows = np.unique(snapshot.videos.find_live(ids))
    rows = rows[rows != UNKNOWN]
    if not len(rows):
        return snapshot
    comments = np.concatenate([snapshot.comments_of(row) for row in rows.tolist()])
    return replace(
        snapshot,
        videos=_removed(snapshot.videos, rows),
        comments=_removed(snapshot.comments, comments),
        lists={**snapshot.lists, **dict.fromkeys(rows.tolist(), _NONE)},
    )


def remove_comments(snapshot: Snapshot, ids: Sequence[RawId]) -> Snapshot:
    """Take comments away; ids that are not there are ignored."""
    rows = np.unique(snapshot.comments.find_live(ids))
    rows = rows[rows != UNKNOWN]
    if not len(rows):
        return snapshot
    following = replace(snapshot, comments=_removed(snapshot.comments, rows))
    return _listed(snapshot, following, {}, snapshot.comment_videos(rows).tolist())


def _put(table: Table, news: Sequence[tuple[RawId, str]]) -> tuple[Table, list[tuple[int, int]]]:
    """The table with a row for each (id, text), and which earlier row of an id gave way to which, in order."""
    ids = [_of_kind(table, raw) for raw, _ in news]
    first = len(table)
    earlier = table.base.find(ids).tolist()
    places, replaced = dict(table.places), dict(table.replaced)
    moved: list[tuple[int, int]] = []
    for row, (raw, base_row) in enumerate(zip(ids, earlier, strict=True), start=first):
        old = places.get(raw, base_row)
        places[raw] = row
        if old == UNKNOWN:
            continue
        moved.append((old, row))
        for before in {old, base_row} - {UNKNOWN}:
            replaced[before] = row
    following = replace(
        table,
        added_ids=(*table.added_ids, *ids),
        added_texts=(*table.added_texts, *(text for _, text in news)),
        places=places,
        replaced=replaced,
        hidden=np.union1d(table.hidden, np.array([old for old, _ in moved], dtype=np.int64)),
    )
    return following, moved


def _of_kind(table: Table, raw: RawId) -> RawId:
    found = table.base.normalise(raw)
    if table.base.numbers and not isinstance(found, int):
        raise BadRequest(f"the ids of this bundle are whole numbers, not {raw!r}")
    return found


def _removed(table: Table, rows: np.ndarray) -> Table:
    gone = set(rows.tolist())
    return replace(
        table,
        places={raw: row for raw, row in table.places.items() if row not in gone},
        replaced={old: row for old, row in table.replaced.items() if row not in gone},
        hidden=np.union1d(table.hidden, rows),
    )


def _listed(
    snapshot: Snapshot, following: Snapshot, come: Mapping[int, np.ndarray], left: Iterable[int]
) -> Snapshot:
    """`following` with the comment lists of those video rows that some came to (rows by video) or left."""
    lists = dict(snapshot.lists)
    for video in {*come, *left} - {0}:
        listed = np.concatenate([snapshot.comments_of(video), come.get(video, _NONE)])
        listed = listed[following.comments.is_live(listed)]
        lists[video] = listed[np.argsort(-following.likes(listed), kind="stable")]
    return replace(following, lists=lists)


def _stacked(
    snapshot: Snapshot, rows: Sequence[Mapping[Task, TowerRows]]
) -> Iterable[tuple[Task, AddedRows, TowerRows]]:
    """For each part what was added so far, and the new rows one below the other."""
    for task, own in snapshot.added.items():
        new = [each[task] for each in rows]
        yield task, own, TowerRows(*(np.stack(field).astype(np.float32) for field in zip(*new, strict=True)))


def _after(before: np.ndarray, new: np.ndarray) -> np.ndarray:
    return np.concatenate([before, new])


def _unit(vectors: np.ndarray) -> np.ndarray:
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    return vectors / np.maximum(lengths, _NORM_EPS)
