import copy
import gzip
import shutil
from datetime import datetime, time, timedelta, timezone
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lsvcr.data.prepare import prepare
from lsvcr.data.store import Dataset, open_dataset
from lsvcr.settings import PrepareSettings
from lsvcr.utils.errors import UserError
from tests.data.raw_tables import COLUMN_MAP, small_tables, write_map, write_part, write_spark


def run(raw: Path, **options: Any) -> Dataset:
    folder = prepare(
        PrepareSettings(source="tables", raw=str(raw), out=str(raw.parent / f"{raw.name}-out"), **options)
    )
    return open_dataset(folder, verify=True)


def changed(**tables: dict[str, Any]) -> dict[str, Any]:
    """The column map with entries of some tables replaced or added."""
    result = copy.deepcopy(COLUMN_MAP)
    for name, entry in tables.items():
        result.setdefault(name, {}).update(entry)
    return result


def liked(data: Dataset) -> dict[Any, list[Any]]:
    """Raw ids of liked videos by raw id of the user, in order."""
    users, videos = data.raw_ids("users"), data.raw_ids("videos")
    offsets, items = data.video_events.offsets, data.video_events.items
    return {
        users[u - 1]: [videos[int(v) - 1] for v in items[offsets[u] : offsets[u + 1]]]
        for u in range(1, data.n_users + 1)
    }


@pytest.mark.parametrize("suffix", [".parquet", ".csv", ".csv.gz"])
def test_spark_folders(tmp_path: Path, suffix: str):
    data = run(write_spark(tmp_path / "raw", small_tables(), suffix=suffix, parts=3))
    assert (data.n_users, data.n_videos, data.n_comments) == (3, 9, 18)
    assert data.titles()[3] == 'title "3", part' and data.contents()[1] == "line one 1\nof 1"
    assert data.column("videos", "author")[8] == "author 9"
    assert data.column("comments", "likes").to_list() == [4, 3] * 9
    # Likes of videos 6 and 7 fall into the same second: the smaller id stands first.
    assert liked(data) == {user: [1, 2, 3, 4, 5, 6, 7] for user in (5, 6, 70)}
    assert data.video_events.times[0] == 1_010_000
    assert data.raw_ids("comments")[int(data.comment_events.items[0]) - 1] == 11
    assert data.comment_events.videos.tolist() == [1, 2, 3, 4, 1, 5]


@settings(max_examples=20, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    parts=st.integers(1, 6),
    suffix=st.sampled_from([".parquet", ".csv", ".csv.gz"]),
)
def test_the_spread_of_rows_over_files_does_not_matter(tmp_path_factory, seed, parts, suffix):
    folder = tmp_path_factory.mktemp("tables")
    tables = small_tables()
    # The format of the first one differs too; ties are ordered by ids, not by rows.
    expected = run(write_spark(folder / "plain", tables)).data_hash
    found = run(write_spark(folder / "spread", tables, suffix=suffix, parts=parts, seed=seed)).data_hash
    assert found == expected
    shutil.rmtree(folder)


def test_partitions_name_columns(tmp_path: Path):
    raw = write_spark(tmp_path / "raw", small_tables())
    shutil.rmtree(raw / "likes")
    likes = small_tables()["likes"]
    days = {"2024-05-30": likes[:10], "2024-05-31": likes[10:]}
    for day, part in days.items():
        write_part(raw / "likes" / f"day={day}" / "part-0.parquet", part.drop("ts"))
    write_map(raw, changed(likes={"time": "day", "unit": "datetime"}))
    times = run(raw).video_events.times
    assert {datetime.fromtimestamp(t / 1000, timezone.utc).date().isoformat() for t in times} == set(days)


@pytest.mark.parametrize(
    ("unit", "value"),
    [
        ("milliseconds", 1_700_000_000_250),
        ("microseconds", 1_700_000_000_250_000),
        ("datetime", "2023-11-14 22:13:20.250"),
        ("datetime", "2023-11-14T22:13:20.250Z"),
        ("datetime", "2023-11-15T00:13:20.250+02:00"),
        ("seconds", datetime(2023, 11, 14, 22, 13, 20, 250_000)),
        ("datetime", datetime(2023, 11, 14, 22, 13, 20, 250_000, tzinfo=timezone(timedelta(0)))),
    ],
)
@pytest.mark.parametrize("suffix", [".parquet", ".csv"])
def test_units_of_time(tmp_path: Path, unit: str, value: Any, suffix: str):
    if suffix == ".csv" and isinstance(value, datetime):
        unit = "datetime"
    tables = small_tables()
    start = tables["likes"]["ts"]
    kept = tables["likes"].filter(start == start.min()).with_columns(pl.lit(value).alias("ts"))
    earlier = tables["likes"].filter(start > start.min())
    wanted = [datetime(2024, 1, 1) + timedelta(seconds=int(s)) for s in earlier["ts"]]
    later = (
        pl.Series("ts", wanted).cast(kept["ts"].dtype)
        if isinstance(value, datetime)
        else pl.Series("ts", [s.isoformat() for s in wanted])
        if unit == "datetime"
        else pl.Series("ts", [int(s.timestamp() * (1e3 if unit == "milliseconds" else 1e6)) for s in wanted])
    )
    tables["likes"] = pl.concat([kept, earlier.with_columns(later)])
    raw = write_spark(tmp_path / "raw", tables, changed(likes={"unit": unit}), suffix=suffix)
    assert run(raw).video_events.times.min() == 1_700_000_000_250


@pytest.mark.parametrize("suffix", [".parquet", ".csv"])
def test_ids_may_be_strings_or_long_numbers(tmp_path: Path, suffix: str):
    def named(frame: pl.DataFrame) -> pl.DataFrame:
        return frame.with_columns(
            pl.format(f"{name}-{{}}-é", name).alias(name) for name in frame.columns if name in ids
        )

    ids = ("uid", "vid", "cid")
    words = {name: named(frame) for name, frame in small_tables().items()}
    data = run(write_spark(tmp_path / "words", words, {**COLUMN_MAP, "ids": "strings"}, suffix=suffix))
    assert liked(data)["uid-70-é"] == [f"vid-{v}-é" for v in range(1, 8)]
    big = 9_007_199_254_740_993  # the first whole number that a double cannot hold
    long = {
        name: frame.with_columns(pl.col(column) + big for column in frame.columns if column in ids)
        for name, frame in small_tables().items()
    }
    data = run(write_spark(tmp_path / "long", long, suffix=suffix))
    assert liked(data)[big + 70] == [big + v for v in range(1, 8)]
    with pytest.raises(UserError, match=r"(line|row) \d+: vid is 'vid-\d-é', expected a whole number"):
        run(write_spark(tmp_path / "wrong", words, suffix=suffix))


def test_what_may_be_left_out(tmp_path: Path):
    tables = small_tables()
    raw = write_spark(tmp_path / "raw", tables)
    bare = {
        "videos": {"files": "videos", "id": "vid", "title": "title"},
        "likes": COLUMN_MAP["likes"],
    }
    write_map(raw, bare)
    data = run(raw)
    assert data.n_comments == 0 and len(data.samples("rec", "test")) == 3
    assert set(data.column("videos", "author")) == {""}
    # With a table of users, a like by nobody in it is a broken row.
    write_part(raw / "people.csv", pl.DataFrame({"who": [5, 6]}))
    write_map(raw, changed(users={"files": "people.csv", "id": "who"}))
    with pytest.raises(UserError, match=r"likes.part-00000.*row \d+: user 70 is not among the users"):
        run(raw)
    assert run(raw, skip_bad_rows=True).n_users == 2


def test_when_keeps_the_rows_where_a_flag_is_set(tmp_path: Path):
    tables = small_tables()
    flags = pl.Series("is_like", [True, False, None] * 7)
    tables["likes"] = tables["likes"].with_columns(
        (pl.col("vid") != 3).alias("is_like"), (pl.col("uid") == 5).alias("shared")
    )
    raw = write_spark(tmp_path / "raw", tables, changed(likes={"when": ["is_like", "shared"]}), suffix=".csv")
    assert [len(videos) for videos in liked(run(raw)).values()] == [7, 6, 6]
    tables["likes"] = tables["likes"].with_columns(flags)
    write_spark(tmp_path / "nulls", tables, changed(likes={"when": "is_like"}))
    with pytest.raises(UserError, match=r"row \d+: is_like is empty, expected 0 or 1 \(7 such rows"):
        run(tmp_path / "nulls")


@pytest.mark.parametrize("suffix", [".parquet", ".csv"])
def test_columns_may_have_any_name(tmp_path: Path, suffix: str):
    tables = small_tables()
    plain = run(write_spark(tmp_path / "plain", tables, suffix=suffix))
    tables["likes"] = (
        tables["likes"].rename({"uid": "row", "vid": "fault"}).with_columns(pl.lit(1).alias("time"))
    )
    named = changed(likes={"user": "row", "video": "fault"})
    assert run(write_spark(tmp_path / "odd", tables, named, suffix=suffix)).data_hash == plain.data_hash


def test_csv_files_with_another_separator(tmp_path: Path):
    tables = small_tables()
    raw = write_spark(tmp_path / "raw", tables, suffix=".csv")
    plain = run(raw).data_hash
    (part,) = (raw / "videos").glob("part-*")
    tables["videos"].write_csv(part, separator=";")
    with pytest.raises(
        UserError, match=r"line 1: the fields are separated by semicolons; write the file with commas"
    ):
        run(raw)
    write_map(raw, changed(videos={"separator": ";"}))
    assert run(raw).data_hash == plain


def test_the_same_comment_elsewhere_is_a_broken_row(tmp_path: Path):
    tables = small_tables()
    tables["comment_likes"] = tables["comment_likes"].with_columns(pl.lit(99).alias("cid"))
    raw = write_spark(tmp_path / "raw", tables, suffix=".csv", parts=2)
    with pytest.raises(
        UserError, match=r"comment_likes.part-00000\S+, line 2: comment 99 is not among .*6 such rows"
    ):
        run(raw)


def test_an_id_twice_in_different_files(tmp_path: Path):
    raw = write_spark(tmp_path / "raw", small_tables())
    write_part(
        raw / "videos" / "part-00009.csv",
        pl.DataFrame({"vid": [77, 3], "title": "", "tag": "", "uploader": ""}),
    )
    with pytest.raises(UserError, match=r"part-00009\.csv, line 3: vid 3 stands here a second time"):
        run(raw)


WRONG_MAPS = {
    "no such table": ({"clips": {}}, r"unknown table 'clips'"),
    "near miss": ({"like": {"files": "likes"}}, r"unknown table 'like'; did you mean likes\?"),
    "unknown key": ({"likes": {"vdieo": "vid"}}, r"`likes` knows no 'vdieo'; did you mean video\?"),
    "no unit": ({"likes": {"unit": None}}, r"`likes` needs `unit`.*milliseconds, seconds"),
    "wrong unit": ({"likes": {"unit": "hours"}}, r"`likes` needs `unit`"),
    "no title": ({"videos": {"title": ""}}, r"`videos` needs `title`"),
    "no such column": ({"videos": {"title": "name"}}, r"no column name.*vid, title, tag, uploader"),
    "no such folder": ({"videos": {"files": "films"}}, r"films is missing; correct its `files`"),
    "several files": (
        {"videos": {"files": ["a.csv", "b.csv"]}},
        r"columns\.yaml: `files` of `videos` is \['a.csv', 'b.csv'\]; write one file or one folder",
    ),
    "long separator": (
        {"likes": {"separator": "||"}},
        r"`separator` of `likes` is '\|\|'; it must be one ASCII",
    ),
    "no separator": ({"likes": {"separator": ""}}, r"`separator` of `likes` is ''"),
    "separator beyond ASCII": ({"likes": {"separator": "\u00a7"}}, r"`separator` of `likes`"),
    "a number for a separator": ({"likes": {"separator": 1}}, r"`separator` of `likes` is 1"),
    "a number for a table": ({1: {"files": "likes"}}, r"unknown table 1; choose from videos"),
    "nothing for a table": ({None: {"files": "likes"}}, r"unknown table None"),
    "one column in two ways": (
        {"likes": {"when": ["ts"]}},
        r"columns\.yaml: `likes` reads the column 'ts' as seconds and as flag; name another one",
    ),
    "kind of ids": ({"ids": "uuid"}, r"`ids` is 'uuid'; write numbers or strings"),
}


@pytest.mark.parametrize("case", WRONG_MAPS)
def test_a_wrong_map_is_explained(tmp_path: Path, case: str):
    change, message = WRONG_MAPS[case]
    content = copy.deepcopy(COLUMN_MAP)
    for name, entry in change.items():
        content[name] = {**content.get(name, {}), **entry} if isinstance(entry, dict) else entry
    raw = write_spark(tmp_path / "raw", small_tables(), content)
    with pytest.raises(UserError, match=message):
        run(raw)


@pytest.mark.parametrize("suffix", [".parquet", ".csv"])
def test_a_column_may_be_named_by_two_keys(tmp_path: Path, suffix: str):
    named = changed(videos={"category": "title", "author": None})
    data = run(write_spark(tmp_path / "raw", small_tables(), named, suffix=suffix))
    assert data.column("videos", "category").to_list() == list(data.titles())[1:]
    assert set(data.column("videos", "author")) == {""}


@pytest.mark.parametrize(
    ("table", "column", "value", "says"),
    [
        ("videos", "tag", pl.lit("pets").implode(), r"tag is List\(String\), expected a text"),
        ("videos", "tag", pl.struct("vid"), r"tag is Struct.*, expected a text"),
        ("likes", "ts", pl.lit(time(1, 2)), "ts is Time, expected a time in Unix seconds"),
        ("likes", "ts", pl.lit(timedelta(1)), r"ts is Duration.*, expected a time in Unix seconds"),
    ],
)
def test_types_that_cannot_be_read(tmp_path: Path, table: str, column: str, value: pl.Expr, says: str):
    tables = small_tables()
    tables[table] = tables[table].with_columns(value.alias(column))
    with pytest.raises(
        UserError, match=rf"{table}.part-00000\S+\.parquet: {says}.*; write the column as STRING"
    ):
        run(write_spark(tmp_path / "raw", tables))


def test_a_map_that_is_not_there_or_no_map(tmp_path: Path):
    raw = write_spark(tmp_path / "raw", small_tables())
    (raw / "columns.yaml").rename(tmp_path / "other.yaml")
    with pytest.raises(UserError, match=r"columns\.yaml is missing.*--columns"):
        run(raw)
    assert run(raw, columns=str(tmp_path / "other.yaml")).n_users == 3
    for text, message in (
        ("{a: [", "is no YAML"),
        ("- a", "must name at least the tables videos and likes"),
        ("videos: {}", "must name at least"),
    ):
        (raw / "columns.yaml").write_text(text)
        with pytest.raises(UserError, match=message):
            run(raw)
    write_map(raw, COLUMN_MAP, drop=["comment_likes"])
    with pytest.raises(UserError, match="both comments and comment_likes, or neither"):
        run(raw)


def test_damaged_and_odd_files(tmp_path: Path):
    raw = write_spark(tmp_path / "raw", small_tables())
    (part,) = (raw / "likes").glob("part-*")
    whole = part.read_bytes()
    part.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match=r"cannot be read as Parquet.*write or copy it again"):
        run(raw)
    part.unlink()
    with pytest.raises(UserError, match=r"likes holds no file that ends in \.parquet, \.csv, \.csv\.gz"):
        run(raw)
    floats = small_tables()["likes"].with_columns(pl.col("uid").cast(pl.Float64))
    write_part(part, floats)
    with pytest.raises(UserError, match=r"the ids in uid are Float64.*BIGINT or STRING"):
        run(raw)
    write_part(part, small_tables()["likes"].with_columns(pl.lit(None).cast(pl.Int64).alias("ts")))
    with pytest.raises(UserError, match=r"row 1: ts is empty, expected a time in Unix seconds.*21 such rows"):
        run(raw)
    part.unlink()
    write_part(raw / "likes" / "part-1.csv", small_tables()["likes"])
    (raw / "likes" / "part-0.csv").write_text("")  # Spark writes one for an empty partition
    (raw / "likes" / "part-2.csv.gz").write_bytes(gzip.compress(b""))
    assert run(raw).n_users == 3
