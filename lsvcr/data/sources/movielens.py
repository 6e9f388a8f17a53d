"""MovieLens, from 100k to the latest: ratings are likes, tags are comments.

A rating at or above `min_rating` is a liked video. A tag is a comment on the movie: the same text under the
same movie, however it is capitalised or spaced, is one comment with as many likes as users who gave it, and
giving it is a comment interaction. 100k and 1m have no tags, hence no comments.
"""

import re
from pathlib import Path

import polars as pl

from lsvcr.data.sources.logs import ROW, BadRows, RawLogs
from lsvcr.data.sources.movielens_layouts import genres_of, open_tables
from lsvcr.schema import AUTHOR, CATEGORY, COMMENT, CONTENT, LIKES, RAW_ID, TIME, TITLE, USER, VIDEO
from lsvcr.settings import PrepareSettings

_NO_GENRES = "(no genres listed)"
_NO_TAGS = {ROW: pl.UInt32, "userId": pl.Int64, "movieId": pl.Int64, "tag": pl.String, "timestamp": pl.Int64}
_ARTICLES = (
    "The A An Le La Les L' Un Une Una El Los Las Il Lo Gli I Der Die Das Ein Eine De Het Den Det En Et O Os"
)
_BEHIND = re.compile(rf"^(?P<title>.+), (?P<article>{'|'.join(_ARTICLES.split())})$")
_PARTS = re.compile(r"(\([^()]*\))")
_ALIAS = re.compile(r"^(?P<word>a\.?k\.?a\.?:? )?(?P<title>.*)$", re.IGNORECASE)


def read(settings: PrepareSettings, bad: BadRows) -> RawLogs:
    """Read ratings, movies and tags of `settings.raw`, each file once. Users are those who rated or tagged.

    Raises:
        UserError: no layout is known, a file or column is missing, or a row is broken (see `BadRows`).
    """
    tables = open_tables(Path(settings.raw), bad.skip)
    rated, n_ratings = tables.ratings.collect(bad)
    movie_rows = tables.movies.collect_unique("movieId", bad)
    tag_rows, n_tags = tables.tags.collect(bad) if tables.tags else (pl.DataFrame(schema=_NO_TAGS), 0)
    events, comments = _comments_of_tags(tag_rows)
    users = rated.select(ROW, pl.col("userId").alias(RAW_ID))
    taggers = events.select(pl.col(ROW), pl.col(USER).alias(RAW_ID))
    return RawLogs(
        users=pl.concat([users, taggers]).unique(RAW_ID, keep="first", maintain_order=True),
        videos=movie_rows.select(
            ROW,
            pl.col("movieId").alias(RAW_ID),
            pl.Series(TITLE, [natural_title(title) for title in movie_rows["title"]], dtype=pl.String),
            _category(genres_of(movie_rows)).alias(CATEGORY),
            pl.lit("").alias(AUTHOR),
        ),
        comments=comments,
        video_events=rated.filter(pl.col("rating") >= settings.min_rating).select(
            ROW,
            pl.col("userId").alias(USER),
            pl.col("movieId").alias(VIDEO),
            pl.col("timestamp").alias(TIME),
        ),
        comment_events=events,
        origins={
            "users": tables.ratings,
            "videos": tables.movies,
            "comments": tables.tags or tables.movies,
            "video_events": tables.ratings,
            "comment_events": tables.tags or tables.ratings,
        },
        counts={"ratings": n_ratings, "tags": n_tags},
    )


def natural_title(title: str) -> str:
    """The title with its articles in front: `Postman, The (Postino, Il) (1994)` as one would say it.

    >>> natural_title("Postman, The (Postino, Il) (1994)")
    'The Postman (Il Postino) (1994)'
    """
    parts = []
    for part in _PARTS.split(title.strip()):
        inner = part[1:-1] if part.startswith("(") else part
        turned = _article_first(inner)
        parts.append(f"({turned})" if part.startswith("(") else turned)
    return "".join(parts)


def _article_first(text: str) -> str:
    """`Matrix, The ` -> `The Matrix `; an `a.k.a.` in front stays there."""
    alias = _ALIAS.match(text.strip())
    found = _BEHIND.match(alias["title"]) if alias else None
    if alias is None or found is None:
        return text
    article = found["article"] if found["article"].endswith("'") else found["article"] + " "
    trailing = text[len(text.rstrip()) :]
    return f"{alias['word'] or ''}{article}{found['title']}{trailing}"


def _category(genres: pl.Expr) -> pl.Expr:
    listed = genres.str.replace_all("|", ", ", literal=True)
    return pl.when(genres == _NO_GENRES).then(pl.lit("")).otherwise(listed)


def _comments_of_tags(tags: pl.DataFrame) -> tuple[pl.DataFrame, pl.DataFrame]:
    """(comment events, comments) of the rows of tags; tags without a letter in them are left out.

    A comment's text is the tag as its first user wrote it, its raw id `movie:normalised tag`.
    """
    spellings = tags.select(pl.col("tag").unique().sort())
    keys = [" ".join(tag.split()).casefold() for tag in spellings["tag"]]
    keyed = spellings.with_columns(pl.Series("key", keys, dtype=pl.String))
    events = (
        tags.join(keyed, on="tag", how="left", maintain_order="left")
        .filter(pl.col("key") != "")
        .select(
            ROW,
            pl.col("userId").alias(USER),
            pl.format("{}:{}", "movieId", "key").alias(COMMENT),
            pl.col("movieId").alias(VIDEO),
            pl.col("timestamp").alias(TIME),
            pl.col("tag").str.strip_chars().alias(CONTENT),
        )
    )
    comments = (
        events.sort(TIME, ROW)
        .group_by(COMMENT, maintain_order=True)
        .agg(
            pl.col(ROW, CONTENT, VIDEO).first(),
            pl.col(USER).n_unique().cast(pl.Int64).alias(LIKES),
        )
        .rename({COMMENT: RAW_ID})
    )
    return events.drop(CONTENT), comments.select(ROW, RAW_ID, CONTENT, VIDEO, LIKES)
