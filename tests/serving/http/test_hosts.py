"""A website that gives this machine's loopback address a name of its own reads nothing."""

import pytest

from lsvcr.serving.http.starting import allowed_hosts
from lsvcr.settings import ServeSettings
from tests.serving.http.process import ServerProcess, receive_all

PATHS = ("/", "/v1/users/101", "/healthz", "/readyz", "/metrics", "/openapi.json", "/v1/admin/x", "/nowhere")


def status(server: ServerProcess, host: str) -> int:
    return server.get("/v1/users", headers={"Host": host}).status


def test_on_loopback_only_its_own_names_are_answered(server):
    evil = {"Host": f"evil.example:{server.port}"}
    for path in PATHS:
        answer = server.get(path, headers=evil)
        assert (answer.status, answer.error) == (421, "wrong_host"), path
    answer = server.post("/v1/recommend", {"user": 101}, headers=evil)
    assert answer.status == 421 and "'evil.example'" in answer.message and "--allowed_hosts" in answer.message
    for host in ("localhost", f"LocalHost:{server.port}", "127.0.0.1", "127.0.0.1:80", "[::1]", "[::1]:8000"):
        assert status(server, host) == 200, host
    for host in ("localhost.evil.example", "127.0.0.1.evil.example", "[::2]", "[::1", "[", "", "10.0.0.1"):
        assert status(server, host) == 421, host


def test_two_hosts_do_not_pass_for_one(server):
    with server.raw() as connection:
        lines = b"Host: localhost\r\nHost: evil.example\r\nConnection: close\r\n\r\n"
        connection.sendall(b"GET /v1/users HTTP/1.1\r\n" + lines)
        assert b" 421 " in receive_all(connection).split(b"\r\n")[0]


def test_who_sends_no_host_is_no_browser(server):
    with server.raw() as connection:
        connection.sendall(b"GET /readyz HTTP/1.0\r\n\r\n")
        assert b" 200 " in receive_all(connection).split(b"\r\n")[0]


def test_further_names_are_allowed_by_a_flag(start):
    server = start("--allowed_hosts", "videos.example, Other.Example:443")
    for host in ("videos.example", "VIDEOS.example:8443", "other.example", "localhost"):
        assert status(server, host) == 200, host
    assert status(server, "evil.example") == 421


def test_another_address_answers_every_name_unless_names_are_given(start):
    assert status(start("--host", "0.0.0.0"), "videos.example") == 200
    named = start("--host", "0.0.0.0", "--allowed_hosts", "videos.example")
    assert (status(named, "videos.example"), status(named, "evil.example")) == (200, 421)


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "127.0.0.2", "::1"])
def test_what_is_loopback(host):
    own = f"[{host}]" if ":" in host else host
    expected = {b"localhost", b"127.0.0.1", b"[::1]", own.encode()}
    assert allowed_hosts(ServeSettings(host=host)) == expected
    assert allowed_hosts(ServeSettings(host="0.0.0.0")) is None


def test_what_is_no_name_is_told(refused, bundle):
    for flags in ([], ["--processes", "2"]):
        told = refused(str(bundle), "--port", "0", "--allowed_hosts", "https://videos.example", *flags)
        assert "--allowed_hosts has names such as recommend.example.com" in told
