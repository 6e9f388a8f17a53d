"""Several processes that serve one bundle at one address."""

import errno
import json
import os
import shutil
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from lsvcr.cli import main
from lsvcr.serving.http import processes
from lsvcr.serving.http.metrics import FILE_BYTES, set_aside
from lsvcr.utils.errors import UserError
from tests.processes import alive
from tests.serving.bundles import make_bundle
from tests.serving.http.process import Group, receive_all, request_bytes, wait_for

RECOMMEND = "/v1/recommend"
ANSWERED = 'lsvcr_requests_total{route="/v1/recommend",status="200"}'
LONG = json.dumps({"requests": [{"k": 40, "exclude_seen": False}] * 256}).encode()
PATIENCE = 60.0
"""Seconds for what another process does; on a machine with other work it waits for its turn."""


@pytest.fixture(scope="module")
def group(bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Group]:
    """Two processes that tests share, and leave as they found them."""
    running = Group(bundle, log=tmp_path_factory.mktemp("log") / "log")
    yield running
    assert running.stop(timeout=PATIENCE) == 0


@pytest.fixture
def start_group(bundle: Path, tmp_path: Path) -> Iterator[Callable[..., Group]]:
    """Starts two processes with these flags; they are ended after the test."""
    running: list[Group] = []

    def begin(*flags: str, folder: Path = bundle, **more: Any) -> Group:
        running.append(Group(folder, *flags, log=tmp_path / f"log{len(running)}", **more))
        return running[-1]

    yield begin
    for each in running:
        if each.process.poll() is None:
            each.process.kill()  # the others end by themselves
            each.process.wait()


def who_answered(group: Group) -> set[int]:
    """Processes that have told of a request."""
    return {line["pid"] for line in group.events("request")}


def ask_all(group: Group, pids: set[int]) -> None:
    """Ask on new connections until each of these processes has answered."""

    def asked() -> bool:
        assert group.post(RECOMMEND, {}).status == 200
        return pids <= who_answered(group)

    wait_for(asked, PATIENCE)


def test_none_of_them_answers_as_a_website(group):
    seen: set[str] = set()

    def both_refused() -> bool:
        answer = group.post(RECOMMEND, {}, headers={"Host": "evil.example"})
        assert (answer.status, answer.error) == (421, "wrong_host")
        seen.add(answer.headers["x-request-id"].partition("-")[0])  # each process has a prefix of its own
        return len(seen) == 2

    wait_for(both_refused, PATIENCE)


def test_each_of_them_answers_and_as_one_process_does(group, server):
    body = {"video_history": [1007, 1014], "comment_history": [{"video": 1007, "comments": [5]}], "k": 40}
    expected = server.post(RECOMMEND, body).json
    assert len(set(group.pids)) == 2 and group.process.pid not in group.pids
    seen: set[int] = set()
    for number in range(200):
        assert group.post(RECOMMEND, body, headers={"X-Request-ID": f"same-{number}"}).json == expected
        seen = {line["pid"] for line in group.events("request") if line["id"].startswith("same-")}
        if seen >= set(group.pids):
            break
    assert seen == set(group.pids)
    [ready] = group.events("ready")
    assert ready["tasks"] == ["rec", "comm_rank"] and ready["pid"] == group.process.pid
    assert {line["pid"] for line in group.events("process_ready")} >= set(group.pids)


def test_metrics_are_sums_whoever_is_asked(group):
    before = group.metric(ANSWERED)
    connections = [group.raw() for _ in range(16)]
    for connection in connections:
        connection.sendall(request_bytes(RECOMMEND, b"{}"))
        assert b" 200 " in connection.recv(65536)
    # An answer is counted when it has been sent.
    wait_for(lambda: group.metric(ANSWERED) >= before + 16, PATIENCE)
    assert len({group.metric(ANSWERED) for _ in range(12)}) == 1
    wait_for(lambda: group.metric("lsvcr_connections") == 17, PATIENCE)  # and the one that asks
    for connection in connections:
        connection.close()
    wait_for(lambda: group.metric("lsvcr_connections") == 1, PATIENCE)
    assert group.metric('lsvcr_catalogue{what="videos"}') == 40 and group.metric("lsvcr_queue") == 0
    assert group.metric("process_cpu_seconds_total") > 0
    assert 'pid="' not in group.get("/metrics").body.decode()


def test_one_that_dies_is_replaced_and_no_counter_falls(group):
    ask_all(group, set(group.pids))
    counted = group.metric(ANSWERED)
    begun = len(group.events("process_ready"))
    [victim, other] = group.pids
    os.kill(victim, signal.SIGKILL)
    wait_for(lambda: [line for line in group.events("process_ended") if line["process"] == victim], PATIENCE)
    assert group.post(RECOMMEND, {}).status == 200
    wait_for(lambda: len(group.events("process_ready")) > begun, PATIENCE)
    [ended] = [line for line in group.events("process_ended") if line["process"] == victim]
    assert ended["level"] == "error" and ended["signal"] == "SIGKILL"
    group.pids = [group.events("process_ready")[-1]["pid"], other]
    assert victim not in group.pids
    ask_all(group, set(group.pids))
    assert {group.metric(ANSWERED) > counted for _ in range(8)} == {True}
    assert len(group.events("ready")) == 1


def test_sigterm_finishes_what_was_taken(start_group):
    group = start_group("--batch_size", "1", "--request_timeout", "60")
    connections = [group.raw() for _ in range(8)]
    for connection in connections:
        connection.sendall(request_bytes(RECOMMEND, LONG))
    wait_for(lambda: group.metric("lsvcr_batch_queries_count") > 0, PATIENCE)
    wait_for(lambda: group.metric("lsvcr_connections") == 9, PATIENCE)
    group.process.send_signal(signal.SIGTERM)
    for connection in connections:
        connection.settimeout(PATIENCE)
        answer = receive_all(connection)
        assert b" 200 " in answer.split(b"\r\n")[0]
        assert len(json.loads(answer.partition(b"\r\n\r\n")[2])["responses"]) == 256
    assert group.process.wait(PATIENCE) == 0
    assert not any(alive(pid) for pid in group.pids)
    with pytest.raises(OSError):
        group.raw()
    [stopped] = group.events("stopped")
    assert stopped["signal"] == "SIGTERM" and not group.events("process_ended")
    assert {line["pid"] for line in group.events("process_stopped")} == set(group.pids)


def test_ctrl_c_reaches_all_and_the_second_does_not_wait(start_group):
    group = start_group("--graceful_timeout", "300", "--client_timeout", "300")
    half = group.raw()
    half.sendall(request_bytes(RECOMMEND, b"{", length=100))
    wait_for(lambda: group.metric("lsvcr_connections") == 2, PATIENCE)
    for pid in group.pids:  # as a terminal does
        os.kill(pid, signal.SIGINT)
    assert group.post(RECOMMEND, {}).status == 200
    group.process.send_signal(signal.SIGINT)
    # One has nothing in work and ends; the other waits for its client.
    wait_for(lambda: len([pid for pid in group.pids if alive(pid)]) == 1, PATIENCE)
    assert group.process.poll() is None
    assert group.stop(signal.SIGINT, PATIENCE) == 130
    assert not any(alive(pid) for pid in group.pids)
    assert group.log_path.read_text().count("stopped by Ctrl-C") == 1


def test_without_the_one_above_they_end_by_themselves(start_group, tmp_path, monkeypatch):
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    group = start_group(port=0)
    assert group.post(RECOMMEND, {}).status == 200
    files = [file.stat() for file in tmp_path.glob("lsvcr-metrics-*/*.db")]
    # Mapped files: what the disk has no room for when it is written ends the process.
    assert len(files) == 8 and all(512 * file.st_blocks >= file.st_size == FILE_BYTES for file in files)
    group.process.kill()
    group.process.wait()
    wait_for(lambda: not any(alive(pid) for pid in group.pids), PATIENCE)
    assert {line["signal"] for line in group.events("process_stopped")} == {"orphaned"}
    assert not list(tmp_path.glob("lsvcr-metrics-*"))


def test_sighup_exchanges_the_bundle_in_all(start_group, bundle, tmp_path):
    folder = tmp_path / "bundle"
    shutil.copytree(bundle, folder)
    group = start_group(folder=folder)
    make_bundle(folder, n_videos=30)
    group.process.send_signal(signal.SIGHUP)
    wait_for(lambda: {line["pid"] for line in group.events("bundle")} == set(group.pids), PATIENCE)
    ask_all(group, set(group.pids))
    for _ in range(12):
        assert len(group.post(RECOMMEND, {"k": 50}).json["items"]) == 30
    assert group.metric('lsvcr_bundle_swaps_total{result="done"}') == 2
    # A bundle that cannot be opened keeps nobody from answering, but the place of one that dies stays empty.
    manifest = (folder / "manifest.json").read_bytes()
    (folder / "manifest.json").write_text("{")
    [victim, other] = group.pids
    os.kill(victim, signal.SIGKILL)
    wait_for(lambda: any("reason" in line for line in group.events("process_ended")), PATIENCE)
    [failed, *_] = [line for line in group.events("process_ended") if "reason" in line]
    assert "manifest.json" in failed["reason"] and failed["exit_code"] == 2
    assert len(group.post(RECOMMEND, {"k": 50}).json["items"]) == 30 and alive(other)
    (folder / "manifest.json").write_bytes(manifest)
    wait_for(lambda: len(group.events("process_ready")) == 3, PATIENCE)
    ask_all(group, {group.events("process_ready")[-1]["pid"], other})


def test_what_needs_one_process_is_refused(refused, bundle, tmp_path, monkeypatch):
    (tmp_path / "token").write_text("a-token\n")
    two = [str(bundle), "--port", "0", "--processes", "2"]
    assert "--processes is at least 1" in refused(*two[:-1], "0")
    for words, told in (
        (["--state", str(tmp_path / "state")], "goes without --state:"),
        (["--admin_token_file", str(tmp_path / "token")], "goes without --admin_token_file:"),
    ):
        message = refused(*two, *words)
        assert told in message and "--processes 1" in message and "SIGHUP" in message
    assert not (tmp_path / "state").exists()
    monkeypatch.setenv("LSVCR_ADMIN_TOKEN", "a-token")
    assert "goes without LSVCR_ADMIN_TOKEN:" in refused(*two)


def test_a_port_in_use_is_told_also_where_another_group_shares_it(refused, group, bundle):
    words = [str(bundle), "--port", str(group.port)]
    assert "choose another --port" in refused(*words, "--processes", "2")
    assert "choose another --port" in refused(*words)


def test_a_bad_bundle_is_told_once_and_as_by_one_process(refused, tmp_path):
    words = [str(tmp_path / "nothing"), "--port", "0"]
    assert refused(*words, "--processes", "2") == refused(*words)


def test_a_full_disk_is_told(monkeypatch, tmp_path):
    def full(*_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(UserError, match="no room for the numbers of /metrics.*No space left.*TMPDIR"):
        set_aside(tmp_path, 0)


def test_a_process_that_cannot_start_ends_all(monkeypatch, bundle, tmp_path):
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr(processes.tempfile, "tempdir", None)  # where it remembers the folder
    monkeypatch.setattr(processes, "BEGIN", "raise ZeroDivisionError")
    with pytest.raises(SystemExit) as ended:
        main(["serve", str(bundle), "--port", "0", "--processes", "2"])
    assert ended.value.code == 1 and not list(tmp_path.iterdir())
