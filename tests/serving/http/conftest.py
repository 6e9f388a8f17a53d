"""Bundles and servers that tests share."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from lsvcr.cli import main
from tests.serving.bundles import make_bundle
from tests.serving.http.process import ServerProcess


@pytest.fixture(scope="session")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """40 videos (ids 1007, 1014, ...), 120 comments (5, 10, ...), 6 users (101, ...), both tasks."""
    path = tmp_path_factory.mktemp("served") / "bundle"
    make_bundle(path)
    return path


@pytest.fixture(scope="module")
def server(bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    """A server with the default settings and no admin token; every test of a module shares it."""
    running = ServerProcess(bundle, log=tmp_path_factory.mktemp("log") / "log")
    yield running
    assert running.stop() == 0


@pytest.fixture
def start(bundle: Path, tmp_path: Path) -> Iterator[Callable[..., ServerProcess]]:
    """Starts a server with these flags; all of them are ended after the test."""
    running: list[ServerProcess] = []

    def begin(*flags: str, folder: Path = bundle, **more: Any) -> ServerProcess:
        made = ServerProcess(folder, *flags, log=tmp_path / f"log{len(running)}", **more)
        running.append(made)
        return made

    yield begin
    for each in running:
        if each.process.poll() is None:
            each.process.kill()
            each.process.wait()


@pytest.fixture
def refused(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Runs the command in this process, where it is to end before it serves; what it says."""
    for name in ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS"):
        monkeypatch.setenv(name, "1")  # so that the command leaves the environment alone

    def run(*words: str) -> str:
        assert main(["serve", *words]) == 2
        return capfd.readouterr().err

    return run
