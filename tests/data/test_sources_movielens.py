import os
from pathlib import Path

import pytest

from lsvcr.data.prepare import prepare
from lsvcr.data.sources import movielens
from lsvcr.data.sources.logs import BadRows
from lsvcr.data.store import open_dataset
from lsvcr.settings import PrepareSettings
from lsvcr.utils.errors import UserError
from tests.data.raw_files import write_movielens
from tests.data.raw_movielens import RATINGS as OLD_RATINGS
from tests.data.raw_movielens import write_1m, write_10m, write_100k

RATINGS = [
    (1, 10, 4.0, 100),
    (1, 11, 3.0, 101),
    (1, 12, 3.5, 102),
    (2, 10, 0.5, 100),
    (2, 11, 5.0, 100),
    (9, 12, 4.5, 90),
]
MOVIES = [
    (10, "Matrix, The (1999)", "Action|Sci-Fi"),
    (11, "Cité des enfants perdus, La (1995)", "(no genres listed)"),
    (12, "Babylon 5", "Sci-Fi"),
    (13, "Never Rated (2001)", "Comedy"),
]
TAGS = [
    (1, 10, "Sci-Fi", 200),
    (2, 10, "sci-fi ", 150),
    (3, 10, "SCI-FI", 160),
    (2, 10, "sci-fi", 170),
    (1, 11, "sci-fi", 201),
    (2, 12, "  ", 10),
    (9, 12, 'quote "this", please', 11),
]


def read(folder: Path, **settings):
    return movielens.read(PrepareSettings(source="movielens", raw=str(folder), **settings), BadRows(False))


@pytest.fixture
def raw(tmp_path: Path) -> Path:
    return write_movielens(tmp_path / "raw", RATINGS, MOVIES, TAGS)


def test_ratings_at_the_threshold_are_likes(raw: Path):
    assert read(raw).video_events.rows() == [
        (0, 1, 10, 100_000),
        (2, 1, 12, 102_000),
        (4, 2, 11, 100_000),
        (5, 9, 12, 90_000),
    ]
    assert read(raw, min_rating=4.5).video_events["video"].to_list() == [11, 12]


def test_titles_read_as_one_would_say_them(raw: Path):
    videos = read(raw).videos
    assert videos["title"].to_list() == [
        "The Matrix (1999)",
        "La Cité des enfants perdus (1995)",
        "Babylon 5",
        "Never Rated (2001)",
    ]
    assert videos["category"].to_list() == ["Action, Sci-Fi", "", "Sci-Fi", "Comedy"]


@pytest.mark.parametrize(
    ("published", "natural"),
    [
        ("Postman, The (Postino, Il) (1994)", "The Postman (Il Postino) (1994)"),
        ("Avventura, L' (Adventure, The) (1960)", "L'Avventura (The Adventure) (1960)"),
        ("Promise, The (a.k.a. Vow, A) (1996)", "The Promise (a.k.a. A Vow) (1996)"),
        ("Good, the Bad and the Ugly, The (1966)", "The Good, the Bad and the Ugly (1966)"),
        ("Tinker, Tailor, Soldier, Spy (1979)", "Tinker, Tailor, Soldier, Spy (1979)"),
        ("Seven (a.k.a. Se7en) (1995)", "Seven (a.k.a. Se7en) (1995)"),
        ("Black Mirror", "Black Mirror"),
        ("A, The", "The A"),
        ("(500) Days of Summer (2009)", "(500) Days of Summer (2009)"),
        ("", ""),
    ],
)
def test_articles_come_to_the_front(published: str, natural: str):
    assert movielens.natural_title(published) == natural


def test_the_same_tag_under_the_same_movie_is_one_comment(raw: Path):
    logs = read(raw)
    comments = {row["raw_id"]: row for row in logs.comments.to_dicts()}
    assert set(comments) == {"10:sci-fi", "11:sci-fi", '12:quote "this", please'}
    # User 2 was the first, and tagged twice; the text is the first one's, without spaces around it.
    assert comments["10:sci-fi"]["likes"] == 3
    assert comments["10:sci-fi"]["content"] == "sci-fi"
    assert comments["11:sci-fi"]["likes"] == 1
    assert logs.comment_events.rows() == [
        (0, 1, "10:sci-fi", 10, 200_000),
        (1, 2, "10:sci-fi", 10, 150_000),
        (2, 3, "10:sci-fi", 10, 160_000),
        (3, 2, "10:sci-fi", 10, 170_000),
        (4, 1, "11:sci-fi", 11, 201_000),
        (6, 9, '12:quote "this", please', 12, 11_000),
    ]


def test_a_user_who_only_tags_is_known_too(raw: Path, tmp_path: Path):
    assert set(read(raw).users["raw_id"]) == {1, 2, 3, 9}
    likes = [(user, movie, 5, 10 * movie + user) for user in (1, 2) for movie in (10, 11, 12, 13)]
    write_movielens(raw, likes, MOVIES, TAGS)
    folder = prepare(
        PrepareSettings(source="movielens", raw=str(raw), out=str(tmp_path / "out"), user_core=0)
    )
    dataset = open_dataset(folder)
    assert dataset.raw_ids("users").to_list() == [1, 2, 3, 9]
    assert dataset.manifest["counts"]["raw"]["repeated_comment_events"] == 1


def test_the_published_small_set(tmp_path: Path):
    folder = os.environ.get("LSVCR_ML_SMALL")
    if not folder:
        pytest.skip("set LSVCR_ML_SMALL to the folder of ml-latest-small to run this")
    dataset = open_dataset(
        prepare(PrepareSettings(source="movielens", raw=folder, out=str(tmp_path / "out")))
    )
    counts = dataset.manifest["counts"]
    assert counts["raw"]["ratings"] == 100_836
    assert counts["raw"]["tags"] == 3_683
    assert dataset.n_videos == 9_742
    assert dataset.titles()[1] == "Toy Story (1995)"
    assert len(dataset.samples("rec", "test")) == counts["samples"]["rec"]["test"] > 600


TITLES = [
    "The Matrix (1999)",
    "Les Misérables (1995)",
    "Star Trek: First Contact (1996)",
    "unknown",
    "Life Is Beautiful (La Vita è bella) (1997)",
]
GENRES = ["Action, Sci-Fi", "Drama, Musical", "Action, Adventure, Sci-Fi", "", "Comedy, Drama"]
OLD_LAYOUTS = {"100k": write_100k, "1m": write_1m, "10m": write_10m}


@pytest.mark.parametrize("name", OLD_LAYOUTS)
def test_older_layouts_hold_the_same(tmp_path: Path, name: str):
    logs = read(OLD_LAYOUTS[name](tmp_path), min_rating=3.0)
    assert logs.videos["raw_id"].to_list() == [1, 2, 3, 4, 5]
    assert logs.videos["title"].to_list() == TITLES
    assert logs.videos["category"].to_list() == GENRES
    assert logs.users["raw_id"].to_list() == [3, 20, 100]
    stars = {"100k": 3, "1m": 3, "10m": 4}[name]
    expected = [
        (row, user, movie, time * 1000)
        for row, (user, movie, given, time) in enumerate(OLD_RATINGS)
        if given >= stars
    ]
    assert logs.video_events.rows() == expected and len(expected) > 2
    assert logs.counts == {"ratings": len(OLD_RATINGS), "tags": 3 if name == "10m" else 0}


def test_tags_of_10m_may_hold_the_separator(tmp_path: Path):
    logs = read(write_10m(tmp_path))
    assert logs.comments.select("raw_id", "content", "video", "likes").rows() == [
        ("1:classic", "classic", 1, 2),
        ("2:a::b, c", "a::b, c", 2, 1),
    ]
    assert logs.comment_events.rows()[2] == (2, 20, "2:a::b, c", 2, 900_000_009_000)


@pytest.mark.parametrize("name", OLD_LAYOUTS)
def test_older_layouts_prepared(tmp_path: Path, name: str):
    raw = OLD_LAYOUTS[name](tmp_path / "raw")
    settings = PrepareSettings(
        source="movielens", raw=str(raw), out=str(tmp_path / "out"), min_rating=0.0, user_core=4
    )
    data = open_dataset(prepare(settings), verify=True)
    assert data.titles()[2] == "Les Misérables (1995)"
    assert (data.n_users, data.n_videos) == (3, 5)
    assert len(data.samples("rec", "test")) == 3
    assert len(data.comment_events.items) == (3 if name == "10m" else 0)


def test_movies_that_somebody_converted_to_utf8(tmp_path: Path):
    write_1m(tmp_path)
    path = tmp_path / "movies.dat"
    path.write_bytes(path.read_bytes().decode("latin-1").encode())
    assert read(tmp_path).videos["title"].to_list() == TITLES


def test_a_folder_without_a_layout_or_with_two(tmp_path: Path):
    with pytest.raises(UserError, match=r"holds no MovieLens set: ratings\.csv.*ratings\.dat.*u\.data"):
        read(tmp_path)
    write_1m(tmp_path)
    write_100k(tmp_path)
    with pytest.raises(UserError, match=r"holds ratings\.dat and u\.data, of two layouts; keep one"):
        read(tmp_path)
    (tmp_path / "u.data").unlink()
    (tmp_path / "movies.dat").unlink()
    with pytest.raises(UserError, match=r"movies\.dat is missing; the raw folder must hold movies\.dat"):
        read(tmp_path)


@pytest.mark.parametrize(
    ("write", "file", "line", "reason"),
    [
        (write_1m, "ratings.dat", "3::1::5", "3 fields are too few, a line has 4 with '::'"),
        (write_1m, "ratings.dat", "3::1::5::9::9", "5 fields are too many"),
        (write_100k, "u.data", "3\t1\tfive\t9", "rating is 'five', expected a number"),
        (write_100k, "u.item", "1|again||||" + "|".join("0" * 19), "movieId 1 stands here a second time"),
        (write_10m, "tags.dat", "x::1::a::b::9", "userId is 'x', expected a whole number"),
        (write_10m, "tags.dat", "3::1::a::b", "timestamp is 'b', expected a time in Unix seconds"),
    ],
)
def test_broken_rows_of_older_layouts(tmp_path: Path, write, file: str, line: str, reason: str):
    path = write(tmp_path) / file
    content = path.read_bytes()
    path.write_bytes(content + line.encode() + b"\n")
    number = content.count(b"\n") + 1
    with pytest.raises(UserError, match=rf"{file}, line {number}: {reason}.*--skip-bad-rows"):
        read(tmp_path)
