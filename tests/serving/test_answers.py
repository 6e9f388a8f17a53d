"""Any request against all scores sorted, and requests while the catalogue changes."""

import threading
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lsvcr.schema import Task
from lsvcr.serving.runtime import Recommender
from lsvcr.serving.types import CommentQuery, Query
from tests.serving.bundles import make_bundle

N = 90
DISTINCT = 25
KINDS = ("float32", "float16", "int8")


@pytest.fixture(scope="module")
def bundles(tmp_path_factory):
    """Recommenders with rows of each kind, of one world in which many videos are equal, and the world."""
    path = tmp_path_factory.mktemp("bundles")
    worlds = [make_bundle(path / kind, n_videos=N, distinct=DISTINCT, rows=kind, n_users=0) for kind in KINDS]
    return {kind: Recommender.load(path / kind) for kind in KINDS}, worlds[0]


VIDEOS = st.lists(st.integers(1, N + 9), max_size=30)
"""Rows of videos, of which some are not there, some come twice."""


@settings(deadline=None, max_examples=150)
@given(
    kind=st.sampled_from(KINDS),
    history=VIDEOS,
    exclude=VIDEOS,
    candidates=st.one_of(st.none(), VIDEOS),
    k=st.integers(1, N + 20),
    exclude_seen=st.booleans(),
)
def test_any_request_is_answered_as_by_brute_force(
    bundles, kind, history, exclude, candidates, k, exclude_seen
):
    recommenders, world = bundles
    recommender = recommenders[kind]
    query = Query(
        raw(history),
        k=k,
        exclude=raw(exclude),
        candidates=None if candidates is None else raw(candidates),
        exclude_seen=exclude_seen,
    )
    answer = recommender.recommend_many([query])[0]
    known = [row for row in history if row <= N]
    user = world.user(Task.REC, known, [])
    rows = np.arange(1, N + 1) if candidates is None else np.unique([r for r in candidates if r <= N])
    left_out = {*exclude, *(known if exclude_seen else [])}
    allowed = np.array([row for row in rows.tolist() if row not in left_out], dtype=np.int64)
    stored = recommender.bundle.parts[Task.REC].items.take(allowed).astype(np.float64) @ user
    # Equal vectors have equal scores, so that the order is that of the rows among them.
    order = np.lexsort((allowed, np.round(-stored, 5)))[:k]
    found = [(item.id - 1000) // 7 for item in answer.items]
    assert len(found) == len(set(found)) == min(k, len(allowed))
    np.testing.assert_allclose([i.score for i in answer.items], stored[order], atol=2e-5)
    assert set(found) <= set(allowed.tolist())
    for video in range(DISTINCT):
        equal = [row for row in found if (row - 1) % DISTINCT == video]
        every = [row for row in allowed.tolist() if (row - 1) % DISTINCT == video]
        assert equal == every[: len(equal)]
    unknown = [row for row in dict.fromkeys([*history, *exclude, *(candidates or [])]) if row > N]
    assert answer.unknown.videos == raw(unknown)


def raw(rows: list[int]) -> list[int]:
    """Ids of rows; past the end they are of no video."""
    return [1000 + 7 * row for row in rows]


def test_a_request_sees_one_state_of_a_catalogue_that_changes(tmp_path):
    make_bundle(tmp_path / "b", n_videos=30, n_comments=60, n_users=0, seed=1)
    recommender = Recommender.load(tmp_path / "b")
    queries = [Query([1007, 1014], [5, 10], k=60, exclude_seen=False) for _ in range(4)]
    questions = [CommentQuery(1007, [1014], [5], comments=[5, 10, 15]) for _ in range(4)]
    whole = recommender.snapshot
    some = np.array([1, 2, 9])
    fewer = replace(
        whole, videos=replace(whole.videos, hidden=some + 3), comments=replace(whole.comments, hidden=some)
    )
    states = [whole, fewer]
    expected = []
    for state in states:
        recommender.publish(state)
        expected.append((recommender.recommend_many(queries), recommender.rank_comments_many(questions)))
    assert [len(rec[0].items) for rec, _ in expected] == [30, 27]
    assert [len(rank[0].items) for _, rank in expected] == [3, 1]
    stop, wrong = threading.Event(), []

    def ask() -> None:
        while not stop.is_set():
            answer = recommender.recommend_many(queries)
            if answer not in [rec for rec, _ in expected]:
                wrong.append(answer)

    threads = [threading.Thread(target=ask) for _ in range(3)]
    for thread in threads:
        thread.start()
    for turn in range(300):
        recommender.publish(states[turn % 2])
        if recommender.rank_comments_many(questions) != expected[turn % 2][1]:
            wrong.append(turn)
    stop.set()
    for thread in threads:
        thread.join()
    assert not wrong
