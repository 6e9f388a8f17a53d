from pathlib import Path

import pytest

from lsvcr.data.prepare import prepare
from lsvcr.data.sources import amazon
from lsvcr.data.sources.logs import ROW, BadRows
from lsvcr.data.store import open_dataset
from lsvcr.settings import PrepareSettings
from lsvcr.utils.errors import UserError
from tests.data import raw_amazon
from tests.data.raw_amazon import (
    ITEMS,
    PRODUCTS_2018,
    REVIEWS,
    START_S,
    review_2014,
    review_2018,
    review_2023,
    write_2014,
    write_2018,
    write_2023,
)

RELEASES = {"2014": write_2014, "2018": write_2018, "2023": write_2023}
ONE = ("A1ZZ", "B0001", 5.0, START_S, "Great", "Loved it")


def read(folder: Path, skip: bool = False, **settings):
    return amazon.read(PrepareSettings(source="amazon", raw=str(folder), **settings), BadRows(skip))


def contents(logs) -> list[str]:
    return logs.comments["content"].to_list()


@pytest.mark.parametrize("name", RELEASES)
def test_a_review_is_a_like_and_a_comment(tmp_path: Path, name: str):
    logs = read(RELEASES[name](tmp_path))
    late = 123 if name == "2023" else 0
    assert logs.video_events.rows() == [
        (row, user, item, time * 1000 + late)
        for row, (user, item, stars, time, *_) in enumerate(REVIEWS)
        if stars >= 3.5
    ]
    assert logs.comment_events.rows() == [
        (row, user, f"{item}:{user}:1", item, time * 1000 + late)
        for row, (user, item, _, time, *_) in enumerate(REVIEWS)
    ]
    assert logs.comments["raw_id"].to_list() == logs.comment_events["comment"].to_list()
    assert contents(logs) == [f"Fine. {text}" for *_, text in REVIEWS]
    assert set(logs.comments["likes"]) == {2 if name == "2014" else 0}
    assert logs.users["raw_id"].to_list() == ["A1ZZ", "A2YY", "AG73"]
    assert read(tmp_path, min_rating=5.0).video_events.height < logs.video_events.height


@pytest.mark.parametrize("name", RELEASES)
def test_prepared(tmp_path: Path, name: str):
    raw = RELEASES[name](tmp_path / "raw")
    settings = PrepareSettings(
        source="amazon", raw=str(raw), out=str(tmp_path / "out"), min_rating=0.0, user_core=4
    )
    data = open_dataset(prepare(settings), verify=True)
    unreviewed = ["B0009"] if name == "2014" else []
    assert data.raw_ids("videos").to_list() == sorted(ITEMS) + unreviewed
    assert data.raw_ids("users").to_list() == ["A1ZZ", "A2YY", "AG73"]
    assert len(data.samples("rec", "test")) == len(data.samples("comm_rank", "test")) == 3
    assert data.titles()[1] == ""
    assert data.titles()[2].startswith("Salt")


def test_products_of_2014_are_python_literals(tmp_path: Path):
    logs = read(write_2014(tmp_path))
    assert logs.videos.drop(ROW).rows() == [
        ("B0001", "Salt & Pepper", "Grocery > Spices", ""),
        ("0005119367", "", "Books", 'Ann\'s "x"'),
        ("B0003", "It's a 7\" disc", "", ""),
        ("B0009", "Never reviewed", "", ""),
        ("B0004", "", "", ""),
    ]
    assert logs.counts == {
        "reviews": 12,
        "blank_reviews": 0,
        "products": 4,
        "repeated_products": 0,
        "products_of_reviews_alone": 1,
    }


def test_products_of_2018_are_rid_of_pieces_of_the_shop(tmp_path: Path):
    logs = read(write_2018(tmp_path))
    assert logs.videos.drop(ROW).rows() == [
        ("B0001", "Salt & Pepper", "Grocery > Arts & Crafts", "by Acme"),
        ("0005119367", "", "", ""),
        ("B0003", "", "", ""),
        ("B0004", "Plain", "Toys", ""),
    ]
    assert (logs.counts["products"], logs.counts["repeated_products"]) == (len(PRODUCTS_2018), 1)


def test_products_of_2023_may_have_nothing(tmp_path: Path):
    assert read(write_2023(tmp_path)).videos.drop(ROW).rows() == [
        ("B0001", "Salt", "Grocery > Spices", "Acme"),
        ("B0003", "", "", ""),
        ("0005119367", "", "", ""),
        ("B0004", "", "", ""),
    ]


def test_helpful_votes_are_likes(tmp_path: Path):
    votes = ["1,234", "7", None]
    reviews = [review_2018(ONE, **({"vote": vote} if vote else {})) for vote in votes]
    assert read(write_2018(tmp_path / "2018", reviews)).comments["likes"].to_list() == [1234, 7, 0]
    reviews = [review_2014(ONE, helpful=helpful) for helpful in ([0, 0], [14, 20], [])]
    assert read(write_2014(tmp_path / "2014", reviews)).comments["likes"].to_list() == [0, 14, 0]
    reviews = [review_2023(ONE, helpful_vote=12)]
    assert read(write_2023(tmp_path / "2023", reviews)).comments["likes"].to_list() == [12]


@pytest.mark.parametrize(
    ("summary", "text", "content"),
    [
        ("Great", "Loved it", "Great. Loved it"),
        ("Great!", "Loved it", "Great! Loved it"),
        ("", "Loved it", "Loved it"),
        ("Great", " \n", "Great"),
        ("Same", "Same", "Same"),
        ("5 &#34;stars&#34;", "one<br /><br />two &amp; <b>three</b>", '5 "stars". one two & three'),
        ("I &lt;3 it", "3 < 4 and 5 > 4", "I <3 it. 3 < 4 and 5 > 4"),
        ("half \ud83d", "a pair", "half ? a pair"),
        ("😀", "null", "😀. null"),
    ],
)
def test_the_comment_is_what_a_person_reads(tmp_path: Path, summary: str, text: str, content: str):
    review = review_2023((*ONE[:4], summary, text))
    assert contents(read(write_2023(tmp_path, [review]))) == [content]


def test_a_review_without_text_is_no_comment_but_may_be_a_like(tmp_path: Path):
    silent, blank = review_2018(ONE), review_2018(ONE, reviewText=None, summary="<br />")
    del silent["reviewText"], silent["summary"]
    logs = read(write_2018(tmp_path, [silent, blank, review_2018(ONE)]))
    assert logs.video_events.height == 3
    assert logs.comments["raw_id"].to_list() == logs.comment_events["comment"].to_list() == ["B0001:A1ZZ:1"]
    assert logs.counts["blank_reviews"] == 2


def test_reviews_of_one_product_by_one_user_stay_apart(tmp_path: Path):
    other = review_2018(("A2YY", "B0001", 1.0, START_S, "", "no"))
    logs = read(write_2018(tmp_path, [review_2018(ONE), other, review_2018(ONE)]))
    assert logs.comments["raw_id"].to_list() == ["B0001:A1ZZ:1", "B0001:A2YY:1", "B0001:A1ZZ:2"]


def test_missing_and_second_files_are_named(tmp_path: Path):
    with pytest.raises(UserError, match=r"no file with the reviews; it must be named reviews_Beauty_5\.json"):
        read(tmp_path)
    write_2018(tmp_path)
    (tmp_path / "meta_All_Beauty.json.gz").unlink()
    with pytest.raises(UserError, match=r"no file with the products; .*meta_\*\.json\.gz"):
        read(tmp_path)
    write_2014(tmp_path)
    with pytest.raises(
        UserError, match=r"2 files with the reviews: All_Beauty_5.*, reviews_Beauty.*keep one"
    ):
        read(tmp_path)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"user_id": ""}, "user_id is empty, expected an id"),
        ({"rating": "good"}, "rating is 'good', expected a number"),
        ({"timestamp": -5}, "timestamp is '-5', expected a time in Unix milliseconds"),
        ({"parent_asin": ["B"]}, "parent_asin is a list, expected an id"),
    ],
)
def test_a_broken_review_is_told_or_skipped(tmp_path: Path, change: dict, reason: str):
    reviews = [review_2023(ONE), review_2023(ONE, **change), review_2023(ONE)]
    write_2023(tmp_path, reviews)
    with pytest.raises(UserError, match=rf"All_Beauty\.jsonl, line 2: {reason}.*--skip-bad-rows"):
        read(tmp_path)
    assert read(tmp_path, skip=True).comments.height == 2


def test_reviews_of_another_release(tmp_path: Path):
    raw_amazon.write_2023(tmp_path, [review_2018(ONE)])
    with pytest.raises(UserError, match=r"line 1: the object has no key user_id \(it has overall, verified"):
        read(tmp_path)
