"""The three layouts MovieLens was published in, opened under the column names of the latest."""

from dataclasses import dataclass
from pathlib import Path

import polars as pl

from lsvcr.data.sources.columns import Column
from lsvcr.data.sources.csv_table import CsvTable
from lsvcr.data.sources.line_table import LineTable
from lsvcr.data.sources.raw_bytes import on_disk
from lsvcr.utils.errors import UserError

GENRES = "genres"
"""Column of `movies` with the genres, `|` between them; 100k has a column a genre instead (`GENRE_FLAGS`)."""

GENRE_FLAGS = (
    "Action Adventure Animation Children's Comedy Crime Documentary Drama Fantasy Film-Noir Horror Musical Mystery "
    "Romance Sci-Fi Thriller War Western"
).split()
"""Genres of 100k in the order of `u.genre`, without the first, `unknown`."""

_USER, _MOVIE = Column("userId", "id"), Column("movieId", "id")
_RATING, _TIME = Column("rating", "number"), Column("timestamp", "seconds")
_TITLE, _TAG = Column("title", "text"), Column("tag", "text")

_RATINGS = [_USER, _MOVIE, _RATING, _TIME]
_TAGS = [_USER, _MOVIE, _TAG, _TIME]


@dataclass(frozen=True)
class Tables:
    """The files of one folder. `ratings`: userId, movieId, rating, timestamp. `movies`: movieId, title and `GENRES`
    or `GENRE_FLAGS`. `tags`: userId, movieId, tag, timestamp, or None in a layout without."""

    ratings: CsvTable | LineTable
    movies: CsvTable | LineTable
    tags: CsvTable | LineTable | None


def open_tables(folder: Path, lossy: bool) -> Tables:
    """Open the files of the layout that lies in `folder`, which its file of ratings tells.

    Raises:
        UserError: no layout or two, or a missing or empty file.
    """
    layouts = {"ratings.csv": _since_20m, "ratings.dat": _1m_and_10m, "u.data": _100k}
    found = [name for name in layouts if on_disk(folder / name).is_file()]
    if len(found) == 1:
        return layouts[found[0]](folder, lossy)
    problem = f"holds {' and '.join(found)}, of two layouts; keep one" if found else "holds no MovieLens set"
    raise UserError(
        f"{folder} {problem}: ratings.csv, movies.csv and tags.csv (20m, 25m, 32m, latest), ratings.dat and "
        "movies.dat (1m, 10m), or u.data and u.item (100k)"
    )


def _since_20m(folder: Path, lossy: bool) -> Tables:
    return Tables(
        ratings=CsvTable(folder / "ratings.csv", _RATINGS, lossy),
        movies=CsvTable(folder / "movies.csv", [_MOVIE, _TITLE, Column(GENRES, "text")], lossy),
        tags=CsvTable(folder / "tags.csv", _TAGS, lossy),
    )


def _1m_and_10m(folder: Path, lossy: bool) -> Tables:
    """1m is Latin-1 and has no tags, 10m is UTF-8 and has some."""

    def table(name: str, columns: list[Column], free: str | None = None) -> LineTable:
        names = [column.name for column in columns]
        return LineTable(folder / name, columns, names, "::", free=free, encoding="latin-1", lossy=lossy)

    return Tables(
        ratings=table("ratings.dat", _RATINGS),
        movies=table("movies.dat", [_MOVIE, _TITLE, Column(GENRES, "text")], free="title"),
        tags=table("tags.dat", _TAGS, free="tag") if on_disk(folder / "tags.dat").is_file() else None,
    )


def _100k(folder: Path, lossy: bool) -> Tables:
    flags = [Column(name, "flag") for name in GENRE_FLAGS]
    fields = ["movieId", "title", "release", "video release", "url", "unknown", *GENRE_FLAGS]
    return Tables(
        ratings=LineTable(
            folder / "u.data", _RATINGS, [column.name for column in _RATINGS], "\t", lossy=lossy
        ),
        movies=LineTable(
            folder / "u.item", [_MOVIE, _TITLE, *flags], fields, "|", encoding="latin-1", lossy=lossy
        ),
        tags=None,
    )


def genres_of(movies: pl.DataFrame) -> pl.Expr:
    """Genres of the rows of any layout's `movies`, `|` between them."""
    if GENRES in movies.columns:
        return pl.col(GENRES)
    named = [pl.when(pl.col(name)).then(pl.lit(name)) for name in GENRE_FLAGS]
    return pl.concat_str(named, separator="|", ignore_nulls=True)
