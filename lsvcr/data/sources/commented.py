"""What the published sets have in common whose comments are their users' own: MicroLens and Amazon."""

from collections.abc import Sequence
from pathlib import Path

import polars as pl

from lsvcr.data.sources.logs import ROW
from lsvcr.schema import AUTHOR, CATEGORY, RAW_ID, TITLE, USER, VIDEO
from lsvcr.utils.errors import UserError


def only_file(files: Sequence[Path], what: str, folder: Path, named: str) -> Path:
    """The one file of a kind.

    Args:
        files: those found in `folder`.
        what: what they hold, for messages.
        named: how such a file is named, for messages.

    Raises:
        UserError: there is none, or more than one.
    """
    if not files:
        raise UserError(f"{folder} holds no file with the {what}; it must be named {named}")
    if len(files) > 1:
        raise UserError(
            f"{folder} holds {len(files)} files with the {what}: {', '.join(sorted(p.name for p in files))}; keep one"
        )
    return files[0]


def numbered_id() -> pl.Expr:
    """Raw id of a comment from its video and user: `video:user:n`, n counted from 1 in file order."""
    base = pl.format("{}:{}", VIDEO, USER)
    return pl.format("{}:{}", base, pl.int_range(1, pl.len() + 1).over(base))


def with_unlisted(videos: pl.DataFrame, named: pl.DataFrame) -> pl.DataFrame:
    """`videos` and, with an empty title, every id in `named` (row, raw_id) that they lack."""
    missing = named.join(videos, on=RAW_ID, how="anti").unique(RAW_ID, keep="first", maintain_order=True)
    empty = [pl.lit("").alias(name) for name in (TITLE, CATEGORY, AUTHOR)]
    columns = [ROW, RAW_ID, TITLE, CATEGORY, AUTHOR]
    return pl.concat([videos.select(columns), missing.select(ROW, RAW_ID, *empty)])
