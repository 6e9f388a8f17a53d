"""The routes that everybody may call."""

from typing import Annotated, Any

from fastapi import FastAPI, Query, Request, Response
from pydantic_core import to_json
from starlette.convertors import PathConvertor, register_url_convertor

from lsvcr.serving import types
from lsvcr.serving.http import schemas
from lsvcr.serving.http.bodies import BodyRoute, gone_of
from lsvcr.serving.http.errors import ApiError
from lsvcr.serving.http.limits import check_batch, check_rank, check_recommend
from lsvcr.serving.http.metrics import CONTENT_TYPE
from lsvcr.serving.http.page import Page
from lsvcr.serving.http.service import Service
from lsvcr.serving.runtime import Recommender

JSON = "application/json"
RECOMMEND_PATH = "/v1/recommend"
RANK_PATH = "/v1/rank-comments"
MOST_SHOWN = 100


class RestOfPath(PathConvertor):
    """`{name:rest}` of a route: all that follows, newlines too, which Starlette's own `path` does not take."""

    regex = "(?s:.*)"


register_url_convertor("rest", RestOfPath())


def add_questions(app: FastAPI, service: Service) -> None:
    """POST /v1/recommend and /v1/rank-comments."""
    settings = service.settings

    async def recommend(body: schemas.RecommendRequest | schemas.RecommendBatch, request: Request) -> bytes:
        """Which videos next, for one user or for many."""
        if isinstance(body, schemas.RecommendBatch):
            check_batch(body, settings)
            return _many(await service.recommend([_query(each) for each in body.requests], gone_of(request)))
        return (await service.recommend([_query(body)], gone_of(request)))[0]

    async def rank_comments(body: schemas.RankRequest | schemas.RankBatch, request: Request) -> bytes:
        """In which order to show a video's comments, for one user or for many."""
        if isinstance(body, schemas.RankBatch):
            check_batch(body, settings)
            return _many(
                await service.rank([_comment_query(each) for each in body.requests], gone_of(request))
            )
        return (await service.rank([_comment_query(body)], gone_of(request)))[0]

    def _query(body: schemas.RecommendRequest) -> types.Query:
        check_recommend(body, settings)
        return types.Query(
            video_history=body.video_history,
            comment_history=body.comment_history,
            user=body.user,
            k=body.k,
            exclude_seen=body.exclude_seen,
            exclude=body.exclude,
            candidates=body.candidates,
        )

    def _comment_query(body: schemas.RankRequest) -> types.CommentQuery:
        check_rank(body, settings)
        return types.CommentQuery(
            video=body.video,
            video_history=body.video_history,
            comment_history=body.comment_history,
            user=body.user,
            comments=body.comments,
            k=settings.max_k if body.k is None else body.k,
        )

    for path, endpoint, answer in (
        (RECOMMEND_PATH, recommend, schemas.RecommendAnswer | schemas.RecommendAnswers),
        (RANK_PATH, rank_comments, schemas.RankAnswer | schemas.RankAnswers),
    ):
        app.router.add_api_route(
            path,
            endpoint,
            methods=["POST"],
            response_model=answer,
            responses=errors(400, 404, 413, 415, 422, 503, 504),
            route_class_override=BodyRoute,
        )


def add_look_ups(app: FastAPI, service: Service) -> None:
    """GET /v1/videos/{id}, /v1/users and /v1/users/{id}."""

    @app.get("/v1/videos/{id:rest}", response_model=schemas.VideoAnswer, responses=errors(404, 422, 503, 504))
    async def video(id: schemas.PathId, limit: Annotated[int, Query(ge=0, le=MOST_SHOWN)] = 20) -> Response:
        """A video, its title and the most liked of its comments, `limit` at most."""
        return _json(await service.in_thread(service.recommender.video, id, limit))

    @app.get("/v1/users", response_model=schemas.UsersAnswer, responses=errors(422, 503, 504))
    async def users(
        prefix: Annotated[str, Query(max_length=schemas.ID_LENGTH)] = "",
        limit: Annotated[int, Query(ge=1, le=MOST_SHOWN)] = 20,
    ) -> Response:
        """Users of the bundle whose id begins with `prefix`; none where the bundle has no users."""
        return _json({"users": await service.in_thread(_users, service.recommender, limit, prefix)})

    @app.get("/v1/users/{id:rest}", response_model=schemas.UserAnswer, responses=errors(404, 422, 503, 504))
    async def user(id: schemas.PathId) -> Response:
        """A user's stored histories, as a request takes them, with titles and texts."""
        return _json(await service.in_thread(_user, service.recommender, id))


def add_state(app: FastAPI, service: Service, page: Page | None) -> None:
    """GET /healthz, /readyz, /metrics and the page."""

    @app.get("/healthz", response_model=schemas.StatusAnswer)
    async def healthz() -> Response:
        """The process lives."""
        return _json({"status": "alive"})

    @app.get("/readyz", response_model=schemas.BundleAnswer, responses=errors(503))
    async def readyz() -> Response:
        """Requests are answered; from which bundle."""
        if service.draining:
            raise ApiError(503, "stopping", "the server is stopping; ask another")
        return _json(about(service))

    @app.get("/metrics", responses={200: {"content": {"text/plain": {}}}}, response_class=Response)
    async def metrics() -> Response:
        """Counters for Prometheus."""
        return Response(service.metrics.text(), headers={"content-type": CONTENT_TYPE.decode()})

    if page is not None:
        headers = {name.decode(): value.decode() for name, value in page.headers}

        @app.get("/", include_in_schema=False)
        async def index() -> Response:
            return Response(page.body, headers=headers)


def about(service: Service) -> dict[str, Any]:
    """What is served: bundle, tasks, numbers of the catalogue."""
    return {
        "bundle": service.path,
        "tasks": list(service.recommender.tasks),
        "catalogue": service.numbers(),
    }


def errors(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """The OpenAPI entries of these errors."""
    return {status: {"model": schemas.ErrorAnswer, "description": _MEANING[status]} for status in statuses}


_MEANING = {
    400: "Not JSON",
    401: "Wrong admin token",
    404: "No such id",
    409: "Another exchange is under way",
    413: "Body too large",
    415: "Not application/json",
    422: "Something in the request is wrong, or past a limit",
    503: "Overloaded or stopping; Retry-After tells when to ask again",
    504: "Not answered in time",
    507: "The change could not be stored",
}


def _users(recommender: Recommender, limit: int, prefix: str) -> list[types.RawId]:
    return list(recommender.users(limit, prefix))


def _user(recommender: Recommender, id: str) -> dict[str, Any]:
    videos, visits = recommender.histories(id)
    snapshot = recommender.snapshot
    watched = [*videos, *(visit["video"] for visit in visits)]
    comments = [comment for visit in visits for comment in visit["comments"]]
    return {
        "id": recommender.bundle.users.ids.normalise(id) if recommender.bundle.users else id,
        "video_history": videos,
        "comment_history": visits,
        "videos": [{"id": each, "title": title} for each, title in _texts(snapshot.videos, watched)],
        "comments": [{"id": each, "text": text} for each, text in _texts(snapshot.comments, comments)],
    }


def _texts(table: Any, ids: list[types.RawId]) -> list[tuple[types.RawId, str]]:
    """Id and text of what is shown now, each once."""
    once = list(dict.fromkeys(ids))
    rows = table.find_live(once).tolist() if once else []
    return [(raw, table.text(row)) for raw, row in zip(once, rows, strict=True) if row > 0]


def _many(answers: list[bytes]) -> bytes:
    return b'{"responses":[' + b",".join(answers) + b"]}"


def _json(content: Any) -> Response:
    return Response(to_json(content), media_type=JSON)
