"""What users were shown: every impression in order, at its user, with its click; and nothing else changes for them."""

import copy
import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from lsvcr import cli
from lsvcr.data import impressions as placing
from lsvcr.data.prepare import prepare
from lsvcr.data.sources import spill as spilling
from lsvcr.data.sources.spill import Spill
from lsvcr.data.store import Dataset, open_dataset
from lsvcr.settings import PrepareSettings
from lsvcr.utils.errors import UserError
from tests.data.raw_files import small_kuaicomt, write_csv, write_movielens
from tests.data.raw_official import small_lines, write_official
from tests.data.raw_tables import COLUMN_MAP, small_tables, write_spark

INTER = "user_video_inter.csv"
HEADER = "user_id,video_id,time_ms,is_like,is_click,long_view"
LIKES = [(user, video, 1000 * video, 1, 1, 0) for user in (7, 8) for video in range(1, 6)]
"""Two people who like videos 1 to 5, a second apart: rows of `HEADER`."""

Shown = list[tuple[Any, Any, int, int]]


def world(folder: Path, rows: Sequence[Sequence[Any]], header: str = HEADER) -> Path:
    """KuaiComt's files of `small_kuaicomt` with these rows of `user_video_inter.csv`; videos 1 to 8."""
    small_kuaicomt(folder)
    write_csv(folder / INTER, header, rows)
    return folder


def run(raw: Path, **options: Any) -> Dataset:
    given: dict[str, Any] = {"user_core": 2, **options}
    folder = prepare(PrepareSettings(raw=str(raw), out=str(raw.parent / f"{raw.name}-out"), **given))
    assert not [path for path in folder.rglob("*") if path.name.startswith((".", "share"))]
    return open_dataset(folder, verify=True)


def shown(data: Dataset) -> Shown:
    """(user, video, time, clicked) with raw ids, in the order of the dataset."""
    found = data.impressions
    assert found is not None
    assert [array.dtype for array in found] == [np.int64, np.int32, np.int64, np.uint8]
    assert (len(found.offsets), found.offsets[0], found.offsets[1]) == (data.n_users + 2, 0, 0)
    assert found.offsets[-1] == len(found.items) == len(found.times) == len(found.clicked)
    users, videos = data.raw_ids("users").to_list(), data.raw_ids("videos").to_list()
    return [
        (users[u - 1], videos[found.items[i] - 1], int(found.times[i]), int(found.clicked[i]))
        for u in range(1, data.n_users + 1)
        for i in range(found.offsets[u], found.offsets[u + 1])
    ]


def test_order_is_by_time_and_then_by_row(tmp_path: Path):
    rows = [
        (8, 6, 9000, 0, 0, 0),
        (7, 8, 2000, 0, 1, 0),  # at the time of the like of video 2, and in an earlier row
        *LIKES,
        (7, 6, 2000, 0, 0, 0),  # at that time too, and in a later row
        (7, 1, 900, 0, 0, 0),  # shown once more, before it was liked
        (7, 6, 2000, 0, 1, 0),  # the same video at the same time: both stay
    ]
    data = run(world(tmp_path / "raw", rows))
    assert shown(data) == [
        (7, 1, 900, 0),
        (7, 1, 1000, 1),
        (7, 8, 2000, 1),
        (7, 2, 2000, 1),
        (7, 6, 2000, 0),
        (7, 6, 2000, 1),
        (7, 3, 3000, 1),
        (7, 4, 4000, 1),
        (7, 5, 5000, 1),
        *((8, video, 1000 * video, 1) for video in range(1, 6)),
        (8, 6, 9000, 0),
    ]
    counts = {"rows": 15, "clicked": 12, "left_out": 0, "clicked_from_likes": 0}
    assert data.manifest["counts"]["impressions"] == counts
    assert data.manifest["counts"]["raw"]["impressions"] == 15


@pytest.mark.parametrize("batch", [1, 7, 50, 10_000])
def test_any_number_of_files_and_batches_gives_what_sorting_in_memory_gives(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, batch: int
):
    dice = random.Random(batch)
    rows = [
        (7 * dice.randrange(30), dice.randrange(1, 9), dice.randrange(40), *dice.choices((0, 1), k=2), 0)
        for _ in range(300)
    ]
    raw = world(tmp_path / "raw", rows)
    people = sorted({7, 8, 1000, *(row[0] for row in rows)})
    write_csv(raw / "user_features.csv", "user_id", [(user,) for user in people])
    monkeypatch.setattr(placing, "BATCH", batch)
    monkeypatch.setattr(spilling, "BATCH", batch)
    data = run(raw, user_core=4)
    users = set(data.raw_ids("users").to_list())
    kept = [(user, video, time, click) for user, video, time, _, click, _ in rows if user in users]
    assert 100 < len(kept) < 300, "some users are dropped, most are not"
    assert shown(data) == sorted(kept, key=lambda row: (row[0], row[2]))
    assert data.manifest["counts"]["impressions"]["left_out"] == 300 - len(kept)


def test_impressions_of_dropped_users_and_videos_go_and_are_counted(tmp_path: Path):
    rows = [
        *LIKES,
        (1000, 1, 5, 1, 1, 0),  # one like: the user is dropped
        (1000, 2, 6, 0, 0, 0),
        (7, 6, 7, 1, 1, 0),  # one like: the video is dropped
        (8, 6, 8, 0, 0, 0),
        (8, 7, 8, 0, 0, 0),  # nobody's like
        (7, 55, 9, 0, 1, 0),  # in no table: such a like is a broken row, such an impression is not
        (99, 1, 9, 0, 0, 0),
    ]
    data = run(world(tmp_path / "raw", rows), video_core=2)
    assert data.raw_ids("users").to_list() == [7, 8] and data.raw_ids("videos").to_list() == [1, 2, 3, 4, 5]
    assert shown(data) == [(user, video, time, click) for user, video, time, _, click, _ in LIKES]
    counts = data.manifest["counts"]["impressions"]
    assert counts == {"rows": 10, "clicked": 10, "left_out": 7, "clicked_from_likes": 0}


EMPTY_CLICKS = [
    (7, 6, 1, 0, "", 1),
    (7, 7, 2, 1, "", 0),
    (8, 6, 1, 0, 0, ""),
    (8, 7, 2, 0, 1, ""),
]


@pytest.mark.parametrize(
    ("signal", "clicks", "from_likes"),
    [
        ("is_click", [0, 1, 0, 1], 2),
        ("click", [0, 1, 0, 1], 2),
        ("long_view", [1, 0, 0, 0], 2),
        ("is_click,long_view", [1, 0, 0, 1], 0),
        ("is_like", [0, 1, 0, 0], 0),
    ],
)
def test_where_no_click_is_told_the_likes_stand_in(
    tmp_path: Path, signal: str, clicks: list[int], from_likes: int
):
    data = run(world(tmp_path / "raw", [*LIKES, *EMPTY_CLICKS]), click_signal=signal)
    found = {(user, video): clicked for user, video, _, clicked in shown(data)}
    assert [found[user, video] for user, video, *_ in EMPTY_CLICKS] == clicks
    assert data.manifest["counts"]["impressions"]["clicked_from_likes"] == from_likes


def test_a_file_without_the_column_of_clicks_has_those_of_likes(tmp_path: Path):
    header = HEADER.replace(",is_click", "")
    rows = [(user, video, time, like, 0) for user, video, time, like, _, _ in LIKES]
    rows += [(7, 8, 1, 0, 1)]
    raw = world(tmp_path / "raw", rows, header)
    data = run(raw)
    assert sum(click for *_, click in shown(data)) == 10
    assert data.manifest["counts"]["impressions"]["clicked_from_likes"] == 11
    assert sum(click for *_, click in shown(run(raw, signals="like,long_view"))) == 11
    assert sum(click for *_, click in shown(run(raw, click_signal="is_click,long_view"))) == 1
    with pytest.raises(UserError, match=r"user_video_inter\.csv, line 1: no column is_follow in the header"):
        run(raw, click_signal="is_click,is_follow")
    with pytest.raises(UserError, match=r"--click_signal: unknown signal 'is_seen'; choose from is_click"):
        run(raw, click_signal="is_seen")


BROKEN = {
    "a click of another kind": (
        [(7, 8, 1, 0, 2, 0)],
        12,
        "is_click is '2', expected 0, 1 or empty",
        "is_click",
    ),
    "a time of a row without a like": ([(7, 8, -1, 0, 0, 0)], 12, "time_ms is '-1'", "is_click"),
    "a row that ends too early": ([(7, 8, 1, 0, 1)], 12, "5 fields are too few", "is_click"),
    "a click that is a word": (
        [(7, 8, 1, 0, 0, 0), (7, 8, 1, 0, 1, "often")],
        13,
        "long_view is 'often'",
        "is_click,long_view",
    ),
}


@pytest.mark.parametrize("case", BROKEN)
def test_a_broken_impression_stops_with_file_and_line_or_is_skipped(tmp_path: Path, case: str):
    rows, line, reason, signal = BROKEN[case]
    # Rows whose last field is empty look short to Polars; they are whole.
    whole = (8, 8, 3, 0, 1, "")
    raw = world(tmp_path / "raw", [*LIKES, *rows, whole])
    with pytest.raises(UserError) as error:
        run(raw, click_signal=signal)
    assert str(error.value).startswith(f"{raw / INTER}, line {line}: ") and reason in str(error.value)
    assert "--skip-bad-rows" in str(error.value)
    assert [path.name for path in tmp_path.iterdir()] == ["raw"]
    data = run(raw, click_signal=signal, skip_bad_rows=True)
    assert data.manifest["skipped_rows"][INTER]["rows"] == 1
    assert len(shown(data)) == 10 + len(rows) and (8, 8, 3, 1) in shown(data)


def test_leaving_them_out_changes_no_other_file(tmp_path: Path):
    raw = world(tmp_path / "raw", [*LIKES, *EMPTY_CLICKS])
    given = run(raw).manifest
    data = run(raw, impressions=False)
    assert data.impressions is None
    assert data.manifest["data_hash"] != given["data_hash"]
    extra = {f"impressions/{name}.npy" for name in ("offsets", "items", "times", "clicked")}
    assert set(given["files"]) - set(data.manifest["files"]) == extra
    assert {name: entry for name, entry in given["files"].items() if name not in extra} == data.manifest[
        "files"
    ]
    del given["counts"]["impressions"]
    assert given["counts"] == data.manifest["counts"]
    # What is not asked for is not looked at either.
    write_csv(raw / INTER, HEADER, [*LIKES, (7, 8, 1, 0, "often", 0)])
    assert run(raw, impressions=False).n_users == 2


def test_sources_without_impressions(tmp_path: Path):
    ratings = [(user, movie, 4.0, 100 * movie + user) for user in (1, 2) for movie in range(1, 7)]
    movies = [(movie, f"Movie {movie} (2000)", "Drama") for movie in range(1, 7)]
    raws = {
        "movielens": write_movielens(tmp_path / "movielens", ratings, movies, [(1, 2, "dark", 300)]),
        "official": write_official(tmp_path / "official", small_lines()),
        "tables": write_spark(tmp_path / "tables", small_tables()),
    }
    for source, raw in raws.items():
        options: dict[str, Any] = {"user_core": 5} if source == "official" else {}
        data = run(raw, source=source, **options)
        assert data.impressions is None and not (data.root / "impressions").exists()
        assert "impressions" not in data.manifest["counts"]


def test_a_log_without_rows_beyond_the_likes_and_one_of_no_match(tmp_path: Path):
    raw = world(tmp_path / "raw", LIKES)
    assert len(shown(run(raw))) == 10
    views = pl.DataFrame(schema={"uid": pl.Int64, "vid": pl.Int64, "ts": pl.Int64, "seen": pl.Boolean})
    data = run(tables(tmp_path / "none", views), source="tables")
    assert shown(data) == [] and data.manifest["counts"]["impressions"]["rows"] == 0
    strangers = pl.DataFrame({"uid": [1, 2], "vid": [1, 1], "ts": [1, 2], "seen": [True, False]})
    with pytest.raises(UserError, match="none of the 2 impressions .* or pass --impressions false"):
        run(tables(tmp_path / "other", strangers), source="tables")


VIEWS = {"files": "views", "user": "uid", "video": "vid", "time": "ts", "unit": "seconds", "clicked": "seen"}


def tables(folder: Path, views: pl.DataFrame, entry: dict[str, Any] | None = None, **how: Any) -> Path:
    """A folder of tables with one of impressions."""
    column_map = copy.deepcopy(COLUMN_MAP) | {"impressions": entry or VIEWS}
    return write_spark(folder, {**small_tables(), "views": views}, column_map, **how)


def some_views() -> pl.DataFrame:
    """Ties of user and time, of the same video too; the last two rows are of a video that is in no table."""
    rows = [(5, 3, 20, 1), (5, 2, 20, 0), (5, 3, 20, 0), (70, 9, 10, 1), (6, 1, 5, 0), (6, 1, 3, 1)]
    rows += [(6, 77, 4, 1), (5, 77, 1, 0)]
    return pl.DataFrame(rows, schema=["uid", "vid", "ts", "seen"], orient="row")


@pytest.mark.parametrize("suffix", [".parquet", ".csv.gz"])
@pytest.mark.parametrize("parts", [1, 4])
def test_tables_do_not_depend_on_the_spread_of_their_rows(tmp_path: Path, suffix: str, parts: int):
    raw = tables(tmp_path / "raw", some_views(), suffix=suffix, parts=parts, seed=parts)
    data = run(raw, source="tables")
    assert shown(data) == [
        (5, 2, 20_000, 0),
        (5, 3, 20_000, 0),
        (5, 3, 20_000, 1),
        (6, 1, 3_000, 1),
        (6, 1, 5_000, 0),
        (70, 9, 10_000, 1),
    ]
    assert data.manifest["counts"]["impressions"]["left_out"] == 2
    assert data.manifest["counts"]["raw"]["impressions"] == 8
    assert run(raw, source="tables", impressions=False).impressions is None


def test_columns_of_impressions_in_the_map(tmp_path: Path):
    views = some_views().with_columns(paid=pl.Series([1, 0, 0, 0, 1, 0, 0, 0]), real=pl.col("seen") * 0 + 1)
    views[0, "real"] = 0
    entry = {**VIEWS, "clicked": ["seen", "paid"], "when": "real"}
    found = shown(run(tables(tmp_path / "raw", views, entry), source="tables"))
    assert [click for *_, click in found] == [0, 0, 1, 1, 1] and len(found) == 5
    strings = {name: [f"n{value}" for value in views[name]] for name in ("uid", "vid")}
    named = {
        name: table.with_columns(
            pl.format("n{}", pl.col(column)) for column in ("uid", "vid", "cid") if column in table
        )
        for name, table in small_tables().items()
    }
    column_map = {**copy.deepcopy(COLUMN_MAP), "impressions": VIEWS, "ids": "strings"}
    raw = write_spark(
        tmp_path / "named",
        {**named, "views": views.with_columns(**{k: pl.Series(v) for k, v in strings.items()})},
        column_map,
    )
    assert shown(run(raw, source="tables"))[0] == ("n5", "n2", 20_000, 0)
    for wrong, message in (
        ({"clicked": None}, "`impressions` needs `clicked`"),
        ({"unit": None}, "`impressions` needs `unit`"),
        ({"clicks": "seen"}, "`impressions` knows no 'clicks'"),
        ({"clicked": "liked"}, "no column liked"),
    ):
        with pytest.raises(UserError, match=message):
            run(tables(tmp_path / "wrong", views, {**VIEWS, **wrong}), source="tables")
    with pytest.raises(UserError, match="`likes` knows no 'clicked'"):
        likes = {**COLUMN_MAP["likes"], "clicked": "seen"}
        run(write_spark(tmp_path / "likes", small_tables(), {**COLUMN_MAP, "likes": likes}), source="tables")


@pytest.mark.parametrize("suffix", [".parquet", ".csv"])
def test_a_broken_click_of_a_table_names_file_and_row(tmp_path: Path, suffix: str):
    views = some_views()
    views[2, "seen"] = 3
    raw = tables(tmp_path / "raw", views, suffix=suffix)
    place = "row [0-9]: seen is 3" if suffix == ".parquet" else "line [0-9]: seen is '3'"
    with pytest.raises(UserError, match=rf"part-00000.*{suffix}, {place}, expected 0 or 1"):
        run(raw, source="tables")
    data = run(raw, source="tables", skip_bad_rows=True)
    assert (
        len(shown(data)) == 5 and sum(entry["rows"] for entry in data.manifest["skipped_rows"].values()) == 1
    )


def test_a_full_disk_is_told_as_one_and_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    raw = world(tmp_path / "raw", LIKES)
    views = tables(tmp_path / "views", some_views())
    monkeypatch.setattr(Spill, "_next", lambda self: Path("/dev/full"))
    for folder, source in ((raw, "kuaicomt"), (views, "tables")):
        with pytest.raises(UserError, match="no space left, or your quota is used up; free some"):
            run(folder, source=source)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["raw", "views"]


def test_the_doctor_tells_them(tmp_path: Path, capsys: pytest.CaptureFixture):
    raw = world(tmp_path / "raw", [*LIKES, *EMPTY_CLICKS, (99, 1, 1, 0, 0, 0)])
    told = {}
    for flag in ("true", "false"):
        out = tmp_path / flag
        words = ["kuaicomt", "--raw", str(raw), "--out", str(out), "--user_core", "2", "--impressions", flag]
        assert cli.main(["prepare", *words]) == 0
        capsys.readouterr()
        assert cli.main(["doctor", str(out), "--llm", "none", "--json"]) == 0
        report = json.loads(capsys.readouterr().out)
        assert cli.main(["doctor", str(out), "--llm", "none"]) == 0
        told[flag] = report, capsys.readouterr().out
    report, printed = told["true"]
    assert report["counts"]["impressions"] == 14 and report["lengths"]["impressions_of_a_user"]["max"] == 7
    shares = report["shares"]
    assert (shares["clicked_impressions"], shares["clicks_taken_from_likes"]) == (12 / 14, 2 / 14)
    assert shares["impressions_left_out"] == 1 / 15
    assert "impressions of a user" in printed and "85.7%" in printed
    report, printed = told["false"]
    assert report["ok"] and report["counts"]["impressions"] is None
    assert report["shares"]["clicked_impressions"] is None and "impressions" not in printed
