"""Raw histories to rows, and rows to the steps that the encoder reads."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from lsvcr.schema import Task
from lsvcr.serving.encoder import Steps
from lsvcr.serving.errors import BadRequest
from lsvcr.serving.snapshot import Snapshot
from lsvcr.serving.types import RawId, Unknown

_VISIT = {"video", "comments"}


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
    if type(ids) is list:  # nearly always
        return ids
    if isinstance(ids, np.ndarray):
        return list(ids.tolist())
    if not isinstance(ids, Sequence) or isinstance(ids, str | bytes):
        raise BadRequest(f"{name} is a list of ids, not {type(ids).__name__}")
    return list(ids)


def resolve(snapshot: Snapshot, video_history: Any, comment_history: Any, missing: Missing) -> Rows:
    """Rows of the histories of a request; unknown ids are skipped and noted in `missing`.

    Raises:
        BadRequest: a history of another form.
    """
    liked = id_list(video_history, "video_history")
    videos = missing.videos(liked, snapshot.videos.find(liked))
    visits, comments = _flat_visits(comment_history)
    if not visits:
        return Rows(videos, np.zeros(0, np.int64), np.zeros(0, np.int64))
    return Rows(videos, *_events(snapshot, visits, comments, missing))


def _flat_visits(history: Any) -> tuple[list[tuple[RawId | None, int]], list[RawId]]:
    """(video or None, number of comments) of each visit, and all comments one after another."""
    visits: list[tuple[RawId | None, int]] = []
    comments: list[RawId] = []
    if not isinstance(history, Sequence) or isinstance(history, str | bytes):
        raise BadRequest(f"comment_history is a list, not {type(history).__name__}")
    for step in history:
        if type(step) is dict and step.keys() == _VISIT and step["video"] is not None:  # nearly always
            own = id_list(step["comments"], "comments of a visit")
            visits.append((step["video"], len(own)))
            comments += own
            continue
        if not isinstance(step, Mapping):
            visits.append((None, 1))
            comments.append(step)
            continue
        further = set(step) - {"video", "comments"}
        if further or not step:
            told = f"it has {sorted(map(str, further))}" if further else "it is empty"
            raise BadRequest(f'a visit of comment_history is {{"video": id, "comments": [id, ...]}}; {told}')
        own = id_list(step.get("comments", ()), "comments of a visit")
        video = step.get("video")
        visits += [(None, 1)] * len(own) if video is None else [(video, len(own))]
        comments += own
    return visits, comments


def _events(
    snapshot: Snapshot,
    visits: list[tuple[RawId | None, int]],
    comments: list[RawId],
    missing: Missing,
) -> tuple[np.ndarray, np.ndarray]:
    """(event_videos, event_comments) of `Rows`."""
    found = snapshot.comments.find(comments)
    missing.comments(comments, found)
    named = [video for video, _ in visits if video is not None]
    named_rows = snapshot.videos.find(named)
    missing.videos(named, named_rows)
    counts = np.array([count for _, count in visits], dtype=np.int64)
    owner = np.repeat(np.arange(len(visits)), counts)
    visit_video = np.zeros(len(visits), dtype=np.int64)
    visit_video[[video is not None for video, _ in visits]] = np.maximum(named_rows, 0)
    is_named = np.array([video is not None for video, _ in visits])
    known = found > 0
    own = snapshot.comment_videos(np.where(known, found, 0))
    event_videos = np.where(is_named[owner], visit_video[owner], own) * known
    # A visit whose comments are all unknown still tells the video.
    silent = (np.bincount(owner[known], minlength=len(visits)) == 0) & is_named
    order = np.argsort(np.concatenate([owner, np.flatnonzero(silent)]), kind="stable")
    event_videos = np.concatenate([event_videos, visit_video[silent]])[order]
    event_comments = np.concatenate([np.where(known, found, 0), np.zeros(silent.sum(), np.int64)])[order]
    real = event_videos > 0
    return event_videos[real], event_comments[real]


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
    groups = [_visit_numbers(rows.event_videos) for rows in batch]
    lengths = [min(int(own[-1]) + 1, max_entries) if len(own) else 0 for own in groups]
    kept = [
        own >= own[-1] + 1 - length if len(own) else own > 0
        for own, length in zip(groups, lengths, strict=True)
    ]
    videos = np.concatenate([rows.event_videos[keep] for rows, keep in zip(batch, kept, strict=True)])
    comments = np.concatenate([rows.event_comments[keep] for rows, keep in zip(batch, kept, strict=True)])
    if not len(videos):
        return snapshot.entries(task, videos), lengths
    starts = np.concatenate([_starts(own[keep]) for own, keep in zip(groups, kept, strict=True)]).nonzero()[0]
    sums = np.add.reduceat(snapshot.shown(task, comments), starts, axis=0)
    counts = np.add.reduceat((comments > 0).astype(np.float32), starts)
    means = sums / np.maximum(counts, 1)[:, None]
    return snapshot.entries(task, videos[starts]) + means, lengths


def _visit_numbers(videos: np.ndarray) -> np.ndarray:
    """The visit of each event, from 0: neighbours under one video are one visit."""
    numbers = np.zeros(len(videos), dtype=np.int64)
    np.cumsum(videos[1:] != videos[:-1], out=numbers[1:])
    return numbers


def _starts(numbers: np.ndarray) -> np.ndarray:
    """True where a visit begins."""
    begins = np.ones(len(numbers), dtype=bool)
    begins[1:] = numbers[1:] != numbers[:-1]
    return begins


def _padded(flat: np.ndarray, lengths: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
    """Rows of all users one after another -> (B, L, d) with zeros and the mask (B, L); L >= 1."""
    width = max(1, max(lengths))
    mask = np.arange(width) < np.array(lengths)[:, None]
    padded = np.zeros((*mask.shape, flat.shape[1]), dtype=np.float32)
    padded[mask] = flat
    return padded, mask
