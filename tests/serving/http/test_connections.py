"""Clients that are slow, gone, or too many cost the others nothing."""

import json
import socket
import time

import pytest

from tests.serving.http.process import receive_all, request_bytes, wait_for

RECOMMEND = "/v1/recommend"
QUICK = ("--client_timeout", "1", "--keep_alive", "4")


@pytest.fixture(scope="module")
def quick(bundle, tmp_path_factory):
    """A server that loses patience after a second."""
    from tests.serving.http.process import ServerProcess

    running = ServerProcess(bundle, *QUICK, log=tmp_path_factory.mktemp("log") / "log")
    yield running
    assert running.stop() == 0


def drip(connection: socket.socket, content: bytes, seconds: float) -> float:
    """Send a byte each tenth of a second until the server has had enough; how long that took."""
    began = time.monotonic()
    try:
        for place in range(len(content)):
            if time.monotonic() - began > seconds:
                break
            connection.sendall(content[place : place + 1])
            time.sleep(0.1)
    except OSError:
        pass
    return time.monotonic() - began


def test_a_dripping_head_and_a_dripping_body_are_cut_off(quick):
    late = quick.metric("lsvcr_connections_late_total")
    head = request_bytes(RECOMMEND, b"")
    for sent_at_once, dripped in ((b"", head), (request_bytes(RECOMMEND, b"", length=1000), b" " * 1000)):
        with quick.raw() as connection:
            connection.sendall(sent_at_once)
            assert drip(connection, dripped, 30) < 10
            try:
                answer = receive_all(connection)
            except ConnectionError:
                continue  # reset, because our next byte came after the end
            assert answer == b"" or (b" 408 " in answer.split(b"\r\n")[0] and b'"too_slow"' in answer)
    assert quick.metric("lsvcr_connections_late_total") == late + 2


def test_a_late_request_is_told_so(quick):
    with quick.raw() as connection:
        connection.sendall(b"POST /v1/recommend HT")
        answer = receive_all(connection)
    assert b" 408 " in answer.split(b"\r\n")[0] and b"--client_timeout" in answer


def test_silence_from_the_start_is_closed_without_a_word(quick):
    with quick.raw() as connection:
        assert receive_all(connection) == b""


def test_an_idle_connection_is_closed_after_its_time(quick):
    with quick.raw() as connection:
        connection.sendall(request_bytes(RECOMMEND, b"{}"))
        began = time.monotonic()
        answer = receive_all(connection)
        assert b" 200 " in answer.split(b"\r\n")[0] and time.monotonic() - began > 1


def test_half_a_request_behind_a_whole_one_is_cut_off_too(quick):
    with quick.raw() as connection:
        connection.sendall(request_bytes(RECOMMEND, b"{}") + b"POST /v1/rec")
        answer = receive_all(connection)
    assert b" 200 " in answer.split(b"\r\n")[0] and b" 408 " in answer


def test_requests_sent_without_waiting_are_answered_in_order(quick):
    bodies = [json.dumps({"k": k, "requests": None} if k == 3 else {"k": k}).encode() for k in (1, 2, 3, 4)]
    with quick.raw() as connection:
        connection.sendall(b"".join(request_bytes(RECOMMEND, body) for body in bodies))
        text = b""
        while text.count(b"HTTP/1.1 ") < 4 or not text.endswith(b"}"):
            text += connection.recv(65536)
    answers = text.split(b"HTTP/1.1 ")[1:]
    assert [answer[:3] for answer in answers] == [b"200", b"200", b"422", b"200"]
    sizes = [len(json.loads(answer.partition(b"\r\n\r\n")[2]).get("items", [])) for answer in answers]
    assert sizes == [1, 2, 0, 4]


def test_who_takes_no_answer_is_cut_off(quick):
    late = quick.metric("lsvcr_connections_late_total")
    many = json.dumps({"requests": [{"k": 40, "exclude_seen": False}] * 256}).encode()
    with quick.raw() as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connection.settimeout(1)
        try:
            for _ in range(100):  # answers of 400 kB each, more than the sockets between us hold
                connection.sendall(request_bytes(RECOMMEND, many))
        except OSError:
            pass
        wait_for(lambda: quick.metric("lsvcr_connections_late_total") > late, 20)
    assert quick.post(RECOMMEND, {}).status == 200


def test_nobody_computes_for_who_has_left(start):
    # A first request keeps the worker busy, so that the others are still waiting when they leave.
    slow = start("--batch_size", "1", "--client_timeout", "5")
    busy = request_bytes(RECOMMEND, json.dumps({"requests": [{"k": 40}] * 256}).encode())
    before = slow.metric("lsvcr_batch_queries_sum")
    first = slow.raw()
    first.sendall(busy)
    leaving = [slow.raw() for _ in range(20)]
    for connection in leaving:
        connection.sendall(busy)
    for connection in leaving:
        connection.close()
    first.close()
    wait_for(lambda: slow.metric("lsvcr_connections") <= 1 and slow.metric("lsvcr_queue") == 0)
    computed = slow.metric("lsvcr_batch_queries_sum") - before
    assert computed < 21 * 256
    assert slow.post(RECOMMEND, {}).status == 200
    assert slow.metric('lsvcr_requests_total{route="/v1/recommend",status="499"}') > 0


def test_many_connections_at_once(quick):
    """3,000 idle connections and as many that leave at once, at a soft limit of 20,000 files in this process."""
    idle = [quick.raw() for _ in range(3000)]
    try:
        assert quick.post(RECOMMEND, {}).status == 200
        wait_for(lambda: quick.metric("lsvcr_connections") <= 5, 30)  # all too late by now
    finally:
        for connection in idle:
            connection.close()
    for _ in range(3000):
        quick.raw().close()
    assert quick.post(RECOMMEND, {}).status == 200


def test_past_max_connections_the_rest_is_refused_at_once(start):
    small = start("--max_connections", "10")
    held = [small.raw() for _ in range(10)]
    time.sleep(0.2)
    with small.raw() as extra:
        answer = receive_all(extra)
    assert b" 503 " in answer.split(b"\r\n")[0] and b"retry-after" in answer.lower()
    for connection in held:
        connection.close()
    wait_for(small.ready)
    assert small.post(RECOMMEND, {}).status == 200
    refused = small.metric("lsvcr_connections_refused_total")
    wait_for(lambda: sum(line["connections"] for line in small.events("refused")) == refused > 0)


def test_a_low_limit_of_files_lowers_the_connections(start, bundle, tmp_path):
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(1024, soft), hard))
    try:
        server = start("--max_connections", str(hard + 1000))
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    [told] = server.events("few_files")
    assert told["connections"] == hard - 256 and told["wanted"] == hard + 1000
