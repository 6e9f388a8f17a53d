"""What grows while others read: earlier states stay as they were, and later ones cost little."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lsvcr.serving.growing import GONE, GrowingRows, Layers, Prefix, with_rows, without_rows

changes = st.lists(
    st.dictionaries(st.integers(0, 12), st.integers(0, 99) | st.just(None), max_size=5), max_size=30
)


@given(changes=changes)
def test_layers_are_a_dict_that_does_not_change(changes):
    layers, plain = Layers(), {}
    history = []
    for change in changes:
        layers = layers.changed({key: GONE if value is None else value for key, value in change.items()})
        plain = {key: value for key, value in {**plain, **change}.items() if value is not None}
        history.append((layers, plain))
    for layers, plain in history:
        assert dict(layers) == plain and len(layers) == len(plain)
        for key in range(13):
            assert layers.get(key, "none") == plain.get(key, "none") and (key in layers) == (key in plain)
    with pytest.raises(KeyError):
        Layers().changed({1: 2})[3]


def test_layers_stay_few():
    """So a look-up asks few dicts, and an entry is copied few times: each copy takes it into a larger layer."""
    layers = Layers()
    for key in range(20_000):
        layers = layers.changed({key: key})
    sizes = [len(layer) for layer in layers._layers]
    assert sum(sizes) == 20_000 and len(sizes) <= 8
    assert all(4 * small < large for small, large in zip(sizes, sizes[1:], strict=False))


@given(counts=st.lists(st.tuples(st.integers(0, 40), st.booleans()), max_size=20))
def test_rows_grow_behind_what_others_hold(counts):
    """Some rows are put for a state that is given up; the next ones take their place."""
    growing, published = GrowingRows((2,), np.float32), np.zeros((0, 2), np.float32)
    held = []
    for number, (count, given_up) in enumerate(counts):
        rows = np.full((count, 2), number, np.float32)
        view = growing.put(len(published), rows)
        expected = np.concatenate([published, rows])
        np.testing.assert_array_equal(view, expected)
        with pytest.raises(ValueError, match="read-only"):
            view[:] = 0
        if not given_up:
            published = expected
            held.append((view, expected))
    for view, expected in held:
        np.testing.assert_array_equal(view, expected)


def test_rows_are_copied_for_each_doubling_only():
    growing, buffers = GrowingRows((), np.int64), set()
    for number in range(10_000):
        growing.put(number, np.array([number]))
        buffers.add(id(growing._buffer))
        np.testing.assert_array_equal(
            growing._buffer[: number + 1][-3:], range(max(0, number - 2), number + 1)
        )
    assert len(growing._buffer) < 20_480 and len(buffers) <= 12


def test_a_prefix_ends_where_it_ended():
    first = Prefix([], 0).followed_by("ab")
    given_up = first.followed_by("x")
    second = first.followed_by("cd")
    assert (
        list(given_up[:2]) == ["a", "b"]
        and list(first) == ["a", "b"]
        and list(second) == ["a", "b", "c", "d"]
    )
    assert first[-1] == "b" and second[1:3] == ["b", "c"] and len(second) == 4
    for place in (2, -3):
        with pytest.raises(IndexError):
            first[place]


@given(rows=st.sets(st.integers(0, 30)), more=st.lists(st.integers(0, 30)))
def test_ascending_rows(rows, more):
    ascending = np.array(sorted(rows), dtype=np.int64)
    assert with_rows(ascending, more).tolist() == sorted(rows | set(more))
    assert without_rows(ascending, more).tolist() == sorted(rows - set(more))
    assert with_rows(ascending, more).dtype == without_rows(ascending, more).dtype == np.int64
