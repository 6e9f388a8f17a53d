"""Softmax cross-entropy over items: the whole catalogue, a sample of it, or the comments of one video."""

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from lsvcr.losses.info_nce import info_nce, masked_cross_entropy
from lsvcr.nn.similarity import cosine_logits, unit

MAX_LOGITS = 1 << 27
"""Above this many logits (512 MiB) the catalogue softmax goes block by block and recomputes in backward."""


def full_softmax(
    users: Tensor, items: Tensor, targets: Tensor, temperature: float = 0.07, max_logits: int = MAX_LOGITS
) -> Tensor:
    """Cross-entropy of the target among all items (LSVCR paper, fine-tuning for Rec).

    | input | shape | meaning |
    |---|---|---|
    | users | (B, d) | user vectors |
    | items | (N + 1, d) | item vectors by index; row 0 is padding and never a candidate |
    | targets | (B,) int64 in 1..N | index of the next item |
    | max_logits | int | logits held at once; the result does not depend on it |

    Returns:
        Scalar, mean over rows.
    """
    real, labels = items[1:], targets - 1
    rows = max(1, max_logits // max(1, real.shape[0]))
    if users.shape[0] <= rows:
        return info_nce(users, real, labels, temperature=temperature)
    scaled = unit(real)  # once, outside the recomputed part
    total = torch.zeros((), device=users.device)
    for block, block_labels in zip(users.split(rows), labels.split(rows), strict=True):
        part = checkpoint(info_nce, block, scaled, block_labels, None, temperature, use_reentrant=False)
        total = total + part * len(block)
    return total / len(users)


def sampled_softmax(
    users: Tensor, positives: Tensor, negatives: Tensor, drop: Tensor | None = None, temperature: float = 0.07
) -> Tensor:
    """Cross-entropy of the target among itself and uniformly drawn items shared by the batch.

    Uniform draws need no correction of the logits.

    | input | shape | meaning |
    |---|---|---|
    | users | (B, d) | user vectors |
    | positives | (B, d) | item vector of each row's target |
    | negatives | (K, d) | vectors of the drawn items |
    | drop | (B, K) bool, optional | draws that are the row's own target (negative id == target id) |

    Returns:
        Scalar, mean over rows.
    """
    own = cosine_logits(users, positives.unsqueeze(1), temperature)  # (B, 1)
    logits = torch.cat([own, cosine_logits(users, negatives, temperature)], dim=1)
    hidden = None if drop is None else torch.cat([torch.zeros_like(drop[:, :1]), drop], dim=1)
    return masked_cross_entropy(logits, _first_column(users), hidden)


def comment_softmax(
    users: Tensor, comments: Tensor, mask: Tensor | None = None, temperature: float = 0.07
) -> Tensor:
    """Cross-entropy of one liked comment among it and K others (LSVCR paper, fine-tuning for CommRank).

    | input | shape | meaning |
    |---|---|---|
    | users | (B, d) | user vectors given the watched video |
    | comments | (B, 1 + K, d) | column 0 the positive, then the negatives |
    | mask | (B, 1 + K) bool, optional | False = padding or another positive |

    Returns:
        Scalar, mean over rows; a row without a negative contributes 0. Column 0 counts whatever its mask.
    """
    logits = cosine_logits(users, comments, temperature)
    return masked_cross_entropy(logits, _first_column(users), None if mask is None else ~mask)


def _first_column(users: Tensor) -> Tensor:
    """Labels (B,) of rows whose positive stands in column 0."""
    return torch.zeros(users.shape[0], dtype=torch.int64, device=users.device)
