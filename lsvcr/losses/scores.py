"""Losses of a target's score among those of sampled items, each row having its own."""

import torch
import torch.nn.functional as F
from torch import Tensor

from lsvcr.losses.info_nce import masked_cross_entropy


def softmax_of_scores(own: Tensor, others: Tensor, drop: Tensor | None = None) -> Tensor:
    """Cross-entropy of the target among itself and the sampled items.

    | input | shape | meaning |
    |---|---|---|
    | own | (P,) float32 | scores of the targets |
    | others | (P, K) float32 | scores of the sampled items |
    | drop | (P, K) bool, optional | items that are the row's own target |

    Returns:
        Scalar, mean over rows; 0 with a gradient when P = 0.
    """
    logits = torch.cat([own.unsqueeze(1), others], dim=1)
    hidden = None if drop is None else torch.cat([torch.zeros_like(drop[:, :1]), drop], dim=1)
    return masked_cross_entropy(
        logits, torch.zeros(len(logits), dtype=torch.int64, device=logits.device), hidden
    )


def binary_of_scores(own: Tensor, others: Tensor, drop: Tensor | None = None, beta: float = 1.0) -> Tensor:
    """Binary cross-entropy of the target (yes) and the sampled items (no).

    Of a row with K items it is -(beta log sigmoid(s+) + sum log(1 - sigmoid(s-))) / (1 + K). beta = 1 is BCE: with
    one item half of what SASRec sums (Kang and McAuley 2018). Less is gBCE (Petrov and Macdonald 2023), see
    `ranking.gbce_beta`.

    | input | shape | meaning |
    |---|---|---|
    | own | (P,) float32 | scores of the targets |
    | others | (P, K) float32 | scores of the sampled items |
    | drop | (P, K) bool, optional | items that are the row's own target; they count neither in the sum nor in K |
    | beta | float | weight of the target's part |

    Returns:
        Scalar, mean over rows; 0 with a gradient when P = 0.
    """
    no = F.logsigmoid(-others)  # log(1 - sigmoid(s)) without rounding to log 0
    kept = torch.full_like(own, others.shape[1])
    if drop is not None:
        no = no.masked_fill(drop, 0.0)
        kept = kept - drop.sum(dim=1)
    rows = (beta * F.logsigmoid(own) + no.sum(dim=1)) / (1 + kept)
    return -rows.sum() / max(1, len(rows))
