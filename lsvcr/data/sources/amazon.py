"""Amazon reviews (2014, 2018, 2023): products are videos, a review is a comment of its product.

A review with at least `min_rating` stars is a like. Whatever its stars, it is a comment that its author interacted
with, and its helpful votes are the comment's likes. 2014 and 2018 are `.json` and agree in their keys but for the
votes; 2023 is `.jsonl` with keys of its own. All of them may be gzipped.
"""

import html
import re
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path
from typing import Any

import polars as pl

from lsvcr.data.sources.commented import numbered_id, only_file, with_unlisted
from lsvcr.data.sources.json_table import Field, JsonTable
from lsvcr.data.sources.logs import ROW, BadRows, RawLogs
from lsvcr.schema import AUTHOR, CATEGORY, COMMENT, CONTENT, LIKES, RAW_ID, TIME, TITLE, USER, VIDEO
from lsvcr.settings import PrepareSettings

_TAG = re.compile(r"</?[a-zA-Z!][^<>]*>")
_SCRIPT = re.compile(r"<script|getTime")


def plain_text(value: Any) -> str:
    """The text without HTML tags, entities and runs of white space; empty for what is no text.

    >>> plain_text("Good &amp; cheap<br />I &lt;3 it")
    'Good & cheap I <3 it'
    """
    if not isinstance(value, str):
        return ""
    if "<" in value:
        value = _TAG.sub(" ", value)
    if "&" in value:
        value = html.unescape(value)
    return " ".join(value.split())


def product_title(value: Any) -> str:
    """`plain_text`, or nothing where the title is a piece of the shop's page (2018 has such)."""
    return "" if isinstance(value, str) and _SCRIPT.search(value) else plain_text(value)


def category_path(value: Any) -> str:
    """A product's first category from general to special, `Beauty > Makeup`; what follows HTML in the list is none."""
    path = value[0] if isinstance(value, list) and value and isinstance(value[0], list) else value
    if not isinstance(path, list):
        return plain_text(path)
    names = takewhile(lambda name: isinstance(name, str) and "<" not in name, path)
    return " > ".join(filter(None, map(plain_text, names)))


def votes(value: Any) -> Any:
    """Helpful votes: `[up, all]`, `"1,234"` or a number."""
    if isinstance(value, list):
        value = value[0] if value else 0
    return value.replace(",", "") if isinstance(value, str) else value


@dataclass(frozen=True)
class _Release:
    """Keys of one release, by what they become."""

    suffixes: tuple[str, ...]
    user: str
    item: str
    time: Field
    rating: str
    summary: str
    text: str
    votes: tuple[str, ...]
    category: tuple[str, ...]
    author: str

    def reviews(self, path: Path) -> JsonTable:
        texts = [Field(key, "text", needed=False, convert=plain_text) for key in (self.summary, self.text)]
        counts = [Field(key, "count", needed=False, convert=votes) for key in self.votes]
        ids = [Field(self.user, "key"), Field(self.item, "key")]
        return JsonTable(path, [*ids, self.time, Field(self.rating, "number"), *texts, *counts])

    def products(self, path: Path) -> JsonTable:
        categories = [Field(key, "text", needed=False, convert=category_path) for key in self.category]
        title = Field("title", "text", needed=False, convert=product_title)
        author = Field(self.author, "text", needed=False, convert=plain_text)
        return JsonTable(path, [Field(self.item, "key"), title, author, *categories])


_UNTIL_2018 = _Release(
    suffixes=(".json", ".json.gz"),
    user="reviewerID",
    item="asin",
    time=Field("unixReviewTime", "seconds"),
    rating="overall",
    summary="summary",
    text="reviewText",
    votes=("helpful", "vote"),
    category=("categories", "category"),
    author="brand",
)
_2023 = _Release(
    suffixes=(".jsonl", ".jsonl.gz"),
    user="user_id",
    item="parent_asin",
    time=Field("timestamp", "milliseconds"),
    rating="rating",
    summary="title",
    text="text",
    votes=("helpful_vote",),
    category=("categories",),
    author="store",
)


def read(settings: PrepareSettings, bad: BadRows) -> RawLogs:
    """Read the reviews and the products of `settings.raw`, each file once. Users are those who wrote reviews.

    Published products have gaps and repetitions: one that only reviews name has an empty title, of several lines of
    one product the first counts. A review without any text is no comment; it may still be a like.

    Raises:
        UserError: a file is missing or not the only one, or a line is broken (see `BadRows`).
    """
    reviews, products, keys = _open(Path(settings.raw))
    rows, n_reviews = reviews.collect(bad)
    rows = rows.select(
        ROW,
        pl.col(keys.user).alias(USER),
        pl.col(keys.item).alias(VIDEO),
        pl.col(keys.time.key).alias(TIME),
        pl.col(keys.rating).alias("rating"),
        _joined(pl.col(keys.summary), pl.col(keys.text)).alias(CONTENT),
        pl.sum_horizontal(keys.votes).alias(LIKES),
    )
    written = rows.filter(pl.col(CONTENT) != "").with_columns(numbered_id().alias(RAW_ID))
    lines, n_products = products.collect(bad)
    listed = lines.unique(keys.item, keep="first", maintain_order=True).select(
        ROW,
        pl.col(keys.item).alias(RAW_ID),
        TITLE,
        pl.concat_str(keys.category).alias(CATEGORY),
        pl.col(keys.author).alias(AUTHOR),
    )
    videos = with_unlisted(listed, rows.select(ROW, pl.col(VIDEO).alias(RAW_ID)))
    liked = rows.filter(pl.col("rating") >= settings.min_rating)
    return RawLogs(
        users=rows.select(ROW, pl.col(USER).alias(RAW_ID)).unique(RAW_ID, keep="first", maintain_order=True),
        videos=videos,
        comments=written.select(ROW, RAW_ID, CONTENT, VIDEO, LIKES),
        video_events=liked.select(ROW, USER, VIDEO, TIME),
        comment_events=written.select(ROW, USER, pl.col(RAW_ID).alias(COMMENT), VIDEO, TIME),
        origins={
            "users": reviews,
            "videos": products,
            "comments": reviews,
            "video_events": reviews,
            "comment_events": reviews,
        },
        counts={
            "reviews": n_reviews,
            "blank_reviews": rows.height - written.height,
            "products": n_products,
            "repeated_products": lines.height - listed.height,
            "products_of_reviews_alone": videos.height - listed.height,
        },
    )


def _open(folder: Path) -> tuple[JsonTable, JsonTable, _Release]:
    """(reviews, products, keys) of the release that lies in the folder."""
    found = {
        release: [
            path
            for path in sorted(folder.iterdir())
            if path.name.endswith(release.suffixes) and path.name[0] != "."
        ]
        for release in (_UNTIL_2018, _2023)
    }
    keys = _2023 if found[_2023] else _UNTIL_2018
    every = found[_UNTIL_2018] + found[_2023]
    products = [path for path in every if path.name.startswith("meta_")]
    reviews = [path for path in every if path not in products]
    names = "reviews_Beauty_5.json.gz (2014), All_Beauty_5.json.gz (2018) or All_Beauty.jsonl.gz (2023)"
    review_file = only_file(reviews, "reviews", folder, names)
    product_file = only_file(products, "products", folder, "as published, meta_*.json.gz or meta_*.jsonl.gz")
    return keys.reviews(review_file), keys.products(product_file), keys


def _joined(summary: pl.Expr, text: pl.Expr) -> pl.Expr:
    """`Summary. Text`, or the one that is there."""
    end = pl.when(summary.str.contains(r"[.!?…:;,]$")).then(pl.lit(" ")).otherwise(pl.lit(". "))
    both = pl.concat_str(summary, end, text)
    alone = pl.when(text == "").then(summary).otherwise(text)
    return pl.when((summary == "") | (text == "") | (summary == text)).then(alone).otherwise(both)
