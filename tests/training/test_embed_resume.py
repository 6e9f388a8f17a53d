"""A run that is killed, at any moment, and given again: it goes on, and ends with the same bytes."""

import errno
import json
import os
import shutil

import numpy as np
import pytest
import torch

from lsvcr.data.vectors import load_embeddings
from lsvcr.schema import (
    BEST_DIR,
    COMMENT_FULL_EMBEDDINGS_FILE,
    EMBED_WORK_DIR,
    EMBEDDINGS_MANIFEST_FILE,
    VIDEO_FULL_EMBEDDINGS_FILE,
)
from lsvcr.training import embed_merge, embed_plan, embed_write
from lsvcr.training.embed import embed
from lsvcr.utils.errors import UserError
from tests.training.embed_runs import (
    TORCHRUN,
    contents,
    count_texts,
    names,
    settings,
    start,
    write_checkpoint,
)

PART_TOKENS = (64, 64)
"""Makes a dozen parts of the tiny dataset."""

KILLS = """
import os, signal, sys
import torch
from lsvcr.training import embed_merge, embed_parts, embed_plan, embed_write, embedder
embed_plan.PART_TOKENS = {part_tokens}

def dying(function, call):
    calls = []
    def wrapped(*args, **others):
        calls.append(1)
        if len(calls) == call:
            os.kill(os.getpid(), signal.SIGKILL)
        return function(*args, **others)
    return wrapped

class Os:
    "Stands for the module `os` in one file only."
    def __init__(self, **others):
        self.__dict__.update({{**vars(os), **others}})

def kill_at(point):
    if point == "reading":
        embed_plan._digests = dying(embed_plan._digests, 2)
    elif point == "counting tokens":
        embedder.Embedder.lengths = dying(embedder.Embedder.lengths, 2)
    elif point == "before any part":
        embedder.Embedder.vectors = dying(embedder.Embedder.vectors, 1)
    elif point == "encoding":
        embedder.Embedder.vectors = dying(embedder.Embedder.vectors, 7)
    elif point == "a part's second file":
        embed_parts.os = Os(replace=dying(os.replace, 8))
    elif point == "joining":
        embed_merge.Merger._rows = dying(embed_merge.Merger._rows, 3)
    elif point == "before the moves":
        embed_write._finish_moves = dying(embed_write._finish_moves, 2)
    elif point == "between the moves":
        embed_write.os = Os(replace=dying(os.replace, 2))
    elif point == "after the moves":
        embed_write._leave = dying(embed_write._leave, 1)
"""
WITH_PARTS = ["encoding", "a part's second file", "joining", "before the moves", "between the moves"]
POINTS = ["reading", "counting tokens", "before any part", *WITH_PARTS, "after the moves"]


@pytest.fixture(autouse=True)
def one_thread():
    """As torchrun has it: sums over more threads round differently."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(autouse=True)
def small_parts(monkeypatch):
    monkeypatch.setattr(embed_plan, "PART_TOKENS", PART_TOKENS)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    write_checkpoint(folder / BEST_DIR)
    return folder


@pytest.fixture
def straight(tiny_dataset, run, tmp_path):
    """The files of a run that nothing disturbed."""
    return contents(embed(settings(tiny_dataset.root, tmp_path / "straight", run, full=True)))


def interrupt(monkeypatch, run_settings, batch=7):
    """Run until just before a batch."""
    with monkeypatch.context() as patch:
        count_texts(patch, stop_before=batch)
        with pytest.raises(KeyboardInterrupt):
            embed(run_settings)


def parts_of(folder):
    return sorted((folder / EMBED_WORK_DIR / "parts").glob("*.part"))


def test_killed_anywhere_and_given_again(tiny_dataset, run, tmp_path, monkeypatch, straight):
    wanted = {
        point: settings(tiny_dataset.root, tmp_path / point, run, full=True, max_text_length=0)
        for point in POINTS
    }
    script = (
        KILLS.format(part_tokens=PART_TOKENS)
        + f"""
torch.set_num_threads(1)
for point, wanted in {wanted!r}.items():
    child = os.fork()
    if not child:
        kill_at(point)
        embed(wanted)
        os._exit(1)
    status = os.waitpid(child, 0)[1]
    assert os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL, (point, status)
"""
    )
    ended = start(script, tmp_path)
    assert ended.returncode == 0, ended.stderr
    encoded = count_texts(monkeypatch)
    embed(settings(tiny_dataset.root, tmp_path / "all", run, full=True))
    every = len(encoded)
    for point in POINTS:
        out = tmp_path / point
        assert (EMBEDDINGS_MANIFEST_FILE in names(out)) == (point in ("between the moves", "after the moves"))
        assert bool(parts_of(out)) == (point in WITH_PARTS)
        encoded.clear()
        embed(wanted[point])
        assert contents(out) == straight and names(out) == sorted(straight), point
        if point in ("joining", "before the moves", "between the moves", "after the moves"):
            assert not encoded, point
        else:
            assert (0 < len(encoded) < every) == (point in WITH_PARTS), point


@pytest.mark.slow
def test_two_processes_and_one_write_the_same_and_take_up_each_others_work(
    tiny_dataset, run, tmp_path, monkeypatch, straight
):
    def wanted(name):
        return settings(tiny_dataset.root, tmp_path / name, run, full=True)

    interrupt(monkeypatch, wanted("begun by one"))
    assert parts_of(tmp_path / "begun by one")
    script = (
        KILLS.format(part_tokens=PART_TOKENS)
        + f"""
import torch.distributed as dist
dist.init_process_group("gloo")
embed({wanted("two")!r})
embed({wanted("begun by one")!r})
if dist.get_rank() == 1:
    embedder.Embedder.vectors = dying(embedder.Embedder.vectors, 5)
embed({wanted("begun by two")!r})
"""
    )
    ended = start(script, tmp_path, *TORCHRUN)
    assert ended.returncode != 0
    assert contents(tmp_path / "two") == straight, ended.stderr
    assert contents(tmp_path / "begun by one") == straight
    assert "parts are done" in ended.stderr
    assert names(tmp_path / "begun by two") == [EMBED_WORK_DIR] and parts_of(tmp_path / "begun by two")
    encoded = count_texts(monkeypatch)
    embed(wanted("begun by two"))
    assert contents(tmp_path / "begun by two") == straight
    assert 0 < len(encoded) < 47


@pytest.mark.parametrize("what", ["settings", "checkpoint", "data", "files"])
def test_work_of_something_else_is_thrown_away(tiny_dataset, run, tmp_path, monkeypatch, capsys, what):
    def wanted(out, changed):
        data, of, others = tiny_dataset.root, run, {}
        if changed and what == "settings":
            others = {"max_text_length": 5}
        elif changed and what == "files":
            others = {"full": True}
        elif changed and what == "checkpoint":
            of = tmp_path / "other"
        elif changed:
            data = tmp_path / "other"
        return settings(data, out, of, **others)

    if what == "checkpoint":
        write_checkpoint(tmp_path / "other", settings={"llm_layers": 1, "model_name_or_path": "tiny-random"})
    elif what == "data":
        shutil.copytree(tiny_dataset.root, tmp_path / "other")
        path = tmp_path / "other" / "manifest.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), "data_hash": "f" * 64}))
    interrupt(monkeypatch, wanted(tmp_path / "out", False))
    assert "kept in" in capsys.readouterr().err
    encoded = count_texts(monkeypatch)
    embed(wanted(tmp_path / "out", True))
    cause = {
        "settings": "max_text_length 64 there, 5 here",
        "checkpoint": "parent ",
        "data": "data_hash ",
        "files": "files ",
    }
    assert f"thrown away ({cause[what]}" in capsys.readouterr().err
    assert len(encoded) == 47
    assert contents(tmp_path / "out") == contents(embed(wanted(tmp_path / "straight", True)))


def test_a_smaller_budget_goes_on_with_what_a_larger_one_did(tiny_dataset, tmp_path, monkeypatch):
    wanted = settings(tiny_dataset.root, tmp_path / "out")
    interrupt(monkeypatch, wanted)
    encoded = count_texts(monkeypatch)
    wanted.text_token_budget = 32
    embed(wanted)
    assert len(encoded) < 47
    straight = embed(settings(tiny_dataset.root, tmp_path / "straight"))
    for name in (VIDEO_FULL_EMBEDDINGS_FILE, COMMENT_FULL_EMBEDDINGS_FILE):
        np.testing.assert_allclose(np.load(tmp_path / "out" / name), np.load(straight / name), atol=1e-5)


@pytest.mark.parametrize("damage", ["a number", "cut short"])
def test_a_damaged_part_is_made_again(tiny_dataset, tmp_path, monkeypatch, damage):
    wanted = settings(tiny_dataset.root, tmp_path / "out")
    interrupt(monkeypatch, wanted)
    first, *others = parts_of(tmp_path / "out")
    assert others
    whole = first.read_bytes()
    first.write_bytes(whole[:-40] if damage == "cut short" else bytes([whole[0] ^ 1]) + whole[1:])
    embed(wanted)
    assert contents(tmp_path / "out") == contents(embed(settings(tiny_dataset.root, tmp_path / "straight")))


def test_a_disk_that_fills_up_on_the_way(tiny_dataset, tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    wanted = settings(tiny_dataset.root, tmp_path / "out")
    with monkeypatch.context() as patch:
        patch.setattr(embed_merge.Merger, "write", full)
        with pytest.raises(UserError) as error:
            embed(wanted)
    parts = parts_of(tmp_path / "out")
    # 31 + 16 texts and 33 + 121 rows of 128 bytes.
    assert "out: no space for 0.000 GB of vectors (No space left on device)" in str(error.value)
    assert f"{len(parts)} finished part files are kept in {tmp_path / 'out'}" in str(error.value)
    encoded = count_texts(monkeypatch)
    embed(wanted)
    assert not encoded
    assert contents(tmp_path / "out") == contents(embed(settings(tiny_dataset.root, tmp_path / "straight")))


def test_finished_files_are_not_made_again_unless_something_changed(
    tiny_dataset, run, tmp_path, monkeypatch, capsys
):
    out = tmp_path / "out"
    wanted = settings(tiny_dataset.root, out, run)
    embed(wanted)
    before = contents(out)
    encoded = count_texts(monkeypatch)
    capsys.readouterr()
    embed(settings(tiny_dataset.root, out, run, text_token_budget=99))
    assert not encoded and contents(out) == before
    assert "finished and up to date (--overwrite makes them again)" in capsys.readouterr().err
    wanted.overwrite = True
    embed(wanted)
    assert len(encoded) == 47 and contents(out) == before
    assert "are made again: --overwrite" in capsys.readouterr().err
    wanted.overwrite = False
    for change, message in [
        ({"max_text_length": 5}, "other settings (max_text_length 64 there, 5 here)"),
        ({"full": True}, "photo_full_embs.npy is missing"),
    ]:
        encoded.clear()
        embed(settings(tiny_dataset.root, out, run, **change))
        assert message in capsys.readouterr().err and len(encoded) == 47
        embed(wanted)
        capsys.readouterr()
    table = np.load(out / "photo_embs.npy")
    np.save(out / "photo_embs.npy", table + 1)
    embed(wanted)
    assert "photo_embs.npy changed since it was written" in capsys.readouterr().err
    np.testing.assert_array_equal(np.load(out / "photo_embs.npy"), table)


@pytest.mark.parametrize("earlier", [True, False])
def test_killed_between_the_last_moves_is_noticed_by_the_reader(tiny_dataset, tmp_path, monkeypatch, earlier):
    out = tmp_path / "out"
    if earlier:
        embed(settings(tiny_dataset.root, out, max_text_length=5))
    move = os.replace

    def stop_after_the_titles(source, target):
        if os.path.basename(target) == COMMENT_FULL_EMBEDDINGS_FILE:
            raise KeyboardInterrupt
        move(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(embed_write.os, "replace", stop_after_the_titles)
        with pytest.raises(KeyboardInterrupt):
            embed(settings(tiny_dataset.root, out))
    rows = tiny_dataset.n_comments + 1
    with pytest.raises(
        UserError, match="is not the file that embeddings.json" if earlier else "no text vectors"
    ):
        load_embeddings(out, COMMENT_FULL_EMBEDDINGS_FILE, rows, tiny_dataset.data_hash)
    encoded = count_texts(monkeypatch)
    # Even with --overwrite: the command that is given again was at its end.
    embed(settings(tiny_dataset.root, out, overwrite=True))
    load_embeddings(out, COMMENT_FULL_EMBEDDINGS_FILE, rows, tiny_dataset.data_hash)
    assert not encoded and EMBED_WORK_DIR not in names(out)
