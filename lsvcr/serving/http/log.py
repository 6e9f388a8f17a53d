"""Lines on stderr: JSON for machines, or text. What a client sends is escaped, so that it cannot forge a line."""

import json
import logging
import os
import threading
import time
from typing import Any, Literal

BUFFERED_BYTES = 1 << 16
"""Lines of requests are written together: past this size, or when `flush` is called."""


class Log:
    """Writes events, one line each. Threads may share it.

    Args:
        form: `json` or `text`.
        descriptor: file descriptor of the output.
    """

    def __init__(self, form: Literal["text", "json"] = "json", descriptor: int = 2) -> None:
        self._form = form
        self._descriptor = descriptor
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
            rest = memoryview(b"".join(self._buffer))
            self._buffer, self._size = [], 0
            try:
                while rest:
                    rest = rest[os.write(self._descriptor, rest) :]
            except OSError:
                return

    def _line(self, level: str, event: str, fields: dict[str, Any]) -> bytes:
        stamp = self._now()
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
