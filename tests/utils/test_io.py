import errno
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from safetensors.numpy import save_file

from lsvcr.utils import io
from lsvcr.utils.errors import UserError


def names(folder: Path) -> list[str]:
    return sorted(entry.name for entry in folder.iterdir())


def test_a_folder_appears_whole_and_nothing_else_stays(tmp_path: Path) -> None:
    with io.atomic_dir(tmp_path / "deep" / "out") as folder:
        (folder / "a.txt").write_text("1")
        assert not (tmp_path / "deep" / "out").exists()
    assert (tmp_path / "deep" / "out" / "a.txt").read_text() == "1"
    assert names(tmp_path / "deep") == ["out"]


def test_a_folder_replaces_the_old_one_as_a_whole(tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "old.txt").write_text("old")
    with io.atomic_dir(out) as folder:
        (folder / "new.txt").write_text("new")
        assert names(out) == ["old.txt"]
    assert names(out) == ["new.txt"]
    assert names(tmp_path) == ["out"]


@pytest.mark.parametrize("failure", [ValueError, KeyboardInterrupt])
def test_a_failure_keeps_the_old_folder(tmp_path: Path, failure: type[BaseException]) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "old.txt").write_text("old")
    with pytest.raises(failure), io.atomic_dir(out) as folder:
        (folder / "half.txt").write_text("half")
        raise failure
    assert names(out) == ["old.txt"]
    assert names(tmp_path) == ["out"]


def test_a_linked_folder_is_replaced_behind_its_link(tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "disk")
    with io.atomic_dir(tmp_path / "link") as folder:
        (folder / "new.txt").write_text("new")
    assert names(tmp_path / "disk") == ["new.txt"]
    assert (tmp_path / "link").is_symlink()


def test_a_file_in_the_place_of_the_folder_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "out").write_text("precious")
    with pytest.raises(UserError, match="is a file"), io.atomic_dir(tmp_path / "out"):
        pass
    assert (tmp_path / "out").read_text() == "precious"


def test_only_a_folder_of_known_files_may_be_replaced(tmp_path: Path) -> None:
    out = tmp_path / "out"
    io.check_replaceable(out, "a world", ())
    (out / "deep" / "truth").mkdir(parents=True)
    io.check_replaceable(out, "a world", ())
    (out / "world.json").touch()
    (out / "deep" / "truth" / "users.npy").touch()
    own = ("world.json", "deep/truth/")
    io.check_replaceable(out, "a world", own)
    with pytest.raises(UserError, match=r"--out .*out holds other files than a world: world\.json\. "):
        io.check_replaceable(out, "a world", ())
    (out / "linked").symlink_to(tmp_path)
    with pytest.raises(UserError, match=r"a world: linked\. .* give a new or empty one, or move them away"):
        io.check_replaceable(out, "a world", own)


def test_a_mount_point_is_refused_before_the_work(small_disk: Path) -> None:
    with pytest.raises(UserError, match="something is mounted there.* a folder inside it"):
        io.check_replaceable(small_disk, "a world", ())
    with pytest.raises(UserError, match="something is mounted there"), io.atomic_dir(small_disk):
        raise AssertionError("the work has begun")
    with io.atomic_dir(small_disk / "inside"):
        pass
    assert names(small_disk) == ["inside"]


KILLED = """
import sys, time
from lsvcr.utils import io
with io.{writer}(sys.argv[1]) as target:
    path = target / "half.txt" if {folder} else target
    path.write_text("half")
    print("writing", flush=True)
    time.sleep(60)
"""


@pytest.mark.parametrize(("writer", "folder"), [("atomic_dir", True), ("atomic_file", False)])
def test_kill_leaves_nothing_and_the_next_writer_cleans_up(tmp_path: Path, writer: str, folder: bool) -> None:
    script = KILLED.format(writer=writer, folder=folder)
    child = subprocess.Popen([sys.executable, "-c", script, str(tmp_path / "out")], stdout=subprocess.PIPE)
    assert child.stdout is not None and child.stdout.readline() == b"writing\n"
    with getattr(io, writer)(tmp_path / "out") as mine:
        (mine / "x" if folder else mine).write_text("mine")
        assert len(names(tmp_path)) == 2, "the living writer's temporary name must stay"
    child.send_signal(signal.SIGKILL)
    child.wait()
    child.stdout.close()
    assert len(names(tmp_path)) == 2
    with getattr(io, writer)(tmp_path / "out") as mine:
        (mine / "x" if folder else mine).write_text("mine again")
    assert names(tmp_path) == ["out"]


def test_a_swap_killed_half_way_is_undone(tmp_path: Path) -> None:
    aside = tmp_path / ".old-0123abcd-out"
    aside.mkdir()
    (aside / "old.txt").write_text("old")
    with pytest.raises(ValueError), io.atomic_dir(tmp_path / "out"):
        raise ValueError
    assert names(tmp_path / "out") == ["old.txt"]
    assert names(tmp_path) == ["out"]


def test_writers_may_be_nested(tmp_path: Path) -> None:
    with io.atomic_dir(tmp_path / "out") as folder:
        io.write_json(folder / "manifest.json", {})
        with io.atomic_dir(folder / "inner") as inner:
            (inner / "x").touch()
    assert names(tmp_path / "out") == ["inner", "manifest.json"]
    assert names(tmp_path / "out" / "inner") == ["x"]


def test_neighbours_with_similar_names_are_left_alone(tmp_path: Path) -> None:
    neighbour = tmp_path / ".tmp-0123abcd-other-out"
    neighbour.mkdir()
    with io.atomic_dir(tmp_path / "out"):
        pass
    assert neighbour.exists()


def test_a_temporary_file_keeps_its_suffix(tmp_path: Path) -> None:
    with io.atomic_file(tmp_path / "rows.npy") as temporary:
        np.save(temporary, np.arange(3))
    assert io.load_npy(tmp_path / "rows.npy").tolist() == [0, 1, 2]
    assert names(tmp_path) == ["rows.npy"]


def test_a_failed_file_keeps_the_old_one(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text("{}")
    with pytest.raises(ValueError):
        io.write_json(tmp_path / "a.json", {"x": float("nan")})
    with pytest.raises(RuntimeError), io.atomic_file(tmp_path / "a.json") as temporary:
        temporary.write_text("{")
        raise RuntimeError
    assert (tmp_path / "a.json").read_text() == "{}"
    assert names(tmp_path) == ["a.json"]


def test_a_full_disk_is_told_in_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no space left"), io.atomic_dir(tmp_path / "out"):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    with pytest.raises(UserError, match="a parent of it is a file"):
        (tmp_path / "file").write_text("")
        io.write_json(tmp_path / "file" / "below.json", {})


WRITERS = {
    "numpy": lambda path: np.save(path, np.zeros(1 << 18)),
    "numpy, mapped": lambda path: io.create_npy(path, np.float64, (1 << 18,)),
    "parquet": lambda path: pl.DataFrame({"a": np.random.default_rng(0).random(1 << 18)}).write_parquet(path),
    "csv": lambda path: pl.DataFrame({"a": np.zeros(1 << 19)}).write_csv(path),
    "safetensors": lambda path: save_file({"a": np.zeros(1 << 18)}, path),
    "python": lambda path: path.write_bytes(bytes(1 << 21)),
}


@pytest.mark.parametrize("writer", WRITERS)
def test_whoever_meets_a_really_full_disk_it_is_told_and_nothing_is_left(
    small_disk: Path, writer: str
) -> None:
    for write, what in ((io.atomic_dir, "folder"), (io.atomic_file, "file.npy")):
        with (
            pytest.raises(UserError, match=f"cannot write .*{what}: no space left"),
            write(small_disk / what) as path,
        ):
            WRITERS[writer](path / "x.npy" if path.is_dir() else path)
    assert names(small_disk) == []


def test_other_errors_of_a_writer_stay_what_they_are(tmp_path: Path) -> None:
    for error in (OSError("no reason"), OSError(errno.EIO, "broken"), ValueError("12 requested")):
        with pytest.raises(type(error)), io.atomic_dir(tmp_path / "out"):
            raise error


def test_json_round_trip_and_its_errors(tmp_path: Path) -> None:
    io.write_json(tmp_path / "a.json", {"title": "猫 😀", "n": 1})
    assert io.read_json(tmp_path / "a.json") == {"title": "猫 😀", "n": 1}
    assert "猫" in (tmp_path / "a.json").read_text(encoding="utf-8")
    (tmp_path / "b.json").write_text('{"a": 1,\n "b": }')
    with pytest.raises(UserError, match=r"b\.json, line 2"):
        io.read_json(tmp_path / "b.json")
    with pytest.raises(UserError, match="does not exist"):
        io.read_json(tmp_path / "c.json")
    (tmp_path / "d.json").write_bytes(b"\xff\xfe{}")
    with pytest.raises(UserError, match=r"d\.json cannot be read"):
        io.read_json(tmp_path / "d.json")


def test_hashes_are_those_of_the_bytes(tmp_path: Path) -> None:
    empty = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
    (tmp_path / "a").write_bytes(b"")
    assert io.sha256_file(tmp_path / "a") == io.sha256_text("") == empty
    (tmp_path / "b").write_text("é" * 1_500_000, encoding="utf-8")
    assert io.sha256_file(tmp_path / "b") == io.sha256_text("é" * 1_500_000)


def test_npy_is_mapped_read_only_and_broken_ones_are_named(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.arange(6).reshape(2, 3))
    rows = io.load_npy(tmp_path / "a.npy")
    assert isinstance(rows, np.memmap) and not rows.flags.writeable
    assert not isinstance(io.load_npy(tmp_path / "a.npy", mmap=False), np.memmap)
    np.save(tmp_path / "empty.npy", np.zeros(0, np.int32))
    assert io.load_npy(tmp_path / "empty.npy").shape == (0,)
    with pytest.raises(UserError, match="does not exist"):
        io.load_npy(tmp_path / "b.npy")
    (tmp_path / "cut.npy").write_bytes((tmp_path / "a.npy").read_bytes()[:-8])
    np.save(tmp_path / "objects.npy", np.array([{}], dtype=object))
    (tmp_path / "text.npy").write_text(json.dumps([1, 2]))
    (tmp_path / "nothing.npy").write_bytes(b"")
    for broken in ("cut", "objects", "text", "nothing"):
        with pytest.raises(UserError, match=rf"{broken}\.npy is damaged"):
            io.load_npy(tmp_path / f"{broken}.npy")


def test_two_writers_of_one_folder_both_end_well(tmp_path: Path) -> None:
    script = """
import sys
from lsvcr.utils import io
for step in range(60):
    with io.atomic_dir(sys.argv[1]) as folder:
        (folder / "who.txt").write_text(sys.argv[2])
"""
    started = time.monotonic()
    children = [
        subprocess.Popen([sys.executable, "-c", script, str(tmp_path / "out"), who]) for who in ("a", "b")
    ]
    assert [child.wait() for child in children] == [0, 0]
    assert (tmp_path / "out" / "who.txt").read_text() in ("a", "b")
    assert names(tmp_path) == ["out"]
    assert time.monotonic() - started < 30
