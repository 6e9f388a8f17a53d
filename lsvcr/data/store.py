"""A prepared dataset on disk, opened without reading it: arrays are mapped, texts wait until asked for.

manifest.json                                     what it is, counts, sha256 of every file, data hash
users.parquet videos.parquet comments.parquet     row i is index i + 1; index 0 is padding
events/video_{offsets,items,times}.npy            liked videos of user u: offsets[u] : offsets[u + 1]
events/comment_{offsets,items,videos,times,groups}.npy
video_comments/{offsets,items}.npy                comments of video v, most liked first
samples/{rec,comm_rank}.{train,val,test}.npy      SAMPLE_DTYPE, + .positive_{offsets,items} for comm_rank
candidates/{rec,comm_rank}.{val,test}.npy         seeded candidates, + .offsets for comm_rank
train_counts/{videos,comments}.npy                interactions that training may know of
impressions/{offsets,items,times,clicked}.npy     only where the source has them: what user u was shown
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np

from lsvcr import schema
from lsvcr.schema import Split, Task
from lsvcr.utils.errors import UserError
from lsvcr.utils.io import load_npy, read_json, sha256_file

DATASET_KIND = "dataset"
"""The manifest's `kind`, which tells a prepared dataset from other artefact folders."""

IMPRESSIONS = "impressions"
"""Folder of the arrays of `Impressions` inside a prepared dataset."""

SAMPLE_DTYPE = np.dtype(
    [("user", "<i4"), ("cut", "<i8"), ("video_end", "<i8"), ("comment_end", "<i8"), ("video", "<i4")]
)
"""A sample: user index, cut time (ms), how far each history reaches (exclusive positions in the event
arrays), and the target video (rec) or the watched video (comm_rank)."""

Kind = Literal["users", "videos", "comments"]
_TABLES: dict[str, str] = {
    "users": schema.USERS_FILE,
    "videos": schema.VIDEOS_FILE,
    "comments": schema.COMMENTS_FILE,
}


class Csr(NamedTuple):
    """Ragged rows of ids: row i is `items[offsets[i] : offsets[i + 1]]`."""

    offsets: np.ndarray
    """int64 (n + 1,)."""
    items: np.ndarray
    """int32 (offsets[n],)."""

    def row(self, i: int) -> np.ndarray:
        """The ids of row i, int32 (length,)."""
        return self.items[self.offsets[i] : self.offsets[i + 1]]


class VideoEvents(NamedTuple):
    """Liked videos, user by user, by (time, input row); row u of `offsets` is user u, row 0 is empty."""

    offsets: np.ndarray
    """int64 (n_users + 2,)."""
    items: np.ndarray
    """int32 (n_events,): video index."""
    times: np.ndarray
    """int64 (n_events,): Unix milliseconds."""


class CommentEvents(NamedTuple):
    """Interacted comments, user by user, by (time, input row); row u of `offsets` is user u.

    `groups` numbers the entries of a user's comment history from 0: consecutive events under one video are
    one entry. The latest L entries before event `end` are the events with `groups > groups[end - 1] - L`.
    """

    offsets: np.ndarray
    """int64 (n_users + 2,)."""
    items: np.ndarray
    """int32 (n_events,): comment index."""
    videos: np.ndarray
    """int32 (n_events,): the video each comment belongs to."""
    times: np.ndarray
    """int64 (n_events,): Unix milliseconds."""
    groups: np.ndarray
    """int32 (n_events,): entry number inside the user's history."""


class Impressions(NamedTuple):
    """Every video a user was shown, user by user, by (time, input row); row u of `offsets` is user u, row 0 is empty.

    A video may stand there several times. Nothing is cut away at any split: who trains on them takes only those whose
    time is below a sample's `cut`.
    """

    offsets: np.ndarray
    """int64 (n_users + 2,)."""
    items: np.ndarray
    """int32 (n_impressions,): video index."""
    times: np.ndarray
    """int64 (n_impressions,): Unix milliseconds."""
    clicked: np.ndarray
    """uint8 (n_impressions,): 1 = clicked, 0 = shown and passed over."""


class Samples:
    """Pointers of one task and split, a read-only view of `SAMPLE_DTYPE` rows.

    The video history of sample s is `video_events.items[video_events.offsets[user[s]] : video_end[s]]`, and
    so for comments; everything in it has time < `cut[s]`. Columns are attributes or keys.
    """

    def __init__(self, rows: np.ndarray, positives: Csr | None = None) -> None:
        self.rows = rows
        self.positives = positives
        """comm_rank: the comments the user interacted with, a row a sample; rec: None."""

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, key: Any) -> Any:
        return self.rows[key]

    @property
    def user(self) -> np.ndarray:
        """int32 (n,): user index."""
        return self.rows["user"]

    @property
    def cut(self) -> np.ndarray:
        """int64 (n,): cut time in ms; the histories hold strictly earlier events."""
        return self.rows["cut"]

    @property
    def video_end(self) -> np.ndarray:
        """int64 (n,): exclusive end of the video history in the video events."""
        return self.rows["video_end"]

    @property
    def comment_end(self) -> np.ndarray:
        """int64 (n,): exclusive end of the comment history in the comment events."""
        return self.rows["comment_end"]

    @property
    def video(self) -> np.ndarray:
        """int32 (n,): target video (rec) or watched video (comm_rank)."""
        return self.rows["video"]


class Texts:
    """Titles or comments by index, read from the table when first asked for; index 0 is the empty text."""

    def __init__(self, path: Path, column: str, length: int) -> None:
        self._path, self._column, self._length = path, column, length

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, index: int) -> str:
        return str(self._series[int(index)])

    def __iter__(self) -> Iterator[str]:
        return iter(self._series)

    def take(self, indices: Iterable[int]) -> list[str]:
        """The texts of `indices`, in that order."""
        return list(self._series.gather(np.fromiter(indices, np.int64)))

    @cached_property
    def _series(self) -> Any:
        import polars as pl

        texts = pl.read_parquet(self._path, columns=[self._column], glob=False)[self._column]
        return pl.concat([pl.Series(self._column, [""]), texts])


@dataclass(frozen=True)
class Dataset:
    """A prepared dataset. Indices run from 1 to n; 0 is padding. Arrays are read-only and memory-mapped."""

    root: Path
    manifest: dict[str, Any]
    n_users: int
    n_videos: int
    n_comments: int
    data_hash: str
    video_events: VideoEvents
    comment_events: CommentEvents
    video_comments: Csr
    """Row v holds the comments of video v, most liked first, ties by comment index; row 0 is empty."""
    impressions: Impressions | None = None
    """None where the source had none or `lsvcr prepare` was told to leave them out."""

    def samples(self, task: Task | str, split: Split | str) -> Samples:
        """The samples of a task and split; `positives` is set for comm_rank."""
        task, split = Task(task), Split(split)
        stem = f"samples/{task.value}.{split.value}"
        positives = None
        if task is Task.COMM_RANK:
            positives = Csr(
                self._array(f"{stem}.positive_offsets.npy"), self._array(f"{stem}.positive_items.npy")
            )
        return Samples(self._array(f"{stem}.npy"), positives)

    def candidates(self, task: Task | str, split: Split | str) -> Csr:
        """Stored candidates, a row a sample in sample order; each row holds its positives exactly once.

        rec: the target and uniform negatives from the whole catalogue, (n, candidates) on disk.
        comm_rank: all comments of the watched video, or the positives and random others.

        Raises:
            ValueError: for the training split, which has none.
        """
        task, split = Task(task), Split(split)
        if split is Split.TRAIN:
            raise ValueError("candidates are stored for val and test only")
        stem = f"candidates/{task.value}.{split.value}"
        items = self._array(f"{stem}.npy")
        if task is Task.COMM_RANK:
            return Csr(self._array(f"{stem}.offsets.npy"), items)
        rows, width = items.shape
        return Csr(np.arange(rows + 1, dtype=np.int64) * width, items.reshape(-1))

    def titles(self) -> Texts:
        """Video titles by video index."""
        return Texts(self.root / schema.VIDEOS_FILE, schema.TITLE, self.n_videos + 1)

    def contents(self) -> Texts:
        """Comment texts by comment index."""
        return Texts(self.root / schema.COMMENTS_FILE, schema.CONTENT, self.n_comments + 1)

    def column(self, kind: Kind, name: str) -> Any:
        """A column of users, videos or comments as a Polars series; entry i belongs to index i + 1.

        Raises:
            UserError: the table has no such column.
        """
        import polars as pl

        path = self.root / _TABLES[kind]
        try:
            return pl.read_parquet(path, columns=[name], glob=False)[name]
        except pl.exceptions.ColumnNotFoundError:
            known = ", ".join(pl.read_parquet_schema(path))
            raise UserError(f"{path} has no column {name!r}; it has {known}") from None

    def raw_ids(self, kind: Kind) -> Any:
        """Ids as they stand in the raw files, a Polars series; entry i belongs to index i + 1."""
        return self.column(kind, schema.RAW_ID)

    def train_counts(self) -> np.ndarray:
        """int64 (n_videos + 1,): events of each video that training may know of.

        leave-last: every event but each user's validation and test target (a user without validation
        sample: all before the test target). temporal: every event before the validation cut time.
        """
        return self._array("train_counts/videos.npy")

    def comment_train_counts(self) -> np.ndarray:
        """int64 (n_comments + 1,): as `train_counts`, for comments and the comm_rank splits."""
        return self._array("train_counts/comments.npy")

    def _array(self, name: str) -> np.ndarray:
        return _mapped(self.root / name)

    def __reduce__(self) -> tuple[Any, ...]:
        # A worker process gets the path and maps the files itself instead of receiving their content.
        return open_dataset, (self.root,)


def open_dataset(path: str | Path, verify: bool = False) -> Dataset:
    """Open a prepared dataset.

    Args:
        path: the folder that `lsvcr prepare` wrote.
        verify: read every file and compare its hash with the manifest's; without it only sizes are compared.

    Raises:
        UserError: not a prepared dataset, another format version, or a file is missing or changed.
    """
    root = Path(path)
    manifest = _read_manifest(root)
    for name, entry in manifest["files"].items():
        _check_file(root / name, entry, verify)
    counts = manifest["counts"]
    video_events = VideoEvents(
        *(_mapped(root / f"events/video_{field}.npy") for field in VideoEvents._fields)
    )
    comment_events = CommentEvents(
        *(_mapped(root / f"events/comment_{field}.npy") for field in CommentEvents._fields)
    )
    impressions = None
    if f"{IMPRESSIONS}/offsets.npy" in manifest["files"]:
        impressions = Impressions(
            *(_mapped(root / IMPRESSIONS / f"{field}.npy") for field in Impressions._fields)
        )
    return Dataset(
        root=root,
        manifest=manifest,
        n_users=counts["users"],
        n_videos=counts["videos"],
        n_comments=counts["comments"],
        data_hash=manifest["data_hash"],
        video_events=video_events,
        comment_events=comment_events,
        video_comments=Csr(*(_mapped(root / f"video_comments/{field}.npy") for field in Csr._fields)),
        impressions=impressions,
    )


def is_dataset(path: str | Path) -> bool:
    """True when `path` holds a prepared dataset of any format version."""
    try:
        manifest = read_json(Path(path) / schema.MANIFEST_FILE)
    except UserError:
        return False
    return isinstance(manifest, dict) and manifest.get("kind") == DATASET_KIND


def _read_manifest(root: Path) -> dict[str, Any]:
    remedy = f"make one with `lsvcr prepare SOURCE --raw DIR --out {root}`"
    if not root.is_dir():
        raise UserError(f"{root} does not exist; {remedy}")
    if not (root / schema.MANIFEST_FILE).is_file():
        raise UserError(f"{root} is not a prepared dataset (it has no {schema.MANIFEST_FILE}); {remedy}")
    manifest = read_json(root / schema.MANIFEST_FILE)
    if not isinstance(manifest, dict) or manifest.get("kind") != DATASET_KIND:
        raise UserError(f"{root} holds another kind of artefact, not a prepared dataset; {remedy}")
    if manifest.get("format") != schema.FORMAT_VERSION:
        raise UserError(
            f"{root} has format version {manifest.get('format')}, this release reads "
            f"{schema.FORMAT_VERSION}; prepare it again"
        )
    return manifest


def _mapped(path: Path) -> np.ndarray:
    """A read-only mapped file as a plain array: `np.memmap` costs several times as much to index."""
    return np.asarray(load_npy(path))


def _check_file(path: Path, entry: dict[str, Any], verify: bool) -> None:
    if not path.is_file():
        raise UserError(f"{path} is missing from the prepared dataset; prepare it again")
    if path.stat().st_size != entry["bytes"] or (verify and sha256_file(path) != entry["sha256"]):
        raise UserError(f"{path} has changed since it was prepared; prepare the dataset again")
