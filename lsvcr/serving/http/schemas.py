"""Bodies of requests and answers. A misspelt field is refused; an id is a whole number or a text, as in the source."""

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, Strict
from typing_extensions import TypedDict

from lsvcr.settings import ServeSettings

SMALLEST_ID, LARGEST_ID = -(2**63), 2**63 - 1
ID_LENGTH = 512
TEXT_LENGTH = 20_000
VECTOR_LENGTH = 65_536

_Number = Annotated[int, Strict(), Field(ge=SMALLEST_ID, le=LARGEST_ID)]
_Word = Annotated[str, Strict(), Field(max_length=ID_LENGTH)]
Id = Annotated[_Number | _Word, Field(union_mode="left_to_right")]
"""An id as the bundle's source has it: a whole number or a text; a text of digits is taken for the number."""


PathId = Annotated[str, Field(min_length=1, max_length=ID_LENGTH)]
"""An id in a path: digits stand for the number where the bundle's ids are numbers."""


class Visit(TypedDict):
    """The user's comments under one video, oldest first."""

    __pydantic_config__ = ConfigDict(extra="forbid")  # type: ignore[misc]
    video: Id
    comments: list[Id]


CommentHistory = Annotated[list[Visit] | list[Id], Field(union_mode="left_to_right")]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid")


class Histories(_Strict):
    """What a user did, oldest first; all of it may be empty."""

    user: Id | None = Field(
        None, description="a user of the bundle, whose stored histories are taken; then give none"
    )
    video_history: list[Id] = Field(default_factory=list, description="videos the user liked, oldest first")
    comment_history: CommentHistory = Field(
        default_factory=list, description="visits {video, comments}, oldest first; or comment ids alone"
    )


class RecommendRequest(Histories):
    """Which videos next?"""

    k: Annotated[int, Strict()] = Field(10, ge=1, description="how many videos")
    exclude_seen: Annotated[bool, Strict()] = Field(
        True, description="leave out the videos of both histories"
    )
    exclude: list[Id] = Field(default_factory=list, description="further videos to leave out")
    candidates: list[Id] | None = Field(None, description="rank these videos only")


class RecommendBatch(_Strict):
    """Many questions in one request."""

    requests: list[RecommendRequest] = Field(min_length=1)


class RankRequest(Histories):
    """In which order to show the comments of a video?"""

    video: Id = Field(description="the video that is watched")
    comments: list[Id] | None = Field(None, description="rank these comments; without it all of the video")
    k: Annotated[int, Strict()] | None = Field(
        None, ge=1, description="how many comments; without it as many as the server gives"
    )


class RankBatch(_Strict):
    """Many questions in one request."""

    requests: list[RankRequest] = Field(min_length=1)


class Unknown(BaseModel):
    """Ids of a request that the catalogue does not hold; they were passed over."""

    videos: list[int | str]
    comments: list[int | str]


class RankedItem(BaseModel):
    """A ranked video or comment: the score is a cosine in [-1, 1], or of any size where the model ranks by inner
    products; title is the video's title or the comment's text."""

    id: int | str
    score: float
    title: str


class RecommendAnswer(BaseModel):
    """Videos, best first."""

    items: list[RankedItem]
    unknown: Unknown


class RecommendAnswers(BaseModel):
    """One answer for each request, in their order."""

    responses: list[RecommendAnswer]


class RankAnswer(BaseModel):
    """Comments of a video, best first."""

    video: int | str
    items: list[RankedItem]
    unknown: Unknown


class RankAnswers(BaseModel):
    """One answer for each request, in their order."""

    responses: list[RankAnswer]


class VideoComment(BaseModel):
    """A comment of a video."""

    id: int | str
    text: str
    likes: int


class VideoAnswer(BaseModel):
    """A video with its comments, most liked first."""

    id: int | str
    title: str
    n_comments: int
    comments: list[VideoComment]


class UsersAnswer(BaseModel):
    """Some of the bundle's users."""

    users: list[int | str]


class NamedVideo(BaseModel):
    """A video of a history."""

    id: int | str
    title: str


class NamedComment(BaseModel):
    """A comment of a history."""

    id: int | str
    text: str


class UserVisit(BaseModel):
    """As a request takes it."""

    video: int | str
    comments: list[int | str]


class UserAnswer(BaseModel):
    """A user's histories, oldest first, as a request takes them; and the titles and texts of what is in them."""

    id: int | str
    video_history: list[int | str]
    comment_history: list[UserVisit]
    videos: list[NamedVideo]
    comments: list[NamedComment]


class Vector(_Strict):
    """The text vector of a title or comment, as `lsvcr embed` makes it."""

    vector: list[Annotated[FiniteFloat, Strict()]] | None = Field(
        None,
        min_length=1,
        max_length=VECTOR_LENGTH,
        description="without it the bundle's text encoder reads the text",
    )


class PutVideo(Vector):
    """A new video, or a new title of an old one."""

    title: str = Field(max_length=TEXT_LENGTH)


class PutComment(Vector):
    """A new comment, or a new text of an old one."""

    video: Id
    text: str = Field(max_length=TEXT_LENGTH)
    likes: Annotated[int, Strict()] | None = Field(
        None,
        ge=0,
        le=2**31 - 1,
        description="its place among the video's comments; without it as before, or 0",
    )


class SwapRequest(_Strict):
    """Which bundle to serve from now on."""

    path: str = Field(min_length=1, max_length=4096, description="bundle folder on the server's machine")


class ChangeAnswer(BaseModel):
    """The change is on disk (with --state) and every later request sees it."""

    id: int | str
    catalogue: dict[str, Any]


class BundleAnswer(BaseModel):
    """What is served."""

    bundle: str
    tasks: list[str]
    catalogue: dict[str, Any]


class StatusAnswer(BaseModel):
    """How the server is."""

    status: str


class ErrorDetail(BaseModel):
    """What is wrong and what to do."""

    code: str
    message: str


class ErrorAnswer(BaseModel):
    """Every answer of status 400 and above."""

    error: ErrorDetail


def limits_of_schema(settings: ServeSettings) -> dict[str, dict[str, dict[str, int]]]:
    """The server's limits by schema and field, as JSON Schema words: they are settings, so no model knows them."""
    history = {"maxItems": settings.max_history}
    ids = {"maxItems": settings.max_candidates}
    k = {"maximum": settings.max_k}
    both = {"video_history": history, "comment_history": history}
    batch = {"requests": {"maxItems": settings.max_batch}}
    return {
        "RecommendRequest": {**both, "k": k, "exclude": ids, "candidates": ids},
        "RankRequest": {**both, "k": k, "comments": ids},
        "RecommendBatch": batch,
        "RankBatch": batch,
        "Visit": {"comments": history},
    }
