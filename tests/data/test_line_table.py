import gzip
from pathlib import Path

import polars as pl
import pytest

from lsvcr.data.sources.columns import Column
from lsvcr.data.sources.line_table import LineTable
from lsvcr.data.sources.logs import LISTED, ROW, BadRows
from lsvcr.utils.errors import UserError

ID, TEXT, TIME = Column("id", "id"), Column("text", "text"), Column("time", "seconds")


def table(path: Path, content: bytes, **options) -> LineTable:
    path.write_bytes(content)
    return LineTable(path, [ID, TEXT, TIME], ["id", "text", "time"], "::", **options)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "rows.dat"


def test_rows_are_lines(path: Path):
    content = b'\xef\xbb\xbf1::a "b", c::5\r\n\r\n2::::6\r\n3::\x1f|\t\x00\xe2\x80\xa8::7.5'
    rows = table(path, content)
    frame, size = rows.collect(BadRows(False))
    assert frame.rows() == [(0, 1, 'a "b", c', 5000), (2, 2, "", 6000), (3, 3, "\x1f|\t\x00\u2028", 7500)]
    assert size == 3
    assert rows.places([0, 3]) == [f"{path}, line 1", f"{path}, line 4"]


def test_only_needed_columns_come_back_and_keep_filters(path: Path):
    path.write_bytes(b"1|x|1\n2|y|0\n3|z|1\n")
    flag = Column("flag", "flag")
    rows, size = LineTable(path, [flag, ID], ["id", "other", "flag"], "|").collect(
        BadRows(False), keep=pl.col("flag")
    )
    assert rows.rows() == [(0, True, 1), (2, True, 3)] and rows.columns == [ROW, "flag", "id"]
    assert size == 3


def test_a_free_field_may_hold_the_separator(path: Path):
    frame, _ = table(path, b"1::a::b::5\n2::::::6\n3::c::7\n", free="text").collect(BadRows(False))
    assert frame["text"].to_list() == ["a::b", "::", "c"]
    path.write_bytes(b"1\ta\tb\n2\t\n")
    last, _ = LineTable(path, [ID, TEXT], ["id", "text"], "\t", free="text").collect(BadRows(False))
    assert last["text"].to_list() == ["a\tb", ""]


def test_a_packed_file_is_read_alike(tmp_path: Path):
    content = b"1::a::5\n2::b::6\n"
    plain, _ = table(tmp_path / "rows.dat", content).collect(BadRows(False))
    packed, _ = table(
        tmp_path / "rows.dat.gz", gzip.compress(content[:8]) + gzip.compress(content[8:])
    ).collect(BadRows(False))
    assert packed.equals(plain)


REASONS = {
    b"x::a::5": "id is 'x', expected a whole number",
    b"::a::5": "id is empty, expected a whole number",
    b"1::a": "2 fields are too few, a line has 3 with '::' between them (id, text, time)",
    b"1::a::5::6": "4 fields are too many, a line has 3 with '::' between them (id, text, time)",
    b"1::a::-1": "time is '-1', expected a time in Unix seconds, not negative",
    b"1::a::" + b"9" * 50: f"time is '{'9' * 40}...', expected a time",
    b"no separator": "1 fields are too few",
}


@pytest.mark.parametrize("line", REASONS)
@pytest.mark.parametrize("keep", [None, pl.col("id") == 1])
def test_a_broken_row_stops_with_its_line_or_is_skipped(path: Path, line: bytes, keep):
    rows = table(path, b"1::a::5\n\n" + line + b"\n1::b::6\n")
    with pytest.raises(UserError) as error:
        rows.collect(BadRows(False), keep)
    assert str(error.value).startswith(f"{path}, line 3: {REASONS[line]}")
    assert "--skip-bad-rows" in str(error.value)
    bad = BadRows(True)
    assert rows.collect(bad, keep)[0]["text"].to_list() == ["a", "b"]
    assert bad.summary()["rows.dat"]["rows"] == 1


def test_a_value_behind_a_free_field_is_shown(path: Path):
    rows = table(path, b"1::a::b::soon\n", free="text")
    with pytest.raises(UserError, match=r"line 1: time is 'soon'"):
        rows.collect(BadRows(False))


def test_all_broken_rows_are_counted_and_the_first_listed(path: Path):
    bad = BadRows(True)
    frame, size = table(path, b"1::a::5\n" + b"x::a::5\n" * 50).collect(bad)
    assert (frame.height, size) == (1, 51)
    assert bad.summary()["rows.dat"]["rows"] == 50
    first = bad.summary()["rows.dat"]["first"]
    assert len(first) == LISTED and first[1].startswith(f"{path}, line 3: ")


def test_an_id_that_comes_again(path: Path):
    rows = table(path, b"7::a::5\n8::b::5\n7::c::5\n")
    with pytest.raises(UserError, match=r"line 3: id 7 stands here a second time"):
        rows.collect_unique("id", BadRows(False))
    assert rows.collect_unique("id", BadRows(True))["text"].to_list() == ["a", "b"]


def test_bytes_of_another_encoding(path: Path):
    content = b"1::a::5\n2::caf\xe9::6\n"
    with pytest.raises(UserError, match=r"line 2: not UTF-8.*iconv.*--skip-bad-rows"):
        table(path, content).collect(BadRows(False))
    found = {
        text
        for options in ({"encoding": "latin-1"}, {"lossy": True})
        for text in table(path, content, **options).collect(BadRows(False))[0]["text"]
    }
    assert found == {"a", "café", "caf\ufffd"}
    utf8 = table(path, "1::é::5\n".encode(), encoding="latin-1").collect(BadRows(False))[0]
    assert utf8["text"].to_list() == ["é"]


def test_files_that_are_missing_empty_or_cut_short(tmp_path: Path):
    with pytest.raises(UserError, match=r"none\.dat is missing; the raw folder must hold none\.dat"):
        LineTable(tmp_path / "none.dat", [ID], ["id"], "::")
    with pytest.raises(UserError, match=r"rows\.dat is empty"):
        table(tmp_path / "rows.dat", b"")
    lines = b"".join(b"%d::text %d::%d\n" % (i, i * i, i**3) for i in range(30_000))
    path = tmp_path / "rows.dat.gz"
    cut = table(path, gzip.compress(lines)[:-1000])
    with pytest.raises(UserError, match=r"rows\.dat\.gz is no whole gzip file .*; copy or download it again"):
        cut.collect(BadRows(False))
    with pytest.raises(UserError, match=r"rows\.dat\.gz is no whole gzip file"):
        table(path, b"1::not packed::3\n")
