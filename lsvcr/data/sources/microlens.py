"""MicroLens (50k, 100k, 1M): micro-videos, and who commented on them and when.

A row of `*_pairs.csv` is a like of the video and, where `*_comment_en.txt` has what that user wrote under it, an
interaction with this comment at the same time. Comments have no likes of their own. The totals in
`*_likes_and_views.txt` are nobody's in particular and are not read.
"""

from pathlib import Path

import polars as pl

from lsvcr.data.sources.columns import Column
from lsvcr.data.sources.commented import numbered_id, only_file, with_unlisted
from lsvcr.data.sources.csv_table import CsvTable
from lsvcr.data.sources.line_table import LineTable
from lsvcr.data.sources.logs import ROW, BadRows, RawLogs
from lsvcr.data.sources.raw_bytes import UNREADABLE, cut_short, open_raw
from lsvcr.schema import AUTHOR, CATEGORY, COMMENT, CONTENT, LIKES, RAW_ID, TIME, TITLE, USER, VIDEO
from lsvcr.settings import PrepareSettings
from lsvcr.utils.errors import UserError

_TITLES = ("*_title_en.csv", "*_titles.csv", "*_title.csv")
"""Names of the titles' file, the preferred one first: 100k, 50k, 1M."""

_USER, _ITEM = Column("user", "id"), Column("item", "id")
_QUOTED = r'^"(?:[^"]|"")*"$'


def read(settings: PrepareSettings, bad: BadRows) -> RawLogs:
    """Read pairs, titles and, if there, comments of `settings.raw`, each file once. Users are those of the pairs.

    A video that the titles' file lacks has an empty title. A comment whose user and video are no pair stays under its
    video, as nobody's interaction; one without text is left out.

    Raises:
        UserError: a file is missing or not the only one, or a row is broken (see `BadRows`).
    """
    folder, lossy = Path(settings.raw), bad.skip
    pairs = _pairs_table(folder, lossy)
    titles = _titles_table(folder, lossy)
    written = _comments_table(folder, lossy)
    paired, n_pairs = pairs.collect(bad)
    likes = paired.select(
        ROW, pl.col("user").alias(USER), pl.col("item").alias(VIDEO), pl.col("timestamp").alias(TIME)
    )
    comments, blank = _comments(written, bad)
    events = _comment_events(comments, likes)
    titled = titles.collect_unique("item", bad).select(
        ROW,
        pl.col("item").alias(RAW_ID),
        _unquoted(pl.col("title")).alias(TITLE),
        pl.lit("").alias(CATEGORY),
        pl.lit("").alias(AUTHOR),
    )
    named = [frame.select(ROW, pl.col(VIDEO).alias(RAW_ID)) for frame in (likes, comments)]
    videos = with_unlisted(titled, pl.concat(named))
    return RawLogs(
        users=likes.select(ROW, pl.col(USER).alias(RAW_ID)).unique(RAW_ID, keep="first", maintain_order=True),
        videos=videos,
        comments=comments.drop(USER),
        video_events=likes,
        comment_events=events,
        origins={
            "users": pairs,
            "videos": titles,
            "comments": written or pairs,
            "video_events": pairs,
            "comment_events": written or pairs,
        },
        counts={
            "pairs": n_pairs,
            "blank_comments": blank,
            "comments_without_pair": comments.height - events.height,
            "videos_without_title_row": videos.height - titled.height,
        },
    )


def _pairs_table(folder: Path, lossy: bool) -> CsvTable:
    found = _found(folder, "*_pairs.csv")
    if not found and list(folder.glob("*_pairs.tsv")):
        raise UserError(
            f"{folder} holds *_pairs.tsv, which has no times; add *_pairs.csv of the same release"
        )
    path = only_file(found, "pairs", folder, "MicroLens-100k_pairs.csv or alike")
    return CsvTable(path, [_USER, _ITEM, Column("timestamp", "milliseconds")], lossy)


def _titles_table(folder: Path, lossy: bool) -> CsvTable | LineTable:
    """With a header row it is CSV; without, as in the larger releases, only the first comma of a line separates."""
    found: list[Path] = next(filter(None, (_found(folder, pattern) for pattern in _TITLES)), [])
    path = only_file(found, "titles", folder, ", ".join(_TITLES))
    try:
        with open_raw(path) as stream:
            first = stream.readline().decode("utf-8-sig", errors="replace").split(",")[0]
    except UNREADABLE as error:
        raise cut_short(path, error) from None
    columns = [_ITEM, Column("title", "text")]
    if first.strip().isdecimal():
        return LineTable(path, columns, ["item", "title"], ",", free="title", lossy=lossy)
    return CsvTable(path, columns, lossy)


def _comments_table(folder: Path, lossy: bool) -> LineTable | None:
    found = _found(folder, "*_comment_en.txt")
    if not found:
        return None
    path = only_file(found, "comments", folder, "*_comment_en.txt")
    columns = [_USER, _ITEM, Column("comment", "text")]
    return LineTable(path, columns, ["user", "item", "comment"], "\t", free="comment", lossy=lossy)


def _found(folder: Path, pattern: str) -> list[Path]:
    """The files of that name, or where there are none those with `.gz` behind it."""
    return list(folder.glob(pattern)) or list(folder.glob(f"{pattern}.gz"))


def _unquoted(text: pl.Expr) -> pl.Expr:
    """A title in quotes without them; one with stray quotes as it stands."""
    inner = text.str.slice(1).str.strip_suffix('"').str.replace_all('""', '"', literal=True)
    return pl.when(text.str.contains(_QUOTED)).then(inner).otherwise(text).str.strip_chars()


def _comments(table: LineTable | None, bad: BadRows) -> tuple[pl.DataFrame, int]:
    """(comments with the user who wrote each, how many were left out because they have no text)."""
    if table is None:
        schema = {
            ROW: pl.UInt32,
            RAW_ID: pl.String,
            CONTENT: pl.String,
            VIDEO: pl.Int64,
            LIKES: pl.Int64,
            USER: pl.Int64,
        }
        return pl.DataFrame(schema=schema), 0
    written, _ = table.collect(bad)
    named = written.select(
        ROW,
        pl.col("comment").str.strip_chars().alias(CONTENT),
        pl.col("item").alias(VIDEO),
        pl.lit(0, pl.Int64).alias(LIKES),
        pl.col("user").alias(USER),
    ).filter(pl.col(CONTENT) != "")
    comments = named.select(ROW, numbered_id().alias(RAW_ID), CONTENT, VIDEO, LIKES, USER)
    return comments, written.height - comments.height


def _comment_events(comments: pl.DataFrame, likes: pl.DataFrame) -> pl.DataFrame:
    """Each comment whose user and video are a pair, at the pair's first time."""
    first = likes.sort(TIME, ROW).unique([USER, VIDEO], keep="first").select(USER, VIDEO, TIME)
    events = comments.join(first, on=[USER, VIDEO], how="inner").sort(ROW)
    return events.select(ROW, USER, pl.col(RAW_ID).alias(COMMENT), VIDEO, TIME)
