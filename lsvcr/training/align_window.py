"""Sums over the steps between two log lines of stage one: losses, speed, and whether the vectors still differ."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from lsvcr.utils.distributed import is_main, reduce_sum
from lsvcr.utils.errors import UserError

COLLAPSED, FEWEST_TO_JUDGE = 1e-5, 32
"""Variance of unit vectors below which they count as one, and samples that it takes to say so."""


class Window:
    """Sums between two log lines.

    Args:
        names: of the losses.
        width: d of the user vectors.
        device: of the sums.
    """

    def __init__(self, names: Sequence[str], width: int, device: torch.device) -> None:
        self._names = names
        # One sum a loss, then micro-batches, samples and tokens, then SR and LLM users' unit vectors.
        self._sums = torch.zeros(len(names) + 3 + 2 * width, dtype=torch.float64, device=device)
        self.norm, self.last_loss, self.seconds = 0.0, float("nan"), 0.0

    def add(self, losses: dict[str, Tensor], samples: int, tokens: int) -> None:
        """Count one micro-batch of this process."""
        self.last_loss = losses["loss"].item()
        values = torch.stack([losses[name].detach().double() for name in self._names])
        counts = values.new_tensor([1, samples, tokens])
        self._sums += torch.cat([values, counts, losses["directions"].flatten().double()])

    def state(self) -> dict[str, Any]:
        """Where an open window stands, for `take`; every process must call it."""
        return {"sums": reduce_sum(self._sums).tolist(), "seconds": self.seconds}

    def take(self, state: dict[str, Any]) -> None:
        """Go on from `state`, on however many processes: the first one keeps the sums of all.

        Raises:
            UserError: the state is of a version that summed other things.
        """
        if len(state["sums"]) != len(self._sums):
            raise UserError(
                "the interrupted run was written by another version of this program, which logs other figures: "
                "finish it there, or start anew with --resume False"
            )
        self.seconds = state["seconds"]
        if is_main():
            self._sums.copy_(torch.tensor(state["sums"], dtype=torch.float64))

    def close(self) -> tuple[dict[str, float], float]:
        """Means of all processes by name, tokens a second, and seconds of training; every process must call it.

        Raises:
            UserError: the user vectors of one side have all become the same; see `_check_alive`.
        """
        seconds = self.seconds
        total = reduce_sum(self._sums)
        count = len(self._names)
        sums = total[:count].tolist()
        batches, samples, tokens = total[count : count + 3].tolist()
        figures = {f"train/{name}": value / batches for name, value in zip(self._names, sums, strict=True)}
        figures["train/tokens_per_s"] = tokens / seconds
        for side, mean in zip(("sr", "llm"), (total[count + 3 :] / samples).view(2, -1), strict=True):
            figures[f"train/{side}_variance"] = 1 - float(mean.square().sum())
            _check_alive(figures[f"train/{side}_variance"], int(samples), side)
        self._sums.zero_()
        self.seconds = 0.0
        return figures, seconds


def _check_alive(variance: float, samples: int, side: str) -> None:
    """Stop where the unit vectors of many users differ by nothing: what is left is not worth training on."""
    if samples >= FEWEST_TO_JUDGE and variance < COLLAPSED:
        raise UserError(
            f"the {side.upper()} user vectors have collapsed: the last {samples} samples' all point the same way "
            f"(variance {variance:.1e} of at most 1). Lower --learning_rate, raise --contrast_batch for more "
            "negatives, or look whether the texts of different users differ at all"
        )
