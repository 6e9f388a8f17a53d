"""Softmax over a whole catalogue without its table of scores: blocks of items, a running log-sum-exp."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from lsvcr.nn.similarity import NORM_EPS


def catalogue_cross_entropy(
    queries: Tensor, items: Tensor, targets: Tensor, max_logits: int, unit_items: bool = True
) -> Tensor:
    """Cross-entropy of the target among all items, a logit being a query times an item's unit vector.

    The forward pass goes through the items block by block and keeps one log-sum-exp a row (online softmax, Milakov
    and Gimelshein 2018). The backward pass computes each block's logits once more and turns them into both gradients at
    once. The items' lengths are divided out block by block, too: beside its inputs it keeps 2 B + N numbers, and its
    gradients are all it makes that grows with N.

    | input | shape | meaning |
    |---|---|---|
    | queries | (B, d) float32 or float64 | unit user vectors over the temperature |
    | items | (N + 1, d), as queries | item vectors by index, of any length; row 0 is padding and never a candidate |
    | targets | (B,) int64 in 1..N | index of the right item |
    | max_logits | int | logits held at once; the result does not depend on it |
    | unit_items | bool | False: the items count as they are, so that a logit is the inner product |

    Returns:
        Scalar, mean over rows; 0 with a gradient when B = 0. Gradients of gradients are not defined.
    """
    loss: Tensor = _CatalogueCrossEntropy.apply(queries, items, targets, max_logits, unit_items)
    return loss


class _CatalogueCrossEntropy(torch.autograd.Function):
    """The two passes of `catalogue_cross_entropy`."""

    @staticmethod
    def forward(
        ctx: Any, queries: Tensor, items: Tensor, targets: Tensor, max_logits: int, unit_items: bool
    ) -> Tensor:
        lengths = torch.linalg.vector_norm(items, dim=1) if unit_items else items.new_ones(len(items))
        top = queries.new_full((len(queries),), -torch.inf)  # the largest logit so far
        total = torch.zeros_like(top)  # sum of exp(logit - top) so far
        for _, _, logits in _blocks(queries, items, lengths, max_logits):
            highest = torch.maximum(top, logits.amax(dim=1))
            total *= (top - highest).exp_()
            total += logits.sub_(highest.unsqueeze(1)).exp_().sum(dim=1)
            top = highest
        log_sum = top + total.log()
        own = (queries * _scaled(items[targets], lengths[targets])).sum(dim=1)
        ctx.save_for_backward(queries, items, targets, lengths, log_sum)
        ctx.max_logits, ctx.unit_items = max_logits, unit_items
        return (log_sum - own).sum() / max(1, len(queries))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None, None, None]:
        queries, items, targets, lengths, log_sum = ctx.saved_tensors
        with torch.autocast(device_type=queries.device.type, enabled=False):
            scale = grad / max(1, len(queries))
            scaled = queries * scale
            of_queries, of_items = torch.zeros_like(queries), torch.zeros_like(items)
            for rows, part, logits in _blocks(queries, items, lengths, ctx.max_logits):
                shares = logits.sub_(log_sum.unsqueeze(1)).exp_()  # (B, n) probabilities
                of_queries.addmm_(shares, part)
                torch.mm(shares.T, scaled, out=of_items[rows])
            own = _scaled(items[targets], lengths[targets])
            of_queries = (of_queries - own) * scale
            of_items.index_add_(0, targets, scaled, alpha=-1)
            if ctx.unit_items:
                _through_length(of_items, items, lengths, max(1, ctx.max_logits // max(1, items.shape[1])))
        return of_queries, of_items, None, None, None


def _blocks(
    queries: Tensor, items: Tensor, lengths: Tensor, max_logits: int
) -> Iterator[tuple[slice, Tensor, Tensor]]:
    """Rows of each block of items 1 .. N, their unit vectors (n, d), and logits (B, n) in a buffer used again."""
    rows = max(1, min(max_logits // max(1, len(queries)), len(items) - 1))
    buffer = queries.new_empty(len(queries) * rows)
    for start in range(1, len(items), rows):
        which = slice(start, min(start + rows, len(items)))
        part = _scaled(items[which], lengths[which])
        logits = buffer[: len(queries) * len(part)].view(len(queries), len(part))
        yield which, part, torch.mm(queries, part.T, out=logits)


def _scaled(vectors: Tensor, lengths: Tensor) -> Tensor:
    """As `unit`, with lengths (n,) that are known."""
    return vectors / lengths.clamp(min=NORM_EPS).unsqueeze(1)


def _through_length(grads: Tensor, items: Tensor, lengths: Tensor, rows: int) -> None:
    """Turn gradients by unit vectors (N + 1, d) into those by `items`, in place, `rows` at a time."""
    for grad, vectors, norms in zip(grads.split(rows), items.split(rows), lengths.split(rows), strict=True):
        units = _scaled(vectors, norms)
        along = (grad * units).sum(dim=1, keepdim=True)
        # A vector too short to be made a unit is divided by a constant instead.
        along.masked_fill_((norms < NORM_EPS).unsqueeze(1), 0.0)
        grad.addcmul_(units, along, value=-1).div_(norms.clamp(min=NORM_EPS).unsqueeze(1))
