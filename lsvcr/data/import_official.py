"""Catalogues and samples of the official format to a prepared dataset, in memory."""

from dataclasses import dataclass

import numpy as np
import polars as pl

from lsvcr import schema
from lsvcr.data.assemble import Prepared, dataset_arrays, dataset_counts
from lsvcr.data.official_chains import Imported
from lsvcr.data.store import Csr
from lsvcr.schema import AUTHOR, CATEGORY, CONTENT, LIKES, RAW_ID, TITLE, VIDEO
from lsvcr.settings import PrepareSettings


@dataclass(frozen=True)
class Catalogue:
    """Videos and comments in the order of their lists; what stands at place i has index i + 1."""

    video_ids: list[str]
    titles: list[str]
    comment_ids: list[str]
    contents: list[str]
    video_comments: Csr
    """Row v: the comments of video v, popular first, each once."""


def prepared(catalogue: Catalogue, imported: Imported, settings: PrepareSettings) -> Prepared:
    """Tables, arrays with the stored candidates, and counts; the layout is that of `assemble.assemble`."""
    tables = _tables(catalogue, imported)
    arrays = dataset_arrays(
        imported.video, imported.comment, catalogue.video_comments, imported.samples, settings
    )
    arrays["train_counts/videos"] = imported.train_videos
    arrays["train_counts/comments"] = imported.train_comments
    return Prepared(
        tables,
        arrays,
        dataset_counts({"people": imported.people}, tables, arrays, imported.samples),
        cuts=None,
    )


def _tables(catalogue: Catalogue, imported: Imported) -> dict[str, pl.DataFrame]:
    """The three tables. The format has no categories, authors or like counts."""
    listed = catalogue.video_comments
    video_of = np.zeros(len(catalogue.comment_ids) + 1, np.int32)
    # From behind, so that a comment of several lists stays with the first video.
    owners = np.repeat(np.arange(len(listed.offsets) - 1, dtype=np.int32), np.diff(listed.offsets))
    video_of[listed.items[::-1]] = owners[::-1]
    return {
        schema.USERS_FILE: pl.DataFrame({RAW_ID: imported.user_ids}, schema={RAW_ID: pl.String}),
        schema.VIDEOS_FILE: pl.DataFrame({RAW_ID: catalogue.video_ids, TITLE: catalogue.titles}).with_columns(
            pl.lit("").alias(CATEGORY), pl.lit("").alias(AUTHOR)
        ),
        schema.COMMENTS_FILE: pl.DataFrame(
            {RAW_ID: catalogue.comment_ids, CONTENT: catalogue.contents, VIDEO: video_of[1:]}
        ).with_columns(pl.lit(None, pl.Int64).alias(LIKES)),
    }
