"""Writing a bundle from plain arrays and the bytes of ONNX graphs. What stands in it: `bundle`."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from lsvcr.schema import MANIFEST_FILE, Task
from lsvcr.serving.errors import BundleError
from lsvcr.serving.hnsw import measured_recall, write_hnsw
from lsvcr.serving.ids import id_arrays
from lsvcr.serving.rows import RowKind, Score, stored_rows
from lsvcr.serving.texts import pack_texts
from lsvcr.serving.types import RawId
from lsvcr.utils.io import atomic_dir, read_json, sha256_file, sha256_text, write_json

BUNDLE_KIND = "bundle"
BUNDLE_FORMAT = 1
"""Version of the layout; a reader refuses any other."""

ANN_FROM = 2_000_000
"""Videos up to which every request looks at all of them."""
_SAMPLE = 1000
"""Requests that the recall of an approximate index is measured with."""

Content = np.ndarray | bytes
"""A file: a NumPy array (the name ends in .npy), or bytes as they are."""


class Csr(NamedTuple):
    """Ragged rows of indices: row i is `items[offsets[i] : offsets[i + 1]]`."""

    offsets: np.ndarray
    """int64 (n + 2,): rows 0 .. n, row 0 empty."""
    items: np.ndarray
    """int32 (offsets[-1],)."""

    def row(self, i: int) -> np.ndarray:
        """The indices of row i, int32 (length,)."""
        start, end = self.offsets[i : i + 2].tolist()
        return self.items[start:end]


@dataclass
class VideoTable:
    """All videos; entry i of a sequence is index i + 1.

    Attributes:
        ids: (N,) raw ids, all whole numbers or all texts, each once.
        titles: N texts.
        comments: row v holds the comments (indices) of video v, most liked first; `dataset.video_comments`.
    """

    ids: Sequence[RawId] | np.ndarray
    titles: Iterable[str]
    comments: Csr


@dataclass
class CommentTable:
    """All comments; entry i of a sequence is index i + 1. The video of each follows from `VideoTable.comments`.

    Attributes:
        ids: (M,) raw ids, as for videos.
        texts: M texts.
        likes: (M,) whole numbers.
    """

    ids: Sequence[RawId] | np.ndarray
    texts: Iterable[str]
    likes: np.ndarray


@dataclass
class UserTable:
    """Histories after each user's last event; entry i of `ids` is row i + 1 of the others. Items are indices.

    Attributes:
        ids: (U,) raw ids.
        videos: the latest `max_videos` liked videos, oldest first.
        comments: the comments of the latest `max_entries` visits, oldest first.
        comment_videos: (len(comments.items),) the video that each was made under.
        seen: all videos that the user liked, ascending.
    """

    ids: Sequence[RawId] | np.ndarray
    videos: Csr
    comments: Csr
    comment_videos: np.ndarray
    seen: Csr


@dataclass
class Part:
    """What one task needs, N videos and M comments, d wide; row 0 of every array is padding.

    Attributes:
        encoder: ONNX graph, float32, dynamic B, V, C >= 1. Inputs `video` (B, V, d), `video_mask` (B, V) bool,
            `comment` (B, C, d), `comment_mask` (B, C) bool, for CommRank also `watched` (B, d); output `user` (B, d),
            of unit length where the score is the cosine. Masked steps hold zeros and must not matter; an empty history
            has no True in its mask.
        items: float32 vectors of what is ranked, (N + 1, d) for Rec, (M + 1, d) for CommRank; of unit length where the
            score is the cosine.
        entries: (N + 1, d) float32: merge.weight[:, :d] @ T + merge.bias + E.
        shown: (M + 1, d) float32: merge.weight[:, d:] @ C, row 0 zeros; None = a model that ignores comments, whose
            comment history is then always empty.
        watched: (N + 1, d) float32, T + E; for CommRank only.
        tower: ONNX graph for texts that come later. Input `text` (n, w); outputs `projected` (T or C), `entry`
            (as `entries` with E = 0) and `shown`, each (n, d); None = a model without text.
        score: what `items` and `user` are ranked by; inner products with vectors of any length go with neither a tower
            (what comes later has no length of its own) nor an approximate index.
        about: JSON values for the manifest's entry of this part.
    """

    encoder: bytes
    items: np.ndarray
    entries: np.ndarray
    shown: np.ndarray | None = None
    watched: np.ndarray | None = None
    tower: bytes | None = None
    score: Score = "cosine"
    about: Mapping[str, Any] | None = None


def write_bundle(
    path: str | Path,
    *,
    videos: VideoTable,
    comments: CommentTable,
    parts: Mapping[Task, Part],
    text_width: int,
    max_videos: int,
    max_entries: int,
    users: UserTable | None = None,
    rows: RowKind = "float32",
    ann_from: int = ANN_FROM,
    sample_users: np.ndarray | None = None,
    about: Mapping[str, Any] | None = None,
    files: Mapping[str, Content] | None = None,
) -> Path:
    """Write a bundle, whole or not at all.

    Args:
        path: the folder; an earlier bundle there is replaced.
        videos, comments, users: ids, texts and lists; users None = requests bring their histories.
        parts: one or both tasks.
        text_width: w, width of a text vector.
        max_videos, max_entries: latest steps of each history that count.
        rows: how `Part.items` are stored; int8 has a scale for each row.
        ann_from: with more videos than this the Rec part gets a graph for approximate search; 0 = never. Needs faiss.
        sample_users: (S, d) float32 user vectors that its recall is measured with; None = as many item vectors.
        about: further entries of the manifest: versions, parents, data_hash, quantisation, verified, text_encoder...
        files: further files by name relative to the folder, such as `text_encoder/words.npy`.

    Returns:
        `path`.

    Raises:
        BundleError: a vector is not finite or too long for float16, an approximate index is asked for where scores
            are inner products, or faiss is needed and not installed.
        ValueError: arrays whose shapes do not belong together.
        UserError: the folder cannot be written.
    """
    if not parts:
        raise ValueError("a bundle needs at least one part")
    contents = {**_catalogue_files(videos, comments), **_user_files(users), **(files or {})}
    n_videos, n_comments = len(videos.ids), len(comments.ids)
    for task, part in parts.items():
        contents |= _part_files(task, part, n_videos, n_comments, rows)
    _check_index(parts, ann_from)
    with atomic_dir(path) as folder:
        for name, content in contents.items():
            _write(folder / name, content)
        manifest = {
            "kind": BUNDLE_KIND,
            "format": BUNDLE_FORMAT,
            "created": datetime.now(timezone.utc).isoformat(timespec="seconds"),
            "hidden": int(next(iter(parts.values())).entries.shape[1]),
            "text_width": text_width,
            "max_videos": max_videos,
            "max_entries": max_entries,
            "counts": {"videos": n_videos, "comments": n_comments, "users": len(users.ids) if users else 0},
            "parts": {
                task.value: {"score": part.score, **(part.about or {})} for task, part in parts.items()
            },
            "rows": rows,
            "index": _index(folder, parts, rows, ann_from, sample_users),
            "text_encoder": None,
            **(about or {}),
            "files": {
                name: {"bytes": (folder / name).stat().st_size, "sha256": sha256_file(folder / name)}
                for name in _names(folder)
            },
        }
        write_json(folder / MANIFEST_FILE, manifest)
    return Path(path)


def amend_manifest(path: str | Path, **entries: Any) -> None:
    """Set entries of a finished bundle's manifest, such as `verified`, which is known once the bundle has answered."""
    manifest = read_json(Path(path) / MANIFEST_FILE)
    write_json(Path(path) / MANIFEST_FILE, {**manifest, **entries})


def bundle_id(files: Mapping[str, Mapping[str, Any]]) -> str:
    """What names a bundle's content: a hash over the manifest's list of files."""
    return sha256_text("\n".join(f"{name} {files[name]['sha256']}" for name in sorted(files)))[:16]


def _is_approximate(part: Part | None, ann_from: int) -> bool:
    return part is not None and 0 < ann_from < len(part.items) - 1


def _check_index(parts: Mapping[Task, Part], ann_from: int) -> None:
    """Raise a BundleError where a graph of near vectors would be asked for the largest products."""
    part = parts.get(Task.REC)
    if part is not None and part.score != "cosine" and _is_approximate(part, ann_from):
        raise BundleError(
            f"an approximate index (--ann_from {ann_from}) links vectors that are near each other, and this model "
            "ranks by inner products, where long vectors win: export with --ann_from 0, which looks at all videos, or "
            "train the model with --score cosine"
        )


def _index(
    folder: Path, parts: Mapping[Task, Part], rows: RowKind, ann_from: int, users: np.ndarray | None
) -> dict[str, Any]:
    """Write the approximate index where there is to be one; the manifest's entry."""
    part = parts.get(Task.REC)
    if part is None or not _is_approximate(part, ann_from):
        return {"kind": "exact"}
    path = folder / Task.REC.value / "hnsw.faiss"
    write_hnsw(path, part.items, rows)
    if users is None:
        rng = np.random.default_rng(0)
        users = part.items[rng.integers(1, len(part.items), _SAMPLE)]
    recall = measured_recall(stored_rows(part.items, rows), path, users[:_SAMPLE])
    return {"kind": "hnsw", "recall@10": round(recall, 4), "recall_users": min(len(users), _SAMPLE)}


def _names(folder: Path) -> list[str]:
    """All files of the bundle relative to its folder, but for the manifest, which is written last."""
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def _catalogue_files(videos: VideoTable, comments: CommentTable) -> dict[str, Content]:
    n_videos, n_comments = len(videos.ids), len(comments.ids)
    lists = _checked_csr("comments of the videos", videos.comments, n_videos, n_comments)
    own = np.zeros(n_comments + 1, dtype=np.int32)
    own[lists.items] = np.repeat(np.arange(n_videos + 1, dtype=np.int32), np.diff(lists.offsets))
    top = np.zeros(n_videos + 1, dtype=np.int32)
    some = np.diff(lists.offsets) > 0
    top[some] = lists.items[lists.offsets[:-1][some]]
    likes = np.zeros(n_comments + 1, dtype=np.int32)
    likes[1:] = np.minimum(np.asarray(comments.likes), np.iinfo(np.int32).max)
    return {
        **_in("videos", id_arrays(videos.ids)),
        **_text_files("videos/titles", videos.titles, n_videos),
        "videos/comments.offsets.npy": lists.offsets,
        "videos/comments.items.npy": lists.items,
        "videos/top_comment.npy": top,
        **_in("comments", id_arrays(comments.ids)),
        **_text_files("comments/texts", comments.texts, n_comments),
        "comments/video.npy": own,
        "comments/likes.npy": likes,
    }


def _user_files(users: UserTable | None) -> dict[str, Content]:
    if users is None:
        return {}
    found: dict[str, Content] = _in("users", id_arrays(users.ids))
    for name, csr in (("video", users.videos), ("comment", users.comments), ("seen", users.seen)):
        checked = _checked_csr(f"{name}s of the users", csr, len(users.ids))
        found[f"users/{name}_offsets.npy"], found[f"users/{name}_items.npy"] = checked
    own = np.asarray(users.comment_videos, dtype=np.int32)
    if own.shape != users.comments.items.shape:
        raise ValueError(f"comment_videos has shape {own.shape}, not {users.comments.items.shape}")
    return {**found, "users/comment_videos.npy": own}


def _part_files(task: Task, part: Part, n_videos: int, n_comments: int, rows: RowKind) -> dict[str, Content]:
    width = part.entries.shape[1]
    ranked = n_videos if task is Task.REC else n_comments
    if (part.watched is not None) != (task is Task.COMM_RANK):
        raise ValueError("the part comm_rank has `watched` vectors, rec has none")
    if part.tower is not None and part.score != "cosine":
        raise ValueError("a part with a tower ranks by cosine: what the tower makes is scaled to length 1")
    tables = {
        "items": (part.items, ranked),
        "entries": (part.entries, n_videos),
        "shown": (part.shown, n_comments),
        "watched": (part.watched, n_videos),
    }
    found: dict[str, Content] = {"encoder.onnx": part.encoder}
    for name, (array, count) in tables.items():
        if array is not None:
            found[f"{name}.npy"] = _checked_rows(f"{task.value}/{name}.npy", array, (count + 1, width))
    with np.errstate(over="ignore"):
        values, scale = stored_rows(part.items, rows)
    if not np.isfinite(values).all():
        raise BundleError(
            f"{task.value}/items.npy would hold numbers beyond float16: use --rows float32 or int8"
        )
    found["items.npy"] = values
    if scale is not None:
        found["items.scale.npy"] = scale
    if part.tower is not None:
        found["tower.onnx"] = part.tower
    return _in(task.value, found)


def _checked_rows(name: str, array: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    if array.shape != shape:
        raise ValueError(f"{name} has shape {array.shape}, not {shape}")
    if not all(np.isfinite(array[start : start + 65536]).all() for start in range(0, len(array), 65536)):
        raise BundleError(
            f"{name} would hold numbers that are not finite: the checkpoint is broken, train it again"
        )
    return np.ascontiguousarray(array, dtype=np.float32)


def _checked_csr(name: str, csr: Csr, count: int, highest: int | None = None) -> Csr:
    offsets, items = np.asarray(csr.offsets, dtype=np.int64), np.asarray(csr.items, dtype=np.int32)
    ascending = len(offsets) == count + 2 and offsets[1] == 0 and (np.diff(offsets) >= 0).all()
    if not ascending or offsets[-1] != len(items):
        raise ValueError(
            f"{name}: offsets do not cut {len(items)} items into {count} rows after an empty one"
        )
    if len(items) and (items.min() < 1 or (highest is not None and items.max() > highest)):
        raise ValueError(f"{name}: indices run from 1 to {highest}, not {items.min()} to {items.max()}")
    return Csr(offsets, items)


def _text_files(stem: str, texts: Iterable[str], count: int) -> dict[str, Content]:
    offsets, content = pack_texts(texts)
    if len(offsets) != count + 2:
        raise ValueError(f"{stem}: {len(offsets) - 2} texts for {count} ids")
    return {f"{stem}.offsets.npy": offsets, f"{stem}.bytes.npy": content}


def _in(folder: str, files: Mapping[str, Content]) -> dict[str, Content]:
    return {f"{folder}/{name}": content for name, content in files.items()}


def _write(path: Path, content: Content) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        np.save(path, content, allow_pickle=False)
