"""Losses over items: the whole catalogue, a sample of it (softmax or binary), or the comments of one video."""

import torch
from torch import Tensor

from lsvcr.losses.catalogue import catalogue_cross_entropy
from lsvcr.losses.info_nce import masked_cross_entropy
from lsvcr.losses.scores import binary_of_scores
from lsvcr.nn.similarity import cosine_logits, unit

MAX_LOGITS = 1 << 23
"""Logits of the catalogue softmax held at once (32 MiB): few enough for a processor's cache to help, and so many that
threads seldom wait for each other. Measured from 2^19 to 2^25."""


def full_softmax(
    users: Tensor, items: Tensor, targets: Tensor, temperature: float = 0.07, max_logits: int = MAX_LOGITS
) -> Tensor:
    """Cross-entropy of the target among all items (LSVCR paper, fine-tuning for Rec); the scores are never all held.

    | input | shape | meaning |
    |---|---|---|
    | users | (B, d) | user vectors |
    | items | (N + 1, d) | item vectors by index; row 0 is padding and never a candidate |
    | targets | (B,) int64 in 1..N | index of the next item |
    | max_logits | int | logits held at once; the result does not depend on it |

    Returns:
        Scalar, mean over rows, in at least single precision.
    """
    with torch.autocast(device_type=users.device.type, enabled=False):
        queries = unit(users) / temperature
        return catalogue_cross_entropy(queries, items.to(queries.dtype), targets, max_logits)


def sampled_softmax(
    users: Tensor,
    positives: Tensor,
    negatives: Tensor,
    drop: Tensor | None = None,
    temperature: float = 0.07,
    log_counts: Tensor | None = None,
) -> Tensor:
    """Cross-entropy of the target among itself and drawn items shared by the batch.

    With `log_counts` a drawn item's score is s - log(its expected count among the draws) (importance sampling, Bengio
    and Senecal 2008; "logQ correction", Yi et al. 2019), so that the sum under the softmax has the whole catalogue's as
    its expectation, whatever the draws' distribution. The target is there for certain and counts as it is
    (Khrylchenko et al. 2025): draws of it are to be dropped. Without `log_counts` it is the softmax over these 1 + K
    items, as is usual for uniform draws, whose correction would be the same constant for all.

    | input | shape | meaning |
    |---|---|---|
    | users | (B, d) | user vectors |
    | positives | (B, d) | item vector of each row's target |
    | negatives | (K, d) | vectors of the drawn items |
    | drop | (B, K) bool, optional | draws that are the row's own target (negative id == target id) |
    | log_counts | (K,) float32, optional | log of how often the item is expected among the draws |

    Returns:
        Scalar, mean over rows.
    """
    own = cosine_logits(users, positives.unsqueeze(1), temperature)  # (B, 1)
    others = cosine_logits(users, negatives, temperature)
    logits = torch.cat([own, others if log_counts is None else others - log_counts], dim=1)
    hidden = None if drop is None else torch.cat([torch.zeros_like(drop[:, :1]), drop], dim=1)
    return masked_cross_entropy(logits, _first_column(users), hidden)


def sampled_binary(
    users: Tensor,
    positives: Tensor,
    negatives: Tensor,
    drop: Tensor | None = None,
    temperature: float = 0.07,
    beta: float = 1.0,
) -> Tensor:
    """Binary cross-entropy of the target (yes) and of drawn items shared by the batch (no).

    Of a row with K negatives it is -(beta log sigmoid(s+) + sum log(1 - sigmoid(s-))) / (1 + K). beta = 1 is BCE: with
    one negative half of what SASRec sums (Kang and McAuley 2018). Less is gBCE (Petrov and Macdonald 2023), with the
    beta of `gbce_beta`.

    | input | shape | meaning |
    |---|---|---|
    | users | (B, d) | user vectors |
    | positives | (B, d) | item vector of each row's target |
    | negatives | (K, d) | vectors of the drawn items |
    | drop | (B, K) bool, optional | draws that are the row's own target; they count neither in the sum nor in K |
    | beta | float | weight of the target's part |

    Returns:
        Scalar, mean over rows; 0 with a gradient when B = 0.
    """
    own = cosine_logits(users, positives.unsqueeze(1), temperature).squeeze(1)  # (B,)
    return binary_of_scores(own, cosine_logits(users, negatives, temperature), drop, beta)


def gbce_beta(negatives: int, items: int, t: float) -> float:
    """Exponent of the positive's probability in gBCE (Petrov and Macdonald 2023): 1 - t (1 - alpha).

    Args:
        negatives: K, drawn for a target.
        items: N, size of the catalogue; alpha = K / (N - 1) is the share of the negatives that is drawn.
        t: calibration, from 0 (BCE) to 1 (scores calibrated as if all items were negatives: beta = alpha).
    """
    alpha = negatives / (items - 1)
    return 1 - t * (1 - alpha)


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
