"""Checkpoint folders of stage one: whole or not at all, read back, told when damaged, kept in number."""

import errno
import logging
import os
import shutil
from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError
from torch import nn

from lsvcr.llm.aligned import AlignedHeads, AlignedModel
from lsvcr.models.sr import SRModel
from lsvcr.training import align_keep, align_state
from lsvcr.training.align_keep import (
    check_intact,
    forget,
    interrupted,
    keep_step,
    newest_good,
    warn_if_tight,
)
from lsvcr.training.align_state import write_checkpoint
from lsvcr.utils.errors import UserError
from tests.training.align_runs import flip_a_byte

FILES = ["sr.safetensors", "trainer.safetensors", "trainer.json"]


@pytest.fixture(scope="module")
def model() -> AlignedModel:
    """Heads beside an LLM that is none: what is saved of it is nothing."""
    sr = SRModel(text_width=12, hidden=16, inner=32, dropout=0.0, attention_dropout=0.0, max_position=9)
    llm = nn.Module()
    llm.get_base_model = lambda: nn.Sequential()  # type: ignore[assignment]
    heads = AlignedHeads(sr, 32, 12)
    aligned = AlignedModel.__new__(AlignedModel)
    nn.Module.__init__(aligned)
    aligned.llm, aligned.heads = llm, heads
    return aligned


def write(run: Path, model: AlignedModel, step: int, folder: str = "last") -> None:
    """A checkpoint whose numbers tell its step."""
    state = {f"master.heads.{n}": torch.full_like(p, step) for n, p in model.heads.named_parameters()}
    state |= {name.replace("master", "exp_avg"): value + 1 for name, value in state.items()}
    write_checkpoint(run / folder, model, state, {"step": step}, {"step": step})


def step_of(folder: Path) -> int:
    """What step a whole checkpoint is of."""
    check_intact(folder)
    return int(align_state.read_json(folder / "manifest.json")["step"])


def names(run: Path) -> list[str]:
    return sorted(path.name for path in run.iterdir())


@pytest.fixture
def run(tmp_path: Path, model: AlignedModel) -> Path:
    """A run with best/ and last/ of step 7."""
    write(tmp_path, model, 7)
    write(tmp_path, model, 7, "best")
    return tmp_path


@pytest.mark.parametrize("name", FILES)
def test_any_change_of_any_file_is_found(run: Path, name: str) -> None:
    check_intact(run / "last")
    file = run / "last" / name
    size = file.stat().st_size
    for place in (0, size // 2, size - 1):
        flip_a_byte(file, place)
        with pytest.raises(UserError, match=f"last/{name} is damaged: its checksum"):
            check_intact(run / "last")
        flip_a_byte(file, place)
    check_intact(run / "last")
    os.truncate(file, size - 1)
    with pytest.raises(UserError, match=f"last/{name} is damaged"):
        newest_good(run)
    file.unlink()
    with pytest.raises(UserError, match=rf"last/{name} is missing: .*--resume False"):
        newest_good(run)


@pytest.mark.parametrize("content", ["", "{", "{}", "[]", '{"files": 3}'])
def test_a_manifest_that_is_none_counts_as_damage(run: Path, model: AlignedModel, content: str) -> None:
    keep_step(run, 2)
    write(run, model, 8)
    (run / "last" / "manifest.json").write_text(content)
    assert newest_good(run) == run / "step-000007"


@pytest.mark.parametrize("name", ["sr.safetensors", "trainer.safetensors"])
def test_what_the_disk_changed_is_found_before_the_old_one_goes(
    run: Path, model: AlignedModel, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def damage(folder: Path) -> None:
        if folder.name.startswith(".tmp"):
            flip_a_byte(folder / name)

    monkeypatch.setattr(align_state, "settle", damage)
    with pytest.raises(UserError, match=rf"{name} was not written whole \(.* differs\)"):
        write(run, model, 9)
    assert step_of(run / "last") == 7 and names(run) == ["best", "last"]


def test_steps_are_links_to_last_and_the_oldest_goes(run: Path, model: AlignedModel) -> None:
    kept = []
    for step in (8, 9, 10, 1_000_000):
        write(run, model, step)
        keep_step(run, 3)
        kept.append([name for name in names(run) if name.startswith("step")])
    assert kept == [
        ["step-000008"],
        ["step-000008", "step-000009"],
        ["step-000008", "step-000009", "step-000010"],
        ["step-000009", "step-000010", "step-1000000"],
    ]
    for name in FILES:
        assert (run / "last" / name).samefile(run / "step-1000000" / name)
    assert [step_of(run / name) for name in kept[-1]] == [9, 10, 1_000_000]
    assert step_of(run / "best") == 7
    assert newest_good(run) == run / "last"
    keep_step(run, 0)
    assert names(run) == ["best", "last"]


def test_where_there_are_no_links_steps_are_copies(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.EPERM, "no links here")

    monkeypatch.setattr(align_keep.os, "link", refuse)
    keep_step(run, 2)
    assert step_of(run / "step-000007") == 7
    assert not (run / "last" / "trainer.json").samefile(run / "step-000007" / "trainer.json")


def test_the_newest_whole_checkpoint_is_taken_and_it_is_said(
    run: Path, model: AlignedModel, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logging.getLogger("lsvcr"), "propagate", True)
    for step in (8, 9):
        write(run, model, step)
        keep_step(run, 3)
    flip_a_byte(run / "last" / "sr.safetensors")
    assert newest_good(run) == run / "step-000008"
    assert f"the run goes on from {run / 'step-000008'}" in caplog.text
    # It makes step 9 again; what was damaged is gone then.
    write(run, model, 9)
    keep_step(run, 3)
    assert step_of(run / "step-000009") == 9
    shutil.rmtree(run / "last")
    assert newest_good(run) == run / "step-000009"


def test_starting_anew_forgets_all_checkpoints(run: Path) -> None:
    keep_step(run, 2)
    (run / "metrics.jsonl").touch()
    assert interrupted(run)
    forget(run)
    assert names(run) == ["metrics.jsonl"] and not interrupted(run)


def test_a_kill_between_the_two_renames_of_an_exchange_is_undone(run: Path, model: AlignedModel) -> None:
    """The moment in which neither the old nor the new folder is called last/."""
    (run / "last").rename(run / ".old-0123abcd-last")
    write(run, model, 8, "new")
    (run / "new").rename(run / ".tmp-0123abce-last")
    assert interrupted(run)
    assert step_of(newest_good(run)) == 7 and names(run) == ["best", "last"]


def test_a_disk_that_is_really_full(small_disk: Path, model: AlignedModel) -> None:
    run = small_disk / "run"
    write(run, model, 1)
    size = sum(path.stat().st_size for path in (run / "last").iterdir())
    filler = small_disk / "filler"
    # Room for a part of the next checkpoint, whatever file it is that then does not fit any more.
    for share in (0.0, 0.1, 0.4, 0.7, 0.98):
        filler.unlink(missing_ok=True)
        filler.write_bytes(b"0" * int(shutil.disk_usage(small_disk).free - share * size))
        with pytest.raises(UserError) as full:
            write(run, model, 2)
        told = str(full.value)
        assert told.startswith(f"the disk of {run} is full: the next checkpoint takes 0.2 MB, 0.")
        assert told.endswith(f"it goes on from step 1, {run / 'last'} is intact")
        assert step_of(run / "last") == 1 and names(run) == ["last"]
    filler.unlink()
    write(run, model, 2)
    assert step_of(run / "last") == 2


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "No space left on device"),
        OSError(errno.EDQUOT, "Disk quota exceeded"),
        SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)"),
    ],
)
def test_every_way_in_which_a_full_disk_shows(
    tmp_path: Path, model: AlignedModel, error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr(align_state, "save_file", fail)
    with pytest.raises(
        UserError, match=r"is full: the next checkpoint takes .* no checkpoint had been written yet"
    ):
        write(tmp_path, model, 1)
    assert names(tmp_path) == []


def test_another_error_stays_what_it_is(
    tmp_path: Path, model: AlignedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(align_state, "save_file", fail)
    with pytest.raises(OSError, match="Input/output error"):
        write(tmp_path, model, 1)


def test_a_disk_too_small_for_the_run_is_told_before_it_starts(
    run: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logging.getLogger("lsvcr"), "propagate", True)
    usage = shutil.disk_usage(run)._replace(free=1_000_000)
    monkeypatch.setattr(align_keep.shutil, "disk_usage", lambda _: usage)
    warn_if_tight(run, last=300_000, best=100_000, limit=0)  # 2 of last, 2 of best
    warn_if_tight(run, last=200_000, best=100_000, limit=3)  # 4 and 2
    assert caplog.text == ""
    warn_if_tight(run, last=600_000, best=300_000, limit=0)
    assert "has 1.0 MB free, but the checkpoints of this run take about 1.8 MB" in caplog.text
    warn_if_tight(run, last=400_000, best=100_000, limit=3)
    assert "take about 1.8 MB" in caplog.records[-1].getMessage()
