"""The journal: acknowledged changes survive every way of dying, and nothing else is taken for one."""

import errno
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lsvcr.serving import journal as journal_module
from lsvcr.serving.journal import JOURNAL_FILE, Journal, NotStored
from lsvcr.utils.errors import UserError


def record(number: int, text: str = "") -> dict:
    return {"kind": "video", "id": number, "text": text or f"title {number}"}


def listed(journal: Journal) -> list[dict]:
    return list(journal.records())


@pytest.fixture
def state(tmp_path: Path) -> Path:
    return tmp_path / "state"


def reopened(state: Path) -> list[dict]:
    journal = Journal(state)
    try:
        return listed(journal)
    finally:
        journal.close()


def test_what_is_appended_is_there_after_opening_again(state):
    journal = Journal(state)
    journal.append([record(1), record(2, "zwei\nZeilen \u2028 字幕")])
    journal.append([record(1, "again"), {"kind": "comment", "id": "1", "text": "other kind"}])
    expected = [
        record(2, "zwei\nZeilen \u2028 字幕"),
        record(1, "again"),
        {"kind": "comment", "id": "1", "text": "other kind"},
    ]
    assert listed(journal) == expected
    assert journal.get("video", "1") == record(1, "again") and journal.get("video", 3) is None
    assert (journal.lines, journal.live) == (4, 3)
    name = journal.state
    journal.close()

    journal = Journal(state)
    assert listed(journal) == expected and (journal.lines, journal.live) == (4, 3)
    assert journal.state == name and journal.size == journal.path.stat().st_size
    journal.close()


def test_a_second_user_of_the_folder_is_refused_and_the_folder_is_free_after_closing(state):
    journal = Journal(state)
    with pytest.raises(UserError, match=f"in use by process {os.getpid()}"):
        Journal(state)
    code = "import sys; from lsvcr.serving.journal import Journal; Journal(sys.argv[1])"
    other = subprocess.run([sys.executable, "-c", code, state], capture_output=True, text=True)
    assert other.returncode != 0 and "one state folder serves one process" in other.stderr
    journal.append([record(1)])  # undisturbed
    journal.close()
    with pytest.raises(NotStored, match="closed"):
        journal.append([record(2)])
    with pytest.raises(NotStored, match="closed"):
        journal.get("video", 1)
    assert reopened(state) == [record(1)]


def test_damage_under_an_open_journal_is_told_and_nothing_is_built_on_it(state):
    journal = Journal(state)
    journal.append([record(1), record(2)])
    content = bytearray(journal.path.read_bytes())
    content[-3] ^= 1
    journal.path.write_bytes(content)
    assert journal.get("video", 1) == record(1)
    with pytest.raises(NotStored, match=r"damaged at byte \d+ since it was opened"):
        journal.get("video", 2)
    journal.close()


GONE = "not stored: .*removed or replaced while in use; put the state folder back"


def test_a_folder_that_has_gone_takes_no_change_until_it_is_back(state, tmp_path):
    journal = Journal(state)
    for _ in range(100):
        journal.append([record(1)])
    aside = state.rename(tmp_path / "aside")
    for stands in ("nothing", "a file", "an empty folder"):
        if stands == "a file":
            state.write_text("")
        elif stands == "an empty folder":
            state.unlink()
            state.mkdir()
        with pytest.raises(NotStored, match=GONE):
            journal.append([record(2)])
    assert not journal.compact_if_long() and not list(state.iterdir())
    assert listed(journal) == [record(1)]
    state.rmdir()
    aside.rename(state)
    journal.append([record(3)])
    journal.close()
    assert reopened(state) == [record(1), record(3)]


@pytest.mark.parametrize("lock_alone", [False, True])
def test_whose_folder_another_process_has_taken_stores_nothing_any_more(state, lock_alone):
    journal = Journal(state)
    journal.append([record(1)])
    if lock_alone:
        (state / "lock").unlink()
    else:
        shutil.rmtree(state)
    other = Journal(state)
    other.append([record(2)])
    with pytest.raises(NotStored, match=GONE):
        journal.append([record(3)])
    journal.close()
    other.close()
    assert reopened(state) == [record(1)] * lock_alone + [record(2)]


def test_a_folder_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="choose another folder"):
        Journal(tmp_path / "file" / "state")


# Crashes


def written(state: Path, batches: list[list[dict]]) -> list[int]:
    """A journal of these batches; its length after the header and after each of them."""
    journal = Journal(state)
    lengths = [journal.size]
    for batch in batches:
        journal.append(batch)
        lengths.append(journal.size)
    journal.close()
    return lengths


@settings(max_examples=60, deadline=None)
@given(data=st.data(), sizes=st.lists(st.integers(1, 4), min_size=1, max_size=5))
def test_a_crash_that_lost_any_part_of_the_last_batch(tmp_path_factory, data, sizes):
    """A crash leaves the file short or with zeros in place of bytes, in what was not known to be on disk."""
    state = tmp_path_factory.mktemp("crash")
    numbers = iter(range(1000))
    batches = [[record(next(numbers)) for _ in range(size)] for size in sizes]
    lengths = written(state, batches)
    safe, end = lengths[-2], lengths[-1]
    path = state / JOURNAL_FILE
    content = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(0, 3), label="holes")):
        first = data.draw(st.integers(safe, end - 1))
        stop = data.draw(st.integers(first + 1, end))
        content[first:stop] = bytes(stop - first)
    del content[data.draw(st.integers(safe, end), label="length") :]
    path.write_bytes(content)

    acknowledged, last = sum(batches[:-1], []), batches[-1]
    journal = Journal(state)
    found = listed(journal)
    kept = len(found) - len(acknowledged)
    assert found == acknowledged + last[:kept] and 0 <= kept <= len(last)
    journal.append([record(5000)])
    journal.close()
    assert reopened(state) == [*found, record(5000)]


@settings(max_examples=100, deadline=None)
@given(data=st.data(), compact=st.booleans())
def test_damage_to_what_was_acknowledged_is_told_with_its_line(tmp_path_factory, data, compact):
    state = tmp_path_factory.mktemp("damage")
    lengths = written(state, [[record(0)], [record(1), record(2)], [record(3)]])
    if compact:
        journal = Journal(state)
        journal.compact()
        journal.close()
    path = state / JOURNAL_FILE
    content = bytearray(path.read_bytes())
    place = data.draw(st.integers(lengths[0], len(content) - 2))  # the last byte's loss is a torn line
    content[place] ^= data.draw(st.integers(1, 255))
    if content[place] == 0 and place >= content.rindex(b"\n", 0, len(content) - 1):
        return  # a zero in the last line is what a crash leaves
    path.write_bytes(content)
    line = bytes(content[:place]).count(b"\n") + 1
    with pytest.raises(UserError, match=f"line {line}: damaged"):
        Journal(state)
    lines = path.read_bytes().split(b"\n")
    if content.count(b"\n") == 5:  # the remedy: without the line it opens, with all others
        path.write_bytes(b"\n".join(lines[: line - 1] + lines[line:]))
        assert reopened(state) == [record(n) for n in range(4) if n != line - 2]


@pytest.mark.parametrize("content", [b"", b"\n", b"{}\n", b"a,b\n1,2\n", bytes(100)])
def test_a_file_that_is_no_journal_is_left_alone(state, content):
    state.mkdir()
    (state / JOURNAL_FILE).write_bytes(content)
    with pytest.raises(UserError, match="line 1: not the header"):
        Journal(state)
    assert (state / JOURNAL_FILE).read_bytes() == content


def test_a_journal_of_another_release_is_left_alone(state, monkeypatch):
    monkeypatch.setattr(journal_module, "JOURNAL_FORMAT", 2)
    written(state, [[record(1)]])
    monkeypatch.undo()
    with pytest.raises(UserError, match="has format 2, this release reads 1"):
        Journal(state)


# Disks that fail. `pwrite`, `fsync` and `ftruncate` are replaced by failing ones; a limit of the system follows below.


class Failing:
    """Stands for a function of `os`: fails while `on`, after `part` bytes of a write went through."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, name: str, code: int, part: int = 0) -> None:
        self.on, self.code, self.part = True, code, part
        self.real = getattr(os, name)
        monkeypatch.setattr(journal_module.os, name, self)

    def __call__(self, handle, *args):
        if not self.on:
            return self.real(handle, *args)
        if self.part:
            done, self.part = self.real(handle, bytes(args[0])[: self.part], *args[1:]), 0
            return done
        raise OSError(self.code, os.strerror(self.code))


@pytest.mark.parametrize("part", [0, 1, 30, 60])
def test_a_full_disk_refuses_the_change_and_leaves_the_file_as_it_was(state, monkeypatch, part):
    journal = Journal(state)
    journal.append([record(1)])
    before = journal.path.read_bytes()
    failing = Failing(monkeypatch, "pwrite", errno.ENOSPC, part)
    with pytest.raises(NotStored, match="not stored.*no space left"):
        journal.append([record(2), record(3)])
    assert journal.path.read_bytes() == before
    assert listed(journal) == [record(1)]
    failing.on = False
    journal.append([record(4)])
    assert listed(journal) == [record(1), record(4)]
    journal.close()
    assert reopened(state) == [record(1), record(4)]


def test_a_failing_fsync_refuses_the_change(state, monkeypatch):
    journal = Journal(state)
    failing = Failing(monkeypatch, "fsync", errno.EIO)
    with pytest.raises(NotStored, match="Input/output error; check the disk"):
        journal.append([record(1)])
    failing.on = False
    journal.append([record(2)])
    journal.close()
    assert reopened(state) == [record(2)]


def test_what_cannot_even_be_cut_back_is_cut_back_before_the_next_change(state, monkeypatch):
    journal = Journal(state)
    write = Failing(monkeypatch, "pwrite", errno.EIO, part=20)
    cut = Failing(monkeypatch, "ftruncate", errno.EIO)
    for _ in range(2):
        with pytest.raises(NotStored):
            journal.append([record(1)])
    assert journal.path.stat().st_size > journal.size
    write.on = False
    with pytest.raises(NotStored):
        journal.append([record(2)])
    cut.on = False
    journal.append([record(3)])
    assert journal.path.stat().st_size == journal.size
    journal.close()
    assert reopened(state) == [record(3)]


LIMITED = """
import json, resource, sys
from lsvcr.serving.journal import Journal, NotStored
journal = Journal(sys.argv[1])
limits = resource.getrlimit(resource.RLIMIT_FSIZE)
resource.setrlimit(resource.RLIMIT_FSIZE, (5000, limits[1]))
stored = []
for number in range(100):
    try:
        journal.append([{"kind": "video", "id": number, "text": "x" * 100}])
        stored.append(number)
    except NotStored as error:
        reason = str(error)
resource.setrlimit(resource.RLIMIT_FSIZE, limits)
journal.append([{"kind": "video", "id": 1000, "text": "later"}])
print(json.dumps([stored + [1000], reason]))
"""


def test_a_real_limit_on_the_size_of_files(state):
    """RLIMIT_FSIZE in a process of its own: the system writes what fits and fails then."""
    child = subprocess.run([sys.executable, "-c", LIMITED, state], capture_output=True, text=True, check=True)
    stored, reason = json.loads(child.stdout)
    assert 10 < len(stored) < 100 and "may not grow" in reason
    assert [one["id"] for one in reopened(state)] == stored


# Compaction


def test_compaction_keeps_the_last_line_of_each_id_in_order(state):
    journal = Journal(state)
    for round_ in range(40):
        journal.append([record(number, f"round {round_}") for number in (3, 1, 2)])
        if round_ == 0:
            assert not journal.compact_if_long()
    journal.forget([("video", "2")])
    size = journal.size
    assert journal.compact_if_long() and journal.size < size / 20
    expected = [record(3, "round 39"), record(1, "round 39")]
    assert listed(journal) == expected and journal.lines == 2
    assert not journal.compact_if_long()
    name = journal.state
    journal.append([record(9)])
    journal.close()
    again = Journal(state)
    assert listed(again) == [*expected, record(9)] and again.state == name
    again.close()
    assert sorted(path.name for path in state.iterdir()) == ["journal.jsonl", "lock"]


def test_half_superseded_is_not_yet_more_than_half(state):
    journal = Journal(state)
    journal.append([record(number) for number in range(100)])
    journal.append([record(number) for number in range(100)])
    assert not journal.compact_if_long()
    journal.append([record(0)])
    assert journal.compact_if_long() and journal.lines == 100
    journal.close()


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO])
def test_compaction_that_fails_changes_nothing_and_is_not_tried_at_every_change(
    state, monkeypatch, caplog, code
):
    journal = Journal(state)
    for _ in range(100):
        journal.append([record(1), record(2)])
    before = journal.path.read_bytes()
    failing = Failing(monkeypatch, "fsync", code)
    assert not journal.compact_if_long() and "could not be compacted" in caplog.text
    assert journal.path.read_bytes() == before
    failing.on = False
    assert not journal.compact_if_long()
    for _ in range(30):
        journal.append([record(1), record(2)])
    assert journal.compact_if_long()
    journal.close()
    assert reopened(state) == [record(1), record(2)]


def test_a_rename_that_may_not_last_holds_back_the_next_change(state, monkeypatch):
    """Until the folder is on disk, a power cut could bring the old file back, without what was added to the new."""
    journal = Journal(state)
    journal.append([record(1)])
    journal.compact()
    monkeypatch.setattr(journal_module, "sync_folder", Failing(monkeypatch, "listdir", errno.EIO))
    with pytest.raises(NotStored):
        journal.append([record(2)])
    monkeypatch.undo()
    journal.append([record(3)])
    journal.close()
    assert reopened(state) == [record(1), record(3)]


# Death


WRITER = """
import os, sys, threading
from lsvcr.serving.journal import Journal
from lsvcr.serving.together import Together
journal = Journal(sys.argv[1])
turn = int(sys.argv[2])
def work(batch):
    journal.append(batch)
    journal.compact_if_long()
    return [None] * len(batch)
together = Together(work)
def write(thread):
    for number in range(10**9):
        # New ids at first, then a few again and again, so that the journal is compacted often.
        one = f"{turn}-{thread}-{number}" if number < 20 else f"{thread}-{number % 5}"
        together.do({"kind": "video", "id": one, "stamp": [turn, number], "text": one * 50})
        os.write(1, f"{one} {turn} {number}\\n".encode())
threads = [threading.Thread(target=write, args=(n,), daemon=True) for n in range(4)]
for thread in threads: thread.start()
for thread in threads: thread.join()
"""
KILLS = 12


def test_kill_at_any_moment_keeps_what_was_acknowledged(state):
    """A child with four writing threads is killed again and again; each new one goes on with the same folder."""
    chance = random.Random(7)
    acknowledged: dict[str, list[int]] = {}
    for turn in range(KILLS):
        child = subprocess.Popen([sys.executable, "-c", WRITER, state, str(turn)], stdout=subprocess.PIPE)
        first = child.stdout.readline()  # it is at work
        killer = threading.Timer(chance.uniform(0.0, 0.25), child.send_signal, [signal.SIGKILL])
        killer.start()
        said = first + child.stdout.read()
        killer.join()
        assert child.wait() == -signal.SIGKILL
        for line in said.decode().splitlines():
            one, *stamp = line.split()
            acknowledged[one] = [int(part) for part in stamp]
        stored = {one["id"]: one for one in reopened(state)}
        for one, stamp in acknowledged.items():
            assert stored[one]["stamp"] >= stamp, f"{one} is older than what was acknowledged"
        for one, kept in stored.items():
            assert kept["text"] == one * 50
        # At most one change a thread was under way.
        assert len(stored.keys() - acknowledged.keys()) <= 4 * (turn + 1)
    assert len(acknowledged) > KILLS * 4
