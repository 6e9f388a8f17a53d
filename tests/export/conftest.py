"""What the tests of the export share."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from accelerate.state import AcceleratorState, GradientState

from tests.export.checkpoints import Place, named_place, tiny_place


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def tiny(tiny_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Place:
    """The tiny world with text vectors; tests put their runs beside each other."""
    return tiny_place(tiny_data, tmp_path_factory.mktemp("export"))


@pytest.fixture(scope="session")
def named(tmp_path_factory: pytest.TempPathFactory) -> Place:
    """The planted world with text ids."""
    return named_place(tmp_path_factory.mktemp("named"))


@pytest.fixture
def fresh_accelerator() -> Iterator[None]:
    """Accelerate keeps device and precision for the process; a test that trains starts anew."""
    yield
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()
