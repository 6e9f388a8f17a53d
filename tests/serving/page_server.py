"""A random bundle whose ids a person can type, and `lsvcr serve` in a process of its own."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.error import HTTPError, URLError
from urllib.request import Request, urlopen

from lsvcr.schema import Task
from lsvcr.serving.bundle import write_bundle
from lsvcr.serving.bundle_write import CommentTable, VideoTable
from tests.guards.source import ROOT
from tests.ports import free_port
from tests.serving.bundles import BOTH, World

VIDEOS, COMMENTS, USERS = 40, 500, 20
NASTY = "<script>document.title = 'owned'</script><img src=x onerror=\"document.title = 'owned'\">"
"""The title of video 1 and the text of comment 1."""


def write_page_bundle(
    path: Path, first: int = 0, users: bool = True, tasks: tuple[Task, ...] = BOTH, **more: Any
) -> World:
    """Videos, comments and users are `first` + 1, 2, 3, ...; video 1 and comment 1 would run scripts if they could.

    `more` goes to `write_bundle`.
    """
    world = World(VIDEOS, COMMENTS, USERS, 16, 24, seed=3)
    titles = [NASTY, *(f"video {v} " + "with a long title " * (v % 4) for v in range(2, VIDEOS + 1))]
    texts = [NASTY, *(f"comment {c}" for c in range(2, COMMENTS + 1))]
    ids = [[first + row for row in range(1, n + 1)] for n in (VIDEOS, COMMENTS, USERS)]
    write_bundle(
        path,
        videos=VideoTable(ids[0], titles, world.lists),
        comments=CommentTable(ids[1], texts, world.likes[1:]),
        parts={task: world.part(task) for task in tasks},
        users=world.user_table(ids[2]) if users else None,
        text_width=world.w,
        max_videos=50,
        max_entries=50,
        **more,
    )
    return world


class Server:
    """Where a server listens, and what it says to requests."""

    def __init__(self, port: str, process: subprocess.Popen[bytes]) -> None:
        self.address, self.process = f"http://127.0.0.1:{port}/", process

    def get(self, path: str) -> Any:
        """The JSON of an answer."""
        return self.send("GET", path)[1]

    def post(self, path: str, body: Any) -> Any:
        """The JSON of an answer to a JSON body."""
        return self.send("POST", path, json.dumps(body))[1]

    def send(
        self, method: str, path: str, body: str | None = None, **headers: str
    ) -> tuple[int, dict[str, Any]]:
        """Status and content of an answer; what is not JSON comes as {"text": ...}."""
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        if body is not None:
            named = {"Content-Type": "application/json", **named}
        request = Request(self.address + path, None if body is None else body.encode(), named, method=method)
        try:
            with urlopen(request, timeout=30) as answer:
                status, content = answer.status, answer.read().decode()
        except HTTPError as error:
            status, content = error.code, error.read().decode()
        try:
            return status, json.loads(content)
        except json.JSONDecodeError:
            return status, {"text": content}


@contextmanager
def serve(bundle: Path, *flags: str) -> Iterator[Server]:
    """`lsvcr serve` until the block ends."""
    port = free_port()
    words = [
        sys.executable,
        "-m",
        "lsvcr",
        "serve",
        str(bundle),
        "--port",
        port,
        "--access_log",
        "False",
        *flags,
    ]
    process = subprocess.Popen(words, cwd=bundle.parent, env={**os.environ, "PYTHONPATH": str(ROOT)})
    server = Server(port, process)
    try:
        deadline = time.monotonic() + 60
        while not _ready(server):
            assert process.poll() is None and time.monotonic() < deadline, "lsvcr serve does not come up"
            time.sleep(0.05)
        yield server
    finally:
        process.terminate()
        process.wait(30)


def _ready(server: Server) -> bool:
    try:
        return server.send("GET", "readyz")[0] == 200
    except URLError:
        return False
