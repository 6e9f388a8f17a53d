from pathlib import Path

import numpy as np
import pytest

from lsvcr.data.prepare import prepare
from lsvcr.data.sources import microlens
from lsvcr.data.sources.logs import BadRows
from lsvcr.data.store import open_dataset
from lsvcr.settings import PrepareSettings
from lsvcr.utils.errors import UserError
from tests.data.raw_files import write_csv
from tests.data.raw_microlens import PAIRS, START_MS, write_microlens

TITLES_FILE = "MicroLens-100k_title_en.csv"


@pytest.fixture
def raw(tmp_path: Path) -> Path:
    return write_microlens(tmp_path / "raw")


def read(folder: Path, skip: bool = False):
    return microlens.read(PrepareSettings(source="microlens", raw=str(folder)), BadRows(skip))


def titles_of(logs) -> dict[int, str]:
    return dict(logs.videos.select("raw_id", "title").iter_rows())


def test_every_pair_is_a_like(raw: Path):
    logs = read(raw)
    assert logs.video_events.rows() == [(row, *pair) for row, pair in enumerate(PAIRS)]
    assert logs.users["raw_id"].to_list() == [30, 4, 200]


def test_titles_are_split_at_their_first_comma_alone(raw: Path):
    assert titles_of(read(raw)) == {
        1: "How to fold a shirt, fast",
        2: 'He said "stop" 7" too late',
        3: "quoted from end to end",
        4: "spaces around",
        5: "",
        6: "窗外, a window \U0001f63a",
        8: "",
        7: "",
    }
    assert read(raw).counts["videos_without_title_row"] == 2


def test_titles_with_a_header_are_csv(raw: Path):
    (raw / TITLES_FILE).unlink()
    rows = [(1, 'a "b", c'), (2, "two\nlines"), (3, "plain")]
    write_csv(raw / "MicroLens-50k_titles.csv", "item,title", rows)
    titles = titles_of(read(raw))
    assert {item: titles[item] for item, _ in rows} == dict(rows)
    assert {item for item, title in titles.items() if not title} == {6, 7, 8}


def test_english_titles_come_first(raw: Path):
    write_csv(raw / "MicroLens-100k_titles.csv", "item,title", [(1, "other")])
    assert titles_of(read(raw))[1] == "How to fold a shirt, fast"
    (raw / TITLES_FILE).rename(raw / "MicroLens-1M_title.csv")
    assert titles_of(read(raw))[1] == "other"
    (raw / "MicroLens-100k_titles.csv").unlink()
    assert titles_of(read(raw))[1] == "How to fold a shirt, fast"


def test_comments_belong_to_their_pair(raw: Path):
    logs = read(raw)
    assert logs.comments.rows() == [
        (0, "1:4:1", "So neat!", 1, 0),
        (2, "2:30:1", 'tab\there, "quotes" and # marks', 2, 0),
        (3, "1:4:2", "second thought", 1, 0),
        (5, "7:999:1", "nobody we know", 7, 0),
        (6, "8:200:1", "👍👍 太好了", 8, 0),
    ]
    assert logs.comment_events.rows() == [
        (0, 4, "1:4:1", 1, START_MS + 1004),
        (2, 30, "2:30:1", 2, START_MS + 2030),
        (3, 4, "1:4:2", 1, START_MS + 1004),
        (6, 200, "8:200:1", 8, START_MS + 8200),
    ]
    assert logs.counts == {
        "pairs": 15,
        "blank_comments": 2,
        "comments_without_pair": 1,
        "videos_without_title_row": 2,
    }


def test_a_pair_that_comes_again_dates_its_comment_by_the_first_time(tmp_path: Path):
    pairs = [(1, 5, 300), (1, 5, 100), (1, 5, 200)]
    raw = write_microlens(tmp_path / "raw", pairs=pairs, comments=[(1, 5, "hm")])
    assert read(raw).comment_events["time"].to_list() == [100]


def test_windows_line_ends_change_nothing(raw: Path):
    expected = read(raw)
    for path in raw.iterdir():
        path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes().replace(b"\n", b"\r\n"))
    found = read(raw)
    for name in ("users", "videos", "comments", "video_events", "comment_events"):
        assert getattr(found, name).equals(getattr(expected, name)), name


@pytest.mark.parametrize("commented", [True, False])
def test_prepared(tmp_path: Path, commented: bool):
    raw = write_microlens(tmp_path / "raw", **({} if commented else {"comments": None}))
    out = prepare(PrepareSettings(source="microlens", raw=str(raw), out=str(tmp_path / "out")))
    data = open_dataset(out, verify=True)
    assert data.raw_ids("users").to_list() == [4, 30, 200]
    assert data.raw_ids("videos").to_list() == [1, 2, 3, 4, 5, 6, *([7] if commented else []), 8]
    assert data.titles()[3] == "quoted from end to end"
    assert len(data.comment_events.items) == (4 if commented else 0)
    start, end = data.video_events.offsets[1:3]
    assert data.video_events.items[start:end].tolist() == [1, 2, 3, 6, data.n_videos]
    if commented:
        own = data.comment_events.items[data.comment_events.offsets[1] : data.comment_events.offsets[2]]
        assert data.raw_ids("comments").gather(np.asarray(own) - 1).to_list() == ["1:4:1", "1:4:2"]


def test_missing_and_second_files_are_named(raw: Path):
    comments, pairs = raw / "MicroLens-100k_comment_en.txt", raw / "MicroLens-100k_pairs.csv"
    (raw / "MicroLens-50k_comment_en.txt").write_bytes(comments.read_bytes())
    with pytest.raises(UserError, match=r"holds 2 files with the comments: MicroLens-100k_.*; keep one"):
        read(raw)
    (raw / TITLES_FILE).unlink()
    with pytest.raises(UserError, match=r"holds no file with the titles; .*_title_en\.csv"):
        read(raw)
    pairs.unlink()
    with pytest.raises(UserError, match=r"_pairs\.tsv, which has no times; add \*_pairs\.csv"):
        read(raw)
    (raw / "MicroLens-100k_pairs.tsv").unlink()
    with pytest.raises(UserError, match=r"holds no file with the pairs; .*MicroLens-100k_pairs\.csv"):
        read(raw)


BROKEN = {
    "MicroLens-100k_pairs.csv": ("4,1,soon", 17, "timestamp is 'soon', expected a time in Unix milliseconds"),
    TITLES_FILE: ("seven,a title", 7, "item is 'seven', expected a whole number"),
    "MicroLens-100k_comment_en.txt": ("4\tgreat", 8, r"2 fields are too few, a line has 3 with '\\t'"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_row_is_told_or_skipped(raw: Path, name: str):
    line, number, reason = BROKEN[name]
    with open(raw / name, "a", encoding="utf-8") as stream:
        stream.write(line + "\n")
    with pytest.raises(UserError, match=rf"{name}, line {number}: {reason}.*--skip-bad-rows"):
        read(raw)
    assert read(raw, skip=True).video_events.height == len(PAIRS)
