"""Ids and texts by row and back."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lsvcr.serving import ids as ids_module
from lsvcr.serving.errors import BadRequest
from lsvcr.serving.ids import IdMap, id_arrays
from lsvcr.serving.texts import TextTable, pack_texts

NUMBERS = st.lists(st.integers(-(2**63), 2**63 - 1), unique=True, max_size=40)
TEXTS = st.lists(st.text(st.characters(exclude_categories=["Cs"]), max_size=8), unique=True, max_size=40)


def opened(tmp_path, ids) -> IdMap:
    for name, array in id_arrays(ids).items():
        np.save(tmp_path / name, array)
    return IdMap.open(tmp_path)


def in_memory(ids) -> IdMap:
    """As `IdMap.open`, without files."""
    arrays = id_arrays(ids)
    if "ids.npy" in arrays:
        return IdMap(arrays["order.npy"], arrays["sorted.npy"], arrays["ids.npy"])
    texts = TextTable(arrays["ids.offsets.npy"], arrays["ids.bytes.npy"])
    return IdMap(arrays["order.npy"], arrays["hashes.npy"], texts)


@settings(deadline=None)
@given(st.one_of(NUMBERS, TEXTS.filter(bool)), st.data())
def test_every_id_has_its_row_and_no_other_has_one(ids, data):
    found = in_memory(ids)
    assert len(found) == len(ids) + 1
    rows = found.find(ids)
    assert rows.dtype == np.int64 and rows.tolist() == list(range(1, len(ids) + 1))
    assert found.take(rows) == ids == [found[row] for row in rows.tolist()]
    asked = data.draw(st.lists(st.one_of(st.integers(-(10**30), 10**30), st.text(max_size=8)), max_size=9))
    known = {str(raw): row for row, raw in enumerate(ids, start=1)}
    expected = [known.get(str(raw), -1) for raw in asked]
    told = found.find(asked).tolist()
    for raw, row, right in zip(asked, told, expected, strict=True):
        if found.numbers and isinstance(raw, str) and not raw.lstrip("-").isascii():
            assert row == -1
        elif not (found.numbers and isinstance(raw, str) and raw != str(int_or(raw))):
            assert row == right


def int_or(raw: str) -> int | None:
    try:
        return int(raw)
    except ValueError:
        return None


@pytest.mark.parametrize(
    "ids", [[], [5, -3, 9], ["b", "", "ä", "中文", "a" * 300]], ids=["none", "int", "str"]
)
def test_maps_on_disk(tmp_path, ids):
    found = opened(tmp_path, ids)
    assert found.find([*ids, 77, "zz"]).tolist() == [*range(1, len(ids) + 1), -1, -1]
    assert [found[row] for row in range(1, len(found))] == ids


def test_texts_that_share_a_hash_are_told_apart(monkeypatch):
    monkeypatch.setattr(ids_module, "_hash", lambda text: len(text))
    found = in_memory(["ab", "cd", "ef", "x"])
    assert found.find(["ef", "ab", "cd", "gh", "x", "y", "xyz"]).tolist() == [3, 1, 2, -1, 4, -1, -1]


def test_digits_and_numbers():
    assert in_memory([7, -8]).find(["7", "-8", " 7", "7.0", "+7", "0_7", "٧", "", "-"]).tolist() == [
        1,
        2,
        *[-1] * 7,
    ]
    assert in_memory(["7", "x"]).find([7, "7", np.int64(7)]).tolist() == [1, 1, 1]
    for wrong in (True, 1.0, None, [1], b"7", np.bool_(True)):
        for found in (in_memory([1, 7]), in_memory(["7"])):
            with pytest.raises(BadRequest, match="an id is a whole number or a text"):
                found.find([7, wrong])


@pytest.mark.parametrize("ids", [[1, 7], ["?", "7"]], ids=["int", "str"])
def test_half_a_character_is_no_id(ids):
    found = in_memory(ids)
    for ask in (
        found.normalise,
        lambda half: found.starting_with(half, 9),
        lambda half: found.find([7, half]),
    ):
        with pytest.raises(BadRequest, match="an id has half of a surrogate pair"):
            ask("\ud800")


def test_what_is_nested_deep_is_told_in_short():
    nested: list = []
    for _ in range(100_000):
        nested = [nested]
    with pytest.raises(BadRequest, match=r"an id is a whole number or a text, not \[\[\[") as told:
        in_memory([1]).find([nested])
    assert len(str(told.value)) < 100


@settings(deadline=None)
@given(st.lists(st.integers(-999, 99999), unique=True, max_size=60), st.integers(-99, 999), st.integers(0, 9))
def test_numbers_by_their_first_digits(ids, prefix, limit):
    right = sorted(one for one in ids if str(one).startswith(str(prefix)))
    if ids:
        assert in_memory(ids).starting_with(str(prefix), limit) == right[:limit]


def test_prefixes():
    largest = [2**63 - 1, -(2**63), 92, 0]
    found = in_memory(largest)
    assert found.starting_with("92", 9) == [92, 2**63 - 1]
    assert found.starting_with("-9", 9) == [-(2**63)]
    assert found.starting_with("0", 9) == [0]
    assert found.starting_with("", 2) == largest[:2]
    for none in ("x", "-", "-0", "00", "9" * 30):
        assert found.starting_with(none, 9) == []
    texts = in_memory(["anna", "bert", "anton", "änne", "an"])
    assert texts.starting_with("an", 9) == ["anna", "anton", "an"]
    assert texts.starting_with("an", 2) == ["anna", "anton"]
    assert texts.starting_with("ä", 9) == ["änne"] and texts.starting_with("annas", 9) == []


@settings(deadline=None)
@given(TEXTS)
def test_texts_by_row(texts):
    table = TextTable(*pack_texts(texts))
    assert [table[row] for row in range(len(table))] == ["", *texts]


def test_half_a_character_becomes_a_question_mark():
    assert TextTable(*pack_texts(["a\ud800b"]))[1] == "a?b"
