"""How an entry ends: a sentence and a code for what the user can mend, a traceback for our defects."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from lsvcr.utils import errors
from lsvcr.utils.errors import UserError, exit_code
from tests.guards.source import ROOT


def raiser(error: BaseException):
    def run() -> None:
        raise error

    return run


def test_success_is_zero_and_arguments_are_passed_on():
    seen = []
    assert exit_code(seen.append, 3) == 0 and seen == [3]


def test_a_user_error_is_a_sentence_and_code_2(capsys):
    assert exit_code(raiser(UserError("x.csv, line 3: too few fields"))) == 2
    assert capsys.readouterr().err == "error: x.csv, line 3: too few fields\n"


def test_control_c_is_code_130(capsys):
    assert exit_code(raiser(KeyboardInterrupt())) == 130
    assert "Ctrl-C" in capsys.readouterr().err


def test_our_own_defects_keep_their_traceback():
    with pytest.raises(ZeroDivisionError):
        exit_code(raiser(ZeroDivisionError()))


def test_other_processes_wait_before_they_speak(capsys, monkeypatch):
    waited = []
    monkeypatch.setattr(errors.time, "sleep", waited.append)
    monkeypatch.setenv("RANK", "1")
    assert exit_code(raiser(UserError("no such folder"))) == 2
    assert waited and capsys.readouterr().err == "process 1: error: no such folder\n"


def test_a_closed_pipe_is_no_error():
    code = (
        "import sys\nfrom lsvcr.utils.errors import exit_code\n"
        "def run():\n    for _ in range(100000): sys.stdout.write('line\\n')\n"
        "sys.exit(exit_code(run))"
    )
    done = subprocess.run(
        ["bash", "-c", f"set -o pipefail; '{sys.executable}' -c \"$0\" | head -n 1", code],
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "line\n", "")


SCRIPT = """
import os, sys, time
from lsvcr.utils.errors import UserError, exit_code
def run(who):
    if who in ("all", os.environ["RANK"]):
        raise UserError("no such dataset")
    if who == "crash":
        raise ValueError("a defect")
    time.sleep(60)
sys.exit(exit_code(run, sys.argv[1]))
"""


@pytest.mark.parametrize(
    "who, code, expected",
    [
        ("all", 2, "error: no such dataset\n"),
        ("1", 2, "process 1: error: no such dataset\n"),
        ("crash", 1, None),
    ],
)
def test_launched_processes_end_in_one_sentence(tmp_path: Path, who, code, expected):
    (tmp_path / "job.py").write_text(SCRIPT)
    launcher = [sys.executable, "-m", "lsvcr.utils.launch", "torchrun"]
    rendezvous = ["--rdzv_backend", "c10d", "--rdzv_endpoint", "localhost:0", "--nproc_per_node", "2"]
    done = subprocess.run(
        [*launcher, *rendezvous, str(tmp_path / "job.py"), who], capture_output=True, text=True
    )
    assert done.returncode == code
    if expected is None:
        assert "ValueError: a defect" in done.stderr
        last = done.stderr.splitlines()[-1]  # of two that fail at once either is the first
        assert re.fullmatch(r"error: process [01] failed with exit code 1, .* processes were stopped", last)
    else:
        assert done.stderr == expected


@pytest.mark.parametrize(
    ("body", "code"),
    [
        ("sys.exit(0)", 0),
        ("sys.stderr.write('error: what to do\\n'); sys.exit(2)", 2),
        ("os.kill(os.getpid(), signal.SIGKILL)", 137),
    ],
)
def test_one_process_under_accelerate_keeps_its_exit_code(tmp_path: Path, body, code):
    (tmp_path / "job.py").write_text(f"import os, signal, sys\n{body}\n")
    config = str(ROOT / "config" / "accelerate_config.yaml")
    launcher = [sys.executable, "-m", "lsvcr.utils.launch", "accelerate", "--config_file", config]
    done = subprocess.run([*launcher, str(tmp_path / "job.py")], capture_output=True, text=True)
    assert done.returncode == code
    assert "Traceback" not in done.stderr and ("what to do" in done.stderr) == (code == 2)


def test_the_launcher_names_its_use(capsys):
    from lsvcr.utils.launch import main

    assert main([]) == 2 and "torchrun|accelerate" in capsys.readouterr().err
