"""Another bundle takes over: no request is dropped, none sees parts of both, a bad bundle changes nothing."""

import json
import math
import shutil
import signal
import sys
import threading
import time
from pathlib import Path

import pytest

from tests.serving.bundles import make_bundle
from tests.serving.http.process import receive_all, request_bytes, wait_for

TOKEN = "a-token-of-tests"
BUNDLE = "/v1/admin/bundle"
RECOMMEND = "/v1/recommend"
VECTOR = [round(math.sin(place), 3) for place in range(24)]


@pytest.fixture(scope="module")
def other(tmp_path_factory):
    """A bundle of 30 videos, with other vectors under the same ids."""
    path = tmp_path_factory.mktemp("other") / "bundle"
    make_bundle(path, n_videos=30, n_users=7, seed=9)
    return path


def ask(connection, count, answers, stop):
    """Send one request after the other until told to stop; every answer is kept."""
    body = json.dumps({"requests": [{"k": 50, "exclude_seen": False}] * count}).encode()
    reader = connection.makefile("rb")
    while not stop.is_set():
        connection.sendall(request_bytes(RECOMMEND, body))
        status = reader.readline().split()[1]
        length = 0
        while (line := reader.readline()) != b"\r\n":
            if line.lower().startswith(b"content-length:"):
                length = int(line.split(b":")[1])
        content = reader.read(length)
        sizes = (
            {len(each["items"]) for each in json.loads(content)["responses"]} if status == b"200" else None
        )
        answers.append((status, sizes))


def test_requests_run_throughout(start, bundle, other):
    server = start(token=TOKEN)
    answers: list = []
    stop = threading.Event()
    connections = [server.raw() for _ in range(6)]
    # 80 queries are more than one run takes.
    threads = [
        threading.Thread(target=ask, args=(each, (1, 8, 80)[place % 3], answers, stop))
        for place, each in enumerate(connections)
    ]
    for thread in threads:
        thread.start()
    for turn in range(6):
        target = (other, bundle)[turn % 2]
        swapped = server.post(BUNDLE, {"path": str(target)})
        assert swapped.status == 200 and swapped.json["bundle"] == str(target)
        assert server.get("/readyz").json["catalogue"]["videos"] == (30, 40)[turn % 2]
    stop.set()
    for thread in threads:
        thread.join()
    assert {status for status, _ in answers} == {b"200"}
    assert {frozenset(sizes) for _, sizes in answers} == {frozenset({30}), frozenset({40})}
    assert server.metric('lsvcr_bundle_swaps_total{result="done"}') == 6


def test_a_bad_bundle_changes_nothing(start, bundle, tmp_path):
    server = start(token=TOKEN)
    broken = tmp_path / "broken"
    shutil.copytree(bundle, broken)
    content = bytearray((broken / "rec" / "items.npy").read_bytes())
    content[-1] ^= 1
    (broken / "rec" / "items.npy").write_bytes(content)
    before = server.post(RECOMMEND, {}).json
    for path, words in (
        (broken, "items.npy"),
        (tmp_path / "nothing", "nothing"),
        (bundle / "rec", "manifest"),
        ("a" * 4000, "File name too long"),
    ):
        answer = server.post(BUNDLE, {"path": str(path)})
        assert (answer.status, answer.error) == (422, "bad_bundle") and words in answer.message
    assert server.post(BUNDLE, {"path": "\0"}).status == 422
    assert server.post(BUNDLE, {}).message.startswith("path: ")
    assert server.post(RECOMMEND, {}).json == before and server.get("/readyz").json["bundle"] == str(bundle)
    assert server.metric('lsvcr_bundle_swaps_total{result="refused"}') == 5


def test_changes_go_over_to_the_next_bundle_and_its_restart(start, other, tmp_path):
    state = str(tmp_path / "state")
    server = start("--state", state, token=TOKEN)
    assert server.call("PUT", "/v1/admin/videos/9001", {"title": "mine", "vector": VECTOR}).status == 200
    assert server.call("DELETE", "/v1/admin/videos/1007").status == 200
    assert server.post(BUNDLE, {"path": str(other)}).json["catalogue"]["videos"] == 30
    assert server.get("/v1/videos/9001").json["title"] == "mine"
    assert server.get("/v1/videos/1007").status == 404
    assert server.call("PUT", "/v1/admin/videos/9002", {"title": "later", "vector": VECTOR}).status == 200
    assert server.stop() == 0
    again = start("--state", state, folder=other, token=TOKEN)
    assert again.get("/v1/videos/9001").json["title"] == "mine"
    assert again.get("/v1/videos/9002").json["title"] == "later"


def test_changes_made_while_bundles_change_are_seen_at_once(start, bundle, other, tmp_path):
    server = start("--state", str(tmp_path / "state"), "--access_log", "False", token=TOKEN)
    stop = threading.Event()
    wrong: list[int] = []
    made: list[int] = []

    def change() -> None:
        id = 50_000
        while not stop.is_set():
            id += 1
            put = server.call("PUT", f"/v1/admin/videos/{id}", {"title": f"t{id}", "vector": VECTOR})
            if put.status != 200 or server.get(f"/v1/videos/{id}").status != 200:
                wrong.append(id)
            made.append(id)

    thread = threading.Thread(target=change)
    thread.start()
    for turn in range(6):
        assert server.post(BUNDLE, {"path": str((other, bundle)[turn % 2])}).status == 200
    stop.set()
    thread.join()
    assert made and not wrong
    assert all(server.get(f"/v1/videos/{id}").status == 200 for id in made)


def test_sighup_reopens_the_folder_it_was_started_with(start, bundle, tmp_path):
    folder = tmp_path / "bundle"
    shutil.copytree(bundle, folder)
    server = start(folder=folder)
    make_bundle(folder, n_videos=30)
    server.process.send_signal(signal.SIGHUP)
    wait_for(lambda: server.get("/readyz").json["catalogue"]["videos"] == 30)
    (folder / "manifest.json").write_text("{")
    server.process.send_signal(signal.SIGHUP)
    wait_for(lambda: len(server.events("bundle")) == 2)
    good, bad = server.events("bundle")
    assert good["level"] == "info" and bad["level"] == "error" and "manifest.json" in bad["reason"]
    assert len(server.post(RECOMMEND, {"k": 50}).json["items"]) == 30


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_the_old_bundle_leaves_memory(start, bundle, other):
    server = start("--request_timeout", "0.3", token=TOKEN)
    maps = Path(f"/proc/{server.process.pid}/maps")
    assert f"{bundle}/" in maps.read_text() and f"{other}/" not in maps.read_text()
    assert server.post(RECOMMEND, {"video_history": [1007]}).status == 200
    assert server.post(BUNDLE, {"path": str(other)}).status == 200
    assert f"{other}/" in maps.read_text()
    wait_for(lambda: f"{bundle}/" not in maps.read_text())


def test_one_exchange_at_a_time(start, tmp_path):
    large = tmp_path / "large"
    make_bundle(large, n_videos=20_000, n_comments=20_000, n_users=0, d=64)
    server = start(token=TOKEN)
    bodies = json.dumps({"path": str(large)}).encode()
    extra = f"Authorization: Bearer {TOKEN}\r\nConnection: close\r\n"
    connections = [server.raw() for _ in range(4)]
    for connection in connections:
        connection.sendall(request_bytes(BUNDLE, bodies, extra))
    statuses = sorted(receive_all(connection).split(b" ")[1] for connection in connections)
    assert statuses[0] == b"200" and statuses[-1] == b"409"
    time.sleep(0.1)
    assert len(server.post(RECOMMEND, {"k": 3}).json["items"]) == 3
