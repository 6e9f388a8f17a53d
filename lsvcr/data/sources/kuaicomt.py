"""KuaiComt: short-video impressions and comment interactions, five CSV files with header rows.

`user_video_inter.csv` has a row an impression; those with a chosen signal (a like, unless told otherwise)
are the liked videos. `user_comment_inter.csv` has likes and replies. The three feature files hold users,
videos (caption, author, category) and comments (text, video, like count).
"""

from pathlib import Path

import polars as pl

from lsvcr.data.sources.csv_table import Column, CsvTable
from lsvcr.data.sources.logs import ROW, BadRows, RawLogs
from lsvcr.schema import AUTHOR, CATEGORY, COMMENT, CONTENT, LIKES, RAW_ID, TIME, TITLE, USER, VIDEO
from lsvcr.settings import PrepareSettings
from lsvcr.utils.errors import UserError

SIGNALS = ("is_click", "is_like", "is_follow", "is_comment", "is_forward", "is_collect", "long_view")
"""Columns of an impression that may count as liking the video."""


def read(settings: PrepareSettings, bad: BadRows) -> RawLogs:
    """Read the five files of `settings.raw`, each once.

    Raises:
        UserError: a file or column is missing, or a row is broken (see `BadRows`).
    """
    folder, lossy = Path(settings.raw), bad.skip
    signals = parse_signals(settings.signals)
    ids = Column("user_id", "id"), Column("video_id", "id")
    flags = [Column(name, "flag") for name in signals]
    # All headers are looked at before the first long read.
    users = CsvTable(folder / "user_features.csv", ids[:1], lossy)
    videos = CsvTable(
        folder / "video_features.csv",
        [ids[1], Column("author_id", "text"), Column("caption", "text"), Column("category", "text")],
        lossy,
    )
    comments = CsvTable(
        folder / "comment_features.csv",
        [
            Column("comment_id", "id"),
            Column("comment_content", "text"),
            ids[1],
            Column("comment_like_cnt", "count"),
        ],
        lossy,
    )
    impressions = CsvTable(
        folder / "user_video_inter.csv", [*ids, Column("time_ms", "milliseconds"), *flags], lossy
    )
    interactions = CsvTable(
        folder / "user_comment_inter.csv",
        [
            ids[0],
            Column("comment_id", "id"),
            Column("time_stamp", "seconds"),
            Column("photo_id", "id"),
            Column("is_like", "flag"),
            Column("is_reply", "flag"),
        ],
        lossy,
    )
    user_rows = users.collect_unique("user_id", bad)
    video_rows = videos.collect_unique("video_id", bad)
    comment_rows = comments.collect_unique("comment_id", bad)
    liked, seen = impressions.collect(bad, keep=pl.any_horizontal(signals))
    touched, shown = interactions.collect(bad, keep=pl.col("is_like") | pl.col("is_reply"))
    return RawLogs(
        users=user_rows.select(ROW, pl.col("user_id").alias(RAW_ID)),
        videos=video_rows.select(
            ROW,
            pl.col("video_id").alias(RAW_ID),
            pl.col("caption").alias(TITLE),
            pl.col("category").alias(CATEGORY),
            pl.col("author_id").alias(AUTHOR),
        ),
        comments=comment_rows.select(
            ROW,
            pl.col("comment_id").alias(RAW_ID),
            pl.col("comment_content").alias(CONTENT),
            pl.col("video_id").alias(VIDEO),
            pl.col("comment_like_cnt").alias(LIKES),
        ),
        video_events=liked.select(
            ROW,
            pl.col("user_id").alias(USER),
            pl.col("video_id").alias(VIDEO),
            pl.col("time_ms").alias(TIME),
        ),
        comment_events=touched.select(
            ROW,
            pl.col("user_id").alias(USER),
            pl.col("comment_id").alias(COMMENT),
            pl.col("photo_id").alias(VIDEO),
            pl.col("time_stamp").alias(TIME),
        ),
        origins={
            "users": users,
            "videos": videos,
            "comments": comments,
            "video_events": impressions,
            "comment_events": interactions,
        },
        counts={"impressions": seen, "comment_interactions": shown},
    )


def parse_signals(text: str) -> list[str]:
    """The columns named in a comma-separated list, each once.

    Raises:
        UserError: an unknown signal, or none.
    """
    names = list(dict.fromkeys(name.strip() for name in text.split(",") if name.strip()))
    unknown = [name for name in names if name not in SIGNALS]
    if unknown or not names:
        wrong = f"unknown signal {unknown[0]!r}" if unknown else "no signal given"
        raise UserError(f"--signals: {wrong}; choose from {', '.join(SIGNALS)}")
    return names

