"""A machine that only answers: the extra `serve` alone, in an environment of its own."""

import json
import shutil
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest

from lsvcr.serving.requests import answer_json
from lsvcr.serving.runtime import Recommender
from tests.guards.source import ROOT
from tests.ports import free_port
from tests.serving.bundles import make_bundle

ABSENT = ("torch", "transformers", "pandas", "polars", "deepspeed")
HISTORY = {"video_history": [1007, 1014], "comment_history": [{"video": 1007, "comments": [5]}]}
UNREACHABLE = (
    "Temporary failure",
    "NewConnectionError",
    "No matching distribution",
    "ConnectionError",
    "timed out",
)


@pytest.fixture(scope="module")
def fresh(tmp_path_factory) -> Path:
    """bin/ of an environment with `lsvcr[serve]` at the locked versions."""
    folder = tmp_path_factory.mktemp("fresh")
    shutil.copytree(ROOT / "lsvcr", folder / "source" / "lsvcr", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, folder / "source")
    subprocess.run([sys.executable, "-m", "venv", folder / "venv"], check=True)
    pip = [folder / "venv/bin/python", "-m", "pip", "install", "--disable-pip-version-check", "-q"]
    done = subprocess.run(
        [*pip, "-c", ROOT / "requirements.lock", f"{folder / 'source'}[serve]"],
        capture_output=True,
        text=True,
    )
    if done.returncode and any(sign in done.stderr for sign in UNREACHABLE):
        pytest.skip(f"no package index can be reached: {done.stderr.splitlines()[-1]}")
    assert done.returncode == 0, done.stderr
    return folder / "venv" / "bin"


@pytest.fixture(scope="module")
def bundle(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("bundle") / "b"
    make_bundle(path, seed=4)
    return path


def test_nothing_of_the_training_side_is_there(fresh):
    code = f"import importlib.util as u; print([n for n in {ABSENT} if u.find_spec(n)])"
    assert subprocess.check_output([fresh / "python", "-c", code], text=True).strip() == "[]"


def test_it_answers_from_the_shell(fresh, bundle, tmp_path):
    words = ["recommend", bundle, "--history", json.dumps(HISTORY), "--json"]
    out = subprocess.check_output([fresh / "lsvcr", *words], text=True, cwd=tmp_path)
    assert json.loads(out) == answer_json(Recommender.load(bundle).recommend(**HISTORY))


def test_it_answers_over_http_and_stops(fresh, bundle, tmp_path):
    port = free_port()
    server = subprocess.Popen(
        [fresh / "lsvcr", "serve", bundle, "--port", port],
        stderr=subprocess.PIPE,
        text=True,
        cwd=tmp_path,
    )
    try:
        assert server.stderr is not None
        while line := server.stderr.readline():
            if port in line:
                break
        request = urllib.request.Request(
            f"http://127.0.0.1:{port}/v1/recommend",
            json.dumps(HISTORY).encode(),
            {"Content-Type": "application/json"},
        )
        with urllib.request.urlopen(request, timeout=30) as answer:
            assert json.load(answer) == answer_json(Recommender.load(bundle).recommend(**HISTORY))
    finally:
        server.terminate()
        server.communicate(timeout=60)
    assert server.returncode == 0
