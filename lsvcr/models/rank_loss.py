"""What Rec learns from a target and sampled videos: softmax or binary cross-entropy, with the draws' correction."""

import math

import torch
from torch import Tensor, nn

from lsvcr.losses.ranking import sampled_binary, sampled_softmax


class SampledLoss(nn.Module):
    """The loss of a batch whose rows share their draws. It has no parameters and no state.

    Args:
        beta: None = softmax; else binary cross-entropy with this weight of the target's part (1 = BCE, less = gBCE).
        log_probability: softmax: (n_videos + 1,) float32, log of the probability that a draw is the video; the scores
            are corrected by it. None = uncorrected, for uniform draws.
        in_batch: the draws are the targets of the batch's rows, in their order, so that a row has B - 1 of them.
    """

    log_probability: Tensor | None

    def __init__(
        self, beta: float | None = None, log_probability: Tensor | None = None, in_batch: bool = False
    ) -> None:
        super().__init__()
        self.beta, self.in_batch = beta, in_batch
        self.register_buffer("log_probability", log_probability, persistent=False)

    def forward(
        self,
        users: Tensor,
        positives: Tensor,
        negatives: Tensor,
        targets: Tensor,
        drawn: Tensor,
        temperature: float,
    ) -> Tensor:
        """Mean over rows.

        Args:
            users, positives: (B, d) user vectors and vectors of the targets.
            negatives: (K, d) vectors of the draws.
            targets: (B,) int64 videos.
            drawn: (K,) int64 videos; where one is a row's target it does not count for this row.
            temperature: of the cosine scores.
        """
        own = drawn == targets[:, None]
        if self.beta is not None:
            return sampled_binary(users, positives, negatives, own, temperature, self.beta)
        return sampled_softmax(users, positives, negatives, own, temperature, self._log_counts(drawn))

    def _log_counts(self, drawn: Tensor) -> Tensor | None:
        """Log of the expected number of each draw's video among a row's draws, (K,)."""
        if self.log_probability is None:
            return None
        draws = len(drawn) - 1 if self.in_batch else len(drawn)
        with torch.no_grad():
            return self.log_probability[drawn] + math.log(max(1, draws))
