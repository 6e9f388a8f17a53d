"""What stands around the application: request ids, hosts, admin token, metrics, log, an answer to every error."""

import asyncio
import hmac
import os
import re
import time
import traceback
from typing import Any

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from lsvcr.serving.http.bodies import BodyRoute, send_bytes
from lsvcr.serving.http.errors import JSON_TYPE, ApiError, ClientGone, as_api_error, overloaded
from lsvcr.serving.http.log import Log
from lsvcr.serving.http.metrics import Metrics
from lsvcr.serving.http.starting import host_name

ADMIN = "/v1/admin/"
UNMATCHED = "unmatched"
GONE_STATUS = 499
"""Counted and logged, never sent: the client left before its answer."""
NO_SNIFF = (b"x-content-type-options", b"nosniff")

_ID = re.compile(rb"[\w.-]{1,64}")


def failure_text() -> str:
    """What a client is told of a defect of ours; the log has the reason."""
    return "the server failed at this request; its log has the reason under the id in the header X-Request-ID"


class Guard:
    """Pure ASGI, one object for all requests.

    Args:
        app: the application.
        direct: routes of it without path parameters that are called straight away, by path, where the method is POST.
        metrics, log: where requests are counted and told.
        access_log: tell each request, not only those that end in 5xx.
        token: what admin routes want as `Authorization: Bearer TOKEN`; None where there are none.
        hosts: names that a request may be for, see `allowed_hosts`; None = any.
    """

    def __init__(
        self,
        app: ASGIApp,
        direct: dict[str, BodyRoute],
        metrics: Metrics,
        log: Log,
        access_log: bool,
        token: str | None,
        hosts: frozenset[bytes] | None,
    ) -> None:
        self._app = app
        self._direct = direct
        self._metrics = metrics
        self._log = log
        self._access_log = access_log
        self._token = token.encode() if token else None
        self._hosts = hosts
        self._prefix = os.urandom(4).hex()
        self._count = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            return
        exchange = _Exchange(self._request_id(scope), send)
        began = time.perf_counter()
        route = self._direct.get(scope["path"]) if scope["method"] == "POST" else None
        reason: dict[str, Any] = {}
        try:
            if self._hosts is not None:
                _check_host(scope, self._hosts)
            if scope["path"].startswith(ADMIN):
                self._check_token(scope)
            if route is not None:
                scope["app"] = self._app
                await route.answer(scope, receive, exchange.send)
            else:
                await self._app(scope, receive, exchange.send)
        except ClientGone:
            exchange.status = GONE_STATUS
        except asyncio.CancelledError:
            await exchange.error(overloaded("the server is stopping"))
        except Exception as error:
            known = as_api_error(error)
            if known is None:
                known = ApiError(500, "internal", failure_text())
                reason = {"reason": repr(error), "traceback": traceback.format_exc()}
            await exchange.error(known)
        path = route.path if route is not None else getattr(scope.get("route"), "path_format", UNMATCHED)
        self._tell(scope, exchange, path, time.perf_counter() - began, reason)

    def _tell(
        self, scope: Scope, exchange: "_Exchange", route: str, seconds: float, reason: dict[str, Any]
    ) -> None:
        status = exchange.status
        self._metrics.request(route, status, seconds)
        failed = status >= 500
        if not failed and not self._access_log:
            return
        fields = {
            "method": scope["method"],
            "path": scope["path"],
            "status": status,
            "ms": round(seconds * 1000, 3),
            "client": scope["client"][0] if scope.get("client") else None,
            "id": exchange.request_id.decode(),
        }
        if reason:
            self._log.event("error", "request", **fields, **reason)
        elif failed:
            fields["reason"] = exchange.message or exchange.body.decode("utf-8", "replace")
            self._log.buffered("error", "request", fields)
        else:
            self._log.buffered("info", "request", fields)

    def _request_id(self, scope: Scope) -> bytes:
        for name, value in scope["headers"]:
            if name == b"x-request-id" and _ID.fullmatch(value):
                return bytes(value)
        self._count += 1
        return f"{self._prefix}-{self._count:x}".encode()

    def _check_token(self, scope: Scope) -> None:
        if self._token is None:
            return  # no such routes: 404 follows
        given = b""
        for name, value in scope["headers"]:
            if name == b"authorization":
                kind, _, given = value.partition(b" ")
                given = given.strip() if kind.lower() == b"bearer" else b""
        if not hmac.compare_digest(given, self._token):
            text = "this needs the header Authorization: Bearer TOKEN, with the server's admin token"
            raise ApiError(401, "unauthorized", text, [(b"www-authenticate", b"Bearer")])


def _check_host(scope: Scope, hosts: frozenset[bytes]) -> None:
    # Who sends no Host at all is no browser.
    for name, value in scope["headers"]:
        if name == b"host" and (asked := host_name(value)) not in hosts:
            text = (
                f"this server does not answer as {asked.decode('latin-1')[:80]!r}; ask it as localhost, or add that "
                "name to its --allowed_hosts"
            )
            raise ApiError(421, "wrong_host", text)


class _Exchange:
    """One answer on its way out: it gets our headers, and its status is kept."""

    def __init__(self, request_id: bytes, send: Send) -> None:
        self.request_id = request_id
        self.status = 0
        self.message = ""
        self.body = b""
        self._send = send

    async def send(self, message: Message) -> None:
        """Pass a message of the application on."""
        if message["type"] == "http.response.start":
            self.status = message["status"]
            message["headers"] = [*message.get("headers", ()), (b"x-request-id", self.request_id), NO_SNIFF]
        elif self.status >= 500:
            self.body += message.get("body", b"")[:1000]
        await self._send(message)

    async def error(self, error: ApiError) -> None:
        """Send an error, unless the answer has begun."""
        self.message = error.message
        if not self.status:
            await send_bytes(self.send, error.status, error.body(), [JSON_TYPE, *error.headers])
        self.status = max(self.status, error.status)
