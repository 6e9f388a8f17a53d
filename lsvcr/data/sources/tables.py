"""Any platform's logs: folders of CSV or Parquet files, and a small YAML file that says which column is which.

    videos: {files: videos, id: video_id, title: title, category: tag, author: uploader}
    likes: {files: likes, user: uid, video: video_id, time: ts, unit: seconds}
    comments: {files: comments, id: comment_id, text: body, video: video_id, likes: like_count}
    comment_likes: {files: comment_likes, user: uid, comment: comment_id, time: ts, unit: seconds}
    impressions: {files: views, user: uid, video: video_id, time: ts, unit: seconds, clicked: is_click}

Rows of such folders come in no order of their own, so events of a user at the same time are ordered by the id
of the video or comment, and the result does not depend on how the rows are spread over files.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl
import yaml

from lsvcr.data.sources.columns import Column, Kind
from lsvcr.data.sources.logs import ROW, BadRows, Origin, RawLogs, drop_bad
from lsvcr.data.sources.parts import PartedTable
from lsvcr.data.sources.spill import CLICKED, FROM_LIKES, Spill
from lsvcr.schema import AUTHOR, CATEGORY, COMMENT, CONTENT, LIKES, RAW_ID, TIME, TITLE, USER, VIDEO
from lsvcr.settings import PrepareSettings
from lsvcr.utils.arguments import nearest
from lsvcr.utils.errors import UserError

MAP_FILE = "columns.yaml"
UNITS = ("milliseconds", "seconds", "microseconds", "datetime")


@dataclass(frozen=True)
class _Table:
    """What the map may say of one table: our name of a column -> (its name in the frame, kind)."""

    required: Mapping[str, tuple[str, str]]
    optional: Mapping[str, tuple[str, str]]
    is_event: bool = False


_ID = "an id"
_SHOWN = "impressions"
_TABLES = {
    "videos": _Table(
        {"id": (RAW_ID, _ID), "title": (TITLE, "text")},
        {"category": (CATEGORY, "text"), "author": (AUTHOR, "text")},
    ),
    "likes": _Table({"user": (USER, _ID), "video": (VIDEO, _ID), "time": (TIME, "time")}, {}, True),
    "comments": _Table(
        {"id": (RAW_ID, _ID), "text": (CONTENT, "text"), "video": (VIDEO, _ID)}, {"likes": (LIKES, "count")}
    ),
    "comment_likes": _Table(
        {"user": (USER, _ID), "comment": (COMMENT, _ID), "time": (TIME, "time")},
        {"video": (VIDEO, _ID)},
        True,
    ),
    "users": _Table({"id": (RAW_ID, _ID)}, {}),
    _SHOWN: _Table({"user": (USER, _ID), "video": (VIDEO, _ID), "time": (TIME, "time")}, {}, True),
}
_NEEDED = ("videos", "likes")


def read(settings: PrepareSettings, bad: BadRows, spill: Spill | None = None) -> RawLogs:
    """Read the tables that the column map names, each file once.

    Args:
        settings: where they are.
        bad: where broken rows are reported.
        spill: receives the impressions, if the map names them; None = they are left out.

    Raises:
        UserError: the map is wrong, a file or column is missing, or a row is broken (see `BadRows`).
    """
    source = _Source(Path(settings.raw), settings.columns, bad)
    videos, _ = source.read("videos", unique=True)
    likes, n_likes = source.read("likes")
    comments, _ = source.read("comments", unique=True)
    touches, n_touches = source.read("comment_likes")
    touches = _with_videos(touches, comments, source.origin("comment_likes"), bad)
    users, _ = source.read("users", unique=True)
    if "users" not in source.tables:
        acting = pl.concat([likes.select(ROW, USER), touches.select(ROW, USER)])
        users = acting.rename({USER: RAW_ID}).unique(RAW_ID, keep="first", maintain_order=True)
    counts = {"likes_rows": n_likes, "comment_likes_rows": n_touches}
    if spill is not None and _SHOWN in source.tables:
        counts["impressions"] = source.spill_impressions(spill)
    return RawLogs(
        users=users,
        videos=videos,
        comments=comments,
        video_events=likes,
        comment_events=touches,
        origins={
            "users": source.origin("users"),
            "videos": source.origin("videos"),
            "comments": source.origin("comments"),
            "video_events": source.origin("likes"),
            "comment_events": source.origin("comment_likes"),
        },
        counts=counts,
        rows_have_order=False,
    )


class _Source:
    """The tables of one map, read into frames with our column names; a table that is not named is empty."""

    def __init__(self, folder: Path, map_file: str, bad: BadRows) -> None:
        self._bad = bad
        self._path = Path(map_file) if map_file else folder / MAP_FILE
        content = _read_map(self._path)
        ids = content.pop("ids", "numbers")
        if ids not in ("numbers", "strings"):
            raise UserError(f"{self._path}: `ids` is {ids!r}; write numbers or strings")
        self._id_kind: Kind = "id" if ids == "numbers" else "key"
        self._maps = {name: self._checked(name, content[name]) for name in content}
        self.tables = {name: self._open(folder, name) for name in self._maps}

    def origin(self, name: str) -> Origin:
        """Where the rows of a table came from; likes stand for a table that is not there."""
        return self.tables.get(name, self.tables["likes"])

    def read(self, name: str, unique: bool = False) -> tuple[pl.DataFrame, int]:
        """(frame with our names, rows in the files); `unique` for tables with one row an id."""
        table = _TABLES[name]
        every = {**table.required, **table.optional}
        if name not in self.tables:
            return pl.DataFrame(schema={ROW: pl.UInt32, **self._schema(every)}), 0
        given = self._maps[name]
        parts = self.tables[name]
        size = 0
        if unique:
            frame = parts.collect_unique(given["id"], self._bad)
        else:
            when = _names(given.get("when", []))
            frame, size = parts.collect(self._bad, pl.any_horizontal(when) if when else None)
        columns = [pl.col(given[key]).alias(own) for key, (own, _) in every.items() if key in given]
        frame = frame.select(ROW, *columns)
        absent = {own: kind for key, (own, kind) in every.items() if key not in given and own != VIDEO}
        fill = [
            pl.lit(0 if kind == "count" else "").cast(self._type(kind)).alias(own)
            for own, kind in absent.items()
        ]
        return frame.with_columns(fill), size

    def spill_impressions(self, spill: Spill) -> int:
        """Send every impression to `spill`; returns the rows in the files."""
        given = self._maps[_SHOWN]
        when = _names(given.get("when", []))
        columns = [pl.col(given[key]).alias(own) for key, (own, _) in _TABLES[_SHOWN].required.items()]
        clicked = pl.any_horizontal(_names(given[CLICKED])).alias(CLICKED)
        keep = pl.any_horizontal(when) if when else None
        spill.rows_have_order = False
        return self.tables[_SHOWN].spill(
            self._bad, keep, spill, [*columns, clicked, pl.lit(False).alias(FROM_LIKES)]
        )

    def _schema(self, columns: Mapping[str, tuple[str, str]]) -> dict[str, pl.DataType]:
        return {own: self._type(kind) for own, kind in columns.values()}

    def _type(self, kind: str) -> pl.DataType:
        if kind == _ID:
            return pl.Int64() if self._id_kind == "id" else pl.String()
        return pl.String() if kind == "text" else pl.Int64()

    def _checked(self, name: str, given: Any) -> dict[str, Any]:
        """One table's entry of the map, each key known and each needed one there."""
        if name not in _TABLES:
            raise UserError(
                f"{self._path}: unknown table {name!r}; {nearest(str(name), _TABLES) or _known(_TABLES)}"
            )
        if not isinstance(given, dict):
            raise UserError(f"{self._path}: `{name}` must be {{files: ..., column: name, ...}}")
        table = _TABLES[name]
        own = ["files", "separator", *table.required, *table.optional]
        own += ["unit", "when"] if table.is_event else []
        own += [CLICKED] if name == _SHOWN else []
        # A key without a value is one that was left out.
        given = {key: value for key, value in given.items() if value is not None}
        for key in given:
            if key not in own:
                raise UserError(
                    f"{self._path}: `{name}` knows no {key!r}; {nearest(str(key), own) or _known(own)}"
                )
        needed = ["files", *table.required, *([CLICKED] if name == _SHOWN else [])]
        missing = [key for key in needed if not given.get(key)]
        if table.is_event and given.get("unit") not in UNITS:
            raise UserError(f"{self._path}: `{name}` needs `unit`, that of its time: {', '.join(UNITS)}")
        if missing:
            raise UserError(f"{self._path}: `{name}` needs {', '.join(f'`{key}`' for key in missing)}")
        if not isinstance(given["files"], str):
            raise UserError(
                f"{self._path}: `files` of `{name}` is {given['files']!r}; write one file or one folder"
            )
        mark = given.get("separator", ",")
        if not isinstance(mark, str) or len(mark.encode()) != 1 or mark in '"\r\n':
            raise UserError(
                f'{self._path}: `separator` of `{name}` is {mark!r}; it must be one ASCII character, as ";" or '
                '"\\t", in quotes'
            )
        return given

    def _open(self, folder: Path, name: str) -> PartedTable:
        table, given = _TABLES[name], self._maps[name]
        columns = []
        for key, (_, kind) in {**table.required, **table.optional}.items():
            if key in given:
                kinds: dict[str, Any] = {_ID: self._id_kind, "time": given.get("unit")}
                columns.append(Column(str(given[key]), kinds.get(kind, kind)))
        flags = dict.fromkeys([*_names(given.get("when", [])), *_names(given.get(CLICKED, []))])
        columns += [Column(column, "flag") for column in flags]
        # Two keys may name one column, if it is read in one way.
        columns = list(dict.fromkeys(columns))
        names = [column.name for column in columns]
        twice = [column for column in columns if names.count(column.name) > 1]
        if twice:
            kinds_found = " and as ".join(column.kind for column in twice if column.name == twice[0].name)
            raise UserError(
                f"{self._path}: `{name}` reads the column {twice[0].name!r} as {kinds_found}; name another one, or "
                "write it to the raw files a second time under another name"
            )
        return PartedTable(folder / given["files"], columns, self._bad.skip, given.get("separator", ","))


def _read_map(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise UserError(
            f"{path} is missing: it must say which file and column is which (docs/data.md has an example), "
            "or name another one with --columns"
        )
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is no YAML: {error}") from None
    if not isinstance(content, dict) or any(name not in content for name in _NEEDED):
        raise UserError(f"{path} must name at least the tables {' and '.join(_NEEDED)}")
    if ("comments" in content) != ("comment_likes" in content):
        raise UserError(f"{path} must name both comments and comment_likes, or neither")
    return content


def _with_videos(touches: pl.DataFrame, comments: pl.DataFrame, origin: Origin, bad: BadRows) -> pl.DataFrame:
    """Interactions with the video of each, looked up where their own table does not say it."""
    if VIDEO in touches.columns:
        return touches
    of = comments.select(pl.col(RAW_ID).alias(COMMENT), VIDEO)
    joined = touches.join(of, on=COMMENT, how="left", maintain_order="left")
    reason = pl.format("comment {} is not among the comments", COMMENT)
    return drop_bad(joined, joined[VIDEO].is_null(), origin, reason, bad)


def _names(value: Any) -> list[str]:
    return [str(name) for name in value] if isinstance(value, list) else [str(value)]


def _known(names: Any) -> str:
    return f"choose from {', '.join(names)}"
