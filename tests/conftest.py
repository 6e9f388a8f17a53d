"""What many tests need: a tiny prepared dataset, a tiny LLM and a small disk. No network, no GPU."""

import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.tiny_world import write_raw


@pytest.fixture(scope="session")
def tiny_raw(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny world as KuaiComt's five CSV files."""
    return write_raw(tmp_path_factory.mktemp("tiny") / "raw")


@pytest.fixture(scope="session")
def tiny_data(tiny_raw: Path) -> Path:
    """The tiny world as a prepared dataset."""
    from lsvcr.data.prepare import prepare
    from lsvcr.settings import PrepareSettings

    return prepare(PrepareSettings(raw=str(tiny_raw), out=str(tiny_raw.parent / "data"), user_core=3))


@pytest.fixture
def tiny_dataset(tiny_data: Path):
    """The tiny world, opened."""
    from lsvcr.data.store import open_dataset

    return open_dataset(tiny_data)


@pytest.fixture(scope="session")
def several_rows(tiny_raw: Path, tmp_path_factory: pytest.TempPathFactory):
    """The tiny world, opened, its split by time: users have several test rows."""
    from lsvcr.data.prepare import prepare
    from lsvcr.data.store import open_dataset
    from lsvcr.settings import PrepareSettings

    out = tmp_path_factory.mktemp("temporal") / "data"
    shares = {"val_share": 0.2, "test_share": 0.3}
    return open_dataset(
        prepare(PrepareSettings(raw=str(tiny_raw), out=str(out), user_core=3, split="temporal", **shares))
    )


@pytest.fixture(scope="session")
def _tiny_llm():
    import torch

    from lsvcr.llm.loading import load_llm

    return load_llm("tiny-random", dtype=torch.float32)


@pytest.fixture
def tiny_llm(_tiny_llm):
    """A random fp32 LLM of 2 layers and its byte tokenizer; each test gets its own copy of the model."""
    from copy import deepcopy

    model, tokenizer = _tiny_llm
    return deepcopy(model), tokenizer


@pytest.fixture(scope="session")
def generative_run(tiny_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tuned tiny LLM with free and constrained generations of the tiny world; only to be read."""
    from tests.generative_world import make_run

    return make_run(tiny_data, tmp_path_factory.mktemp("generative") / "run")


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 1 MB."""
    place = tmp_path / "disk"
    place.mkdir()
    mounted = shutil.which("mount") and subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(place)], capture_output=True
    )
    if not mounted or mounted.returncode:
        pytest.skip("only root can mount a small file system")
    yield place
    subprocess.run(["umount", str(place)], check=True)
