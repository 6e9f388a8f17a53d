"""Raw logs with the counts of KuaiComt, folded out of the simulator's `large` world.

34,701 users, 82,452 videos, 16,352,904 comments, 119.7 M impressions and 1,002,672 interactions with comments. Rows
and texts are the simulator's; they are repeated with other ids (comments) and other times (impressions), and users
and videos are taken modulo the counts. Likes come from the first copy of the impressions alone, long views from all.
"""

from pathlib import Path

import polars as pl

USERS, VIDEOS, COMMENTS, IMPRESSIONS, INTERACTIONS = 34_701, 82_452, 16_352_904, 119_700_000, 1_002_672
_HOUR_MS = 3_600_000


def fold(large: Path, out: Path) -> Path:
    """Write the five files to `out` unless they are there already.

    Args:
        large: raw logs of `lsvcr simulate --preset large`.
    """
    done = out / "done"
    if done.exists():
        return out
    out.mkdir(parents=True, exist_ok=True)
    users = pl.read_csv(large / "user_features.csv", infer_schema=False)
    videos = pl.read_csv(large / "video_features.csv", infer_schema=False)
    comments = pl.read_csv(large / "comment_features.csv", infer_schema=False)
    users[:USERS].write_csv(out / "user_features.csv")
    videos[:VIDEOS].write_csv(out / "video_features.csv")
    user = _folded(users["user_id"], USERS)
    video = _folded(videos["video_id"], VIDEOS)
    video_of = comments.join(video, on="video_id", maintain_order="left")
    _write_comments(video_of, out / "comment_features.csv")
    _write_interactions(large, user, video_of, out / "user_comment_inter.csv")
    _write_impressions(large / "user_video_inter.csv", user, video, out / "user_video_inter.csv")
    done.touch()
    return out


def _folded(ids: pl.Series, count: int) -> pl.DataFrame:
    """Each id and the one it becomes: that of row (its own row modulo `count`)."""
    target = ids.gather(pl.int_range(len(ids), eager=True) % count)
    return pl.DataFrame({ids.name: ids, "new": target})


def _write_comments(comments: pl.DataFrame, path: Path) -> None:
    """Copies of all comments; copy k of row i gets the id k * rows + i."""
    header = [name for name in comments.columns if name != "new"]
    with open(path, "wb") as stream:
        for first in range(0, COMMENTS, comments.height):
            part = comments[: COMMENTS - first].with_columns(
                (pl.int_range(pl.len()) + first).cast(pl.String).alias("comment_id"),
                pl.col("new").alias("video_id"),
            )
            part.select(header).write_csv(stream, include_header=first == 0)


def _write_interactions(large: Path, user: pl.DataFrame, comments: pl.DataFrame, path: Path) -> None:
    ids = comments.select(
        "comment_id", pl.int_range(pl.len()).cast(pl.String).alias("new_id"), pl.col("new").alias("new_video")
    )
    rows = pl.read_csv(large / "user_comment_inter.csv", infer_schema=False)
    rows = pl.concat([rows, rows])[:INTERACTIONS]
    rows = rows.join(user, on="user_id", maintain_order="left").join(
        ids, on="comment_id", maintain_order="left"
    )
    rows = rows.with_columns(
        pl.col("new").alias("user_id"),
        pl.col("new_id").alias("comment_id"),
        pl.col("new_video").alias("photo_id"),
    )
    rows.drop("new", "new_id", "new_video").write_csv(path)


def _write_impressions(source: Path, user: pl.DataFrame, video: pl.DataFrame, path: Path) -> None:
    """Copies of all impressions, each some hours later than the one before."""
    rows = pl.scan_csv(source, infer_schema=False)
    height = int(rows.select(pl.len()).collect().item())
    header = rows.collect_schema().names()
    with open(path, "wb") as stream:
        for copy, first in enumerate(range(0, IMPRESSIONS, height)):
            part = rows.head(IMPRESSIONS - first)
            part = part.join(user.lazy(), on="user_id", maintain_order="left")
            part = part.join(video.lazy(), on="video_id", maintain_order="left", suffix="_video")
            part = part.with_columns(
                pl.col("new").alias("user_id"),
                pl.col("new_video").alias("video_id"),
                (pl.col("time_ms").cast(pl.Float64) + copy * 7 * _HOUR_MS).cast(pl.String).alias("time_ms"),
                (pl.col("is_like") if copy == 0 else pl.lit("0")).alias("is_like"),
            )
            part.select(header).collect(engine="streaming").write_csv(stream, include_header=first == 0)
