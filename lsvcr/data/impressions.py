"""Impressions of a source to the arrays of a prepared dataset, on disk throughout.

There may be a hundred for each like, so they never stand in memory together: they are counted by user, written
to their user's place in the order of their rows, and then sorted, a block of users at a time.
"""

import os
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import polars as pl

from lsvcr.data.histories import blocks, owners_between
from lsvcr.data.sources.spill import BATCH, CLICKED, FROM_LIKES, Spill
from lsvcr.data.store import IMPRESSIONS, Impressions
from lsvcr.schema import RAW_ID, TIME, USER, VIDEO
from lsvcr.utils.errors import UserError

_DTYPES = {"items": np.int32, "times": np.int64, "clicked": np.uint8}
_OWNER, _ITEM = "owner", "item"


def write_impressions(
    spill: Spill, users: pl.DataFrame, videos: pl.DataFrame, folder: Path
) -> dict[str, int]:
    """Write `impressions/{offsets,items,times,clicked}.npy`.

    Args:
        spill: what the source found.
        users, videos: tables of the prepared dataset with `raw_id`; row i is index i + 1.
        folder: that of the dataset.

    Returns:
        For the manifest: `rows` and `clicked` of what was written; `left_out`, those of users and videos that are not
        in the tables; `clicked_from_likes`, rows that said nothing of a click.

    Raises:
        UserError: there are impressions, but none of a user and a video of the dataset.
    """
    counts = np.zeros(users.height + 1, np.int64)
    seen = clicks = stood_in = 0
    for size, batch in _indexed(spill, users, videos):
        counts += np.bincount(batch[_OWNER].to_numpy(), minlength=len(counts))
        seen += size
        clicks += int(batch[CLICKED].sum())
        stood_in += int(batch[FROM_LIKES].sum())
    offsets = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
    total = int(offsets[-1])
    if seen and not total:
        raise UserError(
            f"none of the {seen:,} impressions is of a user and a video of the dataset: their ids must be those of the "
            "tables of users and videos. Correct them, or pass --impressions false"
        )
    target = folder / IMPRESSIONS
    target.mkdir()
    np.save(target / "offsets.npy", offsets)
    arrays = {name: _create(target / f"{name}.npy", dtype, total) for name, dtype in _DTYPES.items()}
    placed = Impressions(offsets, **arrays)
    _place(_indexed(spill, users, videos), placed)
    _sort(placed, spill.rows_have_order)
    return {
        "rows": total,
        "clicked": clicks,
        "left_out": seen - total,
        "clicked_from_likes": stood_in,
    }


def _indexed(spill: Spill, users: pl.DataFrame, videos: pl.DataFrame) -> Iterator[tuple[int, pl.DataFrame]]:
    """(rows of a batch, those of kept users and videos: `owner`, `item`, `time`, `clicked`, `from_likes`)."""
    owners = users.select(pl.col(RAW_ID).alias(USER), _index().alias(_OWNER))
    items = videos.select(pl.col(RAW_ID).alias(VIDEO), _index().alias(_ITEM))
    for batch in spill.batches():
        kept = batch.join(owners, on=USER, maintain_order="left").join(items, on=VIDEO, maintain_order="left")
        yield batch.height, kept.select(_OWNER, _ITEM, TIME, pl.col(CLICKED).cast(pl.UInt8), FROM_LIKES)


def _index() -> pl.Expr:
    return pl.int_range(1, pl.len() + 1, dtype=pl.Int32)


def _create(path: Path, dtype: type, length: int) -> np.ndarray:
    """A mapped array with its room on the disk taken: writing to a map of a full disk would kill the process."""
    array = np.lib.format.open_memmap(path, mode="w+", dtype=dtype, shape=(length,))
    if hasattr(os, "posix_fallocate"):
        with open(path, "r+b") as stream:
            os.posix_fallocate(stream.fileno(), 0, path.stat().st_size)
    return array


def _place(batches: Iterable[tuple[int, pl.DataFrame]], placed: Impressions) -> None:
    """Write every row into its user's slice, rows of a user in the order in which they come."""
    ends = placed.offsets[:-1].copy()
    """Where the next row of each user goes."""
    for _, batch in batches:
        rows = batch.sort(_OWNER, maintain_order=True)
        owners = rows[_OWNER].to_numpy()
        counts = np.bincount(owners, minlength=len(ends))
        starts = np.cumsum(counts) - counts
        places = ends[owners] + np.arange(len(owners)) - starts[owners]
        placed.items[places] = rows[_ITEM].to_numpy()
        placed.times[places] = rows[TIME].to_numpy()
        placed.clicked[places] = rows[CLICKED].to_numpy()
        ends += counts


def _sort(placed: Impressions, rows_have_order: bool) -> None:
    """By time inside each user. Where rows have no order, equal times go by video and then by click."""
    for first, last in blocks(placed.offsets, BATCH):
        here = slice(int(placed.offsets[first]), int(placed.offsets[last]))
        owners, times = owners_between(placed.offsets, first, last), placed.times[here]
        if rows_have_order and not ((np.diff(times) < 0) & (np.diff(owners) == 0)).any():
            continue
        ties = () if rows_have_order else (placed.clicked[here], placed.items[here])
        order = np.lexsort((*ties, times, owners))
        for array in placed[1:]:
            array[here] = array[here][order]
