"""`lsvcr serve`: a bundle to a process that answers until it is told to stop."""

import asyncio
import contextlib
import gc
import logging
import os
import signal
import socket
import sys
import time
import traceback
from collections.abc import Iterator
from types import FrameType
from typing import TypeVar

import uvicorn
from prometheus_client import disable_created_metrics

from lsvcr.serving.http.app import create_app
from lsvcr.serving.http.limits import raise_open_files
from lsvcr.serving.http.log import Log, LogHandler
from lsvcr.serving.http.page import read_page
from lsvcr.serving.http.protocol import Connection, ConnectionLimits
from lsvcr.serving.http.service import Service, load
from lsvcr.serving.http.starting import BACKLOG, bind, check, hear_hangups, read_token, url_of
from lsvcr.settings import ServeSettings

S = TypeVar("S", bound="Server")

SWITCH_SECONDS = 0.0005
"""How long the worker may hold the interpreter while the event loop wants it; Python's own 5 ms is a long wait. The
processor time of a request is the same with both (measured); the value is an assumption."""
COLLECT_AFTER = 20_000
"""Containers more than there were, after which Python looks for garbage in cycles. Hardly any is in cycles here, and a
request has a hundred containers while it is in work: at Python's own 700 it looked after every seventh."""
SLOW_TICKS = 10
"""The loop ticks ten times a second; connections are looked at once a second."""


def serve(settings: ServeSettings) -> None:
    """Serve a bundle until SIGTERM (returns) or Ctrl-C (raises KeyboardInterrupt), after what was in work.

    Raises:
        UserError: a bad bundle, state folder, token file or address.
        KeyboardInterrupt: stopped by Ctrl-C.
    """
    check(settings)
    token = read_token(settings)
    listener = bind(settings.host, settings.port)
    log = Log(settings.log_format)
    server = make_server(settings, token, log, Server)
    try:
        server.run([listener])
    finally:
        server.service.close()
        log.event("info", "stopped", signal=server.stopped_by)
    if server.stopped_by == "SIGINT":
        raise KeyboardInterrupt


def make_server(settings: ServeSettings, token: str | None, log: Log, kind: type[S]) -> S:
    """A server with its bundle opened, which does not listen yet.

    Args:
        settings: looked at before.
        token: the admin token; None = no admin routes.
        log: where it tells what happens, and other packages too.
        kind: the class of the server.

    Raises:
        UserError: a bad bundle or state folder.
    """
    handler = LogHandler(log)
    for name in ("uvicorn", "asyncio", "lsvcr"):
        logger = logging.getLogger(name)
        logger.handlers, logger.propagate = [handler], False
        logger.setLevel(logging.WARNING)
    disable_created_metrics()
    spare_modules()
    began = time.perf_counter()
    service = Service(load(settings, settings.bundle, settings.state or None), settings, log)
    most = raise_open_files(settings.max_connections)
    if most < settings.max_connections:
        log.event(
            "warning", "few_files", connections=most, wanted=settings.max_connections, limit="RLIMIT_NOFILE"
        )
    sys.setswitchinterval(SWITCH_SECONDS)
    config = uvicorn.Config(
        create_app(service, read_page(), token),
        http=Connection,
        ws="none",
        lifespan="off",
        loop="uvloop" if sys.platform != "win32" else "asyncio",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        backlog=BACKLOG,
        timeout_keep_alive=max(1, round(settings.keep_alive)),
        timeout_graceful_shutdown=max(1, round(settings.graceful_timeout)),
    )
    return kind(config, service, most, began)


class Server(uvicorn.Server):
    """uvicorn's server, which ends well after SIGTERM, reopens the bundle on SIGHUP and looks after slow clients."""

    ended_by: tuple[signal.Signals, ...] = (signal.SIGINT, signal.SIGTERM)

    def __init__(self, config: uvicorn.Config, service: Service, most: int, began: float) -> None:
        super().__init__(config)
        self.service = service
        self.began = began
        self.stopped_by = ""
        self.refused = 0
        settings, metrics = service.settings, service.metrics
        self.server_state.limits = ConnectionLimits(  # type: ignore[attr-defined]
            most, settings.client_timeout, self._refuse, metrics.late.inc
        )
        metrics.gauge("lsvcr_connections", "Open connections", lambda: len(self.server_state.connections))

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Start the worker, listen, and tell where."""
        self.service.start()
        self.sweeper = asyncio.create_task(self._sweep())
        asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, self._reopen)
        hear_hangups()
        await super().startup(sockets)
        for listener in sockets or []:
            self.tell_ready(listener)

    def tell_ready(self, listener: socket.socket) -> None:
        """One line when requests are answered."""
        self.service.log.event(
            "info",
            "ready",
            url=url_of(listener),
            bundle=self.service.path,
            tasks=list(self.service.recommender.tasks),
            seconds=round(time.perf_counter() - self.began, 3),
            pid=os.getpid(),
        )

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Accept nothing more, finish what was taken."""
        self.service.draining = True
        await super().shutdown(sockets)
        self.sweeper.cancel()

    async def _sweep(self) -> None:
        """What has a time limit is looked at here, also while the server is stopping."""
        turn = 0
        while True:
            await asyncio.sleep(0.1)
            turn += 1
            try:
                self._look_after(connections=turn % SLOW_TICKS == 0)
            except Exception as error:  # a defect of ours, but no reason to end all time limits
                self.service.log.event("error", "sweep", reason=repr(error), traceback=traceback.format_exc())

    def _look_after(self, connections: bool) -> None:
        self.service.batcher.sweep()
        self.service.log.flush()
        self.service.metrics.refresh()
        if not connections:
            return
        self.service.metrics.refresh_process()
        self._tell_refused()
        for connection in list(self.server_state.connections):
            connection.tick()  # type: ignore[union-attr]

    def _tell_refused(self) -> None:
        """One line a second, so that a flood of connections is not one of lines."""
        if self.refused:
            reason = "more connections than --max_connections"
            self.service.log.event("error", "refused", connections=self.refused, reason=reason)
            self.refused = 0

    def _refuse(self) -> None:
        self.service.metrics.refused.inc()
        self.refused += 1

    def _reopen(self) -> None:
        task = asyncio.create_task(self._exchange())
        self.server_state.tasks.add(task)
        task.add_done_callback(self.server_state.tasks.discard)

    async def _exchange(self) -> None:
        # The result is in the log either way: nobody else hears of it.
        with contextlib.suppress(Exception):
            await self.service.reopen()

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """As uvicorn's, but the signal is not raised again after a graceful end: that was the answer to it."""
        earlier = {number: signal.signal(number, self.handle_exit) for number in self.ended_by}
        try:
            yield
        finally:
            for number, handler in earlier.items():
                signal.signal(number, handler)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """SIGTERM or Ctrl-C: stop; a second Ctrl-C does not wait."""
        self.stopped_by = signal.Signals(sig).name
        super().handle_exit(sig, frame)


def spare_modules() -> None:
    """Have the garbage collector leave alone what is there now, and look less often at what comes.

    Looking through all modules takes 60 ms, in which no thread of the process does anything else. Call this before a
    bundle is opened: what is left alone never goes again, and a bundle does when another takes its place.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(COLLECT_AFTER)
