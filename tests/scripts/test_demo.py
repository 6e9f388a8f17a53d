"""scripts/demo.sh with the tiny world: stopped, gone on with, and what it refuses."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.guards.source import ROOT

TINY = ("PRESET=tiny", "BASE_MODEL_PATH=tiny-random")


class Demo:
    """A clone whose environment is that of the tests, and a demo in the folder beside it."""

    def __init__(self, folder: Path) -> None:
        self.root, self.out = folder / "my clone", folder / "my demo"
        shutil.copytree(ROOT / "scripts", self.root / "scripts")
        (self.root / "scripts" / "setup.sh").write_text("exit 0\n")
        binaries = self.root / ".venv" / "bin"
        binaries.mkdir(parents=True)
        (binaries / "activate").write_text(
            f'PATH="{Path(sys.executable).parent}:$PATH"\nexport PYTHONPATH="{ROOT}"\n'
        )
        for name in ("lsvcr", "config", "train.py", "finetune.py"):
            (self.root / name).symlink_to(ROOT / name)

    def start(self, *words: str) -> subprocess.Popen:
        """The demo in a session of its own, with one stream for all it says."""
        return subprocess.Popen(
            ["bash", str(self.root / "scripts" / "demo.sh"), f"OUT={self.out}", *words],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            start_new_session=True,
        )

    def call(self, *words: str) -> tuple[int, str]:
        """Run to the end: exit status and what it said."""
        process = self.start(*words)
        said, _ = process.communicate(timeout=600)
        return process.returncode, said


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Demo]:
    """One demo for all tests of this file."""
    yield Demo(tmp_path_factory.mktemp("demo"))


def trainings(demo: Demo) -> list[str]:
    """Command lines of processes that train into the demo's folder."""
    listed = subprocess.run(["ps", "-ewwo", "args"], capture_output=True, text=True, check=True).stdout
    return [line for line in listed.splitlines() if "finetune.py" in line and str(demo.out) in line]


def test_stopped_in_stage_two_it_takes_its_trainings_along_and_goes_on_later(demo: Demo) -> None:
    process = demo.start(*TINY)
    deadline = time.monotonic() + 300
    while not trainings(demo):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.2)
    os.kill(process.pid, signal.SIGTERM)
    said, _ = process.communicate(timeout=60)
    assert process.returncode == -signal.SIGTERM and "It was stopped from outside" in said
    deadline = time.monotonic() + 30
    while trainings(demo):
        assert time.monotonic() < deadline, trainings(demo)
        time.sleep(0.2)

    status, said = demo.call(*TINY)
    assert status == 0, said
    assert said.count("done before, used again") >= 4  # simulate, prepare, vectors, stage one
    for label in ("popularity", "ids only", "untuned text", "both stages"):
        assert label in (demo.out / "table.txt").read_text()
    for name in ("ids", "untuned", "aligned"):
        for task in ("Rec", "CommRank"):
            protocols = json.loads((demo.out / name / task / "metrics.json").read_text())["protocols"]
            assert set(protocols) == {"full", "sampled"}
    manifest = json.loads((demo.out / "bundle" / "manifest.json").read_text())
    assert set(manifest["parts"]) == {"rec", "comm_rank"} and manifest["text_encoder"]
    assert manifest["counts"]["users"] > 0 and f"lsvcr serve {demo.out}/bundle" in said


def test_the_bundle_answers(demo: Demo) -> None:
    from lsvcr.serving.runtime import Recommender

    recommender = Recommender.load(demo.out / "bundle")
    (user, *_) = recommender.users(1)
    items = recommender.recommend_user(user).items
    assert len(items) == 10 and all(item.title for item in items)


def test_what_is_finished_is_not_done_again(demo: Demo) -> None:
    status, said = demo.call(*TINY)
    assert status == 0 and said.count("done before, used again") == 11, said


def test_a_training_that_fails_is_named_with_the_end_of_its_log(demo: Demo) -> None:
    shutil.rmtree(demo.out / "untuned" / "Rec")
    vectors = demo.out / "data" / "photo_full_embs.npy"
    whole = vectors.read_bytes()
    vectors.write_bytes(whole[:1000])
    status, said = demo.call(*TINY)
    vectors.write_bytes(whole)
    assert status == 2, said
    assert "stopped in this step: stage two, untuned LLM text, Rec (log: " in said
    assert "photo_full_embs.npy" in said and "Traceback" not in said


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("PRESET=tiny", "BASE_MODEL_PATH=tiny-random", "SEED=1"), "holds a demo of PRESET=tiny"),
        (("PRESET=huge",), "PRESET=huge: choose demo or tiny"),
        (("PRESETT=tiny",), "PRESET"),
        (("--flag",), "unexpected argument --flag"),
        (("SEED=x",), "SEED=x: give a whole number"),
    ],
)
def test_other_settings_and_unknown_words_are_refused(demo: Demo, words: tuple[str, ...], says: str) -> None:
    status, said = demo.call(*words)
    assert status == 2 and says in said and "Traceback" not in said
