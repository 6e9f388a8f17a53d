"""Whatever a client sends, the answer is a 4xx with a code and a sentence, never a 5xx or a hang."""

import re
import socket

import pytest

from tests.serving.http.process import JSON, receive_all, request_bytes

RECOMMEND = "/v1/recommend"
RANK = "/v1/rank-comments"


@pytest.mark.parametrize(
    ("body", "status", "code", "words"),
    [
        (b"", 400, "not_json", "not valid JSON"),
        (b"{", 400, "not_json", "EOF"),
        (b"\xff\xfe{}", 400, "not_json", "not valid JSON"),
        (b'{"user": "\xff"}', 400, "not_json", "not valid JSON"),
        (b'{"user": "\\ud800"}', 400, "not_json", "not valid JSON"),
        (b"[" * 100_000, 400, "not_json", "recursion"),
        (b'{"video_history": ' + b"[" * 50_000 + b"]" * 50_000 + b"}", 400, "not_json", "recursion"),
        (b'{"k": 1' + b"0" * 100_000 + b"}", 400, "not_json", "number"),
        (b"[]", 422, "bad_request", "the body: should be an object"),
        (b"null", 422, "bad_request", "the body"),
        (b'"text"', 422, "bad_request", "the body"),
        (b'{"k": NaN}', 422, "bad_request", "k: "),
        (b'{"k": 1e400}', 422, "bad_request", "k: "),
        (b'{"k": -Infinity}', 422, "bad_request", "k: "),
        (b'{"k": 1.5}', 422, "bad_request", "k: should be a valid integer"),
        (b'{"k": "3"}', 422, "bad_request", "k: should be a valid integer"),
        (b'{"k": true}', 422, "bad_request", "k: "),
        (b'{"k": 0}', 422, "bad_request", "k: should be greater than or equal to 1"),
        (b'{"k": -5}', 422, "bad_request", "k: "),
        (b'{"k": 1001}', 422, "over_limit", "1000 this server allows (--max_k)"),
        (b'{"k": 99999999999999999999999999}', 422, "over_limit", "--max_k"),
        (b'{"video_histroy": []}', 422, "unknown_field", "no field 'video_histroy'"),
        (b'{"video_history": 5}', 422, "bad_request", "video_history: should be a valid array"),
        (b'{"video_history": [1.0]}', 422, "bad_request", "video_history[0]: "),
        (b'{"video_history": [1, null]}', 422, "bad_request", "video_history[1]: "),
        (b'{"video_history": [true]}', 422, "bad_request", "video_history[0]: "),
        (b'{"video_history": [9223372036854775808]}', 422, "bad_request", "video_history[0]: "),
        (b'{"comment_history": [{"video": 1}]}', 422, "bad_request", "comment_history[0].comments: "),
        (b'{"comment_history": [{"video": 1, "comments": [], "at": 5}]}', 422, "unknown_field", "'at'"),
        (b'{"exclude_seen": 1}', 422, "bad_request", "exclude_seen: should be a valid boolean"),
        (b'{"requests": []}', 422, "bad_request", "requests: "),
        (b'{"requests": [{}, {"k": 0}]}', 422, "bad_request", "requests[1].k: "),
        (b'{"requests": [{"requests": []}]}', 422, "unknown_field", "'requests'"),
        (b'{"requests": [{}], "k": 5}', 422, "unknown_field", "'k'"),
        (b'{"user": 5}', 404, "unknown_id", "no user 5"),
        (b'{"user": 101, "video_history": [1007]}', 422, "bad_request", "not both"),
    ],
    ids=lambda value: repr(value[:40]) if isinstance(value, bytes) else None,
)
def test_a_bad_body_gets_a_sentence(server, body, status, code, words):
    answer = server.post(RECOMMEND, body)
    assert (answer.status, answer.error) == (status, code), answer.message
    assert words in answer.message
    assert answer.headers["content-type"] == "application/json"


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ({"video_history": [1007] * 1001}, "--max_history"),
        ({"comment_history": [5] * 1001}, "--max_history"),
        ({"comment_history": [{"video": 1007, "comments": [5] * 501}] * 2}, "--max_history"),
        ({"candidates": [1007] * 10_001}, "--max_candidates"),
        ({"exclude": [1007] * 10_001}, "--max_candidates"),
        ({"requests": [{}] * 257}, "--max_batch"),
        ({"requests": [{"k": 1001}]}, "--max_k"),
    ],
)
def test_a_limit_is_named(server, body, words):
    answer = server.post(RECOMMEND, body)
    assert (answer.status, answer.error) == (422, "over_limit") and words in answer.message


def test_at_the_limit_is_allowed(server):
    body = {"video_history": [1007] * 1000, "comment_history": [5] * 1000, "k": 1000}
    assert server.post(RECOMMEND, body).status == 200
    assert server.post(RECOMMEND, {"requests": [{}] * 256}).status == 200


def test_ranking_needs_a_video_that_is_there(server):
    assert server.post(RANK, {}).message.startswith("video: ")
    missing = server.post(RANK, {"video": 4})
    assert (missing.status, missing.error) == (404, "unknown_id")
    assert server.post(RANK, {"video": 1007, "comments": [5] * 10_001}).error == "over_limit"


def test_one_bad_query_of_a_batch_refuses_the_batch(server):
    assert server.post(RANK, {"requests": [{"video": 1007}, {"video": 4}]}).status == 404


@pytest.mark.parametrize("kind", ["text/plain", "application/x-www-form-urlencoded", "application/jsonp", ""])
def test_only_json_is_read(server, kind):
    answer = server.post(RECOMMEND, b"{}", headers={"Content-Type": kind})
    assert (answer.status, answer.error) == (415, "not_json") and "Content-Type" in answer.message


def test_a_content_type_may_name_a_charset(server):
    headers = {"Content-Type": "Application/JSON; charset=utf-8"}
    assert server.post(RECOMMEND, b"{}", headers=headers).status == 200


def test_a_large_body_is_refused_with_its_sender_listening(server):
    most = 1 << 20
    fits = b'{"user": 101, "k": 2' + b" " * (most - 21) + b"}"
    assert len(fits) == most and server.post(RECOMMEND, fits).status == 200
    for size in (most + 1, 4 * most):
        answer = server.post(RECOMMEND, b" " * size)
        assert (answer.status, answer.error) == (413, "too_large") and "--max_body_bytes" in answer.message


def test_a_body_announced_far_too_large_is_refused_before_it_comes(server):
    with server.raw() as connection:
        connection.sendall(request_bytes(RECOMMEND, b"", length=10**12))
        assert b" 413 " in receive_all(connection).split(b"\r\n")[0]


def test_chunks_count_too(server):
    def chunks():
        for _ in range(40):
            yield b" " * 50_000

    answer = server.call("POST", RECOMMEND, chunks(), JSON)
    assert answer.status == 413
    assert server.call("POST", RECOMMEND, iter([b"{", b"}"]), JSON).status == 200


def test_an_endless_body_is_cut_off(server):
    with server.raw() as connection:
        connection.sendall(
            f"POST {RECOMMEND} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n".encode()
            + b"Transfer-Encoding: chunked\r\n\r\n"
        )
        chunk = b"%x\r\n" % (1 << 20) + b" " * (1 << 20) + b"\r\n"
        answer = b""
        with pytest.raises(OSError):  # the server has answered, and closed
            for _ in range(64):
                connection.sendall(chunk)
        connection.settimeout(5)
        try:
            answer = receive_all(connection)
        except ConnectionError:
            return  # what was under way to us went with the connection
        assert b" 413 " in answer.split(b"\r\n")[0]


def test_paths_and_methods_that_are_not_there(server):
    for path in ("/v1", "/v1/", "/v1/recommend/", "/docs", "/..%2f..%2fetc%2fpasswd"):
        answer = server.get(path)
        assert (answer.status, answer.error) == (404, "not_found"), path
    wrong = server.get(RECOMMEND)
    assert (wrong.status, wrong.error, wrong.headers["allow"]) == (405, "method_not_allowed", "POST")
    assert server.call("DELETE", "/healthz").status == 405


def test_query_parameters_are_checked(server):
    for path in ("/v1/users?limit=0", "/v1/users?limit=x", "/v1/users?limit=101", "/v1/videos/1007?limit=-1"):
        answer = server.get(path)
        assert (answer.status, answer.error) == (422, "bad_request") and answer.message.startswith("limit: ")
    assert server.get("/v1/users?prefix=" + "x" * 513).status == 422


def test_unknown_ids_in_paths(server):
    for path in (
        "/v1/videos/4",
        "/v1/videos/abc",
        "/v1/users/4",
        "/v1/videos/" + "9" * 500,
        "/v1/videos/%00",
    ):
        answer = server.get(path)
        assert (answer.status, answer.error) == (404, "unknown_id"), (path, answer.body)
    assert server.get("/v1/videos/" + "9" * 600).status == 422
    assert server.get("/v1/videos/%ff").status in (404, 422)


@pytest.mark.parametrize(
    "sent",
    [
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",  # TLS
        b"GET\r\n\r\n",
        b"GET / HTTP/9.9\r\n\r\n",
        b"POST /v1/recommend HTTP/1.1\r\nHost: localhost\r\nContent-Length: -1\r\n\r\n",
        b"POST /v1/recommend HTTP/1.1\r\nHost: localhost\r\nContent-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n{}",
        b"POST /v1/recommend HTTP/1.1\r\nHost: localhost\r\nContent-Length: 99999999999999999999999\r\n\r\n",
        b"GET /\xff\xfe HTTP/1.1\r\nHost: localhost\r\n\r\n",
        b"\r\n\r\n\r\nnonsense\r\n\r\n",
    ],
)
def test_what_is_not_http_gets_400_and_the_end(server, sent):
    with server.raw() as connection:
        connection.sendall(sent)
        answer = receive_all(connection)
    assert answer.split(b"\r\n")[0].split(b" ")[1] == b"400" and b'"not_http"' in answer


def test_an_endless_head_gets_431(server):
    with server.raw() as connection:
        connection.sendall(b"GET / HTTP/1.1\r\nHost: localhost\r\n")
        try:
            for number in range(100_000):
                connection.sendall(b"X-%d: " % number + b"y" * 1000 + b"\r\n")
        except OSError:
            pass
        try:
            answer = receive_all(connection)
        except ConnectionError:
            answer = b"HTTP/1.1 431 "  # reset: the answer went with the rest of what was sent
    assert answer.split(b" ")[1] == b"431"
    assert server.get("/healthz").status == 200


def test_every_answer_has_an_id_which_a_client_may_choose(server):
    first, second = (server.post(RECOMMEND, {}).headers["x-request-id"] for _ in range(2))
    assert first != second and re.fullmatch(r"[\w.-]+", first)
    assert server.get("/nowhere", headers={"X-Request-ID": "mine-1"}).headers["x-request-id"] == "mine-1"
    forged = server.get("/healthz", headers={"X-Request-ID": 'a"b c'}).headers["x-request-id"]
    assert forged != 'a"b c'


def test_nothing_above_was_a_server_error(server):
    lines = server.get("/metrics").body.decode().splitlines()
    assert not [line for line in lines if line.startswith("lsvcr_requests_total") and 'status="5' in line]


def test_the_default_address_is_loopback(server):
    from lsvcr.settings import ServeSettings

    assert ServeSettings().host == "127.0.0.1"
    # Another address of this machine leads nowhere.
    with socket.socket() as other, pytest.raises(OSError):
        other.settimeout(5)
        other.connect(("127.0.0.2", server.port))
