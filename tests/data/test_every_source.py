"""What a user does with raw files of any source: prepare, then the doctor, by the command line."""

import gzip
import json
from collections.abc import Callable
from pathlib import Path

import pytest

from lsvcr import cli
from lsvcr.data.sources import SOURCES
from lsvcr.data.store import open_dataset
from tests.data.raw_amazon import write_2014, write_2018, write_2023
from tests.data.raw_files import small_kuaicomt, write_movielens
from tests.data.raw_microlens import write_microlens
from tests.data.raw_movielens import write_1m, write_10m, write_100k
from tests.data.raw_official import small_lines, write_official
from tests.data.raw_tables import small_tables, write_spark


def movielens_csv(folder: Path) -> Path:
    """The layout since 20m."""
    ratings = [(user, movie, 4.0, 100 * movie + user) for user in (1, 2) for movie in range(1, 7)]
    movies = [(movie, f"Movie {movie} (2000)", "Drama") for movie in range(1, 7)]
    return write_movielens(folder, ratings, movies, [(1, 2, "dark", 300), (1, 4, "slow", 500)])


WORLDS: dict[str, tuple[str, Callable[[Path], Path]]] = {
    "kuaicomt": ("kuaicomt", small_kuaicomt),
    "tables": ("tables", lambda folder: write_spark(folder, small_tables(), parts=3)),
    "microlens": ("microlens", write_microlens),
    "amazon 2014": ("amazon", write_2014),
    "amazon 2018": ("amazon", write_2018),
    "amazon 2023": ("amazon", write_2023),
    "movielens 100k": ("movielens", write_100k),
    "movielens 1m": ("movielens", write_1m),
    "movielens 10m": ("movielens", write_10m),
    "movielens latest": ("movielens", movielens_csv),
    "official": ("official", lambda folder: write_official(folder, small_lines())),
}


@pytest.mark.parametrize(
    "world", ["kuaicomt", "microlens", "movielens 100k", "movielens 10m", "movielens latest"]
)
def test_files_may_be_packed(tmp_path: Path, world: str):
    source, write = WORLDS[world]
    raw, flags = write(tmp_path / "raw"), ["--user_core", "2", "--min_rating", "0"]
    hashes = []
    for out in ("plain", "packed"):
        assert cli.main(["prepare", source, "--raw", str(raw), "--out", str(tmp_path / out), *flags]) == 0
        hashes.append(open_dataset(tmp_path / out).data_hash)
        for file in list(raw.iterdir()):
            file.with_name(f"{file.name}.gz").write_bytes(gzip.compress(file.read_bytes()))
            file.unlink()
    assert hashes[0] == hashes[1]


def test_one_packed_file_of_a_column_map(tmp_path: Path):
    raw = write_spark(tmp_path / "raw", small_tables(), suffix=".csv.gz")
    (file,) = (raw / "likes").glob("*.gz")
    file.rename(raw / "likes.csv.gz")
    (raw / "columns.yaml").write_text(
        (raw / "columns.yaml").read_text().replace("files: likes\n", "files: likes.csv\n")
    )
    assert cli.main(["prepare", "tables", "--raw", str(raw), "--out", str(tmp_path / "data")]) == 0


def test_a_folder_whose_name_is_a_pattern(tmp_path: Path, capsys: pytest.CaptureFixture):
    raw, out = small_kuaicomt(tmp_path / "raw*"), tmp_path / "data[1]?{a}"
    assert cli.main(["prepare", "kuaicomt", "--raw", str(raw), "--out", str(out)]) == 0
    data = open_dataset(out)
    assert data.titles()[1] == "video 1" and data.raw_ids("users").to_list() == [7, 8, 1000]
    assert data.impressions is not None and len(data.impressions.items) == 36
    capsys.readouterr()
    assert cli.main(["doctor", str(out), "--llm", "none", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["texts"]["titles"]["texts"] == 8


def test_no_source_is_forgotten():
    assert {source for source, _ in WORLDS.values()} == set(SOURCES)


@pytest.mark.parametrize("world", WORLDS)
def test_prepare_and_audit(tmp_path: Path, capsys: pytest.CaptureFixture, world: str):
    source, write = WORLDS[world]
    raw, out = write(tmp_path / "raw"), tmp_path / "data"
    flags = [] if source == "official" else ["--user_core", "2", "--min_rating", "0"]
    assert cli.main(["prepare", source, "--raw", str(raw), "--out", str(out), *flags]) == 0
    data = open_dataset(out, verify=True)
    assert all(len(data.samples("rec", split)) for split in ("train", "val", "test"))
    capsys.readouterr()
    assert cli.main(["doctor", str(out), "--llm", "none", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["ok"] and len(report["checks"]) > 50
    assert all(check["failed"] == 0 for check in report["checks"])
    # Written out for the reference and read again, there are as many samples of every kind.
    official, again = tmp_path / "official", tmp_path / "again"
    assert cli.main(["export-official", str(out), "--out", str(official)]) == 0
    assert cli.main(["prepare", "official", "--raw", str(official), "--out", str(again)]) == 0
    assert open_dataset(again).manifest["counts"]["samples"] == data.manifest["counts"]["samples"]
