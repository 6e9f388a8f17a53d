"""The losses that align the SR model with the LLM (LSVCR paper, personalised preference alignment).

In-batch negatives come from all processes, so the loss depends on the joined batch and not on how it is cut
into processes. It does depend on how a batch is cut into accumulation steps.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from lsvcr.losses.info_nce import info_nce, masked_cross_entropy
from lsvcr.nn.similarity import cosine_logits
from lsvcr.utils.distributed import gather_with_gradient, rank

Gather = Callable[[Tensor], Tensor]
"""Concatenates a tensor's rows over all processes in rank order, with gradient."""


def behaviour_contrast(llm: Tensor, own: Tensor, other: Tensor, temperature: float = 0.07) -> Tensor:
    """The LLM's user vector must be nearer to the task's own history than to the other one.

    | input | shape | meaning |
    |---|---|---|
    | llm | (B, d) | LLM user vector: last prompt token, projected |
    | own | (B, d) | SR vector of the task's own history (Rec: videos, CommRank: comments) |
    | other | (B, d) | SR vector of the other history, by the same pooling |

    Returns:
        Scalar, mean over rows of the 2-way cross-entropy with `own` as the positive.
    """
    logits = cosine_logits(llm, torch.stack([own, other], dim=1), temperature)  # (B, 2)
    return masked_cross_entropy(logits, torch.zeros(len(llm), dtype=torch.int64, device=llm.device))


def preference_contrast(
    sr: Tensor, llm: Tensor, temperature: float = 0.07, gather: Gather = gather_with_gradient
) -> Tensor:
    """InfoNCE between the SR and the LLM vector of the same user, mean of both directions.

    | input | shape | meaning |
    |---|---|---|
    | sr | (B, d) | SR user vectors; process sizes may differ |
    | llm | (B, d) | LLM user vectors of the same samples |
    | gather | function | rows of all processes |

    Returns:
        Scalar, mean over this process's rows; negatives are all processes' rows.
    """
    labels = joined_rows(sr, gather)
    forward = info_nce(sr, gather(llm), labels, temperature=temperature)
    backward = info_nce(llm, gather(sr), labels, temperature=temperature)
    return (forward + backward) / 2


def recommendation_contrast(
    users: Tensor,
    targets: Tensor,
    target_keys: Tensor,
    positive_keys: Tensor | None = None,
    temperature: float = 0.07,
    gather: Gather = gather_with_gradient,
) -> Tensor:
    """InfoNCE between SR user vectors and the text vectors of the targets.

    | input | shape | meaning |
    |---|---|---|
    | users | (B, d) | SR user vectors, both tasks mixed |
    | targets | (B, d) | the target's item vector (video title or comment) |
    | target_keys | (B,) int64 | equal keys = same target or same text: no negatives |
    | positive_keys | (B, P) int64, optional | keys of all positives of the row, padded with -1 |
    | gather | function | rows of all processes |

    Returns:
        Scalar, mean over this process's rows; negatives are the targets of all processes' rows.
    """
    all_keys = gather(target_keys)  # (M,)
    same = target_keys.unsqueeze(1) == all_keys  # (B, M)
    if positive_keys is not None:
        same = same | (positive_keys.unsqueeze(2) == all_keys).any(dim=1)
    return info_nce(users, gather(targets), joined_rows(users, gather), same, temperature)


def joined_rows(local: Tensor, gather: Gather = gather_with_gradient) -> Tensor:
    """Where this process's rows of `local` (B, ...) lie in the rows of all processes; (B,) int64."""
    sizes = gather(torch.full((1,), local.shape[0], dtype=torch.int64, device=local.device))
    return sizes[: rank()].sum() + torch.arange(local.shape[0], device=local.device)
