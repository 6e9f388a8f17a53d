"""What docs/deploy.md and README.md tell a person to send to the server is answered, and the names they tell exist."""

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
from tests.serving.page_server import Server, serve, write_page_bundle

DOCUMENT = ROOT / "docs" / "deploy.md"
ADDRESS = "http://127.0.0.1:8000/"
TOKEN = "the token of this test"


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
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server as the document starts it, in a folder that has the bundles and the token it names."""
    folder = tmp_path_factory.mktemp("deploy")
    write_page_bundle(folder / "bundle", encoder=True)
    shutil.copytree(folder / "bundle", folder / "bundle-2")
    (folder / "admin-token").write_text(TOKEN + "\n")
    with serve(folder / "bundle", "--state", "state", "--admin_token_file", "admin-token") as running:
        yield running


@pytest.mark.parametrize("document", [DOCUMENT, ROOT / "README.md"], ids=lambda path: path.name)
def test_every_request_of_the_document_is_answered(server: Server, document: Path):
    sent = list(requests_of(document))
    assert len(sent) >= (15 if document == DOCUMENT else 1)
    for request in sent:
        status, answer = server.send(request.method, request.path, request.body, **request.headers)
        assert status == 200, (request, answer)


def test_the_answers_look_as_the_document_shows(server: Server):
    first = next(request for request in requests_of(DOCUMENT) if request.path == "v1/recommend")
    answer = server.send("POST", first.path, first.body)[1]
    error = server.send("GET", "v1/videos/no-such-video")[1]
    shown = [
        json.loads(text) for text in re.findall(r"^```json\n(.*?)^```", DOCUMENT.read_text(), re.M | re.S)
    ]
    assert [set(example) for example in shown] == [set(answer), set(error)]
    assert set(shown[0]["items"][0]) == set(answer["items"][0]) and set(shown[0]["unknown"]) == set(
        answer["unknown"]
    )
    assert (
        set(shown[1]["error"]) == set(error["error"]) and shown[1]["error"]["code"] == error["error"]["code"]
    )


def test_the_metrics_of_the_document_exist(server: Server):
    server.post("v1/recommend", {"video_history": [2, 999_999]})
    told = server.send("GET", "metrics")[1]["text"]
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
