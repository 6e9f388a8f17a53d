"""`lsvcr serve --processes N`: one address, N processes that answer there, and the one above that looks after them.

This one takes the address, starts the others, passes signals on and replaces who dies. It opens no bundle: what it
imports is little. The others run the server of `server`, each with a socket of its own at that address, over which the
kernel spreads connections by chance. On one socket for all, whoever looks first took 29 of 32 that came at once.
"""

import json
import os
import selectors
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from types import FrameType
from typing import Any

from lsvcr.serving.http.log import Log
from lsvcr.serving.http.starting import (
    NUMBERS_VARIABLE,
    TOKEN_VARIABLE,
    beside,
    check,
    hear_hangups,
    read_token,
    reserve,
    url_of,
)
from lsvcr.settings import ServeSettings
from lsvcr.utils.errors import UserError

PAUSE_SECONDS = 1.0
"""Between the starts of two processes that take the place of others; doubled each time that one fails to start."""
MOST_PAUSE_SECONDS = 60.0
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
BEGIN = "import sys; sys.path[:] = sys.argv[1:]; from lsvcr.serving.http.child import main; main()"
"""The same folders of modules as here, in the same order; `-m` would look into the current folder first."""


def serve_in_processes(settings: ServeSettings) -> None:
    """Serve a bundle from several processes until SIGTERM (returns) or Ctrl-C, after what was in work.

    Raises:
        UserError: a bad bundle or address, or something that needs one process.
        KeyboardInterrupt: stopped by Ctrl-C.
        SystemExit: a process failed before any was ready, and has told why.
    """
    began = time.perf_counter()
    check(settings)
    _refuse_changes(settings)
    reserved = reserve(settings.host, settings.port)
    log = Log(settings.log_format)
    try:
        folder = tempfile.mkdtemp(prefix="lsvcr-metrics-")
    except OSError as error:
        reason = error.strerror or error
        raise UserError(f"no temporary folder for the numbers of /metrics: {reason}; set TMPDIR") from None
    group = Processes(settings, reserved, log, folder, began)
    try:
        with group.signals():
            group.run()
    finally:
        group.close()
        shutil.rmtree(folder, ignore_errors=True)
    log.event("info", "stopped", signal=group.stopped_by)
    if group.stopped_by == "SIGINT":
        raise KeyboardInterrupt


@dataclass
class Child:
    """A process that serves, or is about to.

    Attributes:
        place: its number among those that serve together; who replaces it has the same.
        report: descriptor of the pipe that it reports into; at its end the process has ended.
        told: what has come of its report's next line.
        error: what is wrong with its bundle.
        tasks: what it can answer; empty = not yet.
        begun: it was told to listen.
        listens: it does.
    """

    place: int
    process: "subprocess.Popen[bytes]"
    report: int
    told: bytes = b""
    error: str | None = None
    tasks: list[str] = field(default_factory=list)
    begun: bool = False
    listens: bool = False

    def order(self, line: bytes) -> None:
        """Send a line; one that has died is heard of otherwise."""
        assert self.process.stdin is not None
        with suppress(BrokenPipeError):
            self.process.stdin.write(line)


class Processes:
    """The processes that serve at one address.

    Attributes:
        stopped_by: name of the signal that ended them.
    """

    def __init__(
        self, settings: ServeSettings, reserved: socket.socket, log: Log, folder: str, began: float
    ) -> None:
        self.stopped_by = ""
        self._settings, self._reserved, self._log, self._folder = settings, reserved, log, folder
        self._since = began
        self._children: dict[int, Child] = {}
        self._begun = self._ready = self._stopping = self._at_once = False
        self._failure: BaseException | None = None
        self._pause = PAUSE_SECONDS
        self._next_start = 0.0
        self._selector = selectors.DefaultSelector()
        self._wake, self._woken = socket.socketpair()
        for end in (self._wake, self._woken):
            end.setblocking(False)
        self._selector.register(self._woken, selectors.EVENT_READ)

    @contextmanager
    def signals(self) -> Iterator[None]:
        """Have signals come through a socket, between two looks at the processes."""
        earlier = {number: signal.signal(number, _nothing) for number in SIGNALS}
        old = signal.set_wakeup_fd(self._wake.fileno(), warn_on_full_buffer=False)
        hear_hangups()
        try:
            yield
        finally:
            signal.set_wakeup_fd(old)
            for number, handler in earlier.items():
                signal.signal(number, handler)

    def run(self) -> None:
        """Start the processes and look after them until all have ended.

        Raises:
            UserError, SystemExit: one failed before any was ready.
        """
        for place in range(self._settings.processes):
            if not self._stopping:
                self._start(place)
        while self._children or not self._stopping:
            self._fill()
            ready = [key.data for key, _ in self._selector.select(self._time_to_start())]
            if None in ready:
                self._hear_signals()
            for child in ready:
                if child is not None:
                    self._hear(child)
        if self._failure is not None:
            raise self._failure

    def close(self) -> None:
        """End what is left: nothing, unless `run` met a defect."""
        self._reserved.close()
        for child in list(self._children.values()):
            assert child.process.stdin is not None
            child.process.stdin.close()  # the end of its orders: it stops by itself
            child.process.wait()
            os.close(child.report)
        self._selector.close()
        self._wake.close()
        self._woken.close()

    def _start(self, place: int) -> None:
        report, reported = os.pipe()
        # The process inherits what is blocked: until it has its own handlers, no signal ends it or is lost.
        blocked = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
        try:
            with beside(self._reserved) as listener:
                order = {"listener": listener.fileno(), "report": reported, "place": place}
                process = subprocess.Popen(
                    [sys.executable, "-c", BEGIN, *sys.path],
                    bufsize=0,
                    stdin=subprocess.PIPE,
                    pass_fds=(listener.fileno(), reported),
                    env={**os.environ, NUMBERS_VARIABLE: self._folder},
                )
        except OSError as error:
            os.close(report)
            self._fail(f"no process can be started: {error.strerror or error}")
            return
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
            os.close(reported)
        child = Child(place, process, report)
        self._children[place] = child
        self._selector.register(report, selectors.EVENT_READ, child)
        child.order(json.dumps({**order, "settings": asdict(self._settings)}).encode() + b"\n")

    def _fill(self) -> None:
        """Start one process in place of one that has gone, if it is time."""
        missing = [place for place in range(self._settings.processes) if place not in self._children]
        if missing and not self._stopping and time.monotonic() >= self._next_start:
            self._next_start = time.monotonic() + self._pause
            self._start(missing[0])

    def _time_to_start(self) -> float | None:
        if self._stopping or len(self._children) == self._settings.processes:
            return None
        return max(0.0, self._next_start - time.monotonic())

    def _hear(self, child: Child) -> None:
        part = os.read(child.report, 1 << 16)
        if not part:
            self._ended(child)
            return
        *lines, child.told = (child.told + part).split(b"\n")
        for line in lines:  # `error`, `tasks` or `listens`
            for name, value in json.loads(line).items():
                setattr(child, name, value)
        if not self._stopping:
            self._begin()

    def _begin(self) -> None:
        """At first all begin together, so that none takes all connections; who comes later begins at once."""
        children = list(self._children.values())
        if not self._begun and not all(child.tasks for child in children):
            return
        self._begun = True
        for child in children:
            if child.tasks and not child.begun:
                child.begun = True
                child.order(b"begin\n")
        if not all(child.listens for child in children) or len(children) < self._settings.processes:
            return
        self._pause = PAUSE_SECONDS
        if not self._ready:
            self._ready = True
            self._tell_ready(children)

    def _tell_ready(self, children: list[Child]) -> None:
        self._log.event(
            "info",
            "ready",
            url=url_of(self._reserved),
            bundle=self._settings.bundle,
            tasks=children[0].tasks,
            seconds=round(time.perf_counter() - self._since, 3),
            pid=os.getpid(),
            processes=[child.process.pid for child in children],
        )

    def _ended(self, child: Child) -> None:
        self._selector.unregister(child.report)
        os.close(child.report)
        code = child.process.wait()
        assert child.process.stdin is not None
        child.process.stdin.close()
        del self._children[child.place]
        how = {
            "process": child.process.pid,
            **({"signal": _name(-code)} if code < 0 else {"exit_code": code}),
        }
        if self._stopping:
            if code and child.begun and not self._at_once:
                self._log.event("error", "process_ended", **how)
        elif child.begun:
            self._next_start = max(self._next_start, time.monotonic() + PAUSE_SECONDS)
            self._log.event("error", "process_ended", **how)
        else:
            self._fail(child.error, **how)

    def _fail(self, reason: str | None, **how: Any) -> None:
        """A process cannot begin: the end, unless others answer. Without a reason it has shown its traceback."""
        if any(each.begun for each in self._children.values()):
            self._pause = min(2 * self._pause, MOST_PAUSE_SECONDS)
            self._next_start = time.monotonic() + self._pause
            told = reason or "it ended before it could serve"
            self._log.event("error", "process_ended", **how, reason=told, again_in=self._pause)
        elif not self._stopping:
            self._failure = UserError(reason) if reason else SystemExit(1)
            self._stop()

    def _hear_signals(self) -> None:
        for number in self._woken.recv(1 << 12):
            if number == signal.SIGHUP:
                self._send(signal.SIGHUP)
            elif number in (signal.SIGINT, signal.SIGTERM):
                self._at_once = self._stopping and number == signal.SIGINT
                self.stopped_by = signal.Signals(number).name
                self._stop()

    def _stop(self) -> None:
        """Accept nothing more; who answers finishes what it took, who does not yet has nothing to finish."""
        self._stopping = True
        self._reserved.close()
        for child in self._children.values():
            child.process.send_signal(signal.SIGTERM if child.begun and not self._at_once else signal.SIGKILL)

    def _send(self, number: signal.Signals) -> None:
        for child in self._children.values():
            child.process.send_signal(number)


def _refuse_changes(settings: ServeSettings) -> None:
    token = read_token(settings)
    given = [
        name
        for name, there in (
            ("--state", settings.state),
            ("--admin_token_file", settings.admin_token_file),
            (TOKEN_VARIABLE, token is not None and not settings.admin_token_file),
        )
        if there
    ]
    if given:
        raise UserError(
            f"--processes {settings.processes} goes without {' and '.join(given)}: a change of the catalogue must "
            "reach every process before it is acknowledged, so changes need --processes 1; without them, SIGHUP "
            "exchanges the bundle"
        )


def _nothing(number: int, frame: FrameType | None) -> None:
    """The signal has been written to the socket; a handler must be there all the same."""


def _name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return str(number)
