"""InfoNCE: find the own key among many."""

import torch
import torch.nn.functional as F
from torch import Tensor

from lsvcr.nn.similarity import cosine_logits


def masked_cross_entropy(logits: Tensor, labels: Tensor, drop: Tensor | None = None) -> Tensor:
    """Mean cross-entropy of `logits` with some columns left out.

    | input | shape | meaning |
    |---|---|---|
    | logits | (B, K) float32 | scores |
    | labels | (B,) int64 | column of the positive |
    | drop | (B, K) bool, optional | columns left out of the softmax; the label's own column never is |

    Returns:
        Scalar; 0 with a (zero) gradient when B = 0, so that a process without rows still runs backward.
    """
    if logits.shape[0] == 0:
        return logits.sum()
    if drop is not None:
        own = F.one_hot(labels, logits.shape[1]).bool()
        logits = logits.masked_fill(drop & ~own, -torch.inf)
    return F.cross_entropy(logits, labels)


def info_nce(
    queries: Tensor, keys: Tensor, labels: Tensor, mask: Tensor | None = None, temperature: float = 0.07
) -> Tensor:
    """Cross-entropy of picking each query's key by cosine / temperature (van den Oord et al. 2018, eq. 4).

    | input | shape | meaning |
    |---|---|---|
    | queries | (B, d) | any precision |
    | keys | (M, d) | the positives of all queries, negatives of one another |
    | labels | (B,) int64 | row of `keys` that is the query's positive |
    | mask | (B, M) bool, optional | False negatives to drop; the label itself is always kept |
    | temperature | float | divides the cosine |

    Returns:
        Scalar, mean over the B queries; 0 with a gradient when B = 0.
    """
    return masked_cross_entropy(cosine_logits(queries, keys, temperature), labels, mask)
