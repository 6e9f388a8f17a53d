"""Errors as they go over the wire: a status, a code for programs and a sentence for people."""

import json
from collections.abc import Iterable
from typing import Any

from pydantic import ValidationError

from lsvcr.serving.errors import BadRequest, UnknownId

JSON_TYPE = (b"content-type", b"application/json")
RETRY = (b"retry-after", b"1")


class ApiError(Exception):
    """An answer that is an error.

    Args:
        status: HTTP status.
        code: word for programs, such as `too_large`; stays the same between versions.
        message: one sentence that says what to do.
        headers: more headers of the answer.
    """

    def __init__(
        self, status: int, code: str, message: str, headers: Iterable[tuple[bytes, bytes]] = ()
    ) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.message = message
        self.headers = list(headers)

    def body(self) -> bytes:
        """`{"error": {"code", "message"}}` as UTF-8 JSON."""
        return error_body(self.code, self.message)


class ClientGone(Exception):
    """Nobody waits for the answer any more."""


def error_body(code: str, message: str) -> bytes:
    """`{"error": {"code", "message"}}` as UTF-8 JSON."""
    return json.dumps({"error": {"code": code, "message": message}}).encode()


def overloaded(what: str) -> ApiError:
    """503 with Retry-After: `what` is full or busy; ask again in a second."""
    return ApiError(503, "overloaded", f"{what}; ask again in a second", [RETRY])


def as_api_error(error: Exception) -> ApiError | None:
    """What the runtime says about a request as an answer; None for a defect of ours."""
    if isinstance(error, ApiError):
        return error
    if isinstance(error, UnknownId):
        return ApiError(404, "unknown_id", _sentence(error))
    if isinstance(error, BadRequest):
        return ApiError(422, "bad_request", _sentence(error))
    return None


def validation_error(error: ValidationError, fields: Iterable[str]) -> ApiError:
    """The first thing wrong with a body, as a sentence that names the place.

    Args:
        error: what pydantic found.
        fields: names of fields; other words of an error's place name branches of a union and are left out.
    """
    found = error.errors(include_url=False, include_context=False)
    first = found[0]
    if first["type"] == "json_invalid":
        reason = first["msg"].partition(": ")[2] or first["msg"]
        return ApiError(
            400, "not_json", f"the body is not valid JSON ({reason}); send a JSON object in UTF-8"
        )
    known = set(fields)
    if first["type"] == "extra_forbidden":
        name = str(first["loc"][-1])[:80]
        return ApiError(422, "unknown_field", f"there is no field {name!r} here; leave it out")
    place = _place(first["loc"], known)
    reasons = dict.fromkeys(each["msg"] for each in found if _place(each["loc"], known) == place)
    told = " or ".join(_plain(reason) for reason in reasons)
    return ApiError(422, "bad_request", f"{place or 'the body'}: {told}")


def parameter_error(name: str, reason: str) -> ApiError:
    """422 for a part of the path or the query; `reason` as pydantic says it."""
    return ApiError(422, "bad_request", f"{name}: {_plain(reason)}")


def _plain(reason: str) -> str:
    """pydantic's `Input should be ...` as the end of a sentence."""
    return reason.removeprefix("Input ") if reason.startswith("Input ") else reason[:1].lower() + reason[1:]


def _place(loc: tuple[Any, ...], known: set[str]) -> str:
    """`requests[0].video_history[3]` of a place in pydantic's form."""
    text = ""
    for part in loc:
        if isinstance(part, int):
            text += f"[{part}]"
        elif part in known:
            text += f".{part}" if text else part
    return text


def _sentence(error: Exception) -> str:
    # KeyError shows its argument quoted; the sentence is the argument itself.
    return str(error.args[0]) if error.args else str(error)
