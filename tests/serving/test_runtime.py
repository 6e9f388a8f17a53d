"""Answers against the same computed step by step, in plain NumPy."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from lsvcr.schema import Task
from lsvcr.serving.errors import BadRequest, UnknownId
from lsvcr.serving.runtime import Recommender
from lsvcr.serving.types import CommentQuery, Query
from tests.serving.bundles import World, make_bundle

WORLD_STEPS = 5
"""Steps of a history that count in these bundles: fewer than some users have."""


@pytest.fixture(scope="module", params=[False, True], ids=["numbers", "texts"])
def served(request, tmp_path_factory) -> tuple[Recommender, World, bool]:
    path = tmp_path_factory.mktemp("bundle") / "b"
    world = make_bundle(path, text_ids=request.param, max_steps=WORLD_STEPS, seed=3)
    return Recommender.load(path), world, request.param


def video(row: int, text: bool):
    return f"v{row}" if text else 1000 + 7 * row


def comment(row: int, text: bool):
    return f"c{row}" if text else 5 * row


def raw_visits(visits, text):
    return [{"video": video(v, text), "comments": [comment(c, text) for c in own]} for v, own in visits]


def expected(world: World, user: np.ndarray, without, k: int):
    """(rows, scores) of the k best videos."""
    scores = world.items(Task.REC) @ user
    rows = [row for row in np.argsort(-scores, kind="stable").tolist() if row and row not in without][:k]
    return rows, scores[rows]


def assert_items(items, rows, scores, name):
    assert [item.title for item in items] == [f"video {row}" for row in rows]
    assert [item.id for item in items] == [name(row) for row in rows]
    np.testing.assert_allclose([item.score for item in items], scores, atol=1e-6)


def test_recommends_what_plain_numpy_does(served):
    recommender, world, text = served
    for videos, visits, _ in world.users:
        answer = recommender.recommend([video(v, text) for v in videos], raw_visits(visits, text), k=7)
        user = world.user(Task.REC, videos, visits, limit=WORLD_STEPS)
        assert_items(answer.items, *expected(world, user, videos, 7), lambda row: video(row, text))
        assert answer.unknown.videos == [] and answer.unknown.comments == []


def test_ranks_comments_as_plain_numpy_does(served):
    recommender, world, text = served
    for (videos, visits, _), watched in zip(world.users, range(1, 7), strict=True):
        answer = recommender.rank_comments(
            [video(v, text) for v in videos], raw_visits(visits, text), video(watched, text)
        )
        user = world.user(Task.COMM_RANK, videos, visits, watched, WORLD_STEPS)
        own = np.sort(world.lists.row(watched))
        scores = world.items(Task.COMM_RANK)[own] @ user
        order = np.argsort(-scores, kind="stable")
        assert [item.id for item in answer.items] == [comment(row, text) for row in own[order]]
        np.testing.assert_allclose([item.score for item in answer.items], scores[order], atol=1e-6)
        assert answer.video == video(watched, text)


def test_stored_users_get_what_their_histories_get_without_what_they_have_seen(served):
    recommender, world, text = served
    for row, (videos, visits, seen) in enumerate(world.users, start=1):
        name = f"u{row}" if text else 100 + row
        assert recommender.histories(name) == ([video(v, text) for v in videos], raw_visits(visits, text))
        user = world.user(Task.REC, videos, visits, limit=WORLD_STEPS)
        answer = recommender.recommend_user(name, k=40)
        assert_items(answer.items, *expected(world, user, seen, 40), lambda row: video(row, text))
        given = recommender.recommend([video(v, text) for v in videos], raw_visits(visits, text), k=40)
        left_out = {*videos, *(under for under, _ in visits)}
        assert_items(given.items, *expected(world, user, left_out, 40), lambda row: video(row, text))
        with_seen = recommender.recommend_user(name, k=40, exclude_seen=False)
        assert len(with_seen.items) == 40


def test_a_batch_is_answered_as_its_queries_alone(served):
    recommender, world, text = served
    queries = [
        Query([video(v, text) for v in videos], raw_visits(visits, text), k=k)
        for k, (videos, visits, _) in enumerate(world.users, start=1)
    ]
    queries += [Query(), Query(candidates=[video(3, text), video(1, text)], k=9)]
    for query, answer in zip(queries, recommender.recommend_many(queries), strict=True):
        alone = recommender.recommend_many([query])[0]
        assert [item.id for item in alone.items] == [item.id for item in answer.items]
        np.testing.assert_allclose([i.score for i in alone.items], [i.score for i in answer.items], atol=1e-6)
    questions = [CommentQuery(video(3, text), q.video_history, q.comment_history) for q in queries]
    for question, answer in zip(questions, recommender.rank_comments_many(questions), strict=True):
        alone = recommender.rank_comments_many([question])[0]
        assert [item.id for item in alone.items] == [item.id for item in answer.items]


def test_a_plain_list_of_comments_is_the_visits_they_make(served):
    recommender, world, text = served
    first, second = (world.lists.row(v).tolist() for v in (1, 2))
    visits = [(1, first[:1]), (2, second[:2]), (1, first[:2])]
    plain = [comment(c, text) for _, own in visits for c in own]
    assert recommender.recommend([], plain) == recommender.recommend([], raw_visits(visits, text))
    # One visit that came in two parts is one step, as in training.
    parts = [(1, first[:1]), (1, first[1:2]), (2, second[:2])]
    whole = [(1, first[:2]), (2, second[:2])]
    assert recommender.recommend([], raw_visits(parts, text)) == recommender.recommend(
        [], raw_visits(whole, text)
    )


def test_unknown_ids_are_skipped_and_told(served):
    recommender, world, text = served
    known = recommender.recommend([video(4, text)], raw_visits([(2, [int(world.lists.row(2)[0])])], text))
    visits = [
        {"video": "nowhere", "comments": [comment(1, text)]},
        {"video": video(2, text), "comments": [comment(int(world.lists.row(2)[0]), text), "nothing"]},
        "nothing",
        10**30,
    ]
    answer = recommender.recommend(["none", video(4, text), 10**30, "none"], visits, exclude=["no", "none"])
    assert answer.items == known.items
    assert answer.unknown.videos == ["none", 10**30, "nowhere", "no"]
    assert answer.unknown.comments == ["nothing", 10**30]


def test_a_visit_whose_comments_are_unknown_still_tells_its_video(served):
    recommender, world, text = served
    answer = recommender.recommend([], [{"video": video(2, text), "comments": ["nothing"]}], k=5)
    user = world.user(Task.REC, [], [(2, [])])
    assert_items(answer.items, *expected(world, user, [], 5), lambda row: video(row, text))


def test_digits_and_numbers_are_the_same_id(tmp_path):
    make_bundle(tmp_path / "b", n_users=0)
    recommender = Recommender.load(tmp_path / "b")
    assert recommender.recommend(["1007"], ["5"]) == recommender.recommend([1007], [5])
    assert recommender.title("1007") == "video 1" and recommender.title("١٠٠٧") is None


def test_candidates_are_ranked_each_once(served):
    recommender, world, text = served
    rows = [9, 3, 3, 20, 9]
    answer = recommender.recommend(
        [video(3, text)], candidates=[*(video(row, text) for row in rows), "none"], k=10
    )
    user = world.user(Task.REC, [3], [])
    assert_items(
        answer.items,
        *expected(world, user, set(range(41)) - {9, 20}, 10),
        lambda row: video(row, text),
    )
    assert answer.unknown.videos == ["none"]
    kept = recommender.recommend(
        [video(3, text)], candidates=[video(3, text)], exclude_seen=False, exclude=[video(9, text)]
    )
    assert [item.id for item in kept.items] == [video(3, text)]
    assert recommender.recommend([], candidates=[]).items == []


def test_videos_are_shown_with_their_comments(served):
    recommender, world, text = served
    info = recommender.video(video(2, text), limit=2)
    own = world.lists.row(2)
    assert (info.id, info.title, info.n_comments) == (video(2, text), "video 2", len(own))
    assert [(c.id, c.text, c.likes) for c in info.comments] == [
        (comment(c, text), f"comment {c}", world.likes[c]) for c in own[:2].tolist()
    ]
    assert recommender.title(video(2, text)) == "video 2" and recommender.title("none") is None


def test_users_to_choose_from(served):
    recommender, _, text = served
    names = [f"u{row}" if text else 100 + row for row in range(1, 7)]
    assert recommender.users(3) == names[:3]
    assert recommender.users(9, "u" if text else "1") == names
    assert recommender.users(9, "u4" if text else "104") == names[3:4]
    assert recommender.users(9, "x") == []


@pytest.mark.parametrize(
    ("query", "told"),
    [
        (Query(k=0), "k is a whole number from 1 on, not 0"),
        (Query(k=True), "k is a whole number from 1 on, not True"),
        (Query(k=2.5), "not 2.5"),
        (Query(video_history="1007"), "video_history is a list of ids, not str"),
        (Query(video_history=[1.5]), "an id is a whole number or a text, not 1.5"),
        (Query(video_history=[True]), "not True"),
        (Query(video_history=[[1]]), r"not \[1\]"),
        (Query(comment_history={"video": 1}), "comment_history is a list, not dict"),
        (Query(comment_history=[{"vidio": 1, "comments": [1]}]), "it has .'vidio'."),
        (Query(comment_history=[{}]), "it is empty"),
        (Query(comment_history=[{"video": 1007, "comments": 5}]), "comments of a visit is a list of ids"),
        (Query(exclude=7), "exclude is a list of ids, not int"),
        (Query(candidates="7"), "candidates is a list of ids, not str"),
        (Query(exclude_seen="no"), "exclude_seen is true or false, not 'no'"),
        (Query(user=101, video_history=[1007]), "either a user or histories"),
    ],
)
def test_what_is_no_request_is_told(served, query, told):
    recommender, _, text = served
    if text and query.user:
        query = dataclasses.replace(query, user="u1")
    with pytest.raises(BadRequest, match=told):
        recommender.recommend_many([query])


def test_unknown_video_and_user(served):
    recommender, _, _ = served
    with pytest.raises(UnknownId, match="no video 'none' in this bundle"):
        recommender.rank_comments([], [], "none")
    with pytest.raises(UnknownId, match="no user 'none' in this bundle"):
        recommender.recommend_user("none")
    with pytest.raises(UnknownId, match="no video 'none'"):
        recommender.video("none")


def test_a_bundle_of_one_task_says_what_it_can_do(tmp_path: Path):
    make_bundle(tmp_path / "b", tasks=(Task.COMM_RANK,), n_users=0)
    recommender = Recommender.load(tmp_path / "b")
    assert recommender.tasks == ("comm_rank",)
    assert recommender.rank_comments([], [], 1007, k=1).items
    with pytest.raises(BadRequest, match="answers CommRank only: export a Rec checkpoint"):
        recommender.recommend([])
    with pytest.raises(BadRequest, match="holds no users"):
        recommender.histories(101)
    assert recommender.users() == []
