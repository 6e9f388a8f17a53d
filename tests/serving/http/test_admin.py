"""The catalogue over HTTP: who may change it, what a change does, and that none is lost."""

import math
import shutil
import threading
import time
from urllib.parse import quote

import numpy as np
import pytest

from tests.serving.bundles import make_bundle
from tests.serving.http.process import ServerProcess

TOKEN = "a-token-of-tests"
WIDTH = 24
VECTOR = [round(math.sin(place), 3) for place in range(WIDTH)]
VIDEO = "/v1/admin/videos/9001"
COMMENT = "/v1/admin/comments/9002"


@pytest.fixture(scope="module")
def admin(bundle, tmp_path_factory):
    """A server with admin routes whose changes end with it."""
    running = ServerProcess(bundle, log=tmp_path_factory.mktemp("log") / "log", token=TOKEN)
    yield running
    assert running.stop() == 0


def test_without_a_token_there_are_no_such_routes(server):
    for method, path in (("PUT", VIDEO), ("DELETE", VIDEO), ("POST", "/v1/admin/bundle")):
        answer = server.call(method, path, {}, {"Authorization": f"Bearer {TOKEN}"})
        assert (answer.status, answer.error) == (404, "not_found")


@pytest.mark.parametrize(
    "given",
    ["", "Bearer", "Bearer wrong", f"Basic {TOKEN}", f"Bearer {TOKEN}x", f"Bearer {TOKEN[:-1]}", TOKEN],
)
def test_a_wrong_token_gets_401_before_anything_is_read(admin, given):
    for method, path in (
        ("PUT", VIDEO),
        ("DELETE", VIDEO),
        ("POST", "/v1/admin/bundle"),
        ("GET", "/v1/admin/x"),
    ):
        answer = admin.call(method, path, b"{", {"Authorization": given})
        assert (answer.status, answer.error) == (401, "unauthorized"), (method, path)
        assert answer.headers["www-authenticate"] == "Bearer"
        assert TOKEN not in answer.message


def test_the_token_may_come_from_a_file(start, tmp_path):
    (tmp_path / "token").write_text("from-a-file\n")
    server = start("--admin_token_file", str(tmp_path / "token"))
    body = {"title": "new", "vector": VECTOR}
    assert server.call("PUT", VIDEO, body, {"Authorization": "Bearer from-a-file"}).status == 200
    assert server.call("PUT", VIDEO, body, {"Authorization": f"Bearer {TOKEN}"}).status == 401


def test_a_video_comes_changes_and_goes(admin):
    before = admin.get("/readyz").json["catalogue"]["videos"]
    put = admin.call("PUT", VIDEO, {"title": "brand new", "vector": VECTOR})
    assert put.status == 200 and put.json["catalogue"]["videos"] == before + 1
    assert admin.get("/v1/videos/9001").json["title"] == "brand new"
    everything = admin.post("/v1/recommend", {"k": 1000}).json["items"]
    assert 9001 in [item["id"] for item in everything]
    assert admin.post("/v1/recommend", {"video_history": [9001]}).json["unknown"]["videos"] == []
    assert admin.call("PUT", VIDEO, {"title": "renamed"}).status == 200
    assert admin.get("/v1/videos/9001").json["title"] == "renamed"
    assert admin.call("DELETE", VIDEO).json["catalogue"]["videos"] == before
    assert admin.get("/v1/videos/9001").status == 404
    assert 9001 not in [item["id"] for item in admin.post("/v1/recommend", {"k": 1000}).json["items"]]
    again = admin.call("DELETE", VIDEO)
    assert (again.status, again.error) == (404, "unknown_id")


def test_a_comment_comes_and_goes(admin):
    body = {"video": 1007, "text": "first!", "vector": VECTOR, "likes": 1000}
    assert admin.call("PUT", COMMENT, body).status == 200
    first = admin.get("/v1/videos/1007").json["comments"][0]
    assert first == {"id": 9002, "text": "first!", "likes": 1000}
    ranked = admin.post("/v1/rank-comments", {"video": 1007}).json["items"]
    assert 9002 in [item["id"] for item in ranked]
    assert admin.call("DELETE", COMMENT).status == 200
    assert admin.call("DELETE", COMMENT).status == 404


@pytest.mark.parametrize(
    ("path", "body", "status", "words"),
    [
        (VIDEO, {}, 422, "title"),
        (VIDEO, {"title": "no vector"}, 422, "vector"),
        (VIDEO, {"title": "short", "vector": [1.0]}, 422, "24"),
        (VIDEO, b'{"title": "x", "vector": [NaN]}', 422, "vector[0]"),
        (VIDEO, b'{"title": "x", "vector": [1e400]}', 422, "vector[0]"),
        (VIDEO, {"title": "x", "vector": ["1"] * WIDTH}, 422, "vector[0]"),
        (VIDEO, {"title": "x", "vector": [True] * WIDTH}, 422, "vector[0]"),
        (VIDEO, {"title": "x" * 20_001, "vector": VECTOR}, 422, "title"),
        (VIDEO, {"title": 5, "vector": VECTOR}, 422, "title"),
        (VIDEO, {"title": "x", "vector": VECTOR, "likes": 1}, 422, "likes"),
        (VIDEO, b"{", 400, "JSON"),
        ("/v1/admin/videos/a-text", {"title": "x", "vector": VECTOR}, 422, "whole number"),
        (COMMENT, {"text": "x", "vector": VECTOR}, 422, "video"),
        (COMMENT, {"video": 4, "text": "x", "vector": VECTOR}, 404, "4"),
        (COMMENT, {"video": 1007, "text": "x", "vector": VECTOR, "likes": -1}, 422, "likes"),
        ("/v1/admin/comments/" + "9" * 600, {"video": 1007, "text": "x", "vector": VECTOR}, 422, "id: "),
        (
            "/v1/admin/videos/" + "9" * 513,
            {"title": "x", "vector": VECTOR},
            422,
            "id: string should have at most",
        ),
        ("/v1/admin/videos/", {"title": "x", "vector": VECTOR}, 422, "id: string should have at least 1"),
    ],
)
def test_a_bad_change_is_refused_whole(admin, path, body, status, words):
    before = admin.get("/readyz").json
    answer = admin.call("PUT", path, body)
    assert answer.status == status and words in answer.message, answer.body
    assert admin.get("/readyz").json == before


def test_what_can_be_put_can_be_asked_for_and_removed(start, tmp_path):
    make_bundle(tmp_path / "texts", text_ids=True)
    server = start(folder=tmp_path / "texts", token=TOKEN)
    for id in ("two\nlines", "\n", "x\n", "a/b", "..", "%2F", "y" * 512):
        path = quote(id, safe="")
        assert server.call("PUT", f"/v1/admin/videos/{path}", {"title": "t", "vector": VECTOR}).status == 200
        comment = {"video": id, "text": "t", "vector": VECTOR}
        assert server.call("PUT", f"/v1/admin/comments/{path}", comment).json["id"] == id
        shown = server.get(f"/v1/videos/{path}").json
        assert (shown["id"], [each["id"] for each in shown["comments"]]) == (id, [id])
        asked = {"video_history": [id], "comment_history": [{"video": id, "comments": [id]}]}
        assert server.post("/v1/recommend", asked).json["unknown"] == {"videos": [], "comments": []}
        assert server.get(f"/v1/users/{path}").message == f"no user {id!r} in this bundle"
        assert server.call("DELETE", f"/v1/admin/comments/{path}").status == 200
        assert server.call("DELETE", f"/v1/admin/videos/{path}").status == 200
    for id in ("", "y" * 513):
        for method, body in (("PUT", {"title": "t", "vector": VECTOR}), ("DELETE", None)):
            answer = server.call(method, f"/v1/admin/videos/{id}", body)
            assert (answer.status, answer.error) == (422, "bad_request") and answer.message.startswith("id: ")


def test_the_least_number_is_an_id_everywhere(admin):
    least = -(2**63)
    assert admin.call("PUT", f"/v1/admin/videos/{least}", {"title": "t", "vector": VECTOR}).status == 200
    assert admin.post("/v1/recommend", {"video_history": [least]}).json["unknown"]["videos"] == []
    assert admin.post("/v1/recommend", {"video_history": [least - 1]}).status == 422
    assert admin.call("DELETE", f"/v1/admin/videos/{least}").status == 200


def test_changes_are_there_after_a_restart(start, tmp_path):
    state = str(tmp_path / "state")
    first = start("--state", state, token=TOKEN)
    assert first.call("PUT", VIDEO, {"title": "kept", "vector": VECTOR}).status == 200
    assert first.call("DELETE", "/v1/admin/videos/1007").status == 200
    assert first.metric('lsvcr_catalogue{what="journal_bytes"}') > 0
    assert first.stop() == 0
    second = start("--state", state, token=TOKEN)
    assert second.get("/v1/videos/9001").json["title"] == "kept"
    assert second.get("/v1/videos/1007").status == 404


def test_a_state_folder_serves_one_process(start, bundle, tmp_path, capsys, monkeypatch):
    from lsvcr.cli import main

    for name in ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS"):
        monkeypatch.setenv(name, "1")
    start("--state", str(tmp_path / "state"))
    assert main(["serve", str(bundle), "--port", "0", "--state", str(tmp_path / "state")]) == 2
    assert "one state folder serves one process" in capsys.readouterr().err


def test_kill_9_while_changes_are_made_loses_nothing_acknowledged(start, tmp_path):
    state = str(tmp_path / "state")
    for turn in range(2):
        server = start("--state", state, token=TOKEN)
        told: list[int] = []
        threads = [
            threading.Thread(target=_put_until_it_ends, args=(server, turn, part, told)) for part in range(4)
        ]
        for thread in threads:
            thread.start()
        while len(told) < 40:
            time.sleep(0.01)
        server.process.kill()
        for thread in threads:
            thread.join()
        again = start("--state", state, token=TOKEN)
        for id in told:
            assert again.get(f"/v1/videos/{id}").json["title"] == f"title {id}"
        assert again.stop() == 0


def _put_until_it_ends(server: ServerProcess, turn: int, part: int, told: list[int]) -> None:
    for number in range(100_000):
        id = 100_000 + turn * 1_000_000 + number * 4 + part
        vector = np.full(WIDTH, number + 1.0).tolist()
        try:
            answer = server.call("PUT", f"/v1/admin/videos/{id}", {"title": f"title {id}", "vector": vector})
        except OSError:
            return
        if answer.status == 200:
            told.append(id)


def test_a_disk_that_is_full_refuses_the_change_and_serving_goes_on(start, tmp_path):
    """The disk is a limit on the size of files; the journal's header alone fits."""
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, hard))
    try:
        server = start("--state", str(tmp_path / "state"), "--access_log", "False", token=TOKEN)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    kept = 0
    while True:
        answer = server.call("PUT", f"/v1/admin/videos/{9001 + kept}", {"title": "x" * 200, "vector": VECTOR})
        if answer.status != 200:
            break
        kept += 1
        assert kept < 100
    assert (answer.status, answer.error) == (507, "not_stored") and "journal" in answer.message
    assert kept > 0 and server.get(f"/v1/videos/{9000 + kept}").status == 200
    assert server.get(f"/v1/videos/{9001 + kept}").status == 404
    assert server.post("/v1/recommend", {}).status == 200


def test_a_state_folder_that_has_gone_refuses_changes_and_serving_goes_on(start, tmp_path):
    state = tmp_path / "state"
    first = start("--state", str(state), token=TOKEN)
    body = {"title": "x", "vector": VECTOR}
    assert first.call("PUT", VIDEO, body).status == 200
    shutil.rmtree(state)
    second = start("--state", str(state), token=TOKEN)
    for _ in range(2):
        answer = first.call("PUT", "/v1/admin/videos/9003", body)
        assert (answer.status, answer.error) == (
            507,
            "not_stored",
        ) and "put the state folder back" in answer.message
        assert first.get("/v1/videos/9003").status == 404 and first.get("/v1/videos/9001").status == 200
        assert second.call("PUT", "/v1/admin/videos/9004", body).status == 200


def test_a_state_folder_inside_the_bundle_is_refused(refused, start, bundle, tmp_path):
    inner = shutil.copytree(bundle, tmp_path / "bundle")
    words = "choose a folder outside"
    assert words in refused(str(inner), "--port", "0", "--state", str(inner / "state"))
    assert not (inner / "state").exists()
    server = start("--state", str(inner / "state"), token=TOKEN)
    answer = server.post("/v1/admin/bundle", {"path": str(inner)})
    assert (answer.status, answer.error) == (422, "bad_bundle") and words in answer.message
    assert server.call("PUT", VIDEO, {"title": "x", "vector": VECTOR}).status == 200
    assert server.get("/readyz").json["bundle"] == str(bundle)


def test_openapi_tells_of_the_token(admin):
    schema = admin.get("/openapi.json").json
    put = schema["paths"]["/v1/admin/videos/{id}"]["put"]
    assert put["security"] == [{"HTTPBearer": []}]
    assert {"401", "404", "413", "422", "507"} <= put["responses"].keys()
