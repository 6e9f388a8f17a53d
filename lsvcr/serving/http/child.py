"""One of several processes that serve at one port: what `processes` starts, and how it hears from there.

Standard input brings one line of JSON, the order, and later one that says that all may begin; its end says that the
process above has gone. Lines of JSON go back: what is wrong, or that it could answer, and then that it does.
"""

import asyncio
import json
import os
import shutil
import signal
import socket
import time
from contextlib import suppress
from typing import Any

from lsvcr.serving.http.log import Log
from lsvcr.serving.http.metrics import share
from lsvcr.serving.http.server import Server, make_server
from lsvcr.serving.http.starting import NUMBERS_VARIABLE
from lsvcr.settings import ServeSettings
from lsvcr.utils.errors import USER_ERROR_CODE, UserError

ORDERS = 0
"""Descriptor of standard input."""
ORPHANED = "orphaned"
"""What stopped a process, in place of a signal."""


class ChildServer(Server):
    """A server that others serve beside. Ctrl-C is for the process above, whose end ends it."""

    ended_by = (signal.SIGTERM,)
    report: int
    """Descriptor of the pipe to the process above."""

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Listen, and from now on hear signals and the end of the process above."""
        await super().startup(sockets)
        asyncio.get_running_loop().add_reader(ORDERS, self._orphaned)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})

    def tell_ready(self, listener: socket.socket) -> None:
        """The process above tells of all; here, what each took."""
        seconds = round(time.perf_counter() - self.began, 3)
        self.service.log.event("info", "process_ready", bundle=self.service.path, seconds=seconds)
        _report(self.report, listens=True)

    def _orphaned(self) -> None:
        if os.read(ORDERS, 1):
            return
        asyncio.get_running_loop().remove_reader(ORDERS)
        self.service.log.event("error", ORPHANED, reason="the process that started this one has gone")
        self.stopped_by = ORPHANED
        self.should_exit = True


def main() -> None:
    """Serve as ordered until SIGTERM, or until the process above has gone."""
    # The starter had SIGINT, SIGTERM and SIGHUP blocked for this process. A terminal sends Ctrl-C to all of them.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
    order = json.loads(_line())
    settings = ServeSettings(**order["settings"])
    log = Log(settings.log_format, pid=os.getpid())
    try:
        share(order["place"])
        server = make_server(settings, None, log, ChildServer)
    except UserError as error:
        _report(order["report"], error=str(error))
        raise SystemExit(USER_ERROR_CODE) from None
    server.report = order["report"]
    _report(server.report, tasks=list(server.service.recommender.tasks))
    if not _line():
        return
    try:
        server.run([socket.socket(fileno=order["listener"])])
    finally:
        server.service.close()
        log.event("info", "process_stopped", signal=server.stopped_by)
        if server.stopped_by == ORPHANED:  # nobody else takes it away
            shutil.rmtree(os.environ[NUMBERS_VARIABLE], ignore_errors=True)


def _line() -> bytes:
    """A line of standard input, without reading past it: the event loop looks at the rest."""
    line = b""
    while not line.endswith(b"\n") and (byte := os.read(ORDERS, 1)):
        line += byte
    return line


def _report(descriptor: int, **fields: Any) -> None:
    with suppress(BrokenPipeError):  # it has gone: the end of the orders tells
        os.write(descriptor, json.dumps(fields).encode() + b"\n")
