"""Lines on stderr: JSON for machines, or text. What a client sends is escaped, so that it cannot forge a line."""

import json
import logging
import os
import select
import threading
import time
from collections.abc import Iterator
from typing import Any, Literal

BUFFERED_BYTES = 1 << 16
"""Lines of requests are written together: past this size, or when `flush` is called."""


class Log:
    """Writes events, one line each. Threads may share it.

    Args:
        form: `json` or `text`.
        descriptor: file descriptor of the output. Processes may share it.
        always: fields that every line ends with.
    """

    def __init__(self, form: Literal["text", "json"] = "json", descriptor: int = 2, **always: Any) -> None:
        self._form = form
        self._descriptor = descriptor
        self._always = always
        self._lock = threading.Lock()
        self._buffer: list[bytes] = []
        self._size = 0
        self._second = -1
        self._stamp = ""

    def event(self, level: str, event: str, **fields: Any) -> None:
        """Write a line at once, after all that was buffered."""
        self.buffered(level, event, fields)
        self.flush()

    def buffered(self, level: str, event: str, fields: dict[str, Any]) -> None:
        """Keep a line for the next `flush`."""
        line = self._line(level, event, fields)
        with self._lock:
            self._buffer.append(line)
            self._size += len(line)
            full = self._size > BUFFERED_BYTES
        if full:
            self.flush()

    def flush(self) -> None:
        """Write what is buffered. A reader that has gone is no reason to stop serving."""
        with self._lock:
            if not self._buffer:
                return
            lines, self._buffer, self._size = self._buffer, [], 0
            try:
                for whole in _together(lines):
                    rest = memoryview(whole)
                    while rest:
                        rest = rest[os.write(self._descriptor, rest) :]
            except OSError:
                return

    def _line(self, level: str, event: str, fields: dict[str, Any]) -> bytes:
        stamp = self._now()
        fields = {**fields, **self._always}
        if self._form == "json":
            return (json.dumps({"time": stamp, "level": level, "event": event, **fields}) + "\n").encode()
        words = " ".join(f"{name}={json.dumps(value)}" for name, value in fields.items())
        return f"{stamp} {level.upper()} {event} {words}".rstrip().encode() + b"\n"

    def _now(self) -> str:
        now = time.time()
        second = int(now)
        if second != self._second:
            self._stamp = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(second))
            self._second = second
        return f"{self._stamp}.{int((now - second) * 1000):03d}Z"


def _together(lines: list[bytes]) -> Iterator[bytes]:
    """Whole lines, as many at a time as a pipe takes in one piece: other processes may write into the same one."""
    part: list[bytes] = []
    size = 0
    for line in lines:
        if part and size + len(line) > select.PIPE_BUF:
            yield b"".join(part)
            part, size = [], 0
        part.append(line)
        size += len(line)
    yield b"".join(part)


class LogHandler(logging.Handler):
    """Turns records of other packages (uvicorn, asyncio) into lines of a `Log`."""

    def __init__(self, log: Log) -> None:
        super().__init__(logging.WARNING)
        self._log = log

    def emit(self, record: logging.LogRecord) -> None:
        """Write the record, with its traceback if it has one."""
        fields: dict[str, Any] = {"logger": record.name, "message": record.getMessage()}
        if record.exc_info:
            fields["traceback"] = logging.Formatter().formatException(record.exc_info)
        self._log.event(record.levelname.lower(), "log", **fields)
