import gzip
import json
from pathlib import Path

import polars as pl
import pytest

from lsvcr.data.sources import json_table
from lsvcr.data.sources.json_table import Field, JsonTable
from lsvcr.data.sources.logs import LISTED, ROW, BadRows
from lsvcr.utils.errors import UserError

FIELDS = [Field("id", "key"), Field("stars", "number"), Field("note", "text", needed=False)]


def table(path: Path, *lines: str | bytes, end: bytes = b"\n", fields=FIELDS) -> JsonTable:
    path.write_bytes(b"".join((x.encode() if isinstance(x, str) else x) + end for x in lines))
    return JsonTable(path, fields)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "rows.json"


GOOD = [
    '{"id": "a", "stars": 4, "note": "say \\"hi\\"\\n😀", "more": [1, {"x": null}]}',
    "",
    '{"stars": "3.5", "id": 17}',
    "{'id': \"it's\", 'stars': 2.0, 'note': None, 'is': True}",
]
ROWS = [(0, "a", 4.0, 'say "hi"\n😀'), (2, "17", 3.5, ""), (3, "it's", 2.0, "")]


@pytest.mark.parametrize("end", [b"\n", b"\r\n"])
def test_lines_are_json_or_python_literals(path: Path, end: bytes):
    rows = table(path, b"\xef\xbb\xbf" + GOOD[0].encode(), *GOOD[1:], end=end)
    frame, size = rows.collect(BadRows(False))
    assert frame.rows() == ROWS and size == 3
    assert frame.schema == {ROW: pl.UInt32, "id": pl.String, "stars": pl.Float64, "note": pl.String}
    assert rows.places([0, 3]) == [f"{path}, line 1", f"{path}, line 4"]


def test_blocks_and_packed_files_change_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    lines = [json.dumps({"id": f"u{i}", "stars": i if i % 5 else "many"}) for i in range(23)]
    expected = table(tmp_path / "a.json", *lines).collect(BadRows(True))[0]
    assert expected.height == 18 and expected[ROW].to_list() == [i for i in range(23) if i % 5]
    packed = tmp_path / "a.jsonl.gz"
    packed.write_bytes(gzip.compress((tmp_path / "a.json").read_bytes()))
    for block in (1, 4, 100):
        monkeypatch.setattr(json_table, "_BLOCK", block)
        bad = BadRows(True)
        assert JsonTable(packed, FIELDS).collect(bad)[0].equals(expected)
        assert bad.total == 5
        first = bad.summary()["a.jsonl.gz"]["first"]
        assert [line.split(":")[0] for line in first] == [f"{packed}, line {i + 1}" for i in range(0, 23, 5)]


REASONS = {
    '{"id": "a", "stars": ': "not valid JSON (Expecting value, column 21)",
    "id,stars": "not valid JSON",
    '["a", 4]': "not a JSON object; the file must have one object a line",
    "['a', 4]": "not a JSON object",
    "[" * 100_000: "not valid JSON",
    "__import__('os').getcwd()": "not valid JSON",
    '{"id": "a", "rating": 4}': "the object has no key stars (it has id, rating)",
    '{"id": null, "stars": 4}': "id is empty, expected an id",
    '{"id": "", "stars": 4}': "id is empty, expected an id",
    '{"id": "a", "stars": "good"}': "stars is 'good', expected a number",
    '{"id": "a", "stars": NaN}': "stars is 'nan', expected a number",
    '{"id": {"$oid": 1}, "stars": 4}': "id is a dict, expected an id",
    '{"id": "a", "stars": 4, "note": ["x"]}': "note is a list, expected a text",
    b'{"id": "caf\xe9", "stars": 4}': "not UTF-8; download the file again, or convert it",
}


@pytest.mark.parametrize("line", REASONS, ids=[str(line)[:30] for line in REASONS])
def test_a_broken_line_stops_with_its_number_or_is_skipped(path: Path, line: str | bytes):
    rows = table(path, GOOD[0], "", line, GOOD[2])
    with pytest.raises(UserError) as error:
        rows.collect(BadRows(False))
    assert str(error.value).startswith(f"{path}, line 3: {REASONS[line]}")
    assert "--skip-bad-rows" in str(error.value)
    bad = BadRows(True)
    frame, size = rows.collect(bad)
    assert frame["id"].to_list() == ["a", "17"] and size == 3
    assert bad.summary()["rows.json"]["rows"] == 1


def test_all_broken_lines_are_counted_and_the_first_listed_in_order(path: Path):
    bad = BadRows(True)
    table(path, *(['{"id": "", "stars": 1}', "{"] * 30)).collect(bad)
    entry = bad.summary()["rows.json"]
    assert entry["rows"] == 60 and len(entry["first"]) == LISTED
    assert [line.split(":")[0] for line in entry["first"]] == [f"{path}, line {i + 1}" for i in range(LISTED)]


def test_a_value_may_be_converted(path: Path):
    fields = [Field("votes", "count", needed=False, convert=lambda value: value[0] if value else None)]
    frame, _ = table(path, '{"votes": [3, 4]}', "{}", fields=fields).collect(BadRows(False))
    assert frame["votes"].to_list() == [3, 0]


def test_half_a_surrogate_pair_becomes_a_question_mark(path: Path):
    frame, _ = table(path, '{"id": "a", "stars": 1, "note": "x\\ud83d"}', GOOD[0]).collect(BadRows(False))
    assert frame["note"].to_list() == ["x?", 'say "hi"\n😀']


def test_files_that_are_missing_empty_or_cut_short(tmp_path: Path):
    with pytest.raises(UserError, match=r"none\.json is missing; the raw folder must hold none\.json"):
        JsonTable(tmp_path / "none.json", FIELDS)
    for content in ("", "\n \n"):
        with pytest.raises(UserError, match=r"rows\.json is empty; it must hold one JSON object a line"):
            table(tmp_path / "rows.json", content, end=b"").collect(BadRows(False))
    path = tmp_path / "rows.json.gz"
    lines = "\n".join(json.dumps({"id": f"{i * i}", "stars": i}) for i in range(30_000))
    path.write_bytes(gzip.compress(lines.encode())[:-1000])
    with pytest.raises(
        UserError, match=r"rows\.json\.gz is no whole gzip file .*; copy or download it again"
    ):
        JsonTable(path, FIELDS).collect(BadRows(False))
