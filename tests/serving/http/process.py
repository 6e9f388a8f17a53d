"""A real `lsvcr serve` in a process of its own, and a client that sends what it is told, right or wrong."""

import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from tests.guards.source import ROOT
from tests.ports import free_port

START_SECONDS = 60.0
JSON = {"Content-Type": "application/json"}


class Answer:
    """Status, headers (names in lower case) and body of an answer."""

    def __init__(self, status: int, headers: Mapping[str, str], body: bytes) -> None:
        self.status = status
        self.headers = headers
        self.body = body

    @property
    def json(self) -> Any:
        """The body, which is JSON."""
        return json.loads(self.body)

    @property
    def error(self) -> str:
        """The code of an error."""
        return self.json["error"]["code"]

    @property
    def message(self) -> str:
        """The sentence of an error."""
        return self.json["error"]["message"]


class ServerProcess:
    """`lsvcr serve BUNDLE` on a free port, ready when made.

    Args:
        bundle: the bundle folder.
        flags: more flags, `--name`, value, ...
        log: file that receives stderr.
        token: the admin token; None = none.
        port: where it listens; None = a free port.
    """

    def __init__(
        self, bundle: Path, *flags: str, log: Path, token: str | None = None, port: int | None = None
    ) -> None:
        self.port = int(free_port()) if port is None else port
        self.log_path = log
        environment = {name: value for name, value in os.environ.items() if name != "LSVCR_ADMIN_TOKEN"}
        if token is not None:
            environment["LSVCR_ADMIN_TOKEN"] = token
        self.token = token
        command = [sys.executable, "-m", "lsvcr", "serve", str(bundle), "--port", str(self.port), *flags]
        with log.open("ab") as stream:
            self.process = subprocess.Popen(command, cwd=ROOT, env=environment, stderr=stream)
        self._wait_until_ready()

    def _wait_until_ready(self) -> None:
        end = time.monotonic() + START_SECONDS
        while not self.ready():
            assert self.process.poll() is None and time.monotonic() < end, self.log_path.read_text()
            time.sleep(0.05)

    def ready(self) -> bool:
        """True when /readyz says so."""
        try:
            return self.get("/readyz").status == 200
        except OSError:
            return False

    def events(self, name: str) -> list[dict[str, Any]]:
        """Lines of the log (JSON) with this event."""
        lines = [json.loads(line) for line in self.log_path.read_text().splitlines()]
        return [line for line in lines if line["event"] == name]

    def call(
        self,
        method: str,
        path: str,
        body: Any = None,
        headers: Mapping[str, str] | None = None,
        timeout: float = 30.0,
    ) -> Answer:
        """One request on a connection of its own; a body that is not bytes, nor parts of them, goes as JSON."""
        sent = {} if body is None else dict(JSON)
        if self.token is not None and path.startswith("/v1/admin/"):
            sent["Authorization"] = f"Bearer {self.token}"
        sent.update(headers or {})
        as_it_is = body is None or isinstance(body, bytes | Iterator)
        content = body if as_it_is else json.dumps(body).encode()
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=timeout)
        try:
            connection.request(method, path, content, sent)
            answer = connection.getresponse()
            return Answer(answer.status, {k.lower(): v for k, v in answer.getheaders()}, answer.read())
        finally:
            connection.close()

    def get(self, path: str, **more: Any) -> Answer:
        """GET."""
        return self.call("GET", path, **more)

    def post(self, path: str, body: Any, **more: Any) -> Answer:
        """POST of JSON."""
        return self.call("POST", path, body, **more)

    def raw(self, timeout: float = 30.0) -> socket.socket:
        """A connection that sends nothing by itself."""
        return socket.create_connection(("127.0.0.1", self.port), timeout=timeout)

    def metric(self, name: str) -> float:
        """The value of a line of /metrics, by everything in front of the value; 0 if it is not there."""
        for line in self.get("/metrics").body.decode().splitlines():
            if line.rpartition(" ")[0] == name:
                return float(line.rpartition(" ")[2])
        return 0.0

    def stop(self, number: signal.Signals = signal.SIGTERM, timeout: float = 30.0) -> int:
        """Send a signal and wait; the exit code."""
        if self.process.poll() is None:
            self.process.send_signal(number)
        return self.process.wait(timeout)


class Group(ServerProcess):
    """`lsvcr serve BUNDLE --processes 2`.

    Attributes:
        pids: of the processes that answered when it was ready.
    """

    def __init__(self, bundle: Path, *flags: str, log: Path, **more: Any) -> None:
        super().__init__(bundle, "--processes", "2", "--workers", "1", *flags, log=log, **more)

    def _wait_until_ready(self) -> None:
        end = time.monotonic() + 2 * START_SECONDS
        while not self.events("ready"):
            assert self.process.poll() is None and time.monotonic() < end, self.log_path.read_text()
            time.sleep(0.05)
        [told] = self.events("ready")
        self.port = int(told["url"].rstrip("/").rpartition(":")[2])
        self.pids: list[int] = told["processes"]


def receive_all(connection: socket.socket) -> bytes:
    """Everything until the other side closes."""
    parts = []
    while part := connection.recv(65536):
        parts.append(part)
    return b"".join(parts)


def request_bytes(path: str, body: bytes, extra: str = "", length: int | None = None) -> bytes:
    """A POST of JSON as it goes over the wire."""
    told = len(body) if length is None else length
    kind = f"Host: localhost\r\nContent-Type: application/json\r\nContent-Length: {told}"
    return f"POST {path} HTTP/1.1\r\n{kind}\r\n{extra}\r\n".encode() + body


def wait_for(check: Any, seconds: float = 10.0) -> None:
    """Until `check()` is true."""
    end = time.monotonic() + seconds
    while not check():
        assert time.monotonic() < end, "waited too long"
        time.sleep(0.02)
