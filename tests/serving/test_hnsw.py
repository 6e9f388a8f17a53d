"""The approximate index: near the exact one, and never a row that must not come."""

import numpy as np
import pytest

from lsvcr.schema import Task
from lsvcr.serving import bundle_write, hnsw
from lsvcr.serving.bundle import open_bundle
from lsvcr.serving.errors import BundleError
from lsvcr.serving.hnsw import HnswIndex, measured_recall, write_hnsw
from lsvcr.serving.index import open_index
from lsvcr.serving.rows import stored_rows
from lsvcr.serving.runtime import Recommender
from tests.serving.bundles import make_bundle, unit

N = 6000


@pytest.fixture(scope="module", params=["float32", "int8"])
def graph(request, tmp_path_factory):
    items = unit(np.random.default_rng(0).standard_normal((N + 1, 16)))
    items[0] = 0
    path = tmp_path_factory.mktemp("graph") / "hnsw.faiss"
    write_hnsw(path, items, request.param)
    return path, stored_rows(items, request.param)


def test_finds_most_of_the_best_with_their_exact_scores(graph):
    path, rows = graph
    users = unit(np.random.default_rng(1).standard_normal((50, 16)))
    assert measured_recall(rows, path, users) > 0.95
    nothing = [np.zeros(0, np.int64)] * 50
    near = HnswIndex(rows, path).search(users, [10] * 50, nothing)
    exact = open_index(rows).search(users, [10] * 50, nothing)
    for (found, scores), (right, right_scores) in zip(near, exact, strict=True):
        same = np.isin(found, right)
        assert scores[same].tolist() == right_scores[np.isin(right, found)].tolist()
        assert (np.diff(scores) <= 0).all()


@pytest.mark.parametrize("share", [0.05, 0.5, 0.999, 1.0])
def test_what_is_left_out_never_comes_and_k_rows_do(graph, share):
    path, rows = graph
    rng = np.random.default_rng(2)
    users = unit(rng.standard_normal((3, 16)))
    without = [np.flatnonzero(rng.random(N + 30) < share) for _ in users]
    # The nearest of all are left out too, so that a search for a few finds none that may come.
    best = open_index(rows).search(users, [300] * 3, [np.zeros(0, np.int64)] * 3)
    without = [np.concatenate([own, near]) for own, (near, _) in zip(without, best, strict=True)]
    for (found, _), own in zip(HnswIndex(rows, path).search(users, [5] * 3, without), without, strict=True):
        left = N - len(np.unique(own[(own > 0) & (own <= N)]))
        assert len(found) == min(5, left) and not np.isin(found, own).any() and (found > 0).all()


def test_more_than_there_are(graph):
    path, rows = graph
    ((found, _),) = HnswIndex(rows, path).search(rows.take(np.array([1])), [N * 2], [np.array([7])])
    assert sorted(found.tolist()) == [row for row in range(1, N + 1) if row != 7]


def test_a_large_bundle_gets_a_graph_and_tells_its_recall(tmp_path, monkeypatch):
    monkeypatch.setattr(bundle_write, "_SAMPLE", 20)
    world = make_bundle(tmp_path / "b", n_videos=3000, n_comments=10, ann_from=2999, rows="float16")
    opened = open_bundle(tmp_path / "b")
    assert opened.manifest["index"]["kind"] == "hnsw" and opened.manifest["index"]["recall@10"] > 0.9
    assert "rec/hnsw.faiss" in opened.manifest["files"]
    recommender = Recommender(opened)
    user = world.user(Task.REC, [5, 9], [])
    right = set((np.argsort(-(world.items(Task.REC)[1:] @ user))[:20] + 1).tolist()) - {5, 9}
    found = recommender.recommend([1035, 1063], k=10).items
    assert len({(item.id - 1000) // 7 for item in found} & right) >= 9
    make_bundle(tmp_path / "c", n_videos=3000, n_comments=10, ann_from=3000)
    assert open_bundle(tmp_path / "c").manifest["index"] == {"kind": "exact"}


def test_a_broken_graph_is_told(graph, tmp_path, monkeypatch):
    path, rows = graph
    (tmp_path / "cut").write_bytes(path.read_bytes()[:1000])
    with pytest.raises(BundleError, match="is no index that faiss reads .*; export it again"):
        HnswIndex(rows, tmp_path / "cut")
    with pytest.raises(BundleError, match="indexes 6001 rows, not 11"):
        HnswIndex(stored_rows(np.zeros((11, 16), np.float32), "float32"), path)
    monkeypatch.setitem(__import__("sys").modules, "faiss", None)
    with pytest.raises(BundleError, match=r"needs faiss .*lsvcr\[serve\].*--ann_from 0"):
        hnsw.HnswIndex(rows, path)
