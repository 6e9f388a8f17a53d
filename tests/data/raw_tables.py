"""Folders as Spark writes them: part files of any name, partitions, and markers that are no data."""

import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import polars as pl
import yaml

COLUMN_MAP: dict[str, Any] = {
    "videos": {"files": "videos", "id": "vid", "title": "title", "category": "tag", "author": "uploader"},
    "likes": {"files": "likes", "user": "uid", "video": "vid", "time": "ts", "unit": "seconds"},
    "comments": {"files": "comments", "id": "cid", "text": "body", "video": "vid", "likes": "n_likes"},
    "comment_likes": {
        "files": "comment_likes",
        "user": "uid",
        "comment": "cid",
        "time": "ts",
        "unit": "seconds",
    },
}


def small_tables() -> dict[str, pl.DataFrame]:
    """Three users who like videos 1 to 7, two of them at the same second, and touch comments."""
    likes = [(user, video, 1000 + 10 * (video - video // 7)) for user in (5, 6, 70) for video in range(1, 8)]
    touches = [(5, 11, 1005), (5, 21, 1015), (6, 31, 1005), (6, 41, 1025), (70, 12, 1035), (70, 51, 1045)]
    return {
        "videos": pl.DataFrame(
            [(v, f'title "{v}", part', "pets", f"author {v}") for v in range(1, 10)],
            schema=["vid", "title", "tag", "uploader"],
            orient="row",
        ),
        "likes": pl.DataFrame(likes, schema=["uid", "vid", "ts"], orient="row"),
        "comments": pl.DataFrame(
            [(10 * v + k, f"line one {k}\nof {v}", v, 5 - k) for v in range(1, 10) for k in (1, 2)],
            schema=["cid", "body", "vid", "n_likes"],
            orient="row",
        ),
        "comment_likes": pl.DataFrame(touches, schema=["uid", "cid", "ts"], orient="row"),
    }


def write_spark(
    folder: Path,
    tables: dict[str, pl.DataFrame],
    column_map: dict[str, Any] | None = None,
    *,
    suffix: str = ".parquet",
    parts: int = 1,
    seed: int = 0,
) -> Path:
    """Each table as a folder of `parts` files over which the rows are spread at random, and columns.yaml."""
    dice = random.Random(seed)
    for name, table in tables.items():
        rows = list(range(table.height))
        dice.shuffle(rows)
        (folder / name).mkdir(parents=True, exist_ok=True)
        (folder / name / "_SUCCESS").write_text("")
        for number in range(parts):
            part = table[rows[number::parts]]
            file = folder / name / f"part-{number:05d}-{dice.getrandbits(32):08x}-c000{suffix}"
            write_part(file, part)
            (folder / name / f".{file.name}.crc").write_bytes(b"crc\x00")
    write_map(folder, column_map or COLUMN_MAP)
    return folder


def write_part(file: Path, part: pl.DataFrame) -> None:
    """One part file, of the kind its name ends in."""
    file.parent.mkdir(parents=True, exist_ok=True)
    if file.name.endswith(".parquet"):
        part.write_parquet(file, row_group_size=2)
    elif file.name.endswith(".gz"):
        part.write_csv(file, compression="gzip")
    else:
        part.write_csv(file)


def write_map(folder: Path, column_map: dict[str, Any], drop: Sequence[str] = ()) -> Path:
    """columns.yaml without the tables in `drop`."""
    path = folder / "columns.yaml"
    kept = {name: entry for name, entry in column_map.items() if name not in drop}
    path.write_text(yaml.safe_dump(kept), encoding="utf-8")
    return path
