"""Raw histories to rows, and rows to the steps that the encoder reads."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate, chain
from typing import Any

import numpy as np

from lsvcr.schema import Task
from lsvcr.serving.encoder import Steps
from lsvcr.serving.errors import BadRequest
from lsvcr.serving.snapshot import Snapshot, Table
from lsvcr.serving.types import RawId, Unknown

_VISIT_KEYS = {"video", "comments"}

Visits = tuple[list[RawId | None], list[int], list[RawId]]
"""Of each visit its video (or None) and number of comments, and all comments one after another."""


@dataclass
class Rows:
    """The histories of one user as rows, whole, oldest first.

    Attributes:
        videos: (V,) int64, liked videos.
        event_videos, event_comments: (E,) int64, a comment and the video it was made under; comment 0 = a visit whose
            comments are not known.
    """

    videos: np.ndarray
    event_videos: np.ndarray
    event_comments: np.ndarray


class Missing:
    """Collects the ids that a request names and the bundle has not."""

    def __init__(self) -> None:
        self._videos: dict[RawId, None] = {}
        self._comments: dict[RawId, None] = {}

    def videos(self, ids: Sequence[RawId], rows: np.ndarray) -> np.ndarray:
        """Rows that are known; the ids of the others are noted."""
        return _known(ids, rows, self._videos)

    def comments(self, ids: Sequence[RawId], rows: np.ndarray) -> np.ndarray:
        """As `videos`."""
        return _known(ids, rows, self._comments)

    def unknown(self) -> Unknown:
        """What was noted so far."""
        return Unknown(list(self._videos), list(self._comments))


def id_list(ids: Any, name: str) -> list[RawId]:
    """A list of ids as it came in a request.

    Raises:
        BadRequest: not a list.
    """
    if isinstance(ids, np.ndarray):
        return list(ids.tolist())
    if not isinstance(ids, Sequence) or isinstance(ids, str | bytes):
        raise BadRequest(f"{name} is a list of ids, not {type(ids).__name__}")
    return list(ids)


def resolve(snapshot: Snapshot, asked: Sequence[tuple[Any, Any]], notes: Sequence[Missing]) -> list[Rows]:
    """Rows of histories as requests have them; unknown ids are skipped.

    Args:
        asked: video history and comment history of each request. The ids of all are looked up at once.
        notes: where each one's unknown ids are noted.

    Raises:
        BadRequest: a history of another form.
    """
    liked = [id_list(videos, "video_history") for videos, _ in asked]
    visits = [_flat_visits(comments) for _, comments in asked]
    named = [[video for video in videos if video is not None] for videos, _, _ in visits]
    videos = _found(snapshot.videos, [*liked, *named])
    comments = _found(snapshot.comments, [own for _, _, own in visits])
    found = []
    for place, missing in enumerate(notes):
        rows = missing.videos(liked[place], videos[place])
        visited = videos[len(liked) + place]
        events = _events(snapshot, visits[place], (named[place], visited), comments[place], missing)
        found.append(Rows(rows, *events))
    return found


def _found(table: Table, lists: Sequence[list[RawId]]) -> list[np.ndarray]:
    """The rows of each list of ids; one look-up costs little more than that of a single list."""
    rows = table.find(list(chain.from_iterable(lists)))
    ends = list(accumulate(map(len, lists), initial=0))
    return [rows[start:end] for start, end in zip(ends, ends[1:], strict=False)]


def _flat_visits(history: Any) -> Visits:
    """The visits of a history.

    Raises:
        BadRequest: a history of another form.
    """
    if not isinstance(history, Sequence) or isinstance(history, str | bytes):
        raise BadRequest(f"comment_history is a list, not {type(history).__name__}")
    return _plain_visits(history) or _any_visits(history)


def _plain_visits(history: Sequence[Any]) -> Visits | None:
    """`_flat_visits` of dicts with a video and a list of comments each, as platforms send; None for others."""
    if set(map(type, history)) != {dict} or set(map(len, history)) != {2}:
        return None
    try:
        videos = [step["video"] for step in history]
        own = [step["comments"] for step in history]
    except KeyError:
        return None
    if None in videos or set(map(type, own)) != {list}:
        return None
    return videos, list(map(len, own)), list(chain.from_iterable(own))


def _any_visits(history: Sequence[Any]) -> Visits:
    """`_flat_visits` of visits of every form.

    Raises:
        BadRequest: a visit of none.
    """
    videos: list[RawId | None] = []
    counts: list[int] = []
    comments: list[RawId] = []
    for step in history:
        if type(step) is not dict and not isinstance(step, Mapping):
            videos.append(None)
            counts.append(1)
            comments.append(step)
            continue
        video, own = step.get("video"), step.get("comments", ())
        if not step or not step.keys() <= _VISIT_KEYS:
            further = sorted(map(str, step.keys() - _VISIT_KEYS))
            told = f"it has {further}" if further else "it is empty"
            raise BadRequest(f'a visit of comment_history is {{"video": id, "comments": [id, ...]}}; {told}')
        if type(own) is not list:
            own = id_list(own, "comments of a visit")
        if video is None:  # each comment tells its own
            videos += [None] * len(own)
            counts += [1] * len(own)
        else:
            videos.append(video)
            counts.append(len(own))
        comments += own
    return videos, counts, comments


def _events(
    snapshot: Snapshot,
    visits: Visits,
    visited: tuple[list[RawId], np.ndarray],
    found: np.ndarray,
    missing: Missing,
) -> tuple[np.ndarray, np.ndarray]:
    """(event_videos, event_comments) of `Rows`.

    Args:
        visited: the videos that visits name, and their rows.
        found: rows of the visits' comments.
    """
    videos, counts, comments = visits
    named, rows = visited
    missing.comments(comments, found)
    missing.videos(named, rows)
    if not videos:
        return np.zeros(0, np.int64), np.zeros(0, np.int64)
    if len(named) == len(videos) and all(counts) and rows.min() > 0 and found.min() > 0:
        # As requests of a platform are.
        return rows if len(rows) == len(found) else np.repeat(rows, counts), found
    is_named = np.array([video is not None for video in videos])
    visit_rows = np.zeros(len(videos), dtype=np.int64)
    visit_rows[is_named] = np.maximum(rows, 0)
    known = found > 0
    owner = np.repeat(np.arange(len(videos)), counts)[known]
    event_comments = found[known]
    event_videos = visit_rows[owner]
    if len(named) < len(videos):
        own = snapshot.comment_videos(event_comments)
        event_videos = np.where(is_named[owner], event_videos, own)
    # A visit whose comments are all unknown still tells its video.
    silent = np.flatnonzero(is_named & (np.bincount(owner, minlength=len(videos)) == 0))
    if len(silent):
        order = np.argsort(np.concatenate([owner, silent]), kind="stable")
        event_videos = np.concatenate([event_videos, visit_rows[silent]])[order]
        event_comments = np.concatenate([event_comments, np.zeros(len(silent), np.int64)])[order]
    if event_videos.all():
        return event_videos, event_comments
    return event_videos[event_videos > 0], event_comments[event_videos > 0]


def _known(ids: Sequence[RawId], rows: np.ndarray, noted: dict[RawId, None]) -> np.ndarray:
    known = rows > 0
    if known.all():
        return rows
    noted.update(dict.fromkeys(ids[place] for place in np.flatnonzero(~known).tolist()))
    return rows[known]


def stored_rows(snapshot: Snapshot, user: int) -> Rows:
    """The histories of a stored user row, as they are now."""
    users = snapshot.bundle.users
    assert users is not None, "asked for only where there are users"
    start, end = users.comments.offsets[user : user + 2].tolist()
    return Rows(
        snapshot.videos.current(users.videos.row(user).astype(np.int64)),
        snapshot.videos.current(users.comment_videos[start:end].astype(np.int64)),
        snapshot.comments.current(users.comments.row(user).astype(np.int64)),
    )


def steps(snapshot: Snapshot, task: Task, batch: Sequence[Rows], max_videos: int, max_entries: int) -> Steps:
    """The latest steps of B users as the encoder of a part reads them, padded on the right with zeros."""
    latest = [rows.videos[-max_videos:] if max_videos else rows.videos[:0] for rows in batch]
    flat = np.concatenate(latest)
    video = snapshot.entries(task, flat)
    if snapshot.bundle.parts[task].shown is None:
        empty = [0] * len(batch)
        none = video[:0]
        return Steps(*_padded(video, [len(own) for own in latest]), *_padded(none, empty))
    video = video + snapshot.shown(task, snapshot.top_comments(flat))
    entries, lengths = _entries(snapshot, task, batch, max_entries)
    return Steps(*_padded(video, [len(own) for own in latest]), *_padded(entries, lengths))


def _entries(
    snapshot: Snapshot, task: Task, batch: Sequence[Rows], max_entries: int
) -> tuple[np.ndarray, list[int]]:
    """Latest visits of all users one after another, (sum, d), and how many each user has."""
    kept = [_latest_visits(rows, max_entries) for rows in batch]
    videos = np.concatenate([own for own, _ in kept])
    comments = np.concatenate([own for _, own in kept])
    firsts = list(accumulate((len(own) for own, _ in kept), initial=0))
    begins = _begins(videos, [first for first in firsts if first < len(videos)])
    places = np.flatnonzero(begins)
    before = np.searchsorted(places, firsts)
    lengths = np.diff(before).tolist()
    shown = snapshot.shown(task, comments)
    if len(places) == len(videos):  # a comment each, or none: its row is 0 then
        return snapshot.entries(task, videos) + shown, lengths
    sums = np.add.reduceat(shown, places, axis=0)
    counts = np.add.reduceat(comments > 0, places, dtype=np.float32)
    means = sums / np.maximum(counts, 1)[:, None]
    return snapshot.entries(task, videos[places]) + means, lengths


def _latest_visits(rows: Rows, limit: int) -> tuple[np.ndarray, np.ndarray]:
    """Videos and comments of the events of the latest `limit` visits."""
    videos, comments = rows.event_videos, rows.event_comments
    if len(videos) > limit:
        places = np.flatnonzero(_begins(videos, [0]))
        if len(places) > limit:
            first = int(places[len(places) - limit]) if limit else len(videos)
            return videos[first:], comments[first:]
    return videos, comments


def _begins(videos: np.ndarray, firsts: Sequence[int]) -> np.ndarray:
    """Where visits begin (True) among events: neighbours under one video are one visit, but at `firsts` one begins."""
    begins = np.ones(len(videos), dtype=bool)
    np.not_equal(videos[1:], videos[:-1], out=begins[1:])
    begins[firsts] = True
    return begins


def _padded(flat: np.ndarray, lengths: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
    """Rows of all users one after another -> (B, L, d) with zeros and the mask (B, L); L >= 1."""
    width = max(1, max(lengths))
    if min(lengths) == width:
        return flat.reshape(len(lengths), width, flat.shape[1]), np.ones((len(lengths), width), dtype=bool)
    mask = np.arange(width) < np.array(lengths)[:, None]
    padded = np.zeros((*mask.shape, flat.shape[1]), dtype=np.float32)
    padded[mask] = flat
    return padded, mask
