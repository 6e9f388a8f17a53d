"""Softmax over a whole catalogue by inner products, with the gradients made in the forward pass."""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from lsvcr.losses.catalogue import catalogue_cross_entropy

CPU_LOGITS, GPU_LOGITS = 1 << 20, 1 << 27
"""Logits held at once. On a CPU, measured with 1,700 to 20,000 items: from 2^18 to 2^22 alike, none faster; on a GPU an
assumption."""

FEWEST_ROWS = 32
"""Fewer rows at once make slow products: so large a catalogue is cut by items instead."""


def linear_cross_entropy(
    queries: Tensor, items: Tensor, targets: Tensor, max_logits: int | None = None
) -> Tensor:
    """Cross-entropy of the target among all items, a logit being the inner product of a query and an item.

    Rows are taken in blocks, and the gradients of a block are made at once from its probabilities, as the loss is a
    scalar (Hsu et al. 2024, Liger kernels): three matrix products and no table of logits, where passes with blocks of
    items make four. A catalogue of which FEWEST_ROWS rows do not fit is left to
    `catalogue_cross_entropy`.

    | input | shape | meaning |
    |---|---|---|
    | queries | (P, d) float32 or float64, also under autocast | user vectors, over the temperature if there is one |
    | items | (N + 1, d), as queries | item vectors by index; row 0 is padding and never a candidate |
    | targets | (P,) int64 in 1..N | index of the right item |
    | max_logits | int | logits held at once; changes the result by rounding alone; None = what suits the device |

    Returns:
        Scalar, mean over rows; 0 with a gradient when P = 0. Gradients of gradients are not defined.
    """
    held = max_logits or (CPU_LOGITS if queries.device.type == "cpu" else GPU_LOGITS)
    with torch.autocast(device_type=queries.device.type, enabled=False):
        if held // max(1, len(items)) < FEWEST_ROWS < len(queries):
            return catalogue_cross_entropy(queries, items, targets, 8 * held, unit_items=False)
        loss: Tensor = _LinearCrossEntropy.apply(queries, items, targets, held)
        return loss


class _LinearCrossEntropy(torch.autograd.Function):
    """Both passes of `linear_cross_entropy` in one."""

    @staticmethod
    def forward(ctx: Any, queries: Tensor, items: Tensor, targets: Tensor, max_logits: int) -> Tensor:
        wanted = any(ctx.needs_input_grad[:2])
        candidates, places = items[1:], (targets - 1).unsqueeze(1)
        of_queries = torch.empty_like(queries)
        of_items = torch.zeros_like(items)
        rows = max(1, min(len(queries), max_logits // max(1, len(candidates))))
        buffer = queries.new_empty(rows, len(candidates))
        total = queries.new_zeros((), dtype=torch.float64)
        for start in range(0, len(queries), rows):
            part = slice(start, start + rows)
            query, place = queries[part], places[part]
            logits = torch.mm(query, candidates.T, out=buffer[: len(query)])
            own = logits.gather(1, place)
            top = logits.amax(dim=1, keepdim=True)
            sums = logits.sub_(top).exp_().sum(dim=1, keepdim=True)
            total += (top + sums.log() - own).sum()
            if wanted:
                # Probabilities; the target's less one is the gradient by a logit.
                logits.div_(sums).scatter_add_(1, place, torch.full_like(own, -1.0))
                torch.mm(logits, candidates, out=of_queries[part])
                of_items[1:].addmm_(logits.T, query)
        ctx.save_for_backward(of_queries, of_items)
        ctx.rows = max(1, len(queries))
        return (total / ctx.rows).to(queries.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, None, None]:
        of_queries, of_items = ctx.saved_tensors
        scale = grads[0] / ctx.rows
        return of_queries * scale, of_items * scale, None, None
