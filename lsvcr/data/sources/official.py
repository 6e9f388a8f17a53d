"""The official format of LSVCR: samples that are split already, in JSON lines, with catalogues in JSON and pickle.

all_photos.pkl, all_comments.pkl     ids by row of photo_embs.npy and comment_embs.npy; '[PAD]' first
photo.json                           {video id: {"title": text, "comment_list": [comment ids, popular first]}}
comment.json                         {comment id: {"content": text}}
rec.{train,val,test}.json            a sample a line: user_id, target_photo, photo_inter_his [video ids],
                                     comment_inter_his [[video ids], [[comment ids], ...]]
comm_rank.{train,val,test}.json      the same and pos_comments [comment ids]; target_photo is being watched

Histories are oldest first. Ids are strings or whole numbers; 17 and "17" are the same. Indices follow the two lists,
so that vectors made for them fit the dataset as they are. Row i of a sample table is line i of its file.
"""

import json
from array import array
from collections.abc import Callable, Iterator, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from lsvcr.data.assemble import Prepared
from lsvcr.data.import_official import Catalogue, prepared
from lsvcr.data.official_chains import Chains, OfficialSample, comment_codes
from lsvcr.data.sources.logs import LISTED, BadRows
from lsvcr.data.sources.plain_pickle import read_plain
from lsvcr.data.store import Csr
from lsvcr.schema import Split, Task
from lsvcr.settings import PrepareSettings
from lsvcr.utils.errors import UserError
from lsvcr.utils.io import read_json

VIDEO_LIST_FILE, COMMENT_LIST_FILE = "all_photos.pkl", "all_comments.pkl"
VIDEO_TEXT_FILE, COMMENT_TEXT_FILE = "photo.json", "comment.json"
PAD_ID = "[PAD]"

T = TypeVar("T")

_CUT_HERE = ("split", "val_share", "test_share", "user_core", "video_core", "min_history")
"""Settings of filters and splits."""


class _Broken(ValueError):
    """What is wrong with a row, in words."""


def samples_file(task: Task, split: Split) -> str:
    """`rec.train.json` and so on."""
    return f"{task.value}.{split.value}.json"


def read(settings: PrepareSettings, bad: BadRows) -> Prepared:
    """Read the ten files of `settings.raw`. Filters and splits are not applied: the samples are what they are.

    Raises:
        UserError: a file is missing or damaged, a row is broken (see `BadRows`), a split of rec is empty, or the
            settings ask for a filter or split.
    """
    _check(settings)
    folder = Path(settings.raw)
    videos, comments = _ids(folder / VIDEO_LIST_FILE), _ids(folder / COMMENT_LIST_FILE)
    if not videos:
        raise UserError(f"{folder / VIDEO_LIST_FILE} holds no id but {PAD_ID!r}; make it again")
    catalogue = _catalogue(folder, videos, comments, bad)
    chains = Chains()
    for task in Task:
        for split in Split:
            path = folder / samples_file(task, split)
            for sample in _samples(path, task, videos, comments, bad):
                chains.add(task, split, sample)
            if task is Task.REC and not chains.size(task, split):
                raise UserError(
                    f"{path} holds no sample; training and evaluation need all three splits of rec"
                )
    return prepared(catalogue, chains.finish(len(videos), len(comments)), settings)


def _check(settings: PrepareSettings) -> None:
    defaults = {option.name: option.default for option in fields(PrepareSettings)}
    for name in _CUT_HERE:
        if getattr(settings, name) != defaults[name]:
            raise UserError(
                f"--{name} has no meaning for official, whose samples are filtered and split: leave it out"
            )
    for name in _files():
        if not (Path(settings.raw) / name).is_file():
            raise UserError(
                f"{Path(settings.raw) / name} is missing; the raw folder must hold {', '.join(_files())}"
            )


def _files() -> list[str]:
    samples = [samples_file(task, split) for task in Task for split in Split]
    return [VIDEO_LIST_FILE, COMMENT_LIST_FILE, VIDEO_TEXT_FILE, COMMENT_TEXT_FILE, *samples]


def _ids(path: Path) -> dict[str, int]:
    """Index, from 1, of every id in a pickled list."""
    listed = read_plain(path)
    if not isinstance(listed, list) or listed[:1] != [PAD_ID]:
        raise UserError(
            f"{path} holds no list that starts with {PAD_ID!r}: its places would not be the indices"
        )
    index: dict[str, int] = {}
    for place, value in enumerate(listed[1:], start=1):
        if not _is_id(value):
            raise UserError(
                f"{path}, place {place}: {value!r:.80} is no id; ids are strings or whole numbers"
            )
        if index.setdefault(str(value), place) != place:
            raise UserError(f"{path}, place {place}: {value!r:.80} stands here a second time; keep it once")
    return index


def _is_id(value: object) -> bool:
    if isinstance(value, str):
        return _clean(value) == value
    return isinstance(value, int) and not isinstance(value, bool)


def _clean(text: str) -> str:
    """The text with U+FFFD for halves of characters, which JSON can hold and UTF-8 cannot."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return text


def _catalogue(folder: Path, videos: dict[str, int], comments: dict[str, int], bad: BadRows) -> Catalogue:
    """Texts by index; where an entry is left out the text is empty."""

    def video(entry: dict[str, Any]) -> tuple[str, array]:
        own = _indices(_list(entry, "comment_list"), comments, "comment", COMMENT_LIST_FILE)
        # A comment that is listed twice counts where it stands first.
        return _text(entry, "title"), array("q", dict.fromkeys(own))

    def comment(entry: dict[str, Any]) -> str:
        return _text(entry, "content")

    described = _described(folder / VIDEO_TEXT_FILE, videos, video, ("", array("q")), bad)
    lists = [own for _, own in described]
    offsets = np.cumsum([0, 0, *map(len, lists)], dtype=np.int64)
    items = np.frombuffer(b"".join(lists), np.int64).astype(np.int32)
    return Catalogue(
        video_ids=list(videos),
        titles=[title for title, _ in described],
        comment_ids=list(comments),
        contents=_described(folder / COMMENT_TEXT_FILE, comments, comment, "", bad),
        video_comments=Csr(offsets, items),
    )


def _described(
    path: Path, index: dict[str, int], parse: Callable[[dict[str, Any]], T], default: T, bad: BadRows
) -> list[T]:
    """What `parse` makes of the entry of every id, in order; `default` where an entry is broken."""
    entries = read_json(path)
    if not isinstance(entries, dict):
        raise UserError(f"{path} does not hold one JSON object with an entry for each id; make it again")
    faults = _Faults(path)
    found = []
    for key in index:
        try:
            found.append(parse(_object(entries.pop(key, None))))
        except _Broken as broken:
            found.append(default)
            faults.add(f"{path}, entry {key}", broken)
    for key in entries:
        faults.add(f"{path}, entry {key}", "the list of ids does not have it")
    faults.report(bad)
    return found


def _samples(
    path: Path, task: Task, videos: dict[str, int], comments: dict[str, int], bad: BadRows
) -> Iterator[OfficialSample]:
    """The samples of a file; broken lines are reported when the last one has been read."""
    faults = _Faults(path)
    with open(path, "rb") as lines:
        for number, line in enumerate(lines, start=1):
            if line.isspace():
                continue
            try:
                yield _sample(_object(_parsed(line)), task, videos, comments)
            except _Broken as broken:
                faults.add(f"{path}, line {number}", broken)
    faults.report(bad)


def _sample(
    record: dict[str, Any], task: Task, videos: dict[str, int], comments: dict[str, int]
) -> OfficialSample:
    user = _field(record, "user_id")
    if not _is_id(user):
        raise _Broken(f"user_id is {user!r:.80}, expected a string or a whole number")
    positives: Sequence[int] = ()
    if task is Task.COMM_RANK:
        listed = _list(record, "pos_comments")
        positives = list(dict.fromkeys(_indices(listed, comments, "comment", COMMENT_LIST_FILE)))
        if not positives:
            raise _Broken("pos_comments is empty; a sample needs at least one")
    target = _indices([_field(record, "target_photo")], videos, "video", VIDEO_LIST_FILE)
    return OfficialSample(
        user=str(user),
        videos=_indices(_list(record, "photo_inter_his"), videos, "video", VIDEO_LIST_FILE).tobytes(),
        comments=_comment_history(_list(record, "comment_inter_his"), videos, comments),
        video=target[0],
        positives=positives,
    )


def _comment_history(history: list[Any], videos: dict[str, int], comments: dict[str, int]) -> bytes:
    if not history:
        return b""
    if len(history) != 2 or not all(isinstance(part, list) for part in history):
        raise _Broken("comment_inter_his is not a list of videos and a list of their comments")
    watched, groups = history
    if len(watched) != len(groups):
        raise _Broken(f"comment_inter_his has {len(watched)} videos and {len(groups)} lists of comments")
    if not all(isinstance(group, list) and group for group in groups):
        raise _Broken("comment_inter_his has an entry without a list of comments")
    own = [_indices(group, comments, "comment", COMMENT_LIST_FILE) for group in groups]
    return comment_codes(_indices(watched, videos, "video", VIDEO_LIST_FILE), own)


def _parsed(line: bytes) -> Any:
    try:
        return json.loads(line)
    except json.JSONDecodeError as broken:
        raise _Broken(f"not valid JSON ({broken.msg}, column {broken.colno})") from None
    except UnicodeDecodeError:
        raise _Broken("not UTF-8") from None
    except (ValueError, RecursionError) as broken:
        raise _Broken(f"not valid JSON ({broken})") from None


def _object(value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise _Broken("there is none" if value is None else f"expected a JSON object, not {value!r:.40}")
    return value


def _field(record: dict[str, Any], name: str) -> Any:
    if name not in record:
        raise _Broken(f"no {name}")
    return record[name]


def _list(record: dict[str, Any], name: str) -> list[Any]:
    value = _field(record, name)
    if not isinstance(value, list):
        raise _Broken(f"{name} is {value!r:.40}, expected a list")
    return value


def _text(entry: dict[str, Any], name: str) -> str:
    """A text without halves of characters; null is the empty one."""
    value = _field(entry, name)
    if not isinstance(value, str | None):
        raise _Broken(f"{name} is {value!r:.40}, expected a text")
    return _clean(value or "")


def _indices(ids: list[Any], index: dict[str, int], what: str, file: str) -> array:
    try:
        return array("q", map(index.__getitem__, map(str, ids)))
    except KeyError as unknown:
        raise _Broken(f"{what} {unknown.args[0]:.80} is not in {file}") from None


class _Faults:
    """Collects what is wrong with a file, for one report."""

    def __init__(self, path: Path) -> None:
        self._file = path.name
        self._lines: list[str] = []
        self._total = 0

    def add(self, place: str, reason: object) -> None:
        """Note one more broken row."""
        self._total += 1
        if self._total <= LISTED:
            self._lines.append(f"{place}: {reason}")

    def report(self, bad: BadRows) -> None:
        """Stop or count, as `bad` was told."""
        bad.add(self._file, self._total, self._lines)
