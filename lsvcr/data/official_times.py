"""Times for events that have none: the order that a user's samples tell of.

A history that ends between two videos says that they did not come at once, and which comments had come in between.
What no sample tells apart gets one time.
"""

import numpy as np


def event_times(
    video_offsets: np.ndarray,
    comment_offsets: np.ndarray,
    user: np.ndarray,
    video_end: np.ndarray,
    comment_end: np.ndarray,
) -> tuple[np.ndarray, np.ndarray]:
    """int64 times of all video events and all comment events, from 0 in every user, never falling.

    Args:
        video_offsets, comment_offsets: int64 (n_users + 2,), the events of user u are `offsets[u] : offsets[u + 1]`.
        user, video_end, comment_end: int64 (n,), the samples and the exclusive ends of their histories.
    """
    videos, comments = _Blocks(video_offsets, video_end), _Blocks(comment_offsets, comment_end)
    videos_before, comments_before = videos.before(user, video_end), comments.before(user, comment_end)
    video_needs = videos.needs(user, video_end, comments_before)
    comment_needs = comments.needs(user, comment_end, videos_before)
    video_times: list[int] = []
    comment_times: list[int] = []
    for one in range(len(video_offsets) - 1):
        own_videos, own_comments = _merged(
            video_needs[videos.first[one] : videos.first[one + 1]],
            comment_needs[comments.first[one] : comments.first[one + 1]],
        )
        video_times += own_videos
        comment_times += own_comments
    return videos.spread(video_times), comments.spread(comment_times)


class _Blocks:
    """Events of one kind that no history ends between are one block.

    Args:
        offsets: of the events by user.
        ends: where histories end.
    """

    def __init__(self, offsets: np.ndarray, ends: np.ndarray) -> None:
        self._offsets = offsets
        starts = np.unique(np.concatenate([offsets, ends]))
        self._starts = starts[starts < offsets[-1]]
        self.first: list[int] = np.searchsorted(self._starts, offsets).tolist()
        """Number of the first block of each user, and behind them the number of blocks."""

    def before(self, user: np.ndarray, end: np.ndarray) -> np.ndarray:
        """int64 (n,): how many of the user's blocks lie before `end`."""
        return np.searchsorted(self._starts, end) - np.asarray(self.first)[user]

    def needs(self, user: np.ndarray, end: np.ndarray, others: np.ndarray) -> list[int]:
        """How many blocks of the other kind come before each block: as many as a history that ends here has seen.

        Args:
            user, end: (n,) whose history ends where.
            others: (n,) blocks of the other kind in it.
        """
        needs = np.zeros(len(self._starts), np.int64)
        inside = end < self._offsets[user + 1]
        np.maximum.at(needs, np.searchsorted(self._starts, end[inside]), others[inside])
        return needs.tolist()

    def spread(self, times: list[int]) -> np.ndarray:
        """int64: the time of every event from that of every block."""
        lengths = np.diff(self._starts, append=self._offsets[-1])
        return np.repeat(np.asarray(times, np.int64), lengths)


def _merged(video_needs: list[int], comment_needs: list[int]) -> tuple[list[int], list[int]]:
    """Times of one user's video and comment blocks: each block as soon as those that it needs have come.

    Blocks that could come next together do. Needs that wait for one another contradict each other and are not met.
    """
    video_times: list[int] = []
    comment_times: list[int] = []
    now = 0
    while (i := len(video_times)) + (k := len(comment_times)) < len(video_needs) + len(comment_needs):
        more_videos, more_comments = i < len(video_needs), k < len(comment_needs)
        takes_video = more_videos and video_needs[i] <= k
        takes_comment = more_comments and comment_needs[k] <= i
        if not takes_video and not takes_comment:
            takes_video, takes_comment = more_videos, not more_videos
        if takes_video:
            video_times.append(now)
        if takes_comment:
            comment_times.append(now)
        now += 1
    return video_times, comment_times
