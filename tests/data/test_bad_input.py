import gzip
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from lsvcr.data.prepare import prepare
from lsvcr.data.store import open_dataset
from lsvcr.settings import PrepareSettings
from lsvcr.training.embed_write import work_folder
from lsvcr.utils.errors import UserError
from tests.data.raw_files import KUAICOMT_HEADERS, small_kuaicomt, write_kuaicomt, write_movielens


@pytest.fixture
def raw(tmp_path: Path) -> Path:
    return small_kuaicomt(tmp_path / "raw")


def run(raw: Path, **settings) -> Path:
    return prepare(PrepareSettings(raw=str(raw), out=str(raw.parent / "out"), **settings))


def line(number: int, text: str) -> Callable[[list[str]], None]:
    """Replace line `number` (from 1)."""

    def change(lines: list[str]) -> None:
        lines[number - 1] = text

    return change


def edit(path: Path, change: Callable[[list[str]], None]) -> None:
    lines = path.read_text(encoding="utf-8").splitlines()
    change(lines)
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


VIDEO_INTER, COMMENT_INTER = "user_video_inter.csv", "user_comment_inter.csv"
VIDEOS, COMMENTS, USERS = "video_features.csv", "comment_features.csv", "user_features.csv"

BROKEN_ROWS = {
    "few fields": (
        VIDEO_INTER,
        line(4, "7,2,1230,1696118420006.0,1,0"),
        4,
        "6 fields are too few, the header has 16",
    ),
    "few fields at the end": (
        COMMENTS,
        line(3, "12,comment 2 of 1,1,3"),
        3,
        "4 fields are too few, the header has 6",
    ),
    "many fields": (
        VIDEOS,
        line(3, "2,902,NORMAL,2023-09-30,a, comma without quotes,18000.0,pets"),
        3,
        "8 fields are too many, the header has 7; text with a comma must stand in quotes",
    ),
    "many fields in the first row": (VIDEOS, line(2, "1,9,NORMAL,x,a,b,c,d,e"), 2, "9 fields are too many"),
    "no time": (
        VIDEO_INTER,
        line(5, "7,2,1230,,1,1,0,0,0,0,0,1,5000,18000,0,7"),
        5,
        "time_ms is empty, expected a time",
    ),
    "a word for a time": (
        VIDEO_INTER,
        line(5, "7,2,1230,yesterday,1,1,0,0,0,0,0,1,5000,18000,0,7"),
        5,
        "time_ms is 'yesterday', expected a time in Unix milliseconds, not negative",
    ),
    "a negative time": (
        COMMENT_INTER,
        line(2, "7,11,-5,1,1,0"),
        2,
        "time_stamp is '-5', expected a time in Unix seconds",
    ),
    "an endless time": (COMMENT_INTER, line(2, "7,11,inf,1,1,0"), 2, "time_stamp is 'inf'"),
    "no user": (VIDEO_INTER, line(5, ",2,1230,1,1,1,0,0,0,0,0,1,5000,18000,0,7"), 5, "user_id is empty"),
    "a fraction for an id": (
        COMMENT_INTER,
        line(3, "7,21,5,2.5,1,0"),
        3,
        "photo_id is '2.5', expected a whole number",
    ),
    "an id beyond 64 bits": (
        VIDEOS,
        line(2, "99999999999999999999,9,NORMAL,x,a,b,c"),
        2,
        "video_id is '9999",
    ),
    "a word for a flag": (COMMENT_INTER, line(3, "7,21,5,2,yes,0"), 3, "is_like is 'yes', expected 0 or 1"),
    "another number for a flag": (
        COMMENT_INTER,
        line(3, "7,21,5,2,2,0"),
        3,
        "is_like is '2', expected 0 or 1",
    ),
    "a negative count": (
        COMMENTS,
        line(3, "12,text,1,-3,0,0"),
        3,
        "comment_like_cnt is '-3', expected a number, not",
    ),
    "an unknown video": (
        VIDEO_INTER,
        line(5, "7,77,1230,5,1,1,0,0,0,0,0,1,5000,18000,0,7"),
        5,
        "video 77 is not among the videos",
    ),
    "an unknown user": (
        VIDEO_INTER,
        line(5, "6,2,1230,5,1,1,0,0,0,0,0,1,5,1,0,7"),
        5,
        "user 6 is not among the users",
    ),
    "an unknown comment": (
        COMMENT_INTER,
        line(2, "7,999,5,1,1,0"),
        2,
        "comment 999 is not among the comments",
    ),
    "an unknown video of a touch": (
        COMMENT_INTER,
        line(2, "7,11,5,44,1,0"),
        2,
        "video 44 is not among the videos",
    ),
    "a comment of another video": (
        COMMENT_INTER,
        line(2, "7,11,5,2,1,0"),
        2,
        "comment 11 belongs to another video",
    ),
    "a comment on no video": (COMMENTS, line(25, "83,text,44,0,0,0"), 25, "video 44 is not among the videos"),
    "a video twice": (VIDEOS, line(9, "3,9,NORMAL,x,a,1,c"), 9, "video_id 3 stands here a second time"),
    "a comment twice": (COMMENTS, line(25, "82,text,8,0,0,0"), 25, "comment_id 82 stands here a second time"),
    "a user twice": (USERS, line(3, "7" + ",0" * 30), 3, "user_id 7 stands here a second time"),
}


@pytest.mark.parametrize("case", BROKEN_ROWS)
def test_a_broken_row_stops_with_file_line_and_remedy(raw: Path, case: str):
    file, change, number, reason = BROKEN_ROWS[case]
    edit(raw / file, change)
    with pytest.raises(UserError) as error:
        run(raw)
    message = str(error.value)
    assert message.startswith(f"{raw / file}, line {number}: ")
    assert reason in message
    assert "--skip-bad-rows" in message
    assert not (raw.parent / "out").exists()


@pytest.mark.parametrize("case", BROKEN_ROWS)
def test_a_broken_row_may_be_skipped_and_is_listed(raw: Path, case: str):
    file, change, number, reason = BROKEN_ROWS[case]
    edit(raw / file, change)
    skipped = open_dataset(run(raw, skip_bad_rows=True, user_core=2)).manifest["skipped_rows"]
    assert skipped[file]["first"][0].startswith(f"{raw / file}, line {number}: ")
    assert reason in skipped[file]["first"][0]
    assert skipped[file]["rows"] >= 1


def test_broken_rows_are_counted_all_and_listed_in_part(raw: Path):
    with open(raw / COMMENT_INTER, "a", encoding="utf-8") as stream:
        stream.writelines(f"7,{9000 + i},5,1,1,0\n" for i in range(50))
    with pytest.raises(
        UserError, match=r"line 9: comment 9000 .*\(50 such rows in user_comment_inter\.csv\)"
    ):
        run(raw)
    dataset = open_dataset(run(raw, skip_bad_rows=True))
    skipped = dataset.manifest["skipped_rows"]
    assert skipped[COMMENT_INTER]["rows"] == 50 and len(skipped[COMMENT_INTER]["first"]) == 20
    assert dataset.manifest["counts"]["raw"]["comment_events"] == 7


def test_lines_are_counted_where_fields_hold_line_breaks(tmp_path: Path):
    likes = [(1, v, 100 * v) for v in range(1, 6)]
    videos = {v: f"first line {v}\nsecond, line\r\nthird" for v in range(1, 7)}
    raw = write_kuaicomt(tmp_path / "raw", likes=likes, touches=[], videos=videos, comments={})
    with open(raw / VIDEOS, "a", encoding="utf-8") as stream:
        stream.write("\n\nseven,9,NORMAL,x,text,1,c\n")
    with pytest.raises(UserError, match=r"video_features\.csv, line 22: video_id is 'seven'"):
        run(raw)


@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_rows_end_at_line_feeds_alone(raw: Path, end: str):
    """A short last row that must be told from one with an empty end lets Python's reader look for rows as well."""
    lines = (raw / VIDEOS).read_text(encoding="utf-8").splitlines()
    lines[2] = lines[2].replace("video 2", "vid\reo 2")
    lines[3] = lines[3].replace("video 3", '"vid\reo\r\n3"')
    lines[5] = lines[5].replace("pets", "")
    path = raw / VIDEOS
    path.write_bytes(end.join([*lines, ""]).encode())
    titles = open_dataset(run(raw)).titles()
    assert titles[2] == "vid\reo 2" and titles[3] == "vid\reo\r\n3" and len(titles) == 9
    lines[7] = lines[7].removesuffix(",pets")
    path.write_bytes(end.join([*lines, ""]).encode())
    with pytest.raises(UserError, match=r"line 9: 6 fields are too few, the header has 7\. Mend"):
        run(raw)
    skipped = open_dataset(run(raw, skip_bad_rows=True, user_core=2)).manifest["skipped_rows"]
    assert skipped[VIDEOS]["rows"] == 1
    lines[7] += '"'
    path.write_bytes(end.join([*lines, ""]).encode())
    with pytest.raises(UserError, match="line 9: the quotes do not match"):
        run(raw)


def test_lines_that_end_in_cr_alone(raw: Path):
    path = raw / VIDEOS
    path.write_bytes(path.read_bytes().replace(b"\n", b"\r"))
    with pytest.raises(
        UserError, match=r"video_features\.csv: its lines end in CR alone; write them with LF"
    ):
        run(raw)


ESCAPED = {
    "a word": r'"the \"best\" cat"',
    "a comma between": r'"the \"best, ever\" cat"',
    "at the end": r'"a screen of 5\""',
    "a line before": '"so\nthe \\"best\\" cat"',
}


@pytest.mark.parametrize("skip", [False, True])
@pytest.mark.parametrize("case", ESCAPED)
def test_quotes_with_a_backslash_before_them_always_stop(raw: Path, case: str, skip: bool):
    edit(raw / VIDEOS, line(4, f"3,902,NORMAL,2023-09-30,{ESCAPED[case]},18000.0,pets"))
    edit(raw / VIDEOS, line(3, r'2,902,NORMAL,2023-09-30,"a, path: C:\",18000.0,pets'))
    with pytest.raises(UserError, match=r'csv, line 4: a quote inside .*backslash.*option\("escape"'):
        run(raw, skip_bad_rows=skip)


def test_a_backslash_is_a_sign_like_any_other(raw: Path):
    texts = [r'"a, path: C:\"', r'"a, ""quoted\"" one"', r"C:\new"]
    for number, text in enumerate(texts, start=2):
        edit(raw / VIDEOS, line(number, f"{number - 1},902,NORMAL,2023-09-30,{text},18000.0,pets"))
    titles = open_dataset(run(raw)).titles()
    assert titles.take([1, 2, 3]) == ["a, path: C:\\", 'a, "quoted\\" one', r"C:\new"]


DAMAGE = {
    "an open quote": (line(3, '2,902,NORMAL,2023-09-30,"open,18000.0,pets'), 3, "the quotes do not match"),
    "a quote in the middle": (
        line(3, '2,902,NORMAL,2023-09-30,5" screen,18000.0,pets'),
        3,
        "the quotes do not match",
    ),
    "text after a quote": (
        line(3, '2,902,NORMAL,2023-09-30,"a" b,18000.0,pets'),
        3,
        "the quotes do not match",
    ),
}


@pytest.mark.parametrize("skip", [False, True])
@pytest.mark.parametrize("case", DAMAGE)
def test_quotes_that_do_not_match_always_stop(raw: Path, case: str, skip: bool):
    change, number, reason = DAMAGE[case]
    edit(raw / VIDEOS, change)
    with pytest.raises(UserError, match=rf"video_features\.csv, line {number}: {reason}.*Mend the line"):
        run(raw, skip_bad_rows=skip)


def test_bytes_that_are_no_utf8(raw: Path):
    content = (raw / VIDEOS).read_bytes().replace(b"video 4", b"caf\xe9 4")
    (raw / VIDEOS).write_bytes(content)
    with pytest.raises(UserError, match=r"video_features\.csv, line 5: not UTF-8.*iconv.*--skip-bad-rows"):
        run(raw)
    assert open_dataset(run(raw, skip_bad_rows=True)).titles()[4] == "caf\ufffd 4"


def packed(path: Path) -> Path:
    """The file with gzip, in place of itself."""
    target = path.with_name(path.name + ".gz")
    target.write_bytes(gzip.compress(path.read_bytes()))
    path.unlink()
    return target


def test_files_may_be_packed(raw: Path):
    plain = open_dataset(run(raw)).data_hash
    for path in sorted(raw.iterdir()):
        packed(path)
    assert open_dataset(run(raw)).data_hash == plain
    broken = b"7,2,1230,yesterday,1,1,0,0,0,0,0,1,5000,18000,0,7"
    path = raw / f"{VIDEO_INTER}.gz"
    lines = gzip.decompress(path.read_bytes()).splitlines()
    lines[4] = broken
    path.write_bytes(gzip.compress(b"\n".join(lines)))
    with pytest.raises(UserError, match=r"user_video_inter\.csv\.gz, line 5: time_ms is 'yesterday'"):
        run(raw)


@pytest.mark.parametrize("kept", [5, 60, 0.5, -1])
def test_a_packed_file_that_was_cut_short(raw: Path, kept: float):
    before = open_dataset(run(raw)).data_hash
    path = packed(raw / VIDEO_INTER)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(kept * len(whole)) if isinstance(kept, float) else kept])
    with pytest.raises(
        UserError, match=r"user_video_inter\.csv\.gz is no whole gzip file .*download it again"
    ):
        run(raw)
    path.write_bytes(b"user_id,video_id\n" + whole)
    with pytest.raises(UserError, match=r"user_video_inter\.csv\.gz is no whole gzip file"):
        run(raw)
    assert open_dataset(raw.parent / "out", verify=True).data_hash == before, "the old dataset stays"


@pytest.mark.parametrize("name", KUAICOMT_HEADERS)
def test_a_missing_file_or_column_is_named(raw: Path, name: str):
    header, rest = (raw / name).read_text(encoding="utf-8").split("\n", 1)
    first = "photo_id" if name == COMMENT_INTER else header.split(",")[0]
    (raw / name).write_text(header.replace(first, "other", 1) + "\n" + rest, encoding="utf-8")
    with pytest.raises(UserError, match=rf"{name}, line 1: no column {first} in the header"):
        run(raw)
    (raw / name).write_text("", encoding="utf-8")
    with pytest.raises(UserError, match=rf"{name} is empty; it must start with a header row"):
        run(raw)
    (raw / name).unlink()
    with pytest.raises(UserError, match=rf"{name} is missing; the raw folder must hold {name}"):
        run(raw)


@pytest.mark.parametrize(
    ("mark", "word"), [(";", "semicolons"), ("\t", "tabs"), ("|", "bars"), ("::", "double colons")]
)
def test_another_delimiter_is_recognised(raw: Path, mark: str, word: str):
    path = raw / VIDEO_INTER
    path.write_text(path.read_text(encoding="utf-8").replace(",", mark), encoding="utf-8")
    with pytest.raises(
        UserError, match=rf"line 1: the fields are separated by {word}; write the file with commas"
    ):
        run(raw)


def test_further_columns_may_have_any_name(raw: Path):
    before = open_dataset(run(raw)).data_hash
    for path in raw.iterdir():
        header, *lines = path.read_text(encoding="utf-8").splitlines()
        numbered = [f"{len(lines) - number},9,{text}" for number, text in enumerate(lines)]
        path.write_text("\n".join([f"row,fault,{header}", *numbered, ""]), encoding="utf-8")
    assert open_dataset(run(raw)).data_hash == before
    edit(raw / COMMENT_INTER, line(2, "0,9,7,999,5,1,1,0"))
    with pytest.raises(UserError, match=r"user_comment_inter\.csv, line 2: comment 999 is not among"):
        run(raw)


def test_a_column_named_twice(raw: Path):
    edit(raw / USERS, line(1, KUAICOMT_HEADERS[USERS].replace("gender", "age_range")))
    with pytest.raises(UserError, match=r"user_features\.csv, line 1: the header names 'age_range' twice"):
        run(raw)


def test_times_in_another_unit_are_warned_of(raw: Path, capsys: pytest.CaptureFixture):
    run(raw)
    assert "lie outside" not in capsys.readouterr().err
    path = raw / COMMENT_INTER
    path.write_text(re.sub(r",(\d{10}),", r",\g<1>000,", path.read_text()))
    run(raw)
    told = capsys.readouterr().err
    assert (
        "7 of 7 comment interactions lie outside of the years 1990 to 2100, a thousand times too large"
        in told
    )
    assert "likes lie outside" not in told


SETTINGS = {
    "no raw folder": ({"raw": "nowhere"}, r"--raw nowhere is not a folder"),
    "no raw": ({"raw": ""}, r"prepare needs --raw"),
    "shares": ({"split": "temporal", "val_share": 0.6, "test_share": 0.5}, r"--val_share and --test_share"),
    "candidates": ({"candidates": 1}, r"--candidates must be at least 2"),
    "core": ({"user_core": -1}, r"--user_core -1 must be 0 or more"),
    "source": ({"source": "netflix"}, r"--source 'netflix' is unknown; choose from kuaicomt, microlens"),
    "nobody left": ({"user_core": 100}, r"nothing is left: no user has 100 liked videos.*lower --user_core"),
    "nothing to split": ({"min_history": 6}, r"no sample is left for train and val and test"),
}


@pytest.mark.parametrize("case", SETTINGS)
def test_settings_that_cannot_work(raw: Path, case: str):
    changes, message = SETTINGS[case]
    settings = {"raw": str(raw), "out": str(raw.parent / "out")} | changes
    with pytest.raises(UserError, match=message):
        prepare(PrepareSettings(**settings))
    assert not (raw.parent / "out").exists()


def test_only_a_dataset_or_an_empty_folder_is_written_over(raw: Path):
    out = raw.parent / "out"
    out.mkdir()
    run(raw)
    run(raw)
    (out / "runs").mkdir()
    (out / "runs" / "model.bin").write_text("weeks of work")
    with pytest.raises(
        UserError, match=r"other files than a prepared dataset: runs/model\.bin\. .*move them away"
    ):
        run(raw)
    assert (out / "runs" / "model.bin").exists()
    shutil.rmtree(out / "runs")
    with pytest.raises(UserError, match=r"--out .* holds other files than a prepared dataset"):
        prepare(PrepareSettings(raw=str(raw), out=str(raw)))
    assert (raw / VIDEOS).exists()
    out.rename(raw.parent / "moved")
    out.write_text("")
    with pytest.raises(UserError, match="is a file"):
        run(raw)


def test_a_disk_that_is_really_full_is_told_wherever_it_gets_full(raw: Path, small_disk: Path):
    filler = small_disk / "filler"
    for room in range(8, 120, 16):
        filler.unlink(missing_ok=True)
        filler.write_bytes(bytes(shutil.disk_usage(small_disk).free - room * 1024))
        with pytest.raises(UserError, match="cannot write .*out: no space left"):
            prepare(PrepareSettings(raw=str(raw), out=str(small_disk / "out")))
        assert list(small_disk.iterdir()) == [filler]


def test_what_embed_wrote_beside_a_dataset_goes_with_it(raw: Path):
    out = raw.parent / "out"
    run(raw)
    for name in ("photo_full_embs.npy", "comment_full_embs.npy", "photo_keys.npy", "embeddings.json"):
        (out / name).write_text("")
    with work_folder(out) as work:
        work.parts.mkdir()
        (work.parts / "of-an-interrupted-run.part").write_text("")
    assert work.parts.is_dir()
    run(raw)
    assert not list(out.glob("*embs.npy"))
    open_dataset(out, verify=True)


def test_movielens_rows_are_looked_at_too(tmp_path: Path):
    ratings = [(u, m, 4.0, 100 * m + u) for u in (1, 2) for m in range(1, 7)]
    movies = [(m, f"Movie {m} (2000)", "Drama") for m in range(1, 7)]
    raw = write_movielens(tmp_path / "raw", ratings, movies, [(1, 2, "dark", 5)])
    cases = {
        "ratings.csv": [
            ("1,2,good,5", "rating is 'good', expected a number"),
            ("1,99,4.0,5", "video 99 is not among"),
        ],
        "movies.csv": [("x,Movie,Drama", "movieId is 'x'"), ("7,Movie", "2 fields are too few")],
        "tags.csv": [
            ("1,2,dark", "3 fields are too few"),
            ("1,99,dark,5", "video 99 is not among the videos"),
        ],
    }
    for name, rows in cases.items():
        for row, reason in rows:
            content = (raw / name).read_text()
            (raw / name).write_text(content + row + "\n")
            with pytest.raises(UserError, match=rf"{name}, line {content.count(chr(10)) + 1}: .*{reason}"):
                run(raw, source="movielens")
            assert open_dataset(run(raw, source="movielens", skip_bad_rows=True)).n_users == 2
            (raw / name).write_text(content)
