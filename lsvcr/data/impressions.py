"""Impressions of a source to the arrays of a prepared dataset, on disk throughout.

There may be a hundred for each like, so they never stand in memory together: they are dealt out to files of some
users each, in the order of their rows, and then sorted and written a file at a time.
"""

from pathlib import Path

import numpy as np
import polars as pl

from lsvcr.data.indexing import by_user_and_time
from lsvcr.data.sources.spill import BATCH, CLICKED, FROM_LIKES, Spill
from lsvcr.data.store import IMPRESSIONS
from lsvcr.schema import RAW_ID, TIME, USER, VIDEO
from lsvcr.utils.errors import UserError
from lsvcr.utils.io import create_npy

_ROW = np.dtype([(USER, "<i4"), (VIDEO, "<i4"), (TIME, "<i8"), (CLICKED, "u1")])
_FILES = {"items": VIDEO, "times": TIME, CLICKED: CLICKED}
"""Arrays of `store.Impressions` and the fields of `_ROW` that they hold."""


def write_impressions(
    spill: Spill, users: pl.DataFrame, videos: pl.DataFrame, folder: Path
) -> dict[str, int]:
    """Write `impressions/{offsets,items,times,clicked}.npy`.

    Args:
        spill: what the source found; its files are gone afterwards.
        users, videos: tables of the prepared dataset with `raw_id`; row i is index i + 1.
        folder: that of the dataset.

    Returns:
        For the manifest: `rows` and `clicked` of what was written; `left_out`, those of users and videos that are not
        in the tables; `clicked_from_likes`, rows that said nothing of a click.

    Raises:
        UserError: there are impressions, but none of a user and a video of the dataset.
    """
    shares = _Shares(spill, users.height)
    clicked = stood_in = 0
    owners = users.select(pl.col(RAW_ID).alias(USER), _index().alias("owner"))
    items = videos.select(pl.col(RAW_ID).alias(VIDEO), _index().alias("item"))
    for batch in spill.batches():
        kept = batch.join(owners, on=USER, maintain_order="left").join(items, on=VIDEO, maintain_order="left")
        clicked += int(kept[CLICKED].sum())
        stood_in += int(kept[FROM_LIKES].sum())
        shares.deal(kept.select(pl.col("owner").alias(USER), pl.col("item").alias(VIDEO), TIME, CLICKED))
    if spill.rows and not shares.rows:
        raise UserError(
            f"none of the {spill.rows:,} impressions is of a user and a video of the dataset: their ids must be those "
            "of the tables of users and videos. Correct them, or pass --impressions false"
        )
    left_out = spill.rows - shares.rows
    spill.remove()
    shares.write(folder / IMPRESSIONS)
    return {
        "rows": shares.rows,
        "clicked": clicked,
        "left_out": left_out,
        "clicked_from_likes": stood_in,
    }


def _index() -> pl.Expr:
    return pl.int_range(1, pl.len() + 1, dtype=pl.Int32)


class _Shares:
    """Impressions in files of so many users that a file has about `BATCH` rows."""

    def __init__(self, spill: Spill, n_users: int) -> None:
        self.rows = 0
        self._n_users = n_users
        self._rows_have_order = spill.rows_have_order
        self._width = max(1, n_users * BATCH // max(1, spill.rows))
        self._files = [spill.folder / f"share-{number}" for number in range(n_users // self._width + 1)]

    def deal(self, rows: pl.DataFrame) -> None:
        """Append each row, with indices for ids, to the file of its user."""
        shares = rows[USER].to_numpy() // self._width
        order = np.argsort(shares, kind="stable")
        dealt = np.empty(len(order), _ROW)
        for name in _ROW.names or ():
            dealt[name] = rows[name].to_numpy()[order]
        ends = np.cumsum(np.bincount(shares, minlength=len(self._files)))
        for number in np.unique(shares):
            start = ends[number - 1] if number else 0
            with open(self._files[number], "ab") as stream:
                dealt[start : ends[number]].tofile(stream)
        self.rows += len(order)

    def write(self, folder: Path) -> None:
        """Write the arrays, and remove each file once it is in them."""
        folder.mkdir()
        arrays = {
            name: create_npy(folder / f"{name}.npy", _ROW[field], (self.rows,))
            for name, field in _FILES.items()
        }
        counts, start = np.zeros(self._n_users + 1, np.int64), 0
        for file in self._files:
            if not file.exists():
                continue
            rows = np.fromfile(file, _ROW)
            file.unlink()
            table = self._in_order(pl.DataFrame({name: rows[name] for name in _ROW.names or ()}))
            counts += np.bincount(rows[USER], minlength=len(counts))
            for name, field in _FILES.items():
                arrays[name][start : start + len(rows)] = table[field].to_numpy()
            start += len(rows)
        np.save(folder / "offsets.npy", np.concatenate([[0], np.cumsum(counts)]).astype(np.int64))

    def _in_order(self, rows: pl.DataFrame) -> pl.DataFrame:
        """By user and time. Where rows have no order of their own, equal times go by video and then by click."""
        if self._rows_have_order:
            return by_user_and_time(rows)
        return rows.sort(USER, TIME, VIDEO, CLICKED)
