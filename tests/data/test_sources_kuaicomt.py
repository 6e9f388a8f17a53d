from pathlib import Path

import polars as pl
import pytest

from lsvcr.data.sources import kuaicomt
from lsvcr.data.sources.logs import BadRows
from lsvcr.settings import PrepareSettings
from lsvcr.utils.errors import UserError
from tests.data.raw_files import KUAICOMT_HEADERS, START_MS, small_kuaicomt, write_csv, write_kuaicomt

ODD_TEXTS = [
    "plain",
    'says "hi", twice',
    "two\nlines and a comma, too",
    "窗外 windows\r\nend",
    "😀👨‍👩‍👧 [doge][捂脸] #猫咪 @someone",
    "  spaces kept  ",
    "",
    "'single' and ;semi",
    '"',
    "null",
    "NA",
]


def read(folder: Path, skip: bool = False, **settings):
    return kuaicomt.read(PrepareSettings(raw=str(folder), **settings), BadRows(skip))


def test_texts_come_through_as_published(tmp_path: Path):
    videos = {100 + i: text for i, text in enumerate(ODD_TEXTS)}
    comments = {200 + i: (100, text, i) for i, text in enumerate(ODD_TEXTS)}
    write_kuaicomt(tmp_path, likes=[(1, 100, 0)], touches=[(1, 200, 1)], videos=videos, comments=comments)
    logs = read(tmp_path)
    assert logs.videos["title"].to_list() == ODD_TEXTS
    assert logs.comments["content"].to_list() == ODD_TEXTS
    assert logs.comments["likes"].to_list() == list(range(len(ODD_TEXTS)))
    assert logs.videos["author"][0] == "1000" and logs.videos["category"][0] == "pets"
    assert logs.comments["video"].to_list() == [100] * len(ODD_TEXTS)


def test_only_likes_and_touches_are_events(tmp_path: Path):
    likes = [(5, 9, 3000), (6, 8, 1000), (5, 8, 2000)]
    write_kuaicomt(
        tmp_path, likes=likes, touches=[], videos={8: "a", 9: "b"}, comments={1: (8, "c", 0), 2: (9, "d", 0)}
    )
    inter = [
        (5, 1, 1696118401, 8, 1, 0),
        (5, 2, 1696118402, 9, 0, 1),
        (6, 1, 1696118403, 8, 0, 0),
        (6, 2, 9, 9, 1, 1),
    ]
    write_csv(tmp_path / "user_comment_inter.csv", KUAICOMT_HEADERS["user_comment_inter.csv"], inter)
    logs = read(tmp_path)
    assert logs.video_events.rows() == [
        (1, 5, 9, START_MS + 3000),
        (3, 6, 8, START_MS + 1000),
        (5, 5, 8, START_MS + 2000),
    ]
    assert logs.comment_events.rows() == [
        (0, 5, 1, 8, 1_696_118_401_000),
        (1, 5, 2, 9, 1_696_118_402_000),
        (3, 6, 2, 9, 9_000),
    ]
    assert logs.counts == {"impressions": 6, "comment_interactions": 4}
    assert {logs.video_events["time"].dtype, logs.comment_events["time"].dtype} == {pl.Int64}


def test_byte_order_mark_and_windows_line_ends(tmp_path: Path):
    small_kuaicomt(tmp_path / "plain")
    expected = read(tmp_path / "plain")
    for path in (tmp_path / "plain").iterdir():
        (tmp_path / "odd").mkdir(exist_ok=True)
        text = path.read_bytes().replace(b"\n", b"\r\n") + b"\r\n\r\n"
        (tmp_path / "odd" / path.name).write_bytes(b"\xef\xbb\xbf" + text)
    found = read(tmp_path / "odd")
    for name in ("users", "videos", "comments", "video_events", "comment_events"):
        assert getattr(found, name).equals(getattr(expected, name)), name
    assert found.counts == expected.counts


def test_columns_are_found_by_name_and_times_keep_their_milliseconds(tmp_path: Path):
    small_kuaicomt(tmp_path)
    rows = [[1696118400123.0, 1, 1, 7], [1.696118400456e12, "1.0", 2, 7], [1696118400789, 0, 3, 7]]
    write_csv(tmp_path / "user_video_inter.csv", "time_ms,is_like,video_id,user_id", rows)
    events = read(tmp_path).video_events
    assert events["time"].to_list() == [1696118400123, 1696118400456]
    assert events["video"].to_list() == [1, 2]


def test_signals_choose_what_counts_as_liking(tmp_path: Path):
    small_kuaicomt(tmp_path)
    header = "user_id,video_id,time_ms,is_like,is_forward,is_collect"
    rows = [(7, 1, 1, 1, 0, 0), (7, 2, 2, 0, 1, 0), (7, 3, 3, 0, 0, 1), (7, 4, 4, 0, 0, 0)]
    write_csv(tmp_path / "user_video_inter.csv", header, rows)
    assert read(tmp_path).video_events["video"].to_list() == [1]
    assert read(tmp_path, signals="is_like, is_collect").video_events["video"].to_list() == [1, 3]
    assert read(tmp_path, signals="is_forward").video_events["video"].to_list() == [2]
    assert read(tmp_path, signals="forward,like").video_events["video"].to_list() == [1, 2]
    for wrong in ("is_liked", "", "is_hate"):
        with pytest.raises(UserError, match=r"--signals.*is_like"):
            read(tmp_path, signals=wrong)
    with pytest.raises(UserError, match="no column is_comment in the header"):
        read(tmp_path, signals="is_comment")


def test_signals_choose_what_counts_as_touching_a_comment(tmp_path: Path):
    small_kuaicomt(tmp_path)
    rows = [(7, 11, 1, 1, 1, 0), (7, 21, 2, 2, 0, 1), (7, 31, 3, 3, 1, 1), (7, 41, 4, 4, 0, 0)]
    write_csv(tmp_path / "user_comment_inter.csv", KUAICOMT_HEADERS["user_comment_inter.csv"], rows)

    def touched(**settings: str) -> list[int]:
        return read(tmp_path, **settings).comment_events["comment"].to_list()

    assert touched() == [11, 21, 31]
    assert touched(comment_signals="like") == [11, 31]
    assert touched(comment_signals="is_reply") == [21, 31]
    with pytest.raises(UserError, match=r"--comment_signals: unknown signal 'is_share'.*is_like, is_reply"):
        touched(comment_signals="is_share")


def test_empty_last_fields_are_no_short_rows(tmp_path: Path):
    small_kuaicomt(tmp_path)
    header = KUAICOMT_HEADERS["video_features.csv"]
    write_csv(tmp_path / "video_features.csv", header, [(v, "", "AD", "", "", "", "") for v in range(1, 9)])
    videos = read(tmp_path).videos
    assert videos.height == 8
    assert set(videos["category"]) == set(videos["title"]) == {""}


def test_empty_like_counts_are_zero(tmp_path: Path):
    small_kuaicomt(tmp_path)
    header = KUAICOMT_HEADERS["comment_features.csv"]
    write_csv(tmp_path / "comment_features.csv", header, [(1, "a", 1, "", 0, 0), (2, "b", 1, "12.0", 0, 0)])
    assert read(tmp_path).comments["likes"].to_list() == [0, 12]
