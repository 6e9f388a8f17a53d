"""Requests and answers as JSON: one of each a line, for many at a time. The keys are the fields of `Query`.

    {"video_history": [7, 9], "comment_history": [{"video": 7, "comments": [21]}], "k": 5}
    {"user": 12, "exclude": [8]}
    {"user": 12, "video": 7}                                  the comments of video 7, ranked

An answer has its request's line number: `{"items": [{"id", "score", "title"}, ...], "unknown": {"videos": [...],
"comments": [...]}}`, of a ranking also "video", and "user" where the request had one.
"""

import dataclasses
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from lsvcr.serving.errors import BadRequest, UnknownId
from lsvcr.serving.runtime import Recommender
from lsvcr.serving.types import CommentQuery, Query, Ranking, Recommendation
from lsvcr.utils.errors import UserError
from lsvcr.utils.io import atomic_file

_LINES = 512
"""Lines that are read, answered and written at a time."""

Answer = Recommendation | Ranking


def request_of(content: Any) -> Query | CommentQuery:
    """The request that a JSON object is: with "video" one for the ranking of its comments.

    Raises:
        BadRequest: no object, or one with keys that no request has.
    """
    if not isinstance(content, Mapping):
        raise BadRequest(f"a request is a JSON object, not {json.dumps(content)[:80]}")
    kind: type[Query] | type[CommentQuery] = CommentQuery if "video" in content else Query
    known = [field.name for field in dataclasses.fields(kind)]
    further = sorted(set(content) - set(known))
    if further:
        raise BadRequest(f"a request has no {further[0]!r}; it may have {', '.join(sorted(known))}")
    return kind(**content)


def answer_json(answer: Answer) -> dict[str, Any]:
    """The answer as a JSON object."""
    return dataclasses.asdict(answer)


def answers(recommender: Recommender, requests: Sequence[Query | CommentQuery]) -> list[Answer]:
    """An answer for each request, in order; errors as `Recommender.recommend_many` and `rank_comments_many`."""
    found: dict[int, Answer] = {}
    rec = {place: request for place, request in enumerate(requests) if isinstance(request, Query)}
    rank = {place: request for place, request in enumerate(requests) if isinstance(request, CommentQuery)}
    if rec:
        found.update(zip(rec, recommender.recommend_many(list(rec.values())), strict=True))
    if rank:
        found.update(zip(rank, recommender.rank_comments_many(list(rank.values())), strict=True))
    return [found[place] for place in range(len(requests))]


def answer_file(
    recommender: Recommender, source: str | Path, target: str | Path, advance: Callable[[int], None]
) -> int:
    """Answer the requests in the lines of `source` into the lines of `target`, which is written whole or not at all.

    Args:
        source: UTF-8; a line without anything is no request, and gets no answer.
        advance: told of every few lines that are done.

    Returns:
        The number of answers.

    Raises:
        UserError: a line is no request, with its file and number; or a file cannot be read or written.
    """
    count = 0
    with atomic_file(target) as temporary, open(temporary, "w", encoding="utf-8") as out:
        for first, lines in _read(source):
            numbered = [(n, line) for n, line in enumerate(lines, start=first) if line.strip()]
            out.writelines(_answered(recommender, source, numbered))
            count += len(numbered)
            advance(len(lines))
    return count


def count_lines(source: str | Path) -> int:
    """Lines of a file, the last one too if it does not end.

    Raises:
        UserError: it cannot be read.
    """
    return sum(len(lines) for _, lines in _read(source))


def _read(source: str | Path) -> Iterator[tuple[int, list[bytes]]]:
    """The lines of a file in parts, each with the number of its first line."""
    first, lines = 1, []
    try:
        with open(source, "rb") as stream:
            for line in stream:
                lines.append(line)
                if len(lines) == _LINES:
                    yield first, lines
                    first, lines = first + len(lines), []
    except OSError as broken:
        raise UserError(f"{source} cannot be read: {broken.strerror}") from None
    if lines:
        yield first, lines


def _answered(recommender: Recommender, source: str | Path, lines: Sequence[tuple[int, bytes]]) -> list[str]:
    requests = [_parsed(source, number, line) for number, line in lines]
    try:
        found = answers(recommender, requests)
    except (BadRequest, UnknownId):
        # One of them is to blame: alone, it says so.
        found = [
            _alone(recommender, source, n, request) for (n, _), request in zip(lines, requests, strict=True)
        ]
    return [
        json.dumps(
            {**answer_json(answer), **({} if request.user is None else {"user": request.user})},
            ensure_ascii=False,
        )
        + "\n"
        for request, answer in zip(requests, found, strict=True)
    ]


def _parsed(source: str | Path, number: int, line: bytes) -> Query | CommentQuery:
    try:
        return request_of(json.loads(line))
    except (ValueError, RecursionError) as broken:  # BadRequest, JSON and UTF-8 errors are ValueErrors
        raise _told(source, number, broken) from None


def _alone(
    recommender: Recommender, source: str | Path, number: int, request: Query | CommentQuery
) -> Answer:
    try:
        return answers(recommender, [request])[0]
    except (BadRequest, UnknownId) as broken:
        raise _told(source, number, broken) from None


def _told(source: str | Path, number: int, broken: Exception) -> UserError:
    return UserError(f"{source}, line {number}: {broken}; mend or remove the line, nothing was written")
