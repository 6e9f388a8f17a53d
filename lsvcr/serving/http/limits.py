"""What a request may ask for, and what the process may open."""

import resource

from lsvcr.serving.http.errors import ApiError
from lsvcr.serving.http.schemas import (
    Histories,
    RankBatch,
    RankRequest,
    RecommendBatch,
    RecommendRequest,
)
from lsvcr.settings import ServeSettings

SPARE_FILES = 256
"""Descriptors beside those of connections: the bundle's arrays, the journal, the log."""


def check_recommend(body: RecommendRequest, settings: ServeSettings) -> None:
    """Raise 422 with the limit's name and value where a request goes past one."""
    check_histories(body, settings)
    _at_most("k", body.k, settings.max_k, "max_k")
    _at_most("exclude", len(body.exclude), settings.max_candidates, "max_candidates")
    if body.candidates is not None:
        _at_most("candidates", len(body.candidates), settings.max_candidates, "max_candidates")


def check_rank(body: RankRequest, settings: ServeSettings) -> None:
    """Raise 422 with the limit's name and value where a request goes past one."""
    check_histories(body, settings)
    if body.k is not None:
        _at_most("k", body.k, settings.max_k, "max_k")
    if body.comments is not None:
        _at_most("comments", len(body.comments), settings.max_candidates, "max_candidates")


def check_batch(body: RecommendBatch | RankBatch, settings: ServeSettings) -> None:
    """Raise 422 for too many questions in one request."""
    _at_most("requests", len(body.requests), settings.max_batch, "max_batch")


def check_histories(body: Histories, settings: ServeSettings) -> None:
    """Raise 422 for a history that is too long."""
    _at_most("video_history", len(body.video_history), settings.max_history, "max_history")
    visits = body.comment_history
    _at_most("comment_history", len(visits), settings.max_history, "max_history")
    comments = 0
    for visit in visits:
        comments += len(visit["comments"]) if isinstance(visit, dict) else 1
    _at_most("the comments of comment_history", comments, settings.max_history, "max_history")


def raise_open_files(wanted: int) -> int:
    """Let this process open `wanted` connections, as far as the system allows.

    Returns:
        Connections that it may open: `wanted`, or fewer under a low hard limit.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    need = wanted + SPARE_FILES
    if soft != resource.RLIM_INFINITY and soft < need:
        soft = need if hard == resource.RLIM_INFINITY else min(need, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    return wanted if soft == resource.RLIM_INFINITY else max(1, min(wanted, soft - SPARE_FILES))


def _at_most(name: str, value: int, most: int, setting: str) -> None:
    if value > most:
        raise ApiError(
            422, "over_limit", f"{name}: {value} is more than the {most} this server allows (--{setting})"
        )
