"""Ids, texts and histories of a dataset as a bundle holds them."""

from itertools import islice
from typing import Any

import numpy as np

from lsvcr.data.spans import ranges
from lsvcr.data.store import Dataset, Kind
from lsvcr.schema import LIKES
from lsvcr.serving.bundle_write import CommentTable, Csr, UserTable, VideoTable


def raw_ids(dataset: Dataset, kind: Kind) -> Any:
    """Ids as in the source, entry i of index i + 1: an int64 array, or a list of texts."""
    series = dataset.raw_ids(kind)
    return series.to_numpy().astype(np.int64) if series.dtype.is_integer() else series.to_list()


def video_table(dataset: Dataset) -> VideoTable:
    """All videos of the dataset."""
    table = dataset.video_comments
    return VideoTable(
        ids=raw_ids(dataset, "videos"),
        titles=islice(dataset.titles(), 1, None),
        comments=Csr(table.offsets, table.items),
    )


def comment_table(dataset: Dataset) -> CommentTable:
    """All comments of the dataset; where the source tells no likes they are 0."""
    return CommentTable(
        ids=raw_ids(dataset, "comments"),
        texts=islice(dataset.contents(), 1, None),
        likes=dataset.column("comments", LIKES).fill_null(0).to_numpy(),
    )


def user_table(dataset: Dataset, max_videos: int, max_entries: int) -> UserTable:
    """Every user's histories after the last event, and all videos that each liked or liked comments of.

    Args:
        dataset: the prepared dataset.
        max_videos, max_entries: latest steps of each history that are kept.
    """
    liked, written = dataset.video_events, dataset.comment_events
    videos = _latest(liked.offsets, np.maximum(liked.offsets[1:] - max_videos, liked.offsets[:-1]))
    newest = np.zeros(len(written.offsets) - 1, dtype=np.int64)
    some = np.diff(written.offsets) > 0
    newest[some] = written.groups[written.offsets[1:][some] - 1]
    owner = np.repeat(np.arange(len(newest)), np.diff(written.offsets))
    dropped = np.bincount(owner[written.groups <= newest[owner] - max_entries], minlength=len(newest))
    comments = _latest(written.offsets, written.offsets[:-1] + dropped)
    return UserTable(
        ids=raw_ids(dataset, "users"),
        videos=Csr(videos[0], liked.items[videos[1]]),
        comments=Csr(comments[0], written.items[comments[1]]),
        comment_videos=written.videos[comments[1]],
        seen=_distinct((liked.offsets, liked.items), (written.offsets, written.videos)),
    )


def _latest(offsets: np.ndarray, first: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Rows cut at the front: new offsets, and the places of what is left; `first` is where each row begins now."""
    counts = offsets[1:] - first
    return np.concatenate([[0], np.cumsum(counts)]).astype(np.int64), ranges(first, counts)


def _distinct(*tables: tuple[np.ndarray, np.ndarray]) -> Csr:
    """The rows (offsets, items) of all tables together, ascending, each item once."""
    owner = np.concatenate([np.repeat(np.arange(len(ends) - 1), np.diff(ends)) for ends, _ in tables])
    items = np.concatenate([own for _, own in tables])
    order = np.lexsort((items, owner))
    owner, sorted_items = owner[order], items[order]
    first = np.ones(len(order), dtype=bool)
    first[1:] = (owner[1:] != owner[:-1]) | (sorted_items[1:] != sorted_items[:-1])
    counts = np.bincount(owner[first], minlength=len(tables[0][0]) - 1)
    return Csr(np.concatenate([[0], np.cumsum(counts)]).astype(np.int64), sorted_items[first])
