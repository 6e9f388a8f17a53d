"""scripts/setup.sh with make-believe interpreters: what it says is missing, and when it does nothing."""

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.guards.source import ROOT

TOOLS = "bash env sed awk grep cat dirname basename id sha256sum mkdir rm mv cp chmod tail df flock sleep nproc".split()

FAKE_PYTHON = """#!/usr/bin/env bash
printf 'python %s\\n' "$*" >>"$CALLS"
case "$*" in
    -V) echo "Python 3.11.0" ;;
    *"print(sys.version)"*) echo "3.11.0 make-believe" ;;
    "-m venv "*)
        mkdir -p "$3/bin"
        cp "$0" "$3/bin/python"
        printf 'home = x\\n' >"$3/pyvenv.cfg"
        cp "$(dirname "$0")/fake-uv" "$3/bin/uv"
        if [ -n "${KILLED_IN_VENV:-}" ]; then exit 1; fi ;;
    "-m pip install"*) if [ -n "${PIP_SAYS:-}" ]; then echo "$PIP_SAYS"; exit 1; fi ;;
    "-m pip config list")
        printf '%s\\n' "global.find-links='/from/file'" ":env:.find-links='/wheels /more/wheels'" \\
            "global.index-url='https://mirror.example/simple'" ;;
esac
"""
FAKE_UV = """#!/usr/bin/env bash
printf 'uv %s | %s | %s\\n' "$*" "${UV_FIND_LINKS:-}" "${UV_DEFAULT_INDEX:-}" >>"$CALLS"
if [ -n "${UV_SAYS:-}" ]; then echo "$UV_SAYS"; exit 1; fi
"""
OLD_PYTHON = """#!/usr/bin/env bash
case "$*" in -V) echo "Python 3.8.10" ;; *) exit 1 ;; esac
"""
NO_VENV = """#!/usr/bin/env bash
case "$*" in *"import venv"*) exit 1 ;; -V) echo "Python 3.11.0" ;; *"print(\\""*) echo python3.11-venv ;; esac
"""
FULL_DISK = """#!/usr/bin/env bash
printf 'Filesystem 1024-blocks Used Available Capacity Mounted\\n/dev/x 100 1 2097152 1%% /\\n'
"""


class Clone:
    """A folder with the files setup.sh needs, and a PATH with chosen tools alone."""

    def __init__(self, folder: Path) -> None:
        self.root, self.bin, self.calls = folder / "a clone", folder / "bin", folder / "calls"
        (self.root / "scripts").mkdir(parents=True)
        self.bin.mkdir()
        shutil.copy(ROOT / "scripts" / "setup.sh", self.root / "scripts")
        for name in ("requirements.lock", "requirements-nodeps.lock", "pyproject.toml"):
            shutil.copy(ROOT / name, self.root)
        for name in TOOLS:
            if found := shutil.which(name):
                (self.bin / name).symlink_to(found)
        self.tool("fake-uv", FAKE_UV)

    def tool(self, name: str, text: str) -> None:
        """Put a program of this name into PATH in place of what is there."""
        (self.bin / name).unlink(missing_ok=True)
        (self.bin / name).write_text(text)
        (self.bin / name).chmod(0o755)

    def setup(self, *words: str, **environment: str) -> subprocess.CompletedProcess:
        """Run setup.sh; forget earlier calls of the make-believe programs."""
        self.calls.write_text("")
        return subprocess.run(
            ["bash", str(self.root / "scripts" / "setup.sh"), *words],
            capture_output=True,
            text=True,
            env={"PATH": str(self.bin), "HOME": str(self.root), "CALLS": str(self.calls), **environment},
        )

    def installed(self) -> str:
        """What the make-believe programs were asked."""
        return self.calls.read_text()


@pytest.fixture
def clone(tmp_path: Path) -> Clone:
    """A clone where everything is there."""
    clone = Clone(tmp_path)
    clone.tool("python3", FAKE_PYTHON)
    return clone


def refuses(done: subprocess.CompletedProcess, *parts: str) -> None:
    assert done.returncode == 2, done.stdout + done.stderr
    for part in ["error: ", *parts]:
        assert part in done.stderr


def test_installs_once_and_then_does_nothing(clone):
    done = clone.setup()
    assert done.returncode == 0, done.stderr
    assert "environment is ready" in done.stdout
    calls = clone.installed()
    assert "uv pip install --no-config --python" in calls and "requirements.lock" in calls
    assert "--no-deps -r" in calls and "--no-build-isolation -e" in calls
    started = time.monotonic()
    again = clone.setup()
    assert time.monotonic() - started < 2
    assert again.returncode == 0 and "ready" in again.stdout
    assert "install" not in clone.installed() and "venv" not in clone.installed()
    assert clone.setup("--quiet").stdout == ""


def test_the_places_pip_looks_in_are_told_to_uv(clone):
    clone.setup()
    line = next(line for line in clone.installed().splitlines() if line.startswith("uv "))
    assert line.endswith("| /wheels,/more/wheels | https://mirror.example/simple")


def test_a_changed_lock_is_installed_into_the_same_environment(clone):
    clone.setup()
    with (clone.root / "requirements.lock").open("a") as lock:
        lock.write("# a change\n")
    clone.setup()
    assert "install" in clone.installed() and "-m venv" not in clone.installed()
    clone.setup()
    assert "install" not in clone.installed()


@pytest.mark.parametrize("leftover", ["unfinished", "no python", "killed in venv"])
def test_an_interrupted_setup_starts_afresh(clone, leftover):
    if leftover == "killed in venv":
        assert clone.setup(KILLED_IN_VENV="1").returncode == 2
    else:
        clone.setup()
        if leftover == "unfinished":
            (clone.root / ".venv" / "lsvcr-unfinished").touch()
        else:
            (clone.root / ".venv" / "bin" / "python").unlink()
    (clone.root / ".venv" / "half-a-package").touch()
    assert clone.setup().returncode == 0
    assert "-m venv" in clone.installed() and not (clone.root / ".venv" / "half-a-package").exists()


def test_a_moved_folder_gets_a_new_environment(clone):
    clone.setup()
    moved = clone.root.with_name("moved")
    clone.root.rename(moved)
    clone.root = moved
    assert clone.setup().returncode == 0
    assert "-m venv" in clone.installed()


def test_pip_is_the_fallback_of_uv(clone):
    done = clone.setup(UV_SAYS="unexpected argument")
    assert done.returncode == 0 and "trying pip" in done.stdout
    assert "python -m pip install --disable-pip-version-check -r" in clone.installed()


@pytest.mark.parametrize(
    "said, part",
    [
        (
            "Failed to establish a new connection: [Errno -3] Temporary failure in name resolution",
            "check the network",
        ),
        (
            "ERROR: Could not install packages due to an OSError: [Errno 28] No space left on device",
            "disk is full",
        ),
        ("ERROR: No matching distribution found for torch==2.13.0", "try another Python"),
        ("something else", "end of the log is above"),
    ],
)
def test_a_failed_installation_is_explained_and_not_marked_as_done(clone, said, part):
    refuses(clone.setup(PIP_SAYS=said, UV_SAYS=said), part, said, "lsvcr-install.log")
    assert not (clone.root / ".venv" / "lsvcr-installed").exists()
    assert clone.setup().returncode == 0


def test_python_too_old(tmp_path):
    clone = Clone(tmp_path)
    clone.tool("python3", OLD_PYTHON)
    refuses(clone.setup(), "Python 3.10 or newer", "3.8.10", "PYTHON=")
    refuses(clone.setup(PYTHON="python3"), "PYTHON=python3 is Python 3.8.10")


def test_a_newer_python_beside_an_old_one_is_found(tmp_path):
    clone = Clone(tmp_path)
    clone.tool("python3", OLD_PYTHON)
    clone.tool("python3.12", FAKE_PYTHON)
    assert clone.setup().returncode == 0


def test_no_python_at_all(tmp_path):
    clone = Clone(tmp_path)
    refuses(clone.setup(), "no Python found")
    refuses(clone.setup(PYTHON="python9"), "PYTHON=python9 is not an interpreter")


def test_no_venv_module(tmp_path):
    clone = Clone(tmp_path)
    clone.tool("python3", NO_VENV)
    refuses(clone.setup(), "no venv module", "python3.11-venv")
    assert not (clone.root / ".venv").exists()


def test_no_space(clone):
    clone.tool("df", FULL_DISK)
    refuses(clone.setup(), "6 GB", "2048 MB are free")
    assert not (clone.root / ".venv").exists()
    assert clone.setup(LSVCR_MIN_DISK_GB="2").returncode == 0


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else")
def test_a_folder_of_somebody_else(clone):
    for folder in [clone.root, *clone.root.parents]:
        if folder.owner() == "root" and folder != Path("/"):
            folder.chmod(folder.stat().st_mode | 0o755)
    done = subprocess.run(
        [shutil.which("bash"), str(clone.root / "scripts" / "setup.sh")],
        capture_output=True,
        text=True,
        user="nobody",
        env={"PATH": str(clone.bin), "CALLS": "/dev/null"},
    )
    refuses(done, "cannot be written to by nobody")


def test_an_unreachable_index_is_told(tmp_path):
    """The real pip, pointed at a port where nobody listens."""
    clone = Clone(tmp_path)
    (clone.bin / "python3").symlink_to(sys.executable)
    done = clone.setup(
        PIP_INDEX_URL="http://127.0.0.1:9/simple",
        PIP_RETRIES="0",
        PIP_CONFIG_FILE="/dev/null",
        LSVCR_MIN_DISK_GB="1",
    )
    refuses(done, "cannot be reached", "PIP_INDEX_URL")


def test_an_unknown_argument(clone):
    refuses(clone.setup("--fast"), "unknown argument --fast")
    assert "PYTHON=python3.12" in clone.setup("--help").stdout
