"""Every index against all scores sorted."""

import re
import sys
import time
from pathlib import Path
from unittest import mock

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lsvcr.serving import index as index_module
from lsvcr.serving import whole_numbers
from lsvcr.serving.index import ExactIndex, SketchIndex, open_index
from lsvcr.serving.rows import StoredRows, let_go, stored_rows
from lsvcr.serving.topk import best, best_of_each, dots, reached_by, reached_by_each
from lsvcr.serving.whole_numbers import BlockProduct, WholeNumberProduct, product_for
from tests.serving.bundles import unit

KINDS = ("float32", "float16", "int8")
PRODUCTS = (WholeNumberProduct, BlockProduct)


def with_product(product):
    """Sketches with this product, however few the rows."""
    return mock.patch.object(index_module, "product_for", lambda n, d: product)


def numbers(rng: np.random.Generator, n: int, d: int) -> np.ndarray:
    """(n, d) int8; the first two give the largest sums."""
    rows = rng.integers(-127, 128, (n, d)).astype(np.int8)
    rows[0], rows[1] = 127, -127
    return rows


def random_rows(rng: np.random.Generator, n: int, d: int, distinct: int) -> np.ndarray:
    """(n + 1, d) unit vectors, of which only so many differ; row 0 zeros."""
    rows = unit(rng.standard_normal((distinct, d)))[rng.integers(0, distinct, n + 1)]
    rows[0] = 0
    return rows


def brute(rows: StoredRows, user: np.ndarray, without: set[int]) -> np.ndarray:
    """Scores of all rows in float64; -inf for what may not come."""
    scores = rows.take(np.arange(len(rows.values))).astype(np.float64) @ user
    scores[[0, *(row for row in without if row < len(scores))]] = -np.inf
    return scores


def assert_best(found, scores: np.ndarray, k: int) -> None:
    """The rows are the best k of all scores, in order, up to what float32 rounds off."""
    rows, values = found
    allowed = scores > -np.inf
    assert len(rows) == len(set(rows.tolist())) == min(k, allowed.sum())
    assert allowed[rows].all()
    np.testing.assert_allclose(values, scores[rows], atol=1e-6)
    np.testing.assert_allclose(values, np.sort(scores)[::-1][: len(rows)], atol=1e-6)
    same = values[1:] == values[:-1]
    assert (np.diff(values) <= 0).all() and (np.diff(rows)[same] > 0).all()
    if len(rows):
        # Equal to the last one: it has the lowest rows of its tie.
        tied = np.flatnonzero(np.abs(scores - scores[rows[-1]]) < 1e-12)
        shown = np.sort(rows[np.isin(rows, tied)])
        assert shown.tolist() == tied[: len(shown)].tolist()


@settings(deadline=None, max_examples=60)
@given(
    seed=st.integers(0, 2**32 - 1),
    n=st.integers(1, 3000),
    d=st.sampled_from([1, 8, 33, 64]),
    kind=st.sampled_from(KINDS),
    k=st.sampled_from([1, 3, 10, 100, 5000]),
    share=st.sampled_from([0.0, 0.1, 0.9, 1.0]),
    distinct=st.sampled_from([1, 7, 4000]),
    product=st.sampled_from(PRODUCTS),
)
def test_finds_the_best_without_what_is_left_out(seed, n, d, kind, k, share, distinct, product):
    rng = np.random.default_rng(seed)
    rows = stored_rows(random_rows(rng, n, d, distinct), kind)
    users = unit(rng.standard_normal((3, d)))
    users[2] = 0
    without = [np.flatnonzero(rng.random(n + 20) < share) for _ in users]
    with with_product(product):
        found = open_index(rows).search(users, [k, 1, k], without)
    for user, own, some, count in zip(users, found, without, [k, 1, k], strict=True):
        assert_best(own, brute(rows, user, set(some.tolist())), count)


@settings(deadline=None, max_examples=40)
@given(
    seed=st.integers(0, 2**32 - 1),
    n=st.integers(1, 3000),
    size=st.sampled_from([1e-3, 30.0, 3e4]),
    kind=st.sampled_from(["float32", "int8"]),
    k=st.sampled_from([1, 10, 100]),
    spread=st.sampled_from([0.0, 1e-6, 1.0]),
    product=st.sampled_from(PRODUCTS),
)
def test_finds_the_largest_products_of_vectors_of_any_length(seed, n, size, kind, k, spread, product):
    rng = np.random.default_rng(seed)
    vectors = rng.standard_normal(16) + spread * rng.standard_normal((n + 1, 16))
    rows = stored_rows((size * vectors).astype(np.float32), kind)
    users = (size * rng.standard_normal((3, 16))).astype(np.float32)
    with with_product(product):
        index = open_index(rows, "inner product")
    for user, own in zip(users, index.search(users, [k] * 3, [np.zeros(0, np.int64)] * 3), strict=True):
        exact = dots(rows.take(np.arange(n + 1)), user)
        exact[0] = -np.inf
        expected = np.argsort(-exact, kind="stable")[: min(k, n)]
        assert own[0].tolist() == expected.tolist()
        assert own[1].tolist() == exact[expected].tolist()


@pytest.mark.parametrize("likely", [5, 1 << 13])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("product", PRODUCTS)
def test_one_user_and_many_in_parts_of_rows_and_of_users(product, kind, likely, monkeypatch):
    rng = np.random.default_rng(0)
    monkeypatch.setattr(index_module, "_LIKELY", likely)  # five rows of all users are no ten of each
    monkeypatch.setattr(index_module, "_SCORES", 3000)  # three users at once
    monkeypatch.setattr(index_module, "_PRODUCT", 300)
    monkeypatch.setattr(index_module, "_ROWS", 77)
    monkeypatch.setattr(index_module, "product_for", lambda n, d: product)
    rows = stored_rows(random_rows(rng, 999, 16, 5000), kind)
    users = unit(rng.standard_normal((8, 16)))
    without = [rng.integers(0, 1000, 20) for _ in users]
    index = open_index(rows)
    assert type(index) is (ExactIndex if kind == "float32" else SketchIndex) and len(index) == 1000
    monkeypatch.setattr(index_module, "_FEW", 999)
    assert type(open_index(rows)) is SketchIndex
    for user, some, (found, scores) in zip(
        users, without, index.search(users, [10] * 8, without), strict=True
    ):
        assert_best((found, scores), brute(rows, user, set(some.tolist())), 10)
        alone = index.search(user[None], [10], [some])[0]
        assert alone[0].tolist() == found.tolist()
        np.testing.assert_allclose(alone[1], scores, atol=1e-6)


def test_equal_scores_come_in_the_order_of_rows():
    rows = np.tile(unit(np.ones((1, 8))), (2000, 1))
    for kind in KINDS:
        found, _ = open_index(stored_rows(rows, kind)).search(rows[:1], [4], [np.array([2, 1999])])[0]
        assert found.tolist() == [1, 3, 4, 5]


@settings(deadline=None)
@given(st.lists(st.integers(-5, 5), max_size=1500), st.integers(1, 40), st.integers(0, 2**32 - 1))
def test_best_is_a_stable_sort(values, k, seed):
    scores = np.array(values, dtype=np.float32)
    scores[np.random.default_rng(seed).random(len(scores)) < 0.3] = -np.inf
    order = [place for place in np.argsort(-scores, kind="stable").tolist() if scores[place] > -np.inf]
    assert best(scores, k).tolist() == order[:k]
    if k <= len(scores):
        assert (scores >= reached_by(scores, k)).sum() >= k


@settings(deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 4), st.integers(-3, 3)), max_size=60),
    st.lists(st.integers(1, 20), min_size=5, max_size=5),
)
def test_the_best_of_each_are_the_best_of_each_alone(scored, ks):
    owners = np.array([owner for owner, _ in scored], dtype=np.int64)
    scores = np.array([score for _, score in scored], dtype=np.float32)
    for owner, found in enumerate(best_of_each(scores, owners, ks)):
        own = np.flatnonzero(owners == owner)
        assert found.tolist() == own[best(scores[own], ks[owner])].tolist()


@settings(deadline=None)
@given(st.integers(1, 3000), st.lists(st.integers(1, 50), min_size=1, max_size=4), st.integers(0, 2**32 - 1))
def test_a_bound_of_each_row_is_that_of_the_row_alone(n, ks, seed):
    scores = np.random.default_rng(seed).integers(-9, 9, (len(ks), n)).astype(np.float32)
    alone = [reached_by(own, k) for own, k in zip(scores, ks, strict=True)]
    for bounds in (reached_by_each(scores, ks), reached_by_each(np.asfortranarray(scores), ks)):
        assert bounds.dtype == np.float32 and bounds.tolist() == alone


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("d", [33, 64, 100, 128])
@pytest.mark.parametrize("product", PRODUCTS)
def test_a_product_is_that_of_the_rounded_users(product, d, threads):
    rng = np.random.default_rng(d)
    rows, scale = numbers(rng, 500, d), rng.uniform(0.5, 2, 500).astype(np.float32)
    users = rng.standard_normal((4, d)).astype(np.float32)
    users[0], users[3] = 9, 0  # the largest sums: nothing is cut off at 16 bits
    rounded = product.rounded(users)
    step = np.abs(users).max(axis=1, keepdims=True) / 63
    assert (np.abs(rounded.vectors - users) <= step / 2 + 1e-6).all()
    found = np.empty((4, 500), dtype=np.float32)
    product(rows, scale, threads)(rounded.numbers, found)
    expected = rounded.vectors.astype(np.float64) @ (rows * scale[:, None].astype(np.float64)).T
    error = np.abs(found * rounded.unit[:, None] - expected).max(axis=1)
    assert (error <= 1e-6 * np.linalg.norm(users, axis=1) * 2 * 127 * d**0.5).all()


def test_a_product_of_many_rows_reads_them_in_blocks(monkeypatch):
    """Where the processor and ONNX Runtime have what that takes, which those of the tests do."""
    d = 64
    assert product_for(1000, d) is WholeNumberProduct
    assert product_for(1 << 20, d) is BlockProduct
    for fault in ("refuses", "wrong", "slow"):
        whole_numbers._blocks_work.cache_clear()
        monkeypatch.setattr(whole_numbers, "BlockProduct", faulty(fault))
        assert product_for(1 << 20, d) is WholeNumberProduct
    whole_numbers._blocks_work.cache_clear()


def faulty(fault: str) -> type[BlockProduct]:
    """A product in blocks as of a machine that has none."""

    class Faulty(BlockProduct):
        def __init__(self, rows, scale, threads=1):
            if fault == "refuses":
                raise RuntimeError("bits must be 4")
            super().__init__(rows, scale, threads)

        def __call__(self, numbers, out):
            super().__call__(numbers, out)
            if fault == "wrong":
                out[0, 0] = 0
            if fault == "slow":
                time.sleep(0.02)

    return Faulty


def test_rows_are_read_once_and_then_not_kept_in_memory(tmp_path, monkeypatch):
    rows = stored_rows(random_rows(np.random.default_rng(0), 999, 16, 5000), "float16")
    np.save(tmp_path / "items.npy", rows.values)
    mapped = StoredRows(np.asarray(np.load(tmp_path / "items.npy", mmap_mode="r")), None)
    given_back = []
    monkeypatch.setattr(index_module, "let_go", lambda array: (let_go(array), given_back.append(array)))
    index = SketchIndex(mapped)
    assert [array is mapped.values for array in given_back] == [True]
    user = unit(np.ones((1, 16)))
    assert_best(index.search(user, [10], [np.zeros(0, np.int64)])[0], brute(rows, user[0], set()), 10)


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_rows_of_a_large_file_do_not_stay_in_memory_once_looked_at(tmp_path, monkeypatch):
    rng = np.random.default_rng(0)
    rows = stored_rows(random_rows(rng, 40_000, 16, 40_000), "float32")
    np.save(tmp_path / "items.npy", rows.values)
    mapped = StoredRows(np.load(tmp_path / "items.npy", mmap_mode="r"), None)
    index = SketchIndex(mapped)
    users = unit(rng.standard_normal((64, 16)).astype(np.float32))
    nothing = [np.zeros(0, np.int64)]
    found, kept = [], []
    monkeypatch.setattr(index_module, "_SEARCHES", 1)
    for limit in (1 << 40, 0):
        monkeypatch.setattr(index_module, "_MAPPED", limit)
        found.append([index.search(user[None], [10], nothing)[0][0].tolist() for user in users])
        kept.append(mapped_bytes(tmp_path / "items.npy"))
    assert kept == [pytest.approx(rows.values.nbytes, rel=0.2), 0]
    assert found[0] == found[1]


def mapped_bytes(path):
    """Of a file, in this process's memory."""
    of_file = Path("/proc/self/smaps").read_text().split(str(path))[1]
    return int(re.search(r"Rss: +(\d+) kB", of_file)[1]) * 1024


@pytest.mark.parametrize("product", PRODUCTS)
def test_rows_that_the_runtime_reads_again_are_kept(product, monkeypatch):
    rng = np.random.default_rng(0)
    rows, scale = numbers(rng, 500, 33), np.ones(500, dtype=np.float32)
    rounded = product.rounded(rng.standard_normal((2, 33)).astype(np.float32))
    plain = whole_numbers.session_options

    def without_own_order(threads):
        options = plain(threads)
        options.add_session_config_entry("session.disable_prepacking", "1")
        return options

    expected, found = np.empty((2, 2, 500), dtype=np.float32)
    product(rows, scale)(rounded.numbers, expected)
    monkeypatch.setattr(whole_numbers, "session_options", without_own_order)
    product(rows, scale)(rounded.numbers, found)
    # Without an order of its own the runtime multiplies the blocks in float32.
    assert np.abs(found - expected).max() < 0.01 * np.abs(expected).max()


@pytest.mark.parametrize("product", PRODUCTS)
def test_the_graph_is_what_the_onnx_package_reads(product, monkeypatch):
    graphs = []
    session = whole_numbers.ort.InferenceSession
    monkeypatch.setattr(
        whole_numbers.ort,
        "InferenceSession",
        lambda graph, *args, **kw: (graphs.append(graph), session(graph, *args, **kw))[1],
    )
    product(numbers(np.random.default_rng(0), 200, 70), np.ones(200, dtype=np.float32))
    model = onnx.load_from_string(graphs[0])
    (node,) = model.graph.node
    shapes = {tensor.name: list(tensor.dims) for tensor in model.graph.initializer}
    if product is WholeNumberProduct:
        assert (node.op_type, list(node.input)) == ("MatMulInteger", ["users", "columns", "zero"])
        assert shapes == {"columns": [70, 200], "zero": []}
        columns, zero = model.graph.initializer
        assert onnx.numpy_helper.to_array(zero).dtype == np.uint8 and onnx.numpy_helper.to_array(zero) == 64
        assert columns.data_location == onnx.TensorProto.EXTERNAL
        columns.raw_data, columns.data_location = bytes(14_000), onnx.TensorProto.DEFAULT
        del columns.external_data[:]
        onnx.checker.check_model(model, full_check=True)
    else:
        assert (node.domain, node.op_type, list(node.input)) == (
            "com.microsoft",
            "MatMulNBits",
            ["users", "rows", "scales"],
        )
        assert shapes == {"rows": [200, 2, 64], "scales": [400]}
        attributes = {attribute.name: attribute.i for attribute in node.attribute}
        assert attributes == {"K": 70, "N": 200, "bits": 8, "block_size": 64, "accuracy_level": 4}
