"""The processes of a comparison: one fails, one is killed, the command itself is stopped or killed."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from lsvcr import cli
from lsvcr.experiments.compare import compare
from lsvcr.experiments.compare_job import Job, JobFailed, run_worker
from lsvcr.utils.errors import UserError
from tests.experiments.compare_runs import (
    SASREC,
    asked,
    flags,
    forget_accelerate,
    in_process,
    one_thread,
    write_world,
)
from tests.guards.source import ROOT
from tests.processes import alive

SECONDS = 240
"""Longer than anything here takes on a busy machine."""

EPOCHS = 60
LONG = SASREC.replace("num_train_epochs: 1", f"num_train_epochs: {EPOCHS}") + "patience: 1000\n"


@pytest.fixture(scope="module")
def world(tiny_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny world, and a model whose training can be interrupted."""
    folder = write_world(tmp_path_factory.mktemp("compare"), tiny_data)
    (folder / "config" / "baselines" / "long.yaml").write_text(LONG)
    return folder


def start(world: Path, models: str, out: Path, jobs: int = 1) -> "subprocess.Popen[str]":
    """The command, as a user types it."""
    words = flags(asked(world, models, out=str(out), jobs=jobs))
    return subprocess.Popen(
        [sys.executable, "-m", "lsvcr", "compare", *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
    )


def until(ready, what: str) -> None:
    """Wait for something that comes soon."""
    end = time.monotonic() + SECONDS
    while not ready():
        assert time.monotonic() < end, f"never: {what}"
        time.sleep(0.02)


def steps_of(out: Path) -> list[int]:
    """Steps in the log of the one run of a comparison; none before there is one."""
    logs = list(out.glob("runs/*/*/run/metrics.jsonl"))
    lines = logs[0].read_text().splitlines() if logs else []
    return [json.loads(line)["step"] for line in lines if line.endswith("}")]


def children(process: int) -> list[int]:
    """Processes that this one has started."""
    threads = Path(f"/proc/{process}/task").iterdir()
    return [int(word) for thread in threads for word in (thread / "children").read_text().split()]


def test_a_model_that_fails_is_told_in_the_table_and_by_the_code(world, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    settings = asked(world, "popularity,sasrec:broken", out=str(tmp_path))
    with pytest.raises(SystemExit) as ended:
        cli.main(["compare", *flags(settings)])
    shown, said = capsys.readouterr()
    assert ended.value.code == 1
    why = "--hidden 16 must be a multiple of --heads 3"
    assert f"Failed: sasrec-broken: {why}" in shown and "sasrec-broken failed" in said
    rows = {row["name"]: row for row in json.loads((tmp_path / "compare.json").read_text())["rows"]}
    assert rows["sasrec-broken"]["failed"] == why and not rows["popularity"]["failed"]
    assert rows["popularity"]["answer_ms"] > 0
    (log,) = (tmp_path / "logs").glob("sasrec-broken-*.log")
    assert why in log.read_text()


def test_what_was_stopped_goes_on_and_no_worker_stays_behind(world, tmp_path, monkeypatch):
    done = 0
    for blow, code, jobs in ((signal.SIGINT, 130, 1), (signal.SIGINT, 130, 2), (signal.SIGKILL, -9, 2)):
        command = start(world, "sasrec:long", tmp_path, jobs)
        until(lambda before=done: len(steps_of(tmp_path)) > before, "another epoch")
        (worker,) = children(command.pid)
        command.send_signal(blow)
        _, said = command.communicate(timeout=SECONDS)
        assert command.returncode == code, said
        assert ("going on" in said) == (done > 0)
        until(lambda process=worker: not alive(process), "the worker's end")
        assert not (tmp_path / "compare.json").exists() and not list(tmp_path.glob("runs/*/*/outcome.json"))
        done = len(steps_of(tmp_path))
    in_process(monkeypatch)
    with one_thread():
        (row,) = compare(asked(world, "sasrec:long", out=str(tmp_path)))["rows"]
    forget_accelerate()
    (log,) = (tmp_path / "logs").glob("sasrec-long-*.log")
    assert "going on after epoch" in log.read_text()
    steps = steps_of(tmp_path)
    assert done < len(steps) == EPOCHS and steps == sorted(set(steps)) and not row["failed"]


def test_as_many_models_train_at_once_as_are_asked_for(world, tmp_path, monkeypatch):
    pair, lock, running, most = threading.Barrier(2, timeout=SECONDS), threading.Lock(), set(), []

    def meet(job: Job, tell, threads: int) -> None:
        with lock:
            running.add(job.key)
            most.append((len(running), threads))
        pair.wait()  # for ever, if one came alone
        with lock:
            running.discard(job.key)
        pair.wait()
        raise JobFailed("met another")

    monkeypatch.setattr("lsvcr.experiments.compare_train.perform", meet)
    monkeypatch.setattr("torch.get_num_threads", lambda: 6)
    rows = "sasrec,lsvcr-id"
    with pytest.raises(
        UserError, match="no model could be trained: sasrec: met another; lsvcr-id: met another"
    ):
        compare(asked(world, rows, out=str(tmp_path), seeds=3, jobs=2))
    assert max(count for count, _ in most) == 2 and len(most) == 6
    assert {threads for _, threads in most} == {3}


def test_what_a_model_is_does_not_depend_on_how_many_train_beside_it(world, tmp_path, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    found = [
        compare(asked(world, "popularity,sasrec,item_knn", out=str(tmp_path / str(jobs)), jobs=jobs))["rows"]
        for jobs in (1, 3)
    ]
    one, three = ([(row["name"], row["metrics"]["ndcg@10"]["by_seed"]) for row in rows] for rows in found)
    assert one == three


def test_a_killed_worker_is_a_failure_that_names_the_signal(tmp_path, monkeypatch):
    killer = "import os, signal, sys; print('half way', flush=True); os.kill(os.getpid(), signal.SIGKILL)"
    monkeypatch.setattr(sys, "executable", write_program(tmp_path, killer))
    with pytest.raises(JobFailed, match="ended by SIGKILL, probably out of memory"):
        run_worker([], tmp_path / "logs" / "x.log", print)
    assert (tmp_path / "logs" / "x.log").read_text() == "half way\n"


def test_a_defect_is_told_by_its_last_line_of_this_attempt(tmp_path, monkeypatch):
    log = tmp_path / "x.log"
    log.write_text("error: of an earlier attempt\n")
    monkeypatch.setattr(sys, "executable", write_program(tmp_path, "raise RuntimeError('it broke here')"))
    with pytest.raises(JobFailed, match="^RuntimeError: it broke here$"):
        run_worker([], log, print)
    assert log.read_text().startswith("error: of an earlier attempt")


def test_the_last_line_of_a_log_is_told_while_it_is_waited_for(tmp_path, monkeypatch):
    monkeypatch.setattr("lsvcr.experiments.compare_job.PLAIN_SECONDS", 0.05)
    go = tmp_path / "go"
    said = "07:00:00 epoch 1\\n| a table |"
    wait = f"while not os.path.exists({str(go)!r}): time.sleep(0.01)"
    slow = f"import os, time; print('{said}', flush=True)\n{wait}"
    monkeypatch.setattr(sys, "executable", write_program(tmp_path, slow))
    told = []

    def tell(line: str) -> None:
        told.append(line)
        go.touch()

    run_worker([], tmp_path / "x.log", tell)
    assert told == ["epoch 1"]


def write_program(folder: Path, code: str) -> str:
    """An executable that runs this code, whatever its arguments are."""
    program = folder / "program"
    program.write_text(f"#!{sys.executable}\n{code}\n")
    program.chmod(0o755)
    return str(program)
