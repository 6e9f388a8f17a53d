"""Routes that take a body: read within a limit, checked once by pydantic straight from the bytes, answered as bytes.

FastAPI's own way from bytes to endpoint (json, then dependencies, then validation, then a response model) costs more
than the answer itself. `BodyRoute` is a FastAPI route, so that paths, parameters and OpenAPI are as everywhere; only
the way from request to answer is its own.
"""

import typing
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from fastapi.routing import APIRoute
from pydantic import BaseModel, TypeAdapter, ValidationError
from starlette.requests import Request
from starlette.types import Receive, Scope, Send

from lsvcr.serving.http.errors import JSON_TYPE, ApiError, ClientGone, parameter_error, validation_error

DISCARDED_BYTES = 16 << 20
"""What is read and thrown away of a body that is too large, so that its sender reads the answer, not a reset."""

GONE = "lsvcr.gone"
"""Key of the scope under which our connections tell whether their client has left."""


def gone_of(request: Request) -> Callable[[], bool]:
    """Tells whether the client has left; always no under a server that does not say."""
    return request.scope.get(GONE, _still_there)


async def read_body(scope: Scope, receive: Receive, most: int) -> bytes:
    """The request's body.

    Args:
        scope: the request.
        receive: where the body comes from.
        most: bytes allowed.

    Raises:
        ApiError: 413, after the rest was read (up to `DISCARDED_BYTES`).
        ClientGone: the connection ended first.
    """
    told = _content_length(scope)
    if told > most + DISCARDED_BYTES:
        raise _too_large(most, close=True)
    parts: list[bytes] = []
    size = 0
    more = True
    while more:
        message = await receive()
        if message["type"] != "http.request":
            raise ClientGone
        part = message.get("body", b"")
        more = message.get("more_body", False)
        size += len(part)
        if size <= most:
            parts.append(part)
        elif size > most + DISCARDED_BYTES:
            raise _too_large(most, close=True)
    if size > most:
        raise _too_large(most, close=False)
    return parts[0] if len(parts) == 1 else b"".join(parts)


def parse(body: bytes, models: tuple[type[BaseModel], ...]) -> BaseModel:
    """`body` as the first of `models`; as the second where it has that one's field `requests`.

    Raises:
        ApiError: 400 for what is not JSON, 422 for what is not of the model.
    """
    try:
        return models[0].model_validate_json(body)
    except ValidationError as error:
        model = models[0]
        if len(models) > 1 and any(each["loc"] == ("requests",) for each in error.errors(include_url=False)):
            model = models[1]
            try:
                return model.model_validate_json(body)
            except ValidationError as other:
                error = other
        raise validation_error(error, _fields(models)) from None


async def send_bytes(
    send: Send, status: int, body: bytes, headers: list[tuple[bytes, bytes]] | None = None
) -> None:
    """A whole answer; JSON unless `headers` has another content type in front."""
    length = (b"content-length", str(len(body)).encode())
    await send(
        {"type": "http.response.start", "status": status, "headers": [*(headers or [JSON_TYPE]), length]}
    )
    await send({"type": "http.response.body", "body": body})


class BodyRoute(APIRoute):
    """A route whose endpoint takes `body` (one model, or a union of two), `request` and texts from the path,
    which are checked as its annotations say.

    The endpoint returns UTF-8 JSON as bytes. The most bytes that a body may have are
    `app.state.settings.max_body_bytes`.
    """

    def __init__(self, path: str, endpoint: Callable[..., Awaitable[bytes]], **options: Any) -> None:
        super().__init__(path, endpoint, **options)
        hints = typing.get_type_hints(endpoint, include_extras=True)
        hint = hints["body"]
        self.models: tuple[type[BaseModel], ...] = typing.get_args(hint) or (hint,)
        self._texts: dict[str, TypeAdapter[str]] = {
            name: TypeAdapter(hints[name]) for name in self.param_convertors
        }
        self.app = self.answer

    async def answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        """The ASGI application of this route; errors are raised, for whoever stands around it."""
        settings = scope["app"].state.settings
        _check_type(scope)
        body = await read_body(scope, receive, settings.max_body_bytes)
        values = self._checked(scope.get("path_params", {}))
        values["body"] = parse(body, self.models)
        values["request"] = Request(scope, receive)
        await send_bytes(send, 200, await self.endpoint(**values))

    def _checked(self, given: Mapping[str, str]) -> dict[str, Any]:
        checked: dict[str, Any] = {}
        for name, text in given.items():
            try:
                checked[name] = self._texts[name].validate_python(text)
            except ValidationError as error:
                raise parameter_error(name, error.errors()[0]["msg"]) from None
        return checked


def _still_there() -> bool:
    return False


def _check_type(scope: Scope) -> None:
    for name, value in scope["headers"]:
        if name == b"content-type":
            if value.partition(b";")[0].strip().lower() == b"application/json":
                return
            break
    raise ApiError(415, "not_json", "send the body as JSON, with the header Content-Type: application/json")


def _content_length(scope: Scope) -> int:
    for name, value in scope["headers"]:
        if name == b"content-length" and value.isdigit():
            return int(value[:20])
    return 0


def _too_large(most: int, close: bool) -> ApiError:
    text = (
        f"the body has more than the {most} bytes this server allows (--max_body_bytes); ask for less at once"
    )
    return ApiError(413, "too_large", text, [(b"connection", b"close")] if close else [])


def _fields(models: tuple[type[BaseModel], ...]) -> set[str]:
    names = {"video", "comments"}
    for model in models:
        names |= set(model.model_fields)
        for field in model.model_fields.values():
            for inner in typing.get_args(field.annotation):
                if isinstance(inner, type) and issubclass(inner, BaseModel):
                    names |= set(inner.model_fields)
    return names
