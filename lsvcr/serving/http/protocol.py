"""A connection: uvicorn's, with an end to clients that are too many or too slow."""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass

from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from lsvcr.serving.http.bodies import GONE
from lsvcr.serving.http.errors import JSON_TYPE, RETRY, error_body

MAX_HEAD_BYTES = 1 << 16
"""Bytes of a request line and its headers that have come in pieces."""


@dataclass(frozen=True)
class ConnectionLimits:
    """What `Connection` goes by; an attribute `limits` of uvicorn's server state.

    Attributes:
        most: connections at a time.
        seconds: what a client may take to send one request, or to take one answer.
        refused, late: called for each connection ended for either reason.
    """

    most: int
    seconds: float
    refused: Callable[[], None]
    late: Callable[[], None]


class Connection(HttpToolsProtocol):
    """One client.

    uvicorn times only the pause between two requests. Here a request has a time too, from its first byte to its last,
    and so have a new connection that sends nothing and an answer that nobody takes. `tick` looks at the clock, so that
    no timer is made for a request.

    The end of what a client sends is the end of the connection, as uvicorn has it: one that has left and one that only
    sends no more look the same until something is written, and who has left is not to be computed for.
    """

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Take the connection, or tell that there are too many and close it."""
        super().connection_made(transport)
        self.limits: ConnectionLimits = self.server_state.limits  # type: ignore[attr-defined]
        self.since: float | None = self.loop.time()
        self.unsent_since: float | None = None
        self.head_bytes = 0
        self.in_head = False
        if len(self.connections) > self.limits.most:
            self.limits.refused()
            self._end(503, "overloaded", "too many connections; try again in a second", [RETRY])

    def data_received(self, data: bytes) -> None:
        """Bytes of a request, or of several."""
        if self.transport.is_closing():
            return
        if self.since is None:
            self.since = self.loop.time()
        self.head_bytes += len(data)
        super().data_received(data)
        if self.in_head and self.head_bytes > MAX_HEAD_BYTES and not self.transport.is_closing():
            text = f"the request line and headers have more than {MAX_HEAD_BYTES} bytes; send fewer"
            self._end(431, "too_large", text)

    def on_message_begin(self) -> None:
        """The first byte of a request."""
        super().on_message_begin()
        self.scope[GONE] = self.transport.is_closing  # type: ignore[literal-required]
        self.in_head = True
        if self.since is None:  # it follows another in the same bytes
            self.since = self.loop.time()

    def on_headers_complete(self) -> None:
        """The end of a request's head."""
        self.in_head = False
        self.head_bytes = 0
        super().on_headers_complete()

    def on_message_complete(self) -> None:
        """The last byte of a request."""
        self.since = None
        self.head_bytes = 0
        super().on_message_complete()

    def send_400_response(self, msg: str) -> None:
        """The answer to what is not HTTP."""
        self._end(400, "not_http", "this is not a valid HTTP/1.1 request")

    def tick(self) -> None:
        """End the connection if its client has taken too long; call it about once a second."""
        now = self.loop.time()
        if not self.transport.get_write_buffer_size():
            self.unsent_since = None
        elif self.unsent_since is None:
            self.unsent_since = now
        elif now - self.unsent_since > self.limits.seconds:
            self.limits.late()
            self.transport.abort()
            return
        # While reading is paused it is the server that takes its time.
        if self.since is None or now - self.since <= self.limits.seconds or self.flow.read_paused:
            return
        self.since = None
        if self.transport.is_closing():
            return
        self.limits.late()
        idle = self.cycle is None or self.cycle.response_complete
        begun = self.in_head or not idle
        if begun and (idle or not self.cycle.response_started):
            text = f"the request took more than {self.limits.seconds:g} s to arrive (--client_timeout)"
            self._end(408, "too_slow", text)
        else:
            self.transport.close()

    def _end(
        self, status: int, code: str, message: str, headers: list[tuple[bytes, bytes]] | None = None
    ) -> None:
        """Answer without the application, and close."""
        body = error_body(code, message)
        lines = [
            JSON_TYPE,
            *(headers or []),
            (b"content-length", str(len(body)).encode()),
            (b"connection", b"close"),
        ]
        head = b"".join(name + b": " + value + b"\r\n" for name, value in lines)
        self.transport.write(STATUS_LINE[status] + head + b"\r\n" + body)
        self.transport.close()
