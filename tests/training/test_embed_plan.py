"""The plan of an embedding run: every text once, every row once, whatever the number of processes."""

import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lsvcr.training import embed_plan
from lsvcr.training.embed_earlier import earlier_rows
from lsvcr.training.embed_merge import Merger
from lsvcr.training.embed_parts import Parts
from lsvcr.training.embed_plan import EMPTY, Plan, cut, kept, make_plan, number_distinct
from lsvcr.utils.errors import UserError

TEXTS = st.lists(st.sampled_from(["", " ", "a", "bb", "bb ", "你好", "ccc", "\ud800", "?"]), max_size=30)


class Table(list):
    def take(self, rows):
        return [self[row] for row in rows]

    def raw_ids(self, rows):
        return [f"id {row}" for row in rows]


def lengths_of(texts):
    """As many tokens as letters; none for a question mark."""
    return [len(text.strip(" ?")) for text in texts]


def plan_of(texts, folder, earlier=None):
    return make_plan(folder, "words", Table(["", *texts]), lengths_of, 4, earlier)


@given(TEXTS, st.integers(1, 4), st.integers(1, 5))
def test_plan_places_every_text_once(texts, part_texts, window):
    with pytest.MonkeyPatch.context() as patch, tempfile.TemporaryDirectory() as folder:
        patch.setattr(embed_plan, "PART_TEXTS", part_texts)
        patch.setattr(embed_plan, "WINDOW", window)
        plan = plan_of(texts, Path(folder))
        table = ["", *texts]
        seen = [table[row] for row in plan.first]
        assert len(set(seen)) == len(seen) and set(seen) == {text for text in table if text.strip()}
        assert list(plan.first) == sorted(plan.first)
        for text, source in zip(table, plan.source, strict=True):
            assert source == EMPTY if not text.strip() else seen[source] == text
        read = [text for unit in range(plan.n_units) for text in plan.texts(unit)]
        assert sorted(read) == [number for number, text in enumerate(seen) if text != "?"]
        for unit in range(plan.n_units):
            found = plan.lengths[plan.texts(unit)]
            assert 1 <= len(found) <= part_texts and list(found) == sorted(found, reverse=True)
            assert plan.tokens[unit] == found.sum()


@given(st.lists(st.integers(0, 70), max_size=60), st.integers(1, 4))
def test_parts_hold_as_many_tokens_as_they_may(lengths, bytes_a_text):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(embed_plan, "PART_TOKENS", (100, 100))
        patch.setattr(embed_plan, "PART_BYTES", 12)
        order, units, tokens = cut(np.array(lengths, dtype=np.int32), bytes_a_text)
    sizes = np.diff(units)
    assert sizes.sum() == len(order) == np.count_nonzero(lengths) and tokens.sum() == sum(lengths)
    most = 12 // bytes_a_text
    for unit, (size, held) in enumerate(zip(sizes, tokens, strict=True)):
        assert size == 1 or (held <= 100 and size <= most)
        if unit + 1 < len(sizes):
            assert size == most or held + lengths[order[units[unit + 1]]] > 100


@given(st.lists(st.tuples(st.integers(0, 2), st.integers(0, 2)), min_size=1, max_size=12))
def test_texts_that_share_half_of_their_digest_stay_apart(digests):
    high, low = np.array(digests, dtype=np.uint64).T
    number, first = number_distinct(high, low)
    expected = {}
    for pair in digests:
        if pair != (0, 0):
            expected.setdefault(pair, len(expected))
    assert list(number) == [expected.get(pair, EMPTY) for pair in digests]
    assert list(first) == [digests.index(pair) for pair in expected]


@given(TEXTS, TEXTS, st.integers(0, 5))
def test_what_an_earlier_export_has_is_not_read(old, new, shift):
    """Row i of today has the id of row i + shift of the earlier table."""
    with tempfile.TemporaryDirectory() as folder:
        before = plan_of(old, Path(folder))
        keys = np.array(before.keys)
        keys[0] = np.roll(keys[0], -shift)
        plan = plan_of(new, Path(folder), lambda today: earlier_rows(keys, today))
        old_table, table = ["", *old], ["", *new]
        row_of = {f"id {(row + shift) % len(old_table)}": row for row in range(len(old_table))}
        found = [row_of.get(f"id {row}", -1) for row in range(len(table))]
        same = [
            old_row >= 0 and text.strip() and text == old_table[old_row]
            for text, old_row in zip(table, found, strict=True)
        ]
        known = {text for text, is_same in zip(table, same, strict=True) if is_same}
        assert {table[row] for row in plan.first} == {text for text in table if text.strip()} - known
        for text, source in zip(table, plan.source, strict=True):
            if text in known:
                assert old_table[kept(source)] == text
            elif text.strip():
                assert table[plan.first[source]] == text
            else:
                assert source == EMPTY


def test_no_rows_of_an_empty_earlier_export():
    today = np.zeros((3, 4), dtype=np.uint64)
    assert list(earlier_rows(np.zeros((3, 0), dtype=np.uint64), today)) == [-1] * 4


def changed(plan, **arrays):
    return Plan(**{**vars(plan), **{name: np.array(array) for name, array in arrays.items()}})


@pytest.mark.parametrize(("order", "units", "times"), [([0, 1], [0, 2], 0), ([0, 1, 2, 0], [0, 3, 4], 2)])
def test_joining_refuses_rows_that_are_missing_or_double(tmp_path, order, units, times):
    whole = plan_of(["a", "b", "c"], tmp_path)
    plan = changed(whole, order=order, units=units, tokens=np.diff(units))
    parts = Parts(tmp_path, plan, {"x.npy": 2})
    for unit in range(plan.n_units):
        parts.write(unit, {"x.npy": np.ones((len(plan.texts(unit)), 2), dtype=np.float32)})
    with pytest.raises(UserError, match=f"written {times} times .1 such rows.*remove .* and run again"):
        Merger(plan, parts).write(tmp_path / "x.npy", 2, None)


def test_joining_refuses_numbers_that_are_none(tmp_path):
    plan = plan_of(["a", "b"], tmp_path)
    parts = Parts(tmp_path, plan, {"x.npy": 1})
    parts.write(0, {"x.npy": np.array([[1.0], [np.nan]], dtype=np.float32)})
    with pytest.raises(UserError, match="x.npy, row 2: NaN or infinity"):
        Merger(plan, parts).write(tmp_path / "x.npy", 1, None)


def test_a_row_of_zeros_that_has_a_text_is_told(tmp_path, capsys):
    plan = plan_of(["a", "", "b", "?"], tmp_path)
    parts = Parts(tmp_path, plan, {"x.npy": 2})
    parts.write(0, {"x.npy": np.array([[3.0, 4.0], [0.0, 0.0]], dtype=np.float32)})
    entry = Merger(plan, parts).write(tmp_path / "x.npy", 2, None)
    assert (entry["empty_texts"], entry["zero_rows"]) == (2, 3)
    assert entry["norms"] == {"min": 0.0, "median": 2.5, "max": 5.0}
    assert "1 rows with text are zero all the same" in capsys.readouterr().err
    assert np.load(tmp_path / "x.npy").tolist() == [[0, 0], [3, 4], [0, 0], [0, 0], [0, 0]]
