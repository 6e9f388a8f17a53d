"""Samples of the test split as a client would ask about them: raw ids, whole visits, oldest first."""

from functools import cached_property
from typing import Any

import numpy as np

from lsvcr.data.rank import RankData
from lsvcr.export.catalogue import raw_ids
from lsvcr.serving.types import CommentQuery, Query, RawId

_FURTHER = 2
"""Steps beyond those that count, which a client sends along: what is too old must not matter."""

Histories = tuple[list[RawId], list[dict[str, Any]]]
"""Liked videos and visits of one sample."""


class Questions:
    """Requests for the samples of one task and split.

    Args:
        data: the samples, with the history lengths of the checkpoint.
    """

    def __init__(self, data: RankData) -> None:
        self._data = data
        self._videos = _by_index(raw_ids(data.dataset, "videos"))
        self._comments = _by_index(raw_ids(data.dataset, "comments"))

    def videos(self, rows: np.ndarray, k: int) -> list[Query]:
        """Rec: the k best of all videos for each sample, seen ones too, as the protocol `full` ranks them."""
        return [
            Query(video_history=liked, comment_history=visits, k=k, exclude_seen=False)
            for liked, visits in map(self._histories, rows.tolist())
        ]

    def comments(self, rows: np.ndarray) -> list[CommentQuery]:
        """CommRank: all comments of each sample's video."""
        watched = self._videos[self._data.samples.video[rows]].tolist()
        return [
            CommentQuery(video=video, video_history=liked, comment_history=visits)
            for video, (liked, visits) in zip(watched, map(self._histories, rows.tolist()), strict=True)
        ]

    @cached_property
    def video_index(self) -> dict[RawId, int]:
        """Index of each video by its raw id."""
        return {raw: index for index, raw in enumerate(self._videos.tolist()) if index}

    def comment_ids(self, indices: np.ndarray) -> list[RawId]:
        """Raw ids of comments (n,)."""
        ids: list[RawId] = self._comments[indices].tolist()
        return ids

    def _histories(self, row: int) -> Histories:
        samples, dataset = self._data.samples, self._data.dataset
        user = samples.user[row]
        end = samples.video_end[row]
        start = max(dataset.video_events.offsets[user], end - self._data.max_videos - _FURTHER)
        liked: list[RawId] = self._videos[dataset.video_events.items[start:end]].tolist()
        return liked, self._visits(int(dataset.comment_events.offsets[user]), int(samples.comment_end[row]))

    def _visits(self, start: int, end: int) -> list[dict[str, Any]]:
        """The latest visits among the comment events from `start` to `end` (exclusive)."""
        events = self._data.dataset.comment_events
        groups = events.groups[start:end]
        if not len(groups):
            return []
        start += int(np.searchsorted(groups, groups[-1] - self._data.max_entries - _FURTHER + 1))
        visits: list[dict[str, Any]] = []
        last = None
        videos = self._videos[events.videos[start:end]].tolist()
        comments = self._comments[events.items[start:end]].tolist()
        for group, video, comment in zip(events.groups[start:end].tolist(), videos, comments, strict=True):
            if group != last:
                visits.append({"video": video, "comments": []})
            visits[-1]["comments"].append(comment)
            last = group
        return visits


def _by_index(ids: Any) -> np.ndarray:
    """Raw ids with a place for padding in front, so that index and place are the same."""
    if isinstance(ids, np.ndarray):
        return np.concatenate([np.zeros(1, dtype=ids.dtype), ids])
    placed = np.empty(len(ids) + 1, dtype=object)
    placed[0], placed[1:] = "", ids
    return placed
