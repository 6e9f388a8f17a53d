"""Sums over the steps between two log lines: losses, speed, and whether the vectors still differ."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from lsvcr.utils.distributed import is_main, reduce_sum
from lsvcr.utils.errors import UserError

COLLAPSED, FEWEST_TO_JUDGE = 1e-5, 32
"""Variance of unit vectors below which they count as one, and samples that it takes to say so."""

SIDES = {"sr": "SR user vectors", "llm": "LLM user vectors"}
"""The two kinds of vectors that stage one brings together, as figures and sentences call them."""

REMEDY = (
    "Lower --learning_rate, raise --contrast_batch for more negatives, or look whether the texts of different users "
    "differ at all"
)


class Window:
    """Sums between two log lines.

    Args:
        names: of the losses.
        width: d of the vectors.
        device: of the sums.
        sides: two kinds of vectors, whose sums `directions` holds in this order.
        remedy: what to do where the vectors of one kind have all become the same.
    """

    def __init__(
        self,
        names: Sequence[str],
        width: int,
        device: torch.device,
        sides: Mapping[str, str] = SIDES,
        remedy: str = REMEDY,
    ) -> None:
        self._names, self._sides, self._remedy = names, sides, remedy
        # One sum a loss, then micro-batches, samples and tokens, then both sides' unit vectors.
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
            UserError: the vectors of one side have all become the same; see `_check_alive`.
        """
        seconds = self.seconds
        total = reduce_sum(self._sums)
        count = len(self._names)
        sums = total[:count].tolist()
        batches, samples, tokens = total[count : count + 3].tolist()
        figures = {f"train/{name}": value / batches for name, value in zip(self._names, sums, strict=True)}
        figures["train/tokens_per_s"] = tokens / seconds
        for side, mean in zip(self._sides, (total[count + 3 :] / samples).view(2, -1), strict=True):
            figures[f"train/{side}_variance"] = 1 - float(mean.square().sum())
            self._check_alive(figures[f"train/{side}_variance"], int(samples), self._sides[side])
        self._sums.zero_()
        self.seconds = 0.0
        return figures, seconds

    def _check_alive(self, variance: float, samples: int, vectors: str) -> None:
        """Stop where the unit vectors of many differ by nothing: what is left is not worth training on."""
        if samples >= FEWEST_TO_JUDGE and variance < COLLAPSED:
            raise UserError(
                f"the {vectors} have collapsed: the last {samples} samples' all point the same way "
                f"(variance {variance:.1e} of at most 1). {self._remedy}"
            )
