"""The bundle: one folder with all that answers requests. Arrays are memory-mapped; nothing is unpickled.

manifest.json          what it is, counts, parts, sha256 and size of every file
videos/                ids (see `ids`), titles.{offsets,bytes}.npy, comments.{offsets,items}.npy, top_comment.npy
comments/              ids, texts.{offsets,bytes}.npy, video.npy, likes.npy
users/  (optional)     ids, {video,comment,seen}_{offsets,items}.npy, comment_videos.npy
rec/ comm_rank/        encoder.onnx, tower.onnx, items.npy [items.scale.npy] [hnsw.faiss], entries.npy, shown.npy,
                       watched.npy

Row i of every table is index i; index 0 is padding. `bundle_write` makes one.
"""

import os
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, get_args

import numpy as np

from lsvcr.schema import MANIFEST_FILE, Task
from lsvcr.serving.bundle_write import (
    BUNDLE_FORMAT,
    BUNDLE_KIND,
    Csr,
    amend_manifest,
    bundle_id,
    write_bundle,
)
from lsvcr.serving.errors import BundleError
from lsvcr.serving.ids import IdMap
from lsvcr.serving.rows import Score, StoredRows
from lsvcr.serving.texts import TextTable
from lsvcr.utils.errors import UserError
from lsvcr.utils.io import load_npy, read_json, sha256_file

__all__ = ["Bundle", "PartFiles", "Users", "amend_manifest", "open_bundle", "write_bundle"]

_REMEDY = "make one with `lsvcr export CHECKPOINT --data DIR --out {root}`"
_ARRAYS = ("<f4", "<f2", "|i1", "|u1", "<i4", "<i8", "<u8")


class Users(NamedTuple):
    """Stored histories by user row; row 0 is empty. Items are oldest first, `seen` is ascending."""

    ids: IdMap
    videos: Csr
    comments: Csr
    comment_videos: np.ndarray
    """The video that each entry of `comments.items` was made under."""
    seen: Csr
    """All videos that the user liked or liked comments of."""


@dataclass(frozen=True)
class PartFiles:
    """What one task needs: tables in memory-mapped arrays, graphs as paths.

    Attributes:
        score: what the part ranks by.
        items: vectors of what is ranked, videos (Rec) or comments (CommRank); of unit length for cosines.
        entries: (n_videos + 1, d) float32, a video as a step of a history.
        shown: (n_comments + 1, d) float32, what a comment adds to its step; None: the model ignores comments.
        watched: (n_videos + 1, d) float32, the watched video as a question; CommRank only.
        tower: turns text vectors of new videos and comments into such rows; None: the model has no text.
        graph: faiss's HNSW graph of the items; None: every row is looked at.
    """

    task: Task
    score: Score
    encoder: Path
    items: StoredRows
    entries: np.ndarray
    shown: np.ndarray | None
    watched: np.ndarray | None
    tower: Path | None
    graph: Path | None


@dataclass(frozen=True)
class Bundle:
    """An opened bundle. Indices run from 1; all arrays are read-only.

    Attributes:
        id: names the content: equal for equal files.
        lists: comments of each video, most liked first.
        top_comment: (n_videos + 1,) int32, the first of each list or 0.
        comment_video, likes: (n_comments + 1,) int32.
    """

    root: Path
    manifest: dict[str, Any]
    id: str
    hidden: int
    videos: IdMap
    titles: TextTable
    lists: Csr
    top_comment: np.ndarray
    comments: IdMap
    texts: TextTable
    comment_video: np.ndarray
    likes: np.ndarray
    users: Users | None
    parts: Mapping[Task, PartFiles]

    @property
    def n_videos(self) -> int:
        """Videos, without padding."""
        return len(self.videos) - 1

    @property
    def n_comments(self) -> int:
        """Comments, without padding."""
        return len(self.comments) - 1


def open_bundle(path: str | Path, verify: bool = True) -> Bundle:
    """Open a bundle.

    Args:
        path: the folder that `lsvcr export` wrote.
        verify: read every file and compare its sha256 with the manifest's; without it only sizes are compared.

    Raises:
        BundleError: no bundle, another format, or a file is missing, changed, of another shape or cannot be read.
    """
    root = Path(path)
    try:
        manifest = _read_manifest(root)
        for name, entry in manifest["files"].items():
            _check_size(root / name, entry)
        if verify:
            _check_content(root, manifest["files"])
        return _opened(root, manifest)
    except BundleError:
        raise
    except OSError as error:
        raise BundleError(
            f"{error.filename or root} cannot be read: {error.strerror or error}; mend its path, its rights or the "
            "disk, or copy the bundle again"
        ) from error
    except (UserError, KeyError, TypeError, ValueError, IndexError) as broken:
        reason = f"{MANIFEST_FILE} lacks {broken}" if isinstance(broken, KeyError) else broken
        raise BundleError(f"{root} is damaged ({reason}); export it again") from broken


def _opened(root: Path, manifest: dict[str, Any]) -> Bundle:
    counts, hidden = manifest["counts"], int(manifest["hidden"])
    videos, comments = counts["videos"] + 1, counts["comments"] + 1
    bundle = Bundle(
        root=root,
        manifest=manifest,
        id=bundle_id(manifest["files"]),
        hidden=hidden,
        videos=IdMap.open(root / "videos"),
        titles=TextTable.open(root / "videos" / "titles"),
        lists=_csr(root / "videos", "comments."),
        top_comment=_array(root / "videos/top_comment.npy", (videos,)),
        comments=IdMap.open(root / "comments"),
        texts=TextTable.open(root / "comments" / "texts"),
        comment_video=_array(root / "comments/video.npy", (comments,)),
        likes=_array(root / "comments/likes.npy", (comments,)),
        users=_users(root / "users") if counts["users"] else None,
        parts={
            Task(name): _part(root, Task(name), _score(about), hidden, videos, comments)
            for name, about in manifest["parts"].items()
        },
    )
    lengths = [len(bundle.videos), len(bundle.titles), len(bundle.lists.offsets) - 1]
    if lengths != [videos] * 3 or [len(bundle.comments), len(bundle.texts)] != [comments] * 2:
        raise BundleError(f"{root} is damaged (its tables differ in length); export it again")
    return bundle


def _score(about: Mapping[str, Any]) -> Score:
    score: Score = about.get("score", "cosine")
    if score not in get_args(Score):
        raise ValueError(f"a part that ranks by {score!r}")
    return score


def _part(root: Path, task: Task, score: Score, hidden: int, videos: int, comments: int) -> PartFiles:
    folder = root / task.value
    ranked = videos if task is Task.REC else comments
    scale = folder / "items.scale.npy"
    return PartFiles(
        task=task,
        score=score,
        encoder=folder / "encoder.onnx",
        items=StoredRows(
            _array(folder / "items.npy", (ranked, hidden)),
            _array(scale, (ranked,)) if scale.exists() else None,
        ),
        entries=_array(folder / "entries.npy", (videos, hidden)),
        shown=_optional(folder / "shown.npy", (comments, hidden)),
        watched=_array(folder / "watched.npy", (videos, hidden)) if task is Task.COMM_RANK else None,
        tower=_there(folder / "tower.onnx"),
        graph=_there(folder / "hnsw.faiss"),
    )


def _users(folder: Path) -> Users:
    videos, comments, seen = (_csr(folder, f"{name}_") for name in ("video", "comment", "seen"))
    own = _array(folder / "comment_videos.npy", comments.items.shape)
    return Users(IdMap.open(folder), videos, comments, own, seen)


def _csr(folder: Path, stem: str) -> Csr:
    return Csr(*(_array(folder / f"{stem}{field}.npy") for field in Csr._fields))


def _there(path: Path) -> Path | None:
    return path if path.exists() else None


def _optional(path: Path, shape: tuple[int, ...]) -> np.ndarray | None:
    return _array(path, shape) if path.exists() else None


def _array(path: Path, shape: tuple[int, ...] | None = None) -> np.ndarray:
    """A mapped file as a plain array: `np.memmap` costs several times as much to index."""
    array = np.asarray(load_npy(path))
    if array.dtype.str not in _ARRAYS or (shape is not None and array.shape != shape):
        raise BundleError(
            f"{path} is damaged (it holds {array.dtype} {array.shape}, not {shape}); export it again"
        )
    return array


def _read_manifest(root: Path) -> dict[str, Any]:
    remedy = _REMEDY.format(root=root)
    if not root.is_dir():
        raise BundleError(f"{root} does not exist or is no folder; {remedy}")
    if not (root / MANIFEST_FILE).is_file():
        raise BundleError(f"{root} is no bundle (it has no {MANIFEST_FILE}); {remedy}")
    try:
        manifest = read_json(root / MANIFEST_FILE)
    except UserError as broken:
        raise BundleError(str(broken)) from None
    if not isinstance(manifest, dict) or manifest.get("kind") != BUNDLE_KIND:
        kind = manifest.get("kind") if isinstance(manifest, dict) else None
        raise BundleError(f"{root} holds an artefact of kind {kind!r}, not a bundle; {remedy}")
    if manifest.get("format") != BUNDLE_FORMAT:
        raise BundleError(
            f"{root} is a bundle of format {manifest.get('format')!r}, this release reads {BUNDLE_FORMAT}; export it "
            "again with this release, or serve it with the one that made it"
        )
    files = manifest.get("files")
    if not isinstance(files, dict) or not all(_is_entry(root, *item) for item in files.items()):
        raise BundleError(f"{root / MANIFEST_FILE} is damaged (its list of files); export the bundle again")
    return manifest


def _is_entry(root: Path, name: str, entry: Any) -> bool:
    inside = not Path(name).is_absolute() and ".." not in Path(name).parts
    return inside and isinstance(entry, dict) and {"bytes", "sha256"} <= entry.keys()


def _check_size(path: Path, entry: dict[str, Any]) -> None:
    if not path.is_file():
        raise BundleError(f"{path} is missing from the bundle; copy the bundle again or export it again")
    size = path.stat().st_size
    if size != entry["bytes"]:
        raise BundleError(
            f"{path} has {size} bytes, the manifest says {entry['bytes']}; copy the bundle again or export it again"
        )


def _check_content(root: Path, files: dict[str, Any]) -> None:
    """All files at once, a thread each core: hashing takes most of the time until a bundle answers."""
    names = sorted(files, key=lambda name: -files[name]["bytes"])
    with ThreadPoolExecutor(os.cpu_count()) as threads:
        found = dict(zip(names, threads.map(sha256_file, [root / name for name in names]), strict=True))
    for name, entry in files.items():
        if found[name] != entry["sha256"]:
            raise BundleError(
                f"{root / name} has changed since the export; copy the bundle again or export it again"
            )
