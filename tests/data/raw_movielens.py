"""Hand-made miniatures of the older MovieLens layouts, encoded and separated as published."""

from collections.abc import Sequence
from pathlib import Path

GENRES_100K = (
    "unknown Action Adventure Animation Children's Comedy Crime Documentary Drama Fantasy Film-Noir Horror Musical "
    "Mystery Romance Sci-Fi Thriller War Western"
).split()

MOVIES = {
    1: ("Matrix, The (1999)", ["Action", "Sci-Fi"]),
    2: ("Misérables, Les (1995)", ["Drama", "Musical"]),
    3: ("Star Trek: First Contact (1996)", ["Action", "Adventure", "Sci-Fi"]),
    4: ("unknown", []),
    5: ("Life Is Beautiful (La Vita è bella) (1997)", ["Comedy", "Drama"]),
}

RATINGS = [
    (user, movie, 1 + (user + movie) % 5, 881_250_949 + 10 * movie)
    for user in (3, 20, 100)
    for movie in (5, 1, 2, 3)
]
"""(user, movie, stars, seconds)."""

TAGS = [(3, 1, "classic", 900_000_000), (20, 1, "Classic ", 900_000_005), (20, 2, "a::b, c", 900_000_009)]


def write_100k(folder: Path, ratings: Sequence[tuple] = RATINGS) -> Path:
    """`u.data` (TAB), `u.item` (bars, Latin-1, a flag a genre) and `u.genre`, which ends in a blank line."""
    folder.mkdir(parents=True, exist_ok=True)
    items = []
    for movie, (title, genres) in MOVIES.items():
        flags = [str(int(name in genres or (name == "unknown" and not genres))) for name in GENRES_100K]
        about = [str(movie), title, "01-Jan-1995" if genres else "", "", "http://us.imdb.com/M/x"]
        items.append("|".join([*about, *flags]))
    _write(folder / "u.data", ["\t".join(map(str, row)) for row in ratings])
    _write(folder / "u.item", items, "latin-1")
    _write(folder / "u.genre", [*(f"{name}|{i}" for i, name in enumerate(GENRES_100K)), ""])
    return folder


def write_1m(folder: Path, ratings: Sequence[tuple] = RATINGS) -> Path:
    """`ratings.dat`, `movies.dat` (Latin-1) and `users.dat`, two colons between fields."""
    folder.mkdir(parents=True, exist_ok=True)
    _write(folder / "ratings.dat", ["::".join(map(str, row)) for row in ratings])
    _write(folder / "movies.dat", _movie_lines(), "latin-1")
    _write(folder / "users.dat", ["3::F::1::10::48067", "20::M::56::16::70072", "100::M::25::15::55117"])
    return folder


def write_10m(folder: Path, tags: Sequence[tuple] = TAGS) -> Path:
    """As 1m, but UTF-8, half stars, and `tags.dat` in place of users."""
    folder.mkdir(parents=True, exist_ok=True)
    halves = [(user, movie, stars - 0.5, time) for user, movie, stars, time in RATINGS]
    _write(folder / "ratings.dat", ["::".join(map(str, row)) for row in halves])
    _write(folder / "movies.dat", _movie_lines())
    _write(folder / "tags.dat", ["::".join(map(str, row)) for row in tags])
    return folder


def _movie_lines() -> list[str]:
    return [
        f"{movie}::{title}::{'|'.join(genres) or '(no genres listed)'}"
        for movie, (title, genres) in MOVIES.items()
    ]


def _write(path: Path, lines: Sequence[str], encoding: str = "utf-8") -> None:
    path.write_text("".join(f"{line}\n" for line in lines), encoding=encoding, newline="")
