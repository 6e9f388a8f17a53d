"""The routes behind the admin token: changes of the catalogue, and another bundle."""

from typing import Any

from fastapi import Depends, FastAPI, Request, Response
from fastapi.security import HTTPBearer
from pydantic_core import to_json

from lsvcr.serving.http import schemas
from lsvcr.serving.http.bodies import BodyRoute
from lsvcr.serving.http.routes import JSON, about, errors
from lsvcr.serving.http.service import Service

CHANGE_ERRORS = (400, 401, 404, 413, 415, 422, 503, 504, 507)


def add_admin(app: FastAPI, service: Service) -> None:
    """PUT and DELETE of videos and comments, and POST /v1/admin/bundle. The guard has checked the token."""

    async def put_video(id: schemas.PathId, body: schemas.PutVideo, request: Request) -> bytes:
        """Add a video, or change one; the next request sees it."""
        await service.change("put_video", id, body.title, body.vector)
        return _changed(service, id)

    async def put_comment(id: schemas.PathId, body: schemas.PutComment, request: Request) -> bytes:
        """Add a comment, or change one; the next request sees it."""
        await service.change("put_comment", id, body.video, body.text, body.vector, body.likes)
        return _changed(service, id)

    async def exchange(body: schemas.SwapRequest, request: Request) -> bytes:
        """Serve another bundle. It is loaded and verified first; a bad one changes nothing."""
        await service.exchange(body.path)
        return to_json(about(service))

    documented: dict[str, Any] = {
        "dependencies": [Depends(HTTPBearer(auto_error=False))],
        "route_class_override": BodyRoute,
    }
    for path, endpoint in (("videos", put_video), ("comments", put_comment)):
        app.router.add_api_route(
            f"/v1/admin/{path}/{{id:rest}}",
            endpoint,
            methods=["PUT"],
            response_model=schemas.ChangeAnswer,
            responses=errors(*CHANGE_ERRORS),
            **documented,
        )
    app.router.add_api_route(
        "/v1/admin/bundle",
        exchange,
        methods=["POST"],
        response_model=schemas.BundleAnswer,
        responses=errors(400, 401, 409, 413, 415, 422, 503),
        **documented,
    )
    _add_removals(app, service)


def _add_removals(app: FastAPI, service: Service) -> None:
    options: dict[str, Any] = {
        "response_model": schemas.ChangeAnswer,
        "responses": errors(401, 404, 422, 503, 504, 507),
        "dependencies": [Depends(HTTPBearer(auto_error=False))],
    }

    @app.delete("/v1/admin/videos/{id:rest}", **options)
    async def remove_video(id: schemas.PathId) -> Response:
        """Remove a video; it is never recommended again until it is put again."""
        await service.change("remove_video", id)
        return Response(_changed(service, id), media_type=JSON)

    @app.delete("/v1/admin/comments/{id:rest}", **options)
    async def remove_comment(id: schemas.PathId) -> Response:
        """Remove a comment; it is never ranked again until it is put again."""
        await service.change("remove_comment", id)
        return Response(_changed(service, id), media_type=JSON)


def _changed(service: Service, id: str) -> bytes:
    return to_json({"id": id, "catalogue": service.numbers()})
