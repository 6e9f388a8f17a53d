"""What a recommender is asked and what it answers. Ids are raw ones, as in the source: whole numbers or texts."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

RawId = int | str
"""An id as in the source. Where a source's ids are whole numbers, their digits as a text are the same id."""

Visit = Mapping[str, Any]
"""One step of a comment history: `{"video": id, "comments": [id, ...]}`; without "video" it is looked up."""

CommentHistory = Sequence[RawId | Visit]
"""Oldest first. A bare comment id stands for a visit with that comment; neighbours under one video are one visit."""


@dataclass(frozen=True)
class Query:
    """What to recommend for whom. Histories are oldest first; only their latest steps count.

    Attributes:
        video_history: videos that the user liked.
        comment_history: comments that the user liked or answered, see `CommentHistory`.
        user: a user of the bundle, whose stored histories are taken; the two above stay empty then.
        k: how many videos, at least 1.
        exclude_seen: videos of the given histories, or all that the stored user liked or liked comments of, are left
            out.
        exclude: videos to leave out besides.
        candidates: only these are ranked, each once; None = all. What is excluded is so here too.
    """

    video_history: Sequence[RawId] = ()
    comment_history: CommentHistory = ()
    user: RawId | None = None
    k: int = 10
    exclude_seen: bool = True
    exclude: Sequence[RawId] = ()
    candidates: Sequence[RawId] | None = None


@dataclass(frozen=True)
class CommentQuery:
    """Which comments of a video to show a user first. Histories as in `Query`.

    Attributes:
        video: the video being watched.
        comments: the comments to rank, each once; None = all of that video.
        k: how many, at least 1; None = all.
    """

    video: RawId
    video_history: Sequence[RawId] = ()
    comment_history: CommentHistory = ()
    user: RawId | None = None
    comments: Sequence[RawId] | None = None
    k: int | None = None


@dataclass(slots=True)  # ten an answer: frozen ones take four times as long to make
class Item:
    """A ranked video or comment.

    Attributes:
        id: its raw id.
        score: cosine with the user, -1 to 1, or inner product, as the manifest has it for the part.
        title: the video's title, or the comment's text.
    """

    id: RawId
    score: float
    title: str


@dataclass(frozen=True)
class Unknown:
    """Ids of a request that are not in the bundle, in its order, each once. They were skipped."""

    videos: list[RawId] = field(default_factory=list)
    comments: list[RawId] = field(default_factory=list)


@dataclass(frozen=True)
class Recommendation:
    """Videos, best first: k of them, or fewer where there are no more. Equal scores: as in the bundle's order."""

    items: list[Item]
    unknown: Unknown


@dataclass(frozen=True)
class Ranking:
    """Comments of `video`, best first; equal scores: as in the bundle's order."""

    video: RawId
    items: list[Item]
    unknown: Unknown


@dataclass(frozen=True)
class CommentInfo:
    """A comment as it is shown."""

    id: RawId
    text: str
    likes: int


@dataclass(frozen=True)
class VideoInfo:
    """A video as it is shown: its most liked comments first, `n_comments` in all."""

    id: RawId
    title: str
    n_comments: int
    comments: list[CommentInfo]
