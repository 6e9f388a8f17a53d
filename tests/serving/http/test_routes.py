"""Every route gives what the runtime gives."""

from pathlib import Path

import pytest

from lsvcr.serving.runtime import Recommender

LIKED = [1007, 1014, 1091]
VISITS = [{"video": 1007, "comments": [5, 10]}, {"video": 1021, "comments": [15]}]


@pytest.fixture(scope="module")
def own(bundle: Path) -> Recommender:
    """The same bundle in this process."""
    return Recommender.load(bundle)


def same(items: list, expected: list) -> None:
    assert [(item["id"], item["title"]) for item in items] == [(item.id, item.title) for item in expected]
    assert [item["score"] for item in items] == pytest.approx([item.score for item in expected], abs=1e-5)


def test_recommend(server, own):
    body = {"video_history": LIKED, "comment_history": VISITS, "k": 4, "exclude": [1035]}
    answer = server.post("/v1/recommend", body)
    assert answer.status == 200 and answer.headers["content-type"] == "application/json"
    expected = own.recommend(LIKED, VISITS, k=4, exclude=[1035])
    same(answer.json["items"], expected.items)
    assert len(answer.json["items"]) == 4
    assert answer.json["unknown"] == {"videos": [], "comments": []}


def test_an_empty_body_asks_for_a_new_user(server, own):
    same(server.post("/v1/recommend", {}).json["items"], own.recommend().items)


def test_ids_may_be_numbers_or_their_digits_and_unknown_ones_are_told(server, own):
    answer = server.post(
        "/v1/recommend",
        {"video_history": ["1007", 1014, 5], "comment_history": [5, "9999"], "exclude": [6, 5]},
    )
    same(answer.json["items"], own.recommend([1007, 1014], [5]).items)
    assert answer.json["unknown"] == {"videos": [5, 6], "comments": ["9999"]}


def test_seen_videos_come_back_when_asked_for(server):
    with_seen = server.post("/v1/recommend", {"video_history": LIKED, "exclude_seen": False, "k": 40})
    without = server.post("/v1/recommend", {"video_history": LIKED, "k": 40})
    assert len(with_seen.json["items"]) == 40 and len(without.json["items"]) == 37


def test_candidates_alone_are_ranked(server):
    answer = server.post("/v1/recommend", {"candidates": [1070, 1063, 4], "k": 5})
    assert {item["id"] for item in answer.json["items"]} == {1063, 1070}
    assert answer.json["unknown"]["videos"] == [4]


def test_a_stored_user(server, own):
    same(server.post("/v1/recommend", {"user": 101}).json["items"], own.recommend_user(101).items)


def test_many_requests_in_one(server, own):
    bodies = [{"video_history": [video], "k": 3} for video in LIKED]
    responses = server.post("/v1/recommend", {"requests": bodies}).json["responses"]
    assert len(responses) == 3
    for video, response in zip(LIKED, responses, strict=True):
        same(response["items"], own.recommend([video], k=3).items)


def test_more_requests_than_one_run_takes_keep_their_order(start, own):
    small = start("--batch_size", "2")
    videos = [1007 + 7 * step for step in range(9)]
    bodies = [{"video_history": [video], "k": 2} for video in videos]
    responses = small.post("/v1/recommend", {"requests": bodies}).json["responses"]
    for video, response in zip(videos, responses, strict=True):
        same(response["items"], own.recommend([video], k=2).items)


def test_rank_comments(server, own):
    body = {"video_history": LIKED, "comment_history": VISITS, "video": 1014}
    answer = server.post("/v1/rank-comments", body)
    expected = own.rank_comments(LIKED, VISITS, 1014)
    same(answer.json["items"], expected.items)
    assert answer.json["video"] == 1014
    first = server.post("/v1/rank-comments", {**body, "k": 1}).json["items"]
    assert first == answer.json["items"][:1]
    chosen = [item.id for item in expected.items][:2]
    two = server.post("/v1/rank-comments", {**body, "comments": [*chosen, 4]}).json
    assert [item["id"] for item in two["items"]] == chosen and two["unknown"]["comments"] == [4]


def test_many_rankings_in_one(server, own):
    bodies = [{"video": video} for video in LIKED]
    responses = server.post("/v1/rank-comments", {"requests": bodies}).json["responses"]
    for video, response in zip(LIKED, responses, strict=True):
        same(response["items"], own.rank_comments([], [], video).items)


def test_a_video_with_its_comments(server, own):
    info = own.video(1014)
    answer = server.get("/v1/videos/1014").json
    assert (answer["id"], answer["title"], answer["n_comments"]) == (1014, "video 2", info.n_comments)
    assert [comment["id"] for comment in answer["comments"]] == [comment.id for comment in info.comments]
    assert answer["comments"][0].keys() == {"id", "text", "likes"}
    assert len(server.get("/v1/videos/1014?limit=1").json["comments"]) == min(1, info.n_comments)


def test_users_and_their_histories_can_be_sent_back(server, own):
    assert server.get("/v1/users").json == {"users": [101, 102, 103, 104, 105, 106]}
    assert server.get("/v1/users?prefix=10&limit=2").json == {"users": [101, 102]}
    assert server.get("/v1/users?prefix=7").json == {"users": []}
    user = server.get("/v1/users/103").json
    videos, visits = own.histories(103)
    assert (user["id"], user["video_history"], user["comment_history"]) == (103, videos, visits)
    assert {each["id"]: each["title"] for each in user["videos"]} == {
        video: own.title(video) for video in {*videos, *(visit["video"] for visit in visits)}
    }
    texts = {each["id"]: each["text"] for each in user["comments"]}
    assert texts == {comment: f"comment {comment // 5}" for visit in visits for comment in visit["comments"]}
    body = {"video_history": videos, "comment_history": visits, "k": 3}
    assert server.post("/v1/recommend", body).status == 200


def test_health_and_readiness(server, bundle):
    assert server.get("/healthz").json == {"status": "alive"}
    ready = server.get("/readyz").json
    assert ready["bundle"] == str(bundle) and ready["tasks"] == ["rec", "comm_rank"]
    assert (ready["catalogue"]["videos"], ready["catalogue"]["comments"], ready["catalogue"]["users"]) == (
        40,
        120,
        6,
    )


def test_text_ids_with_a_slash(start, tmp_path):
    from tests.serving.bundles import make_bundle

    make_bundle(tmp_path / "texts", text_ids=True)
    server = start(folder=tmp_path / "texts")
    assert server.post("/v1/recommend", {"video_history": ["v1"]}).json["unknown"]["videos"] == []
    assert server.get("/v1/videos/v2").json["id"] == "v2"
    # A slash in an id is part of the id, not of the route.
    assert server.get("/v1/videos/a%2Fb").message == "no video 'a/b' in this bundle"


def test_a_bundle_without_users_or_comment_ranking(start, tmp_path):
    from lsvcr.schema import Task
    from tests.serving.bundles import make_bundle

    make_bundle(tmp_path / "small", n_users=0, tasks=(Task.REC,))
    server = start(folder=tmp_path / "small")
    assert server.get("/v1/users").json == {"users": []}
    assert server.get("/v1/users/101").status == 422
    refused = server.post("/v1/rank-comments", {"video": 1007})
    assert refused.status == 422 and "export" in refused.message


def test_openapi_is_complete_and_names_the_limits(server):
    schema = server.get("/openapi.json").json
    recommend = schema["paths"]["/v1/recommend"]["post"]
    assert {"200", "400", "404", "413", "415", "422", "503", "504"} <= recommend["responses"].keys()
    request = schema["components"]["schemas"]["RecommendRequest"]["properties"]
    assert request["k"]["maximum"] == 1000 and request["video_history"]["maxItems"] == 1000
    assert not any("admin" in path for path in schema["paths"])  # there is no token
    assert {"/v1/rank-comments", "/v1/videos/{id}", "/v1/users", "/v1/users/{id}", "/healthz"} <= schema[
        "paths"
    ].keys()
