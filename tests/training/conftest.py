"""What the tests of stage two share."""

from collections.abc import Iterator

import pytest
import torch
from accelerate.state import AcceleratorState, GradientState


@pytest.fixture
def fresh_accelerator() -> Iterator[None]:
    """Accelerate keeps device and precision for the process; each test starts anew."""
    torch.set_num_threads(1)
    yield
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()
