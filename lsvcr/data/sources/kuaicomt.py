"""KuaiComt: short-video impressions and comment interactions, five CSV files with header rows.

`user_video_inter.csv` has a row an impression; those with a chosen signal (a like, unless told otherwise)
are the liked videos. `user_comment_inter.csv` has likes and replies. The three feature files hold users,
videos (caption, author, category) and comments (text, video, like count).
"""

from pathlib import Path

import polars as pl

from lsvcr.data.sources.columns import Column
from lsvcr.data.sources.csv_table import CsvTable
from lsvcr.data.sources.logs import ROW, BadRows, RawLogs
from lsvcr.data.sources.spill import CLICKED, FROM_LIKES, Spill
from lsvcr.schema import AUTHOR, CATEGORY, COMMENT, CONTENT, LIKES, RAW_ID, TIME, TITLE, USER, VIDEO
from lsvcr.settings import PrepareSettings
from lsvcr.utils.errors import UserError

SIGNALS = ("is_click", "is_like", "is_follow", "is_comment", "is_forward", "is_collect", "long_view")
"""Columns of an impression that may count as liking the video."""

CLICK = "is_click"
"""A file may lack this column: then the signals of a like stand in for a click."""

COMMENT_SIGNALS = ("is_like", "is_reply")
"""Columns of an interaction with a comment that may count."""


def read(settings: PrepareSettings, bad: BadRows, spill: Spill | None = None) -> RawLogs:
    """Read the five files of `settings.raw`, each once.

    Args:
        settings: where they are and which columns count.
        bad: where broken rows are reported.
        spill: receives every impression; None = they are left out.

    Raises:
        UserError: a file or column is missing, or a row is broken (see `BadRows`).
    """
    signals = parse_signals("signals", settings.signals, SIGNALS)
    comment_signals = parse_signals("comment_signals", settings.comment_signals, COMMENT_SIGNALS)
    clicks = [] if spill is None else parse_signals("click_signal", settings.click_signal, SIGNALS)
    tables = _tables(Path(settings.raw), signals, clicks, comment_signals, bad.skip)
    users = tables["users"].collect_unique("user_id", bad)
    videos = tables["videos"].collect_unique("video_id", bad)
    comments = tables["comments"].collect_unique("comment_id", bad)
    liked, impressions = _impressions(tables["video_events"], signals, clicks, bad, spill)
    touched, interactions = tables["comment_events"].collect(bad, keep=pl.any_horizontal(comment_signals))
    return RawLogs(
        users=_renamed(users, {"user_id": RAW_ID}),
        videos=_renamed(
            videos, {"video_id": RAW_ID, "caption": TITLE, "category": CATEGORY, "author_id": AUTHOR}
        ),
        comments=_renamed(
            comments,
            {"comment_id": RAW_ID, "comment_content": CONTENT, "video_id": VIDEO, "comment_like_cnt": LIKES},
        ),
        video_events=_renamed(liked, {"user_id": USER, "video_id": VIDEO, "time_ms": TIME}),
        comment_events=_renamed(
            touched, {"user_id": USER, "comment_id": COMMENT, "photo_id": VIDEO, "time_stamp": TIME}
        ),
        origins=tables,
        counts={"impressions": impressions, "comment_interactions": interactions},
    )


def _impressions(
    table: CsvTable, signals: list[str], clicks: list[str], bad: BadRows, spill: Spill | None
) -> tuple[pl.DataFrame, int]:
    """The rows with a signal, and how many there are of all; all of them go to `spill`."""
    is_liked = pl.any_horizontal(signals)
    if spill is None:
        return table.collect(bad, keep=is_liked)
    given = [name for name in clicks if table.has(name)]
    says_nothing = pl.all_horizontal(pl.col(given).is_null()) if given else pl.lit(True)
    is_clicked = pl.any_horizontal(pl.col(given).fill_null(False)) if given else is_liked
    columns = [
        pl.col("user_id").alias(USER),
        pl.col("video_id").alias(VIDEO),
        pl.col("time_ms").alias(TIME),
        pl.when(says_nothing).then(is_liked).otherwise(is_clicked).alias(CLICKED),
        says_nothing.alias(FROM_LIKES),
    ]
    return table.collect_and_spill(bad, is_liked, spill, columns)


def _tables(
    folder: Path, signals: list[str], clicks: list[str], comment_signals: list[str], lossy: bool
) -> dict[str, CsvTable]:
    """The five files by the frame they become; all headers are looked at before the first long read."""
    user, video, comment = Column("user_id", "id"), Column("video_id", "id"), Column("comment_id", "id")
    return {
        "users": CsvTable(folder / "user_features.csv", [user], lossy),
        "videos": CsvTable(
            folder / "video_features.csv",
            [video, Column("author_id", "text"), Column("caption", "text"), Column("category", "text")],
            lossy,
        ),
        "comments": CsvTable(
            folder / "comment_features.csv",
            [comment, Column("comment_content", "text"), video, Column("comment_like_cnt", "count")],
            lossy,
        ),
        "video_events": CsvTable(
            folder / "user_video_inter.csv",
            [
                user,
                video,
                Column("time_ms", "milliseconds"),
                *(Column(name, "flag") for name in signals),
                *(Column(name, "mark", name == CLICK) for name in clicks if name not in signals),
            ],
            lossy,
        ),
        "comment_events": CsvTable(
            folder / "user_comment_inter.csv",
            [
                user,
                comment,
                Column("time_stamp", "seconds"),
                Column("photo_id", "id"),
                *(Column(name, "flag") for name in comment_signals),
            ],
            lossy,
        ),
    }


def _renamed(frame: pl.DataFrame, names: dict[str, str]) -> pl.DataFrame:
    """`ROW` and the columns in `names` under their new names."""
    return frame.select(ROW, *(pl.col(old).alias(new) for old, new in names.items()))


def parse_signals(flag: str, text: str, known: tuple[str, ...]) -> list[str]:
    """The columns named in a comma-separated list, each once; `like` is short for `is_like`.

    Args:
        flag: name of the setting, for messages.
        text: its value.
        known: the columns to choose from.

    Raises:
        UserError: an unknown signal, or none.
    """
    words = [name.strip() for name in text.split(",") if name.strip()]
    names = list(dict.fromkeys(f"is_{word}" if f"is_{word}" in known else word for word in words))
    unknown = [name for name in names if name not in known]
    if unknown or not names:
        wrong = f"unknown signal {unknown[0]!r}" if unknown else "no signal given"
        raise UserError(f"--{flag}: {wrong}; choose from {', '.join(known)}")
    return names
