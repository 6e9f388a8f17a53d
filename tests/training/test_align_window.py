"""Means between two log lines, and the guard against vectors that have become one."""

import pytest
import torch
import torch.nn.functional as F

from lsvcr.training.align_window import Window
from lsvcr.utils.errors import UserError

WIDTH = 6


def add(window: Window, users: torch.Tensor, llm: torch.Tensor, loss: float = 1.0) -> None:
    directions = torch.stack([F.normalize(side, dim=1).sum(0) for side in (users, llm)])
    window.add({"loss": torch.tensor(loss), "directions": directions}, len(users), tokens=50)


def random(rows: int) -> torch.Tensor:
    return torch.randn(rows, WIDTH, generator=torch.Generator().manual_seed(rows))


def window() -> Window:
    made = Window(["loss"], WIDTH, torch.device("cpu"))
    made.seconds = 4.0
    return made


def test_means_speed_and_variance_and_then_an_empty_window() -> None:
    own = window()
    users, llm = random(40), random(41)[:40]
    add(own, users[:30], llm[:30], 1.0)
    add(own, users[30:], llm[30:], 4.0)
    figures, seconds = own.close()
    assert seconds == 4.0 and own.seconds == 0.0
    assert figures["train/loss"] == 2.5
    assert figures["train/tokens_per_s"] == 25
    for side, vectors in (("sr", users), ("llm", llm)):
        spread = F.normalize(vectors, dim=1).var(dim=0, unbiased=False).sum()
        assert figures[f"train/{side}_variance"] == pytest.approx(float(spread), rel=1e-5)
    own.seconds = 1.0
    add(own, users, llm, 7.0)
    assert own.close()[0]["train/loss"] == 7.0


def test_an_open_window_is_taken_up_and_that_of_another_version_refused() -> None:
    cut, whole = window(), window()
    add(cut, random(40), random(40), 1.0)
    again = window()
    again.take(cut.state())
    for own in (again, whole):
        if own is whole:
            add(own, random(40), random(40), 1.0)
        add(own, random(35), random(35), 2.0)
    assert again.close() == whole.close()
    with pytest.raises(UserError, match="another version.*--resume False"):
        Window(["loss", "lm"], WIDTH, torch.device("cpu")).take(cut.state())


@pytest.mark.parametrize("side", ["sr", "llm"])
def test_vectors_that_all_point_the_same_way_stop_the_run(side: str) -> None:
    alive, dead = random(40), random(1).expand(40, -1) * torch.arange(1, 41)[:, None] + 1e-5 * random(40)
    own = window()
    add(own, *((dead, alive) if side == "sr" else (alive, dead)))
    with pytest.raises(
        UserError, match=rf"the {side.upper()} user vectors have collapsed.*40 samples.*--contrast_batch"
    ):
        own.close()


def test_few_samples_or_little_difference_are_no_collapse() -> None:
    own = window()
    add(own, random(1).expand(31, -1), random(31))
    assert own.close()[0]["train/sr_variance"] < 1e-6  # too few to judge by
    own = window()
    add(own, random(1) + 0.02 * random(40), random(40))
    assert 1e-5 < own.close()[0]["train/sr_variance"] < 1e-2
