"""Raw ids to dense codes, what is kept (k-core), and the final 1-based indices."""

from collections.abc import Mapping

import numpy as np
import polars as pl

from lsvcr.data.sources.logs import ROW, BadRows, Origin, RawLogs, drop_bad
from lsvcr.schema import COMMENT, RAW_ID, TIME, USER, VIDEO

_KEY = "key"
CODE = "code"
"""Position of an id among all raw ids in ascending order, from 0 (u32)."""


def ordered(table: pl.DataFrame) -> pl.DataFrame:
    """Rows by ascending raw id (numbers by value, strings by code point), with their `code`."""
    return table.sort(RAW_ID).with_columns(pl.int_range(pl.len(), dtype=pl.UInt32).alias(CODE))


def encode(logs: RawLogs, bad: BadRows) -> RawLogs:
    """Replace raw ids in events and comments by codes; users, videos and comments come back ordered.

    A row that names an id its table does not have, or a comment under another video than the comment's own,
    is a broken row: it stops with its line or is left out and counted, as `bad` was told.

    Raises:
        UserError: see `BadRows`.
    """
    users, videos = ordered(logs.users), ordered(logs.videos)
    comments = _encode(logs.comments, {VIDEO: videos}, logs.origins["comments"], bad)
    comments = ordered(comments)
    video_events = _encode(logs.video_events, {USER: users, VIDEO: videos}, logs.origins["video_events"], bad)
    comment_events = _encode(
        logs.comment_events,
        {USER: users, VIDEO: videos, COMMENT: comments},
        logs.origins["comment_events"],
        bad,
    )
    comment_events = _under_their_video(comment_events, comments, logs.origins["comment_events"], bad)
    return RawLogs(
        users=users,
        videos=videos,
        comments=comments,
        video_events=video_events,
        comment_events=comment_events,
        origins=logs.origins,
        counts=logs.counts,
        rows_have_order=logs.rows_have_order,
    )


def first_of_each(events: pl.DataFrame, item: str, rows_have_order: bool = True) -> pl.DataFrame:
    """Sort by user, then (time, input row), and keep a user's first event with each `item`.

    Where rows have no order of their own, equal times are ordered by the item's code, that is by its raw id.
    """
    tie = ROW if rows_have_order else item
    if not events[tie].is_sorted():
        events = events.sort(tie, maintain_order=True)
    events = by_user_and_time(events)
    pair = events[USER].cast(pl.UInt64) * 2**32 + events[item]
    return events.filter(pair.is_first_distinct())


def by_user_and_time(events: pl.DataFrame) -> pl.DataFrame:
    """Stable sort by `user` (unsigned or not negative) and `time`, both int.

    It goes by both as one number where 64 bits hold it: half the time and memory of sorting by two.
    """
    times = events[TIME]
    low, high = int(times.min() or 0), int(times.max() or 0)  # type: ignore[arg-type]
    span = high - low + 1
    if (int(events[USER].max() or 0) + 1) * span >= 2**64:  # type: ignore[arg-type]
        return events.sort(USER, TIME, maintain_order=True)
    key = events[USER].cast(pl.UInt64) * span + (times - low).cast(pl.UInt64)
    return events.with_columns(key.alias(_KEY)).sort(_KEY, maintain_order=True).drop(_KEY)


def k_core(
    users: np.ndarray, videos: np.ndarray, n_users: int, n_videos: int, user_core: int, video_core: int
) -> tuple[np.ndarray, np.ndarray]:
    """The largest set in which every user and every video keeps enough of the events.

    Args:
        users, videos: (n_events,) codes of distinct (user, video) pairs.
        user_core, video_core: least number of events; 0 keeps all.

    Returns:
        Kept users (n_users,) and kept videos (n_videos,), bool.
    """
    keep_user = np.ones(n_users, bool)
    keep_video = np.ones(n_videos, bool)
    while True:
        user_counts = np.bincount(users, minlength=n_users)
        video_counts = np.bincount(videos, minlength=n_videos)
        user_falls = keep_user & (user_counts < user_core)
        video_falls = keep_video & (video_counts < video_core)
        if not user_falls.any() and not video_falls.any():
            return keep_user, keep_video
        keep_user &= ~user_falls
        keep_video &= ~video_falls
        stays = keep_user[users] & keep_video[videos]
        users, videos = users[stays], videos[stays]


def new_indices(keep: np.ndarray) -> np.ndarray:
    """int32 (n,): index from 1 for what is kept, in order; 0 for the rest."""
    return np.where(keep, np.cumsum(keep), 0).astype(np.int32)


def _encode(
    frame: pl.DataFrame, tables: Mapping[str, pl.DataFrame], origin: Origin, bad: BadRows
) -> pl.DataFrame:
    """Each column named in `tables` becomes the code of its id in that table."""
    for name, table in tables.items():
        if frame[name].dtype != table[RAW_ID].dtype:
            raise TypeError(
                f"{name} ids are {frame[name].dtype} here and {table[RAW_ID].dtype} in their table"
            )
        codes = table.select(pl.col(RAW_ID).alias(name), CODE)
        joined = frame.join(codes, on=name, how="left", maintain_order="left")
        reason = pl.format(f"{name} {{}} is not among the {name}s", name)
        joined = drop_bad(joined, joined[CODE].is_null(), origin, reason, bad)
        frame = joined.with_columns(pl.col(CODE).alias(name)).drop(CODE)
    return frame


def _under_their_video(
    events: pl.DataFrame, comments: pl.DataFrame, origin: Origin, bad: BadRows
) -> pl.DataFrame:
    own = comments[VIDEO].gather(events[COMMENT])
    ids = comments[RAW_ID].gather(events[COMMENT])
    frame = events.with_columns(ids.alias("comment_id"))
    reason = pl.format("comment {} belongs to another video in the comments' file", "comment_id")
    return drop_bad(frame, frame[VIDEO] != own, origin, reason, bad).drop("comment_id")
