"""The FastAPI application, with the guard around it."""

from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException

from lsvcr import __version__
from lsvcr.serving.errors import BadRequest, UnknownId
from lsvcr.serving.http.admin import add_admin
from lsvcr.serving.http.bodies import BodyRoute
from lsvcr.serving.http.errors import ApiError, as_api_error, error_body, parameter_error
from lsvcr.serving.http.guard import Guard, failure_text
from lsvcr.serving.http.page import Page
from lsvcr.serving.http.routes import JSON, add_look_ups, add_questions, add_state
from lsvcr.serving.http.schemas import limits_of_schema
from lsvcr.serving.http.service import Service
from lsvcr.serving.http.starting import allowed_hosts

CODES = {404: "not_found", 405: "method_not_allowed"}


def create_app(service: Service, page: Page | None, token: str | None) -> Guard:
    """The ASGI application of a server.

    Args:
        service: what answers.
        page: what `/` shows; None = nothing.
        token: the admin token; None = no admin routes.

    Raises:
        UserError: as `allowed_hosts`.
    """
    # The interactive documentation of FastAPI loads scripts from elsewhere, so it is off; /openapi.json is there.
    app = FastAPI(title="LSVCR", version=__version__, docs_url=None, redoc_url=None, redirect_slashes=False)
    app.state.settings = service.settings
    add_questions(app, service)
    add_look_ups(app, service)
    add_state(app, service, page)
    if token is not None:
        add_admin(app, service)
    for kind in (ApiError, BadRequest, UnknownId, HTTPException, RequestValidationError, Exception):
        app.add_exception_handler(kind, _answer)
    _tell_limits(app, service)
    direct = {
        route.path: route
        for route in app.routes
        if isinstance(route, BodyRoute) and "POST" in (route.methods or ()) and not route.param_convertors
    }
    settings = service.settings
    return Guard(
        app, direct, service.metrics, service.log, settings.access_log, token, allowed_hosts(settings)
    )


async def _answer(request: Request, error: Exception) -> Response:
    known = as_api_error(error) or _of_framework(error)
    headers = {name.decode(): value.decode() for name, value in known.headers}
    return Response(error_body(known.code, known.message), known.status, headers, media_type=JSON)


def _of_framework(error: Exception) -> ApiError:
    if isinstance(error, RequestValidationError):
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"][1:])
        return parameter_error(place, first["msg"])
    if isinstance(error, HTTPException):
        headers = [(name.encode(), value.encode()) for name, value in (error.headers or {}).items()]
        text = {
            404: "there is no such path; GET /openapi.json lists them",
            405: "this path has no such method",
        }
        message = text.get(error.status_code, str(error.detail))
        return ApiError(error.status_code, CODES.get(error.status_code, "http"), message, headers)
    return ApiError(500, "internal", failure_text())


def _tell_limits(app: FastAPI, service: Service) -> None:
    """Put the limits of this server into its OpenAPI description, where clients and tests read them."""
    made = app.openapi

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            schema = made()
            components = schema["components"]["schemas"]
            for name, fields in limits_of_schema(service.settings).items():
                for field, words in fields.items():
                    target = components[name]["properties"][field]
                    # Of `something or null`, the words belong to something.
                    for branch in target.get("anyOf", [target]):
                        if branch.get("type") in ("array", "integer"):
                            branch.update(words)
        return app.openapi_schema or {}

    app.openapi = openapi  # type: ignore[method-assign]
