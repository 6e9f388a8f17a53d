"""The frozen text vectors of stage two: where the files are, what they hold, and whether they are the same again."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from lsvcr.data.sources.official import COMMENT_LIST_FILE, PAD_ID, VIDEO_LIST_FILE
from lsvcr.data.sources.plain_pickle import read_plain
from lsvcr.data.store import Dataset, Kind
from lsvcr.data.vectors import described, load_embeddings
from lsvcr.schema import (
    BEST_DIR,
    COMMENT_EMBEDDINGS_FILE,
    COMMENT_FULL_EMBEDDINGS_FILE,
    VIDEO_EMBEDDINGS_FILE,
    VIDEO_FULL_EMBEDDINGS_FILE,
)
from lsvcr.settings import RankSettings
from lsvcr.training.rank_handover import StageOne
from lsvcr.utils.errors import UserError
from lsvcr.utils.io import sha256_file
from lsvcr.utils.logging import get_logger

logger = get_logger(__name__)

_FULL_FILES = (VIDEO_FULL_EMBEDDINGS_FILE, COMMENT_FULL_EMBEDDINGS_FILE)


@dataclass
class TextTables:
    """Title and comment vectors by index.

    Attributes:
        videos: (n_videos + 1, w) float32, memory-mapped.
        comments: (n_comments + 1, w) likewise.
        needs_head: the vectors are the LLM's own states, so that an embedding head must train on them.
        about: path and SHA-256 of both files, for manifests.
    """

    videos: Tensor
    comments: Tensor
    needs_head: bool
    about: dict[str, dict[str, str]]

    @property
    def width(self) -> int:
        """w."""
        return self.videos.shape[1]

    def check_same(self, recorded: dict[str, dict[str, str]], source: str) -> None:
        """Raise a UserError unless the files are those that `source` was trained on."""
        for name, entry in self.about.items():
            if entry["sha256"] != recorded[name]["sha256"]:
                raise UserError(
                    f"{entry['path']} has changed since {source} was trained on it; restore the file, or train again"
                )


def load_texts(settings: RankSettings, dataset: Dataset, parent: StageOne | None) -> TextTables:
    """Find, check and map both files.

    A file name is looked up as it stands, then in the stage-one folder, its best/ or its run folder, then in the
    dataset. An empty name means the files that `lsvcr embed` writes: those of the stage-one checkpoint, or
    the untuned LLM's in the dataset. Files in the official layout have no description. Their row 0 must be zeros, and
    where the official list of ids lies beside them, it must have the dataset's order.

    Args:
        settings: `photo_emb_file`, `comment_emb_file`, `text_width`.
        dataset: gives row counts and the hash the files must be made for.
        parent: stage one's weights, or None.

    Raises:
        UserError: a file is missing, has other rows or other ids, holds NaN, or was made for another dataset; or the
            two do not belong together.
    """
    video_default, comment_default = (
        _FULL_FILES if parent is None else (VIDEO_EMBEDDINGS_FILE, COMMENT_EMBEDDINGS_FILE)
    )
    videos = _find(settings.photo_emb_file or video_default, "photo_emb_file", dataset, parent)
    comments = _find(settings.comment_emb_file or comment_default, "comment_emb_file", dataset, parent)
    tables = TextTables(
        videos=_map(videos, dataset.n_videos + 1, dataset.data_hash),
        comments=_map(comments, dataset.n_comments + 1, dataset.data_hash),
        needs_head=videos.name in _FULL_FILES,
        about={"videos": _about(videos), "comments": _about(comments)},
    )
    if tables.comments.shape[1] != tables.width:
        raise UserError(
            f"{videos} holds vectors of width {tables.width}, {comments} of width {tables.comments.shape[1]}; "
            "both must come from the same LLM: give two files of one `lsvcr embed` run"
        )
    tables.needs_head |= tables.width != settings.text_width
    for file in (videos, comments):
        _check_parent(file, parent)
    _check_order(videos, VIDEO_LIST_FILE, dataset, "videos")
    _check_order(comments, COMMENT_LIST_FILE, dataset, "comments")
    return tables


def _find(name: str, flag: str, dataset: Dataset, parent: StageOne | None) -> Path:
    folders = [Path()]
    if parent is not None:
        folder = parent.folder
        run = folder.parent if folder.name == BEST_DIR else folder
        folders += [folder, run, run / BEST_DIR]
    folders.append(dataset.root)
    for folder in folders:
        if (folder / name).is_file():
            return (folder / name).resolve()
    places = ", ".join(dict.fromkeys(str(folder) for folder in folders[1:]))
    raise UserError(
        f"--{flag}: no {name} in {places}; make it with {_made_with(parent, dataset)}, or name another file"
    )


def _made_with(parent: StageOne | None, dataset: Dataset) -> str:
    """The command that makes the vectors."""
    if parent is not None and parent.official:
        return (
            f"`lsvcr convert {parent.file} --model_name_or_path LLM --out RUN` and "
            f"`lsvcr embed --checkpoint RUN --data_path {dataset.root}`"
        )
    checkpoint = "none" if parent is None else str(parent.folder)
    return f"`lsvcr embed --checkpoint {checkpoint} --data_path {dataset.root}`"


def _map(file: Path, rows: int, data_hash: str) -> Tensor:
    load_embeddings(file, file.name, rows, data_hash)
    # Mapped copy-on-write: torch wants memory it may write to, and nothing ever does.
    array = np.load(file, mmap_mode="c", allow_pickle=False)
    if array[0].any():
        raise UserError(
            f"{file}, row 0 belongs to padding and must be zeros: set it to zeros where the rows follow the list of "
            f"ids ({PAD_ID} first), and move the padding's row to the front where it stands elsewhere"
        )
    return torch.from_numpy(array if array.dtype == np.float32 else array.astype(np.float32))


def _about(file: Path) -> dict[str, str]:
    entry = described(file)
    return {"path": str(file), "sha256": sha256_file(file) if entry is None else str(entry["sha256"])}


def _check_parent(file: Path, parent: StageOne | None) -> None:
    """Vectors of another stage one than the weights' are legal, but hardly ever meant."""
    entry = described(file)
    made_by = None if entry is None else entry.get("parent")
    # Who embedded with a converted official checkpoint has vectors that name the conversion.
    if parent is None or parent.official or made_by is None:
        return
    if made_by != parent.sha256:
        logger.warning(
            f"{file} was written by another stage-one checkpoint than {parent.folder}: after a new stage one run "
            "`lsvcr embed` again"
        )


def _check_order(file: Path, listed: str, dataset: Dataset, kind: Kind) -> None:
    """Raise a UserError where the official list of ids beside the file has another order than the dataset."""
    beside = file.parent / listed
    if described(file) is not None or not beside.is_file():
        return
    ids = read_plain(beside)
    ids = list(map(str, ids)) if isinstance(ids, list) else []
    wanted = [PAD_ID, *map(str, dataset.raw_ids(kind))]
    if ids == wanted:
        return
    place = next((i for i, (a, b) in enumerate(zip(ids, wanted, strict=False)) if a != b), None)
    where = (
        f"{len(ids)} ids there, {len(wanted)} here"
        if place is None
        else f"row {place} is {ids[place]} there and {wanted[place]} here"
    )
    raise UserError(
        f"{file} has the rows of {beside.name} beside it, whose {kind} are not those of {dataset.root} in this order "
        f"({where}): prepare the dataset from that folder, or give vectors that were made for it"
    )
