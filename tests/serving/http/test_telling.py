"""Metrics, logs and the page."""

import base64
import hashlib
import json
import re

import pytest
from prometheus_client.parser import text_string_to_metric_families

from lsvcr.serving.http.log import Log
from lsvcr.serving.http.page import policy, read_page
from tests.serving.http.process import wait_for

RECOMMEND = "/v1/recommend"


def test_metrics_parse_and_count(start):
    server = start()
    for _ in range(3):
        server.post(RECOMMEND, {"video_history": [1007, 4, 6], "comment_history": [3]})
    server.post(RECOMMEND, b"{")
    for path in ("/v1/videos/1007", "/v1/videos/4", "/some/path", "/another"):
        server.get(path)
    answer = server.get("/metrics")
    assert answer.headers["content-type"].startswith("text/plain; version=0.0.4")
    families = {family.name: family for family in text_string_to_metric_families(answer.body.decode())}
    requests = {
        (sample.labels["route"], sample.labels["status"]): sample.value
        for sample in families["lsvcr_requests"].samples
    }
    assert requests[RECOMMEND, "200"] == 3 and requests[RECOMMEND, "400"] == 1
    assert requests["/v1/videos/{id}", "200"] == requests["/v1/videos/{id}", "404"] == 1
    assert requests["unmatched", "404"] == 2  # what a client makes up is no label
    assert server.metric('lsvcr_unknown_ids_total{kind="video"}') == 6
    assert server.metric('lsvcr_unknown_ids_total{kind="comment"}') == 3
    assert server.metric('lsvcr_request_seconds_count{route="/v1/recommend"}') == 4
    assert server.metric("lsvcr_batch_queries_sum") == 3
    catalogue = {sample.labels["what"]: sample.value for sample in families["lsvcr_catalogue"].samples}
    assert (catalogue["videos"], catalogue["comments"], catalogue["users"]) == (40, 120, 6)
    assert not [name for name in families if name.endswith("_created")]
    assert catalogue["journal_bytes"] == 0 and server.metric("lsvcr_queue") == 0


def test_a_line_a_request_that_nobody_can_forge(start):
    server = start()
    server.get('/a%0a{"event":"forged"}', headers={"X-Request-ID": "my-own"})
    wait_for(lambda: any(line["id"] == "my-own" for line in server.events("request")))
    [line] = [line for line in server.events("request") if line["id"] == "my-own"]
    assert line["path"] == '/a\n{"event":"forged"}' and line["status"] == 404 and line["method"] == "GET"
    assert line["ms"] > 0 and line["client"] == "127.0.0.1"
    assert not server.events("forged")
    [ready] = server.events("ready")
    assert ready["url"] == f"http://127.0.0.1:{server.port}/" and ready["tasks"] == ["rec", "comm_rank"]


def test_requests_are_not_told_where_nobody_wants_it(start):
    server = start("--access_log", "False", "--log_format", "text")
    server.get("/nowhere")
    assert server.stop() == 0
    lines = server.log_path.read_text().splitlines()
    assert len(lines) == 2 and " INFO ready " in lines[0] and " INFO stopped " in lines[1]


def test_text_lines_are_one_line_each(tmp_path):
    path = tmp_path / "log"
    with path.open("wb") as stream:
        log = Log("text", stream.fileno())
        log.buffered("info", "request", {"path": "a\nb", "ms": 1.5})
        log.event("error", "bundle", reason="bad")
    lines = path.read_text().splitlines()
    assert len(lines) == 2
    assert re.fullmatch(r'\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z INFO request path="a\\nb" ms=1.5', lines[0])
    assert lines[1].endswith('ERROR bundle reason="bad"')


def test_a_defect_is_told_with_its_reason_and_an_id(tmp_path):
    """A recommender that fails in a way nobody foresaw: 500 for the client, traceback in the log."""
    import asyncio

    from lsvcr.serving.http.app import create_app
    from lsvcr.serving.http.service import Service
    from lsvcr.serving.runtime import Recommender
    from lsvcr.settings import ServeSettings
    from tests.serving.bundles import make_bundle

    make_bundle(tmp_path / "bundle")

    class Broken(Recommender):
        def recommend_many(self, queries):
            raise ZeroDivisionError("foreseen by nobody")

        def video(self, video, limit=20):
            raise ZeroDivisionError("nor this")

    async def main(path: str, method: str, body: bytes) -> tuple[int, dict, bytes]:
        service = Service(Broken.load(tmp_path / "bundle"), ServeSettings(bundle="b"), log)
        service.start()
        app = create_app(service, None, None)
        sent = []

        async def receive():
            return {"type": "http.request", "body": body, "more_body": False}

        async def send(message):
            sent.append(message)

        scope = {
            "type": "http", "method": method, "path": path, "raw_path": path.encode(), "query_string": b"",
            "headers": [(b"content-type", b"application/json")], "root_path": "", "client": ("127.0.0.1", 1),
            "server": ("127.0.0.1", 2), "scheme": "http", "http_version": "1.1",
        }  # fmt: skip
        await app(scope, receive, send)
        service.close()
        return sent[0]["status"], dict(sent[0]["headers"]), sent[1]["body"]

    with (tmp_path / "log").open("wb") as stream:
        log = Log("json", stream.fileno())
        answers = [
            asyncio.run(main(RECOMMEND, "POST", b"{}")),
            asyncio.run(main("/v1/videos/1007", "GET", b"")),
        ]
    lines = [json.loads(line) for line in (tmp_path / "log").read_text().splitlines()]
    for (status, headers, body), line, words in zip(
        answers, lines, ("foreseen by nobody", "nor this"), strict=True
    ):
        assert status == 500 and json.loads(body)["error"]["code"] == "internal"
        assert (
            words not in body.decode()
            and words in line["reason"]
            and "ZeroDivisionError" in line["traceback"]
        )
        assert headers[b"x-request-id"].decode() == line["id"] and line["level"] == "error"


def test_a_page_runs_its_own_blocks_only():
    script, style = "let a = '</b>';\nb()", "body { color: #000 }"
    html = f"<!doctype html><style>{style}</style><p>x</p><script>{script}</script>"

    def sha(text: str) -> str:
        return "'sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() + "'"

    told = dict(part.strip().split(" ", 1) for part in policy(html).split(";"))
    assert told["script-src"] == sha(script) and told["style-src"] == sha(style)
    assert told["default-src"] == "'none'" and told["connect-src"] == "'self'"
    assert told["frame-ancestors"] == told["base-uri"] == told["form-action"] == "'none'"
    assert policy(html.replace("\n", "\r\n")) == policy(html)  # as browsers hash
    assert "script-src 'none'" in policy("<p>no script</p>")


def test_a_page_is_served_as_it_is_in_the_file(tmp_path):
    path = tmp_path / "page.html"
    path.write_text("<title>é</title><script>1</script>", encoding="utf-8")
    page = read_page(path)
    assert page is not None and page.body == path.read_bytes()
    headers = dict(page.headers)
    assert headers[b"content-type"] == b"text/html; charset=utf-8"
    assert b"sha256-" in headers[b"content-security-policy"]
    assert read_page(tmp_path / "none.html") is None


@pytest.mark.parametrize("path", ["/", "/healthz", RECOMMEND, "/nowhere"])
def test_no_answer_may_be_sniffed(server, path):
    assert server.get(path).headers["x-content-type-options"] == "nosniff"
