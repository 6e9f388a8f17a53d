"""Hand-made miniatures of the three Amazon releases: a line is a JSON object; products of 2014 are Python literals."""

import gzip
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

START_S = 1_388_534_400
USERS = ("A1ZZ", "A2YY", "AG73")
ITEMS = ("B0001", "0005119367", "B0003", "B0004")

REVIEWS = [
    (user, item, float(2 + (u + i) % 4), START_S + 86_400 * i + u, "Fine", f"{user} on {item}")
    for u, user in enumerate(USERS)
    for i, item in enumerate(ITEMS)
]
"""(user, item, stars, seconds, summary, text)."""


def review_2014(review: Sequence[Any], **others: Any) -> dict[str, Any]:
    """One review as of 2014."""
    user, item, stars, time, summary, text = review
    return {
        "reviewerID": user,
        "asin": item,
        "reviewerName": 'J. "Jo" Doe',
        "helpful": [2, 3],
        "reviewText": text,
        "overall": stars,
        "summary": summary,
        "unixReviewTime": time,
        "reviewTime": "01 1, 2014",
    } | others


def review_2018(review: Sequence[Any], **others: Any) -> dict[str, Any]:
    """One review as of 2018: `vote` only where there are some."""
    user, item, stars, time, summary, text = review
    return {
        "overall": stars,
        "verified": True,
        "reviewTime": "01 1, 2014",
        "reviewerID": user,
        "asin": item,
        "style": {"Color:": " Black"},
        "reviewerName": "Jo",
        "reviewText": text,
        "summary": summary,
        "unixReviewTime": time,
    } | others


def review_2023(review: Sequence[Any], **others: Any) -> dict[str, Any]:
    """One review as of 2023: milliseconds, and the variant's `asin` beside the product's."""
    user, item, stars, time, summary, text = review
    return {
        "rating": stars,
        "title": summary,
        "text": text,
        "images": [],
        "asin": item + "X",
        "parent_asin": item,
        "user_id": user,
        "timestamp": time * 1000 + 123,
        "helpful_vote": 0,
        "verified_purchase": True,
    } | others


PRODUCTS_2014 = [
    {
        "asin": "B0001",
        "title": "Salt &amp; Pepper",
        "categories": [["Grocery", "Spices"], ["Gifts"]],
        "price": None,
    },
    {
        "asin": "0005119367",
        "categories": [["Books"]],
        "related": {"also_bought": ["B0001"]},
        "brand": 'Ann\'s "x"',
    },
    {"asin": "B0003", "title": "It's a 7\" disc", "categories": [], "salesRank": {}},
    {"asin": "B0009", "title": "Never reviewed"},
]
"""B0004 has no line, 0005119367 no title."""

PRODUCTS_2018 = [
    {
        "asin": "B0001",
        "title": "Salt &amp; <b>Pepper</b>",
        "category": ["Grocery", "Arts &amp; Crafts", "</span></span></span>", "100% Cotton"],
        "brand": "by\n    \n    Acme",
        "feature": [],
    },
    {"asin": "B0001", "title": "again"},
    {"asin": "0005119367", "title": "var aPageStart = (new Date()).getTime();\nvar ue_t0=1;", "category": []},
    {"asin": "B0003", "title": '<script type="text/javascript">x()</script>Real', "category": []},
    {"asin": "B0004", "title": "Plain", "category": ["Toys"], "brand": ""},
]

PRODUCTS_2023 = [
    {
        "main_category": "Grocery",
        "title": "Salt",
        "store": "Acme",
        "categories": ["Grocery", "Spices"],
        "parent_asin": "B0001",
    },
    {
        "main_category": None,
        "title": None,
        "store": None,
        "categories": [],
        "parent_asin": "B0003",
        "price": None,
    },
]


def write_2014(
    folder: Path, reviews: Sequence[dict[str, Any]] | None = None, products: Any = PRODUCTS_2014
) -> Path:
    """`reviews_Beauty_5.json.gz`, and `meta_Beauty.json.gz` of Python literals."""
    if reviews is None:
        reviews = [review_2014(review) for review in REVIEWS]
    write_lines(folder / "reviews_Beauty_5.json.gz", map(json.dumps, reviews))
    write_lines(folder / "meta_Beauty.json.gz", map(repr, products))
    return folder


def write_2018(
    folder: Path, reviews: Sequence[dict[str, Any]] | None = None, products: Any = PRODUCTS_2018
) -> Path:
    """`All_Beauty_5.json.gz` and `meta_All_Beauty.json.gz`."""
    if reviews is None:
        reviews = [review_2018(review) for review in REVIEWS]
    write_lines(folder / "All_Beauty_5.json.gz", map(json.dumps, reviews))
    write_lines(folder / "meta_All_Beauty.json.gz", map(json.dumps, products))
    return folder


def write_2023(
    folder: Path, reviews: Sequence[dict[str, Any]] | None = None, products: Any = PRODUCTS_2023
) -> Path:
    """`All_Beauty.jsonl` and `meta_All_Beauty.jsonl`, not packed."""
    if reviews is None:
        reviews = [review_2023(review) for review in REVIEWS]
    write_lines(folder / "All_Beauty.jsonl", map(json.dumps, reviews))
    write_lines(folder / "meta_All_Beauty.jsonl", map(json.dumps, products))
    return folder


def write_lines(path: Path, lines: Any) -> Path:
    """One line each; packed where the name ends in `.gz`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    content = "".join(f"{line}\n" for line in lines).encode()
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)
    return path
