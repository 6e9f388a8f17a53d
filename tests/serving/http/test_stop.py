"""How a server starts and ends."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.guards.source import ROOT
from tests.serving.http.process import ServerProcess, receive_all, request_bytes, wait_for

RECOMMEND = "/v1/recommend"
LONG = json.dumps({"requests": [{"k": 40, "exclude_seen": False}] * 256}).encode()


def test_sigterm_in_flight_finishes_what_was_taken_and_exits_0(start):
    server = start("--batch_size", "1")
    connections = [server.raw() for _ in range(8)]
    idle = server.raw()
    time.sleep(0.2)
    for connection in connections:
        connection.sendall(request_bytes(RECOMMEND, LONG))
    time.sleep(0.05)
    server.process.send_signal(signal.SIGTERM)
    for connection in connections:
        answer = receive_all(connection)
        assert b" 200 " in answer.split(b"\r\n")[0]
        assert len(json.loads(answer.partition(b"\r\n\r\n")[2])["responses"]) == 256
    assert receive_all(idle) == b""
    assert server.process.wait(30) == 0
    with pytest.raises(OSError):
        server.raw()
    [stopped] = server.events("stopped")
    assert stopped["signal"] == "SIGTERM"


def test_who_does_not_end_is_not_waited_for_long(start):
    server = start("--graceful_timeout", "1", "--client_timeout", "60")
    half = server.raw()
    half.sendall(request_bytes(RECOMMEND, b"{", length=100))
    time.sleep(0.3)
    began = time.monotonic()
    assert server.stop() == 0
    assert time.monotonic() - began < 10
    answer = receive_all(half)
    assert b" 503 " in answer.split(b"\r\n")[0] and b"stopping" in answer


def test_ctrl_c_ends_as_shells_expect(start):
    server = start()
    assert server.stop(signal.SIGINT) == 130
    assert "stopped by Ctrl-C" in server.log_path.read_text()


def test_sigkill_and_a_start_on_the_same_port(start, bundle, tmp_path):
    first = start()
    first.raw()
    first.process.kill()
    first.process.wait()
    command = [sys.executable, "-m", "lsvcr", "serve", str(bundle), "--port", str(first.port)]
    with (tmp_path / "again").open("wb") as log:
        again = subprocess.Popen(command, cwd=ROOT, stderr=log)
    try:
        first.process = again
        first._wait_until_ready()
    finally:
        again.kill()
        again.wait()


def hang_up_at(pipe: Path, process: subprocess.Popen) -> None:
    """Send SIGHUP when the process, which is starting, reads its token from a pipe; then let it have one."""
    ends: list[int] = []

    def opened() -> bool:
        assert process.poll() is None
        try:
            ends.append(os.open(pipe, os.O_WRONLY | os.O_NONBLOCK))
        except OSError:  # nobody reads yet
            return False
        return True

    wait_for(opened, 60)
    process.send_signal(signal.SIGHUP)
    os.write(ends[0], b"a-token\n")
    os.close(ends[0])


class HungUp(ServerProcess):
    """Is sent SIGHUP while it starts; its log lies beside the pipe."""

    def _wait_until_ready(self) -> None:
        hang_up_at(self.log_path.with_name("token"), self.process)
        super()._wait_until_ready()


def test_sighup_while_it_starts_reopens_the_bundle_once_it_is_there(bundle, tmp_path):
    os.mkfifo(tmp_path / "token")
    server = HungUp(bundle, "--admin_token_file", str(tmp_path / "token"), log=tmp_path / "log")
    try:
        wait_for(lambda: server.events("bundle"))
        server.process.send_signal(signal.SIGHUP)
        wait_for(lambda: len(server.events("bundle")) == 2)
        assert server.post(RECOMMEND, {}).status == 200
    finally:
        assert server.stop() == 0
    assert [line["level"] for line in server.events("bundle")] == ["info", "info"]


@pytest.mark.parametrize(
    ("words", "told"), [(["none"], "none"), (["none", "--processes", "2"], "goes without --admin_token_file")]
)
def test_sighup_while_it_starts_keeps_no_error_from_being_told(tmp_path, words, told):
    os.mkfifo(tmp_path / "token")
    command = [sys.executable, "-m", "lsvcr", "serve", *words, "--port", "0", "--admin_token_file"]
    process = subprocess.Popen([*command, str(tmp_path / "token")], cwd=ROOT, stderr=subprocess.PIPE)
    hang_up_at(tmp_path / "token", process)
    assert told in process.communicate()[1].decode() and process.returncode == 2


def test_a_port_in_use_and_a_bad_address_are_told(refused, bundle):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        assert "choose another --port" in refused(str(bundle), "--port", str(taken.getsockname()[1]))
    assert "mend --host" in refused(str(bundle), "--host", "no.such.host.invalid")
    assert "65535" in refused(str(bundle), "--port", "70000")


def test_bad_settings_and_bundles_are_told(refused, bundle, tmp_path):
    for words, told in (
        ([], "needs --bundle"),
        ([str(tmp_path / "nothing")], str(tmp_path / "nothing")),
        ([str(bundle), "--queue", "0"], "--queue is at least 1"),
        ([str(bundle), "--batch_wait_ms", "-1"], "--batch_wait_ms is at least 0"),
        ([str(bundle), "--request_timeout", "0"], "--request_timeout is more than 0"),
        ([str(bundle), "--admin_token_file", str(tmp_path / "none")], "cannot be read"),
    ):
        assert told in refused(*words, "--port", "0")


@pytest.mark.parametrize("content", ["\n", "two words", "line\nline", "\u00e9"])
def test_a_token_file_without_a_token_is_refused(refused, bundle, tmp_path, content):
    (tmp_path / "token").write_text(content, encoding="utf-8")
    assert "holds no token" in refused(
        str(bundle), "--port", "0", "--admin_token_file", str(tmp_path / "token")
    )


def test_a_reader_of_the_log_that_has_gone_is_no_reason_to_stop(bundle):
    from tests.ports import free_port

    port = free_port()
    command = [sys.executable, "-m", "lsvcr", "serve", str(bundle), "--port", port]
    process = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE)
    try:
        assert process.stderr is not None and b'"ready"' in process.stderr.readline()
        process.stderr.close()
        for _ in range(3):
            with socket.create_connection(("127.0.0.1", int(port)), timeout=30) as connection:
                connection.sendall(request_bytes(RECOMMEND, b"{}", "Connection: close\r\n"))
                assert b" 200 " in receive_all(connection).split(b"\r\n")[0]
            time.sleep(0.2)
        process.terminate()
        assert process.wait(30) == 0
    finally:
        process.kill()
