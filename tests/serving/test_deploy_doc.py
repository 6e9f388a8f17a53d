"""What docs/deploy.md and README.md tell a person to send to the server is answered, and the names they tell exist."""

import base64
import dataclasses
import json
import re
import shlex
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from lsvcr import settings
from tests.guards.source import ROOT
from tests.serving.http.process import ServerProcess
from tests.serving.page_bundle import write_page_bundle

DOCUMENT = ROOT / "docs" / "deploy.md"
ADDRESS = "http://127.0.0.1:8000"
TOKEN = base64.b64encode(bytes(range(224, 256))).decode()


class Request(NamedTuple):
    """A curl command."""

    method: str
    path: str
    body: str | None
    headers: dict[str, str]


def requests_of(document: Path) -> Iterator[Request]:
    """The curl commands of the fenced blocks."""
    for block in re.findall(r"^```bash\n(curl .*?)^```", document.read_text(), re.M | re.S):
        for command in re.split(r"^(?=curl )", block, flags=re.M):
            if command.strip():
                yield parsed(shlex.split(command.replace("\\\n", " ")))


def parsed(words: list[str]) -> Request:
    """One curl command; a flag that is not known here fails."""
    assert words.pop(0) == "curl"
    method, body, path, headers = None, None, None, {}
    while words:
        word = words.pop(0)
        if word == "-X":
            method = words.pop(0)
        elif word == "-d":
            body = words.pop(0)
        elif word == "-H":
            name, _, value = words.pop(0).partition(": ")
            headers[name] = value.replace("$(cat admin-token)", TOKEN)
        elif word != "-s":
            assert word.startswith(ADDRESS) and path is None, word
            path = word.removeprefix(ADDRESS)
    assert path is not None
    return Request(method or ("GET" if body is None else "POST"), path, body, headers)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the bundles and the token lie that the document names."""
    made = tmp_path_factory.mktemp("deploy")
    shutil.copytree(write_page_bundle(made / "bundle"), made / "bundle-2")
    (made / "admin-token").write_text(TOKEN + "\n")
    return made


@pytest.fixture(scope="module")
def server(folder: Path) -> Iterator[ServerProcess]:
    """A server as the document starts it."""
    flags = ("--state", str(folder / "state"), "--admin_token_file", str(folder / "admin-token"))
    running = ServerProcess(folder / "bundle", *flags, log=folder / "log")
    yield running
    assert running.stop() == 0


@pytest.mark.parametrize("document", [DOCUMENT, ROOT / "README.md"], ids=lambda path: path.name)
def test_every_request_of_the_document_is_answered(server: ServerProcess, folder: Path, document: Path):
    sent = list(requests_of(document))
    assert len(sent) >= (15 if document == DOCUMENT else 1)
    for method, path, body, headers in sent:
        # The document's server was started beside the bundles.
        content = body and body.replace('"bundle-2"', json.dumps(str(folder / "bundle-2"))).encode()
        answer = server.call(method, path, content, headers)
        assert answer.status == 200, (method, path, answer.body)


def test_the_answers_look_as_the_document_shows(server: ServerProcess):
    first = next(request for request in requests_of(DOCUMENT) if request.path == "/v1/recommend")
    answer = server.call("POST", first.path, (first.body or "").encode()).json
    error = server.get("/v1/videos/no-such-video").json
    blocks = re.findall(r"^```json\n(.*?)^```", DOCUMENT.read_text(), re.M | re.S)
    good, bad = map(json.loads, blocks)
    assert set(good) == set(answer) and set(bad) == set(error)
    assert set(good["items"][0]) == set(answer["items"][0])
    assert set(good["unknown"]) == set(answer["unknown"])
    assert set(bad["error"]) == set(error["error"]) and bad["error"]["code"] == error["error"]["code"]


def test_the_metrics_of_the_document_exist(server: ServerProcess):
    server.post("/v1/recommend", {"video_history": [2, 999_999]})
    told = server.get("/metrics").body.decode()
    names = re.findall(r"`(lsvcr_\w+)", DOCUMENT.read_text())
    assert len(names) >= 6
    for name in names:
        assert name in told, name


def test_the_flags_of_the_document_exist():
    known = {
        field.name
        for kind in vars(settings).values()
        if dataclasses.is_dataclass(kind)
        for field in dataclasses.fields(kind)
    }
    text = re.sub(r"```dockerfile.*?```", "", DOCUMENT.read_text(), flags=re.S)
    assert set(re.findall(r"`--(\w+)", text)) <= known
