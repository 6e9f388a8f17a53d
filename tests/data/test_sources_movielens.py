import os
from pathlib import Path

import pytest

from lsvcr.data.prepare import prepare
from lsvcr.data.sources import movielens
from lsvcr.data.sources.logs import BadRows
from lsvcr.data.store import open_dataset
from lsvcr.settings import PrepareSettings
from tests.data.raw_files import write_movielens

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
