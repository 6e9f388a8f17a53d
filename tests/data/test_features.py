"""Values of videos as numbers."""

from pathlib import Path

import numpy as np
import pytest

from lsvcr.data.features import chosen_features, feature_codes
from lsvcr.data.store import Dataset
from lsvcr.schema import AUTHOR, CATEGORY
from lsvcr.utils.errors import UserError


class Told:
    """A dataset of five videos, as far as features ask."""

    root, n_videos = Path("told"), 5

    def __init__(self, category: list, author: list) -> None:
        self.columns = {CATEGORY: category, AUTHOR: author}

    def column(self, kind: str, name: str) -> list:
        assert kind == "videos"
        return self.columns[name]


def test_values_are_numbered_in_their_order_and_nothing_is_zero() -> None:
    dataset = Told(["b", "", "a", " b ", None], ["1"] * 5)
    assert feature_codes(dataset, CATEGORY).tolist() == [0, 2, 0, 1, 2, 0]
    assert feature_codes(dataset, AUTHOR).tolist() == [0, 1, 1, 1, 1, 1]


def test_auto_takes_what_tells_videos_apart() -> None:
    told, silent = ["a", "b", "a", "b", "a"], [""] * 5
    assert list(chosen_features(Told(told, silent), "auto")) == [CATEGORY]
    assert list(chosen_features(Told(["a"] * 5, told), "auto")) == [AUTHOR]
    assert list(chosen_features(Told(silent, silent), "auto")) == []
    assert list(chosen_features(Told(told, told), "author, category")) == [AUTHOR, CATEGORY]
    assert chosen_features(Told(told, told), "none") == {}


def test_what_is_not_there_is_told() -> None:
    with pytest.raises(UserError, match="no video of told has a value of author"):
        chosen_features(Told(["a"] * 5, [""] * 5), "category,author")
    with pytest.raises(UserError, match="'auhtor' is none of category, author, auto, none"):
        chosen_features(Told(["a"] * 5, ["b"] * 5), "auhtor")


def test_the_tiny_worlds_categories_are_its_topics(tiny_dataset: Dataset) -> None:
    codes = chosen_features(tiny_dataset, "auto")
    assert list(codes) == [CATEGORY, AUTHOR]
    topics = tiny_dataset.column("videos", CATEGORY)
    names = sorted(set(topics))
    assert codes[CATEGORY].tolist() == [0, *(names.index(topic) + 1 for topic in topics)]
    assert all(code.dtype == np.int64 for code in codes.values())
