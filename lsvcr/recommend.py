"""`lsvcr recommend`: one question to a bundle, or a file of them."""

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lsvcr.serving.errors import BadRequest, UnknownId
from lsvcr.serving.requests import Answer, answer_file, answer_json, answers, count_lines, request_of
from lsvcr.serving.runtime import Recommender
from lsvcr.settings import RecommendSettings
from lsvcr.utils.errors import UserError
from lsvcr.utils.logging import get_logger, progress

_log = get_logger(__name__)


def recommend(settings: RecommendSettings) -> None:
    """Answer what `settings` ask, on stdout or into a file.

    Raises:
        UserError: nothing or too much is asked, the question has no answer, or the bundle is broken.
    """
    _check(settings)
    recommender = Recommender.load(settings.bundle, threads=settings.threads, verify=settings.verify)
    if settings.input:
        _answer_many(recommender, settings)
        return
    try:
        answer = answers(recommender, [request_of(_question(settings))])[0]
    except (BadRequest, UnknownId) as broken:
        raise UserError(str(broken)) from None
    if settings.json:
        sys.stdout.write(json.dumps(answer_json(answer), ensure_ascii=False) + "\n")
    else:
        _print(answer, settings.video)


def _check(settings: RecommendSettings) -> None:
    given = [name for name in ("user", "history", "input") if getattr(settings, name)]
    if len(given) != 1:
        told = " and ".join(f"--{name}" for name in given) if given else "none of them"
        raise UserError(f"lsvcr recommend needs one of --user, --history and --input, not {told}")
    if bool(settings.input) != bool(settings.output):
        raise UserError("--input and --output go together: requests in, answers out")
    if settings.input and settings.video:
        raise UserError('with --input a request says itself which video it is about: {"video": id, ...}')


def _question(settings: RecommendSettings) -> dict[str, Any]:
    """The request as a JSON object."""
    asked = {"user": settings.user} if settings.user else _history(settings.history)
    if settings.video:
        return {"k": settings.k, **asked, "video": settings.video}
    return {"k": settings.k, "exclude_seen": settings.exclude_seen, **asked}


def _history(text: str) -> dict[str, Any]:
    name = "--history"
    if text.startswith("@"):
        name = text[1:]
        try:
            text = Path(name).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as broken:
            raise UserError(f"{name} cannot be read: {broken}") from None
    try:
        content = json.loads(text)
    except (ValueError, RecursionError) as broken:
        raise UserError(f"{name} is not valid JSON ({broken})") from None
    if not isinstance(content, Mapping):
        raise UserError(f'{name} is a JSON object such as {{"video_history": [1, 2]}}, not {text[:80]}')
    return dict(content)


def _answer_many(recommender: Recommender, settings: RecommendSettings) -> None:
    with progress(count_lines(settings.input), "requests") as bar:
        count = answer_file(recommender, settings.input, settings.output, bar.advance)
    _log.info(f"{count} answers are in {settings.output}")


def _print(answer: Answer, video: str) -> None:
    from rich import box
    from rich.table import Table
    from rich.text import Text

    from lsvcr.utils.tables import print_whole

    table = Table(box=box.SIMPLE, title=f"comments of video {video}" if video else None)
    for name in ("", "id", "score", "comment" if video else "title"):
        table.add_column(name, justify="right" if name in ("", "score") else "left")
    for place, item in enumerate(answer.items, start=1):
        table.add_row(str(place), Text(str(item.id)), f"{item.score:.4f}", Text(item.title))
    print_whole(table)
    for name, ids in (("videos", answer.unknown.videos), ("comments", answer.unknown.comments)):
        if ids:
            shown = ", ".join(map(str, ids[:20])) + (", ..." if len(ids) > 20 else "")
            _log.warning(f"{len(ids)} {name} that the bundle does not know were skipped: {shown}")
