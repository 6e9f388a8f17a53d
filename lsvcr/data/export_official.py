"""A prepared dataset in the official format of LSVCR (see `lsvcr.data.sources.official`).

Every sample carries its histories, so the files are many times larger than the dataset; they are written line by line.
"""

import json
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np

from lsvcr import __version__, schema
from lsvcr.data.sources.official import (
    COMMENT_LIST_FILE,
    COMMENT_TEXT_FILE,
    PAD_ID,
    VIDEO_LIST_FILE,
    VIDEO_TEXT_FILE,
    samples_file,
)
from lsvcr.data.sources.plain_pickle import write_strings
from lsvcr.data.store import Dataset, Kind, Samples, open_dataset
from lsvcr.data.vectors import CHUNK_ROWS, load_embeddings
from lsvcr.schema import Split, Task
from lsvcr.utils.errors import UserError
from lsvcr.utils.io import atomic_dir, check_replaceable, create_npy, read_json, write_json
from lsvcr.utils.logging import get_logger

EXPORT_KIND = "official-export"
"""The manifest's `kind`."""

_FILES = (
    schema.MANIFEST_FILE,
    VIDEO_LIST_FILE,
    COMMENT_LIST_FILE,
    VIDEO_TEXT_FILE,
    COMMENT_TEXT_FILE,
    *(samples_file(task, split) for task in Task for split in Split),
    schema.VIDEO_EMBEDDINGS_FILE,
    schema.COMMENT_EMBEDDINGS_FILE,
)

_ROWS = 4096
"""Samples turned into Python numbers at a time."""

_log = get_logger(__name__)


def export_official(
    data: str | Path, out: str | Path, max_history: int = 0, embeddings: str | Path = ""
) -> Path:
    """Write a dataset's catalogues, samples and, where there are any, text vectors in the official format.

    Args:
        data: the prepared dataset.
        out: folder to write; an earlier export there is replaced as a whole when the new one is complete.
        max_history: the latest entries of each history that a sample shows; 0 = all.
        embeddings: folder with `photo_embs.npy` and `comment_embs.npy`; empty = those in `data`, if there are any.

    Returns:
        The folder.

    Raises:
        UserError: no dataset, `out` holds other files, or the text vectors are missing or of another dataset.
    """
    target = Path(out)
    if max_history < 0:
        raise UserError("--max_history must not be negative; 0 keeps whole histories")
    check_replaceable(target, "an official export", _FILES if is_export(target) else ())
    dataset = open_dataset(data)
    videos, comments = _names(dataset, "videos"), _names(dataset, "comments")
    histories = _Histories(dataset, videos, comments, max_history)
    with atomic_dir(target) as folder:
        write_strings(folder / VIDEO_LIST_FILE, videos)
        write_strings(folder / COMMENT_LIST_FILE, comments)
        _write_entries(folder / VIDEO_TEXT_FILE, videos, _video_entries(dataset, comments))
        _write_entries(
            folder / COMMENT_TEXT_FILE, comments, ({"content": text} for text in _texts(dataset.contents()))
        )
        sizes: dict[str, int] = {}
        for task in Task:
            for split in Split:
                name = samples_file(task, split)
                sizes[name] = _write_lines(folder / name, histories.lines(dataset.samples(task, split)))
        vectors = _write_embeddings(folder, dataset, embeddings)
        write_json(
            folder / schema.MANIFEST_FILE,
            {
                "kind": EXPORT_KIND,
                "data_hash": dataset.data_hash,
                "max_history": max_history,
                "samples": sizes,
                "text_vectors": vectors,
                "versions": {"lsvcr": __version__},
            },
        )
    _log.info("%s: %s videos, %s comments", target, f"{dataset.n_videos:,}", f"{dataset.n_comments:,}")
    _log.info("samples: %s", ", ".join(f"{size:,} in {name}" for name, size in sizes.items()))
    _log.info("text vectors: %s", ", ".join(vectors) or "none (run `lsvcr embed`, or pass --embeddings)")
    return target


def is_export(path: str | Path) -> bool:
    """True when `path` holds an official export."""
    try:
        manifest = read_json(Path(path) / schema.MANIFEST_FILE)
    except UserError:
        return False
    return isinstance(manifest, dict) and manifest.get("kind") == EXPORT_KIND


def _names(dataset: Dataset, kind: Kind) -> list[str]:
    """Raw ids by index, as strings, the padding's first."""
    return [PAD_ID, *map(str, dataset.raw_ids(kind))]


def _texts(by_index: Iterable[str]) -> Iterator[str]:
    """The texts of index 1 and on."""
    texts = iter(by_index)
    next(texts)
    return texts


def _video_entries(dataset: Dataset, comments: list[str]) -> Iterator[dict[str, object]]:
    for video, title in enumerate(_texts(dataset.titles()), start=1):
        own = dataset.video_comments.row(video).tolist()
        yield {"title": title, "comment_list": [comments[comment] for comment in own]}


def _write_entries(path: Path, names: list[str], entries: Iterable[dict[str, object]]) -> None:
    """One JSON object, an entry a line; `names` starts with the padding's."""
    with open(path, "w", encoding="utf-8", newline="\n") as stream:
        stream.write("{")
        mark = "\n"
        for name, entry in zip(names[1:], entries, strict=True):
            stream.write(f"{mark}{_json(name)}: {_json(entry)}")
            mark = ",\n"
        stream.write("\n}\n")


def _write_lines(path: Path, records: Iterable[dict[str, object]]) -> int:
    """JSON lines; the number of records."""
    count = 0
    with open(path, "w", encoding="utf-8", newline="\n") as stream:
        for record in records:
            stream.write(_json(record) + "\n")
            count += 1
    return count


_json = json.JSONEncoder(ensure_ascii=False).encode


class _Histories:
    """Samples with their histories written out.

    Args:
        dataset: where they point.
        videos, comments: names by index.
        limit: latest entries of each history, 0 = all.
    """

    def __init__(self, dataset: Dataset, videos: list[str], comments: list[str], limit: int) -> None:
        self._users, self._videos, self._comments = _names(dataset, "users"), videos, comments
        self._video, self._comment = dataset.video_events, dataset.comment_events
        self._limit = limit

    def lines(self, samples: Samples) -> Iterator[dict[str, object]]:
        """The records of a sample table, in order."""
        for start in range(0, len(samples), _ROWS):
            rows = samples.rows[start : start + _ROWS].tolist()
            for row, (user, _, video_end, comment_end, video) in enumerate(rows, start=start):
                record = {
                    "user_id": self._users[user],
                    "target_photo": self._videos[video],
                    "photo_inter_his": self._liked(user, video_end),
                    "comment_inter_his": self._touched(user, comment_end),
                }
                if samples.positives is not None:
                    own = samples.positives.row(row).tolist()
                    record["pos_comments"] = [self._comments[comment] for comment in own]
                yield record

    def _liked(self, user: int, end: int) -> list[str]:
        start = int(self._video.offsets[user])
        if self._limit:
            start = max(start, end - self._limit)
        return [self._videos[video] for video in self._video.items[start:end].tolist()]

    def _touched(self, user: int, end: int) -> list[list]:
        """Videos of the entries, and the comments of each; an entry that `end` goes through shows its beginning."""
        start = int(self._comment.offsets[user])
        groups = self._comment.groups[start:end]
        if self._limit and len(groups):
            skipped = int(np.searchsorted(groups, groups[-1] - self._limit, side="right"))
            start, groups = start + skipped, groups[skipped:]
        watched: list[str] = []
        touched: list[list[str]] = []
        last = None
        items, videos = self._comment.items[start:end].tolist(), self._comment.videos[start:end].tolist()
        for group, comment, video in zip(groups.tolist(), items, videos, strict=True):
            if group != last:
                watched.append(self._videos[video])
                touched.append([])
                last = group
            touched[-1].append(self._comments[comment])
        return [watched, touched]


def _write_embeddings(folder: Path, dataset: Dataset, source: str | Path) -> list[str]:
    """Copy the text vectors as float32; the names of the files."""
    wanted = {
        schema.VIDEO_EMBEDDINGS_FILE: dataset.n_videos + 1,
        schema.COMMENT_EMBEDDINGS_FILE: dataset.n_comments + 1,
    }
    root = Path(source) if source else dataset.root
    names = [name for name in wanted if source or (root / name).is_file()]
    for name in names:
        vectors = load_embeddings(root, name, wanted[name], dataset.data_hash)
        copy = create_npy(folder / name, np.float32, vectors.shape)
        for start in range(0, len(vectors), CHUNK_ROWS):
            copy[start : start + CHUNK_ROWS] = vectors[start : start + CHUNK_ROWS]
        copy.flush()
    return names
