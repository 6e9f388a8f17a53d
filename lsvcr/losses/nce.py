"""NCE of HLLM (Chen et al. 2024, arXiv 2409.12740): the next item among those of the batch or sampled ones, by cosine,
with a learned temperature and false negatives filtered by id.
"""

import math
from typing import Any

import torch
from torch import Tensor

from lsvcr.losses.info_nce import masked_cross_entropy
from lsvcr.losses.scores import softmax_of_scores
from lsvcr.nn.similarity import unit
from lsvcr.schema import PAD

START_TEMPERATURE = 0.07
"""Where HLLM's published code starts the learned temperature."""

LARGEST_SCALE = 100.0
"""Bound of what multiplies the cosines, as in CLIP (Radford et al. 2021) and HLLM: temperatures from 0.01 to 1."""


def start_log_scale(temperature: float = START_TEMPERATURE) -> Tensor:
    """Scalar float32 to make a parameter of: the log of what multiplies the cosines at first."""
    return torch.tensor(math.log(1 / temperature))


def learned_scale(log_scale: Tensor) -> Tensor:
    """exp(log_scale), held between 1 and `LARGEST_SCALE`; a scalar.

    At a bound the gradient still passes where a descent step would lead back inside, so that the parameter does not
    stick there, as it would behind a plain clamp.
    """
    bounded: Tensor = _Bounded.apply(log_scale, 0.0, math.log(LARGEST_SCALE))
    return bounded.exp()


def false_negatives(key_ids: Tensor, histories: Tensor, owners: Tensor) -> Tensor:
    """Keys that are no negatives of a query: items of the query's own row, before its target or after it, and padding.

    | input | shape | meaning |
    |---|---|---|
    | key_ids | (M,) int64 | item of each key, equal ones are allowed; 0 = padding |
    | histories | (B, L) int64 | all items of each row, its targets among them; 0 = padding |
    | owners | (P,) int64 | row of each query |

    Returns:
        (P, M) bool. Items are the same where their ids are, whatever their vectors: a filter by similarity drops
        every negative once vectors collapse.
    """
    distinct, columns = key_ids.unique(return_inverse=True)
    # One column more for what is not among the keys.
    known = torch.zeros(len(histories), len(distinct) + 1, dtype=torch.bool, device=key_ids.device)
    places = torch.searchsorted(distinct, histories)
    here = torch.isin(histories, distinct)
    known.scatter_(1, places.where(here, len(distinct)), torch.ones_like(here))
    known[:, :-1] |= distinct == PAD
    return known[:, columns][owners]


def nce(
    queries: Tensor,
    keys: Tensor,
    labels: Tensor,
    log_scale: Tensor,
    drop: Tensor | None = None,
    log_counts: Tensor | None = None,
) -> Tensor:
    """Cross-entropy of picking each query's key by cosine times the learned scale (the training loss of HLLM).

    Keys are the distinct targets of the batch, labels say which is whose, and `false_negatives` of them are dropped.
    For sampled negatives see `sampled_nce`.

    | input | shape | meaning |
    |---|---|---|
    | queries | (P, d) any precision | user vectors at all positions that have a target |
    | keys | (M, d) | item vectors, shared by all queries |
    | labels | (P,) int64 | row of `keys` that is the query's positive |
    | log_scale | scalar float32 | log of the inverse temperature, see `learned_scale` |
    | drop | (P, M) bool, optional | keys that are no negatives of a query; its own label always counts |
    | log_counts | (M,) float32, optional | log of how often a key is expected among the negatives, taken off its \
score as in `ranking.sampled_softmax` ("logQ"); the positive counts as it is |

    Returns:
        Scalar in at least single precision, also under autocast: the mean over the P queries, of which one without a
        negative counts 0; 0 with a gradient when P = 0.
    """
    with torch.autocast(device_type=queries.device.type, enabled=False):
        logits = learned_scale(log_scale) * unit(queries) @ unit(keys).T
        if log_counts is not None:
            others = torch.arange(len(keys), device=keys.device) != labels.unsqueeze(1)
            logits = logits - log_counts * others
        return masked_cross_entropy(logits, labels, drop)


def sampled_nce(
    queries: Tensor,
    positives: Tensor,
    negatives: Tensor,
    log_scale: Tensor,
    drop: Tensor | None = None,
    log_counts: Tensor | None = None,
) -> Tensor:
    """As `nce`, against sampled items that all queries share and not against one another's targets.

    | input | shape | meaning |
    |---|---|---|
    | queries | (P, d) any precision | as in `nce` |
    | positives | (P, d) | item vector of each query's target |
    | negatives | (K, d) | vectors of the sampled items |
    | log_scale | scalar float32 | as in `nce` |
    | drop | (P, K) bool, optional | samples that are no negatives of a query, see `false_negatives` |
    | log_counts | (K,) float32, optional | as in `nce` |

    Returns:
        As `nce`.
    """
    with torch.autocast(device_type=queries.device.type, enabled=False):
        asked = learned_scale(log_scale) * unit(queries)
        own = (asked * unit(positives)).sum(dim=1)
        others = asked @ unit(negatives).T
        return softmax_of_scores(own, others if log_counts is None else others - log_counts, drop)


class _Bounded(torch.autograd.Function):
    """clamp whose gradient passes unless it pushes further out."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, low: float, high: float) -> Tensor:
        ctx.save_for_backward(value)
        ctx.low, ctx.high = low, high
        return value.clamp(low, high)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        (value,) = ctx.saved_tensors
        # Descent goes against the gradient: a negative one raises the value.
        outwards = ((value >= ctx.high) & (grads[0] < 0)) | ((value <= ctx.low) & (grads[0] > 0))
        return grads[0].masked_fill(outwards, 0.0), None, None
