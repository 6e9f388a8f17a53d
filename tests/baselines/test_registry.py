"""Recommenders are found by their files, and what cannot be is refused."""

import sys
from dataclasses import replace
from pathlib import Path

import pytest

from lsvcr import baselines
from lsvcr.baselines.registry import NEEDS, Entry, check_needs, entries, find
from lsvcr.data.store import Dataset
from lsvcr.settings import FittedSettings
from lsvcr.utils.errors import UserError

FILE = """
from lsvcr.baselines.popularity import build
from lsvcr.baselines.registry import Entry
from lsvcr.settings import FittedSettings

ENTRIES = (Entry({name!r}, "A copy.", FittedSettings, build, needs=frozenset({needs!r})),)
"""


@pytest.fixture
def add(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Puts a file beside the package's."""
    monkeypatch.setattr(baselines, "__path__", [*baselines.__path__, str(tmp_path)])

    def write(stem: str, text: str) -> None:
        (tmp_path / f"{stem}.py").write_text(text)

    yield write
    for path in tmp_path.glob("*.py"):
        sys.modules.pop(f"lsvcr.baselines.{path.stem}", None)


def test_a_file_names_its_recommender(add) -> None:
    add("another", FILE.format(name="mine", needs=[]))
    add("helper", 'raise RuntimeError("not a recommender: never imported")\n')
    assert find("mine").summary == "A copy."
    assert list(entries()) == sorted(entries())


@pytest.mark.parametrize(("name", "needs"), [("sasrec", []), ("mine", ["tiems"])])
def test_what_stands_there_twice_or_needs_the_unknown_is_an_error(add, name: str, needs: list[str]) -> None:
    add("another", FILE.format(name=name, needs=needs))
    with pytest.raises(ValueError, match=rf"another.py: {name}"):
        entries()


def test_a_misspelt_name_tells_the_nearest() -> None:
    with pytest.raises(UserError, match="no recommender 'item-knn'; did you mean item_knn?"):
        find("item-knn")


def test_all_that_a_dataset_lacks_is_told_with_another_recommender(tiny_dataset: Dataset) -> None:
    def picky(*needs: str) -> Entry:
        return Entry("picky", "", FittedSettings, find("popularity").build, needs=frozenset(needs))

    check_needs(picky(*NEEDS), tiny_dataset)
    manifest = tiny_dataset.manifest
    files = {name: entry for name, entry in manifest["files"].items() if "impressions" not in name}
    unseen = replace(tiny_dataset, manifest={**manifest, "files": files})
    check_needs(picky("texts", "comments", "times"), unseen)
    with pytest.raises(UserError, match="picky needs impressions, which .* does not have; use sasrec"):
        check_needs(picky("impressions", "texts"), unseen)
    bare = replace(unseen, n_comments=0)
    with pytest.raises(UserError, match="needs impressions and comments"):
        check_needs(picky(*NEEDS), bare)
