"""Ties a video's id embedding to its text vector (LSVCR paper, recommendation-oriented fine-tuning)."""

import math

import torch
from torch import Tensor

from lsvcr.losses.info_nce import masked_cross_entropy
from lsvcr.nn.similarity import unit


def id_text_contrast(
    id_vectors: Tensor,
    text_vectors: Tensor,
    n_negatives: int = 99,
    generator: torch.Generator | None = None,
    temperature: float = 0.07,
    keys: Tensor | None = None,
    block: int = 256,
) -> Tensor:
    """Symmetric InfoNCE between the id and the text vector of the same history entry, with sampled negatives.

    | input | shape | meaning |
    |---|---|---|
    | id_vectors | (N, d) | id embeddings of the batch's history entries |
    | text_vectors | (N, d) | text vectors of the same entries; no padding, no entry without text |
    | n_negatives | int | negatives of one row, drawn from the other rows with replacement |
    | generator | torch.Generator | source of the draw; None = torch's global |
    | keys | (N,) int64, optional | video of the entry; equal keys are never negatives |
    | block | int | this many rows share one draw |

    Rows of a block share their draw. Each row's negatives are uniform all the same, so the expected loss is
    that of separate draws, but the scores are a matrix product instead of N x n_negatives gathered vectors. A
    row drawn as its own negative is dropped (probability 1/N a draw). With at most n_negatives + 1 rows all
    others are the negatives. Neither time nor memory grows with N^2.

    Returns:
        Scalar, mean over rows and both directions. 0 with a (zero) gradient when there is no other row.
    """
    rows = id_vectors.shape[0]
    if rows < 2:
        return (id_vectors.sum() + text_vectors.sum()).float() * 0
    labels_of = torch.arange(rows, device=id_vectors.device) if keys is None else keys
    drawn, size = _draw(rows, n_negatives, block, generator, id_vectors.device)
    drop = _blocks(labels_of.unsqueeze(-1), size) == labels_of[drawn].unsqueeze(1)  # (G, size, K)
    with torch.autocast(device_type=id_vectors.device.type, enabled=False):
        ids, texts = unit(id_vectors), unit(text_vectors)
        positive = (ids * texts).sum(dim=-1)  # (N,)
        forward = _one_direction(ids, texts, positive, drawn, drop, size, temperature)
        backward = _one_direction(texts, ids, positive, drawn, drop, size, temperature)
    return (forward + backward) / 2


def _draw(
    rows: int, n_negatives: int, block: int, generator: torch.Generator | None, device: torch.device
) -> tuple[Tensor, int]:
    """Rows drawn as negatives for each block, (G, K) int64, and the block size."""
    if rows - 1 <= n_negatives:
        return torch.arange(rows, device=device).unsqueeze(0), rows
    where = device if generator is None else generator.device
    shape = (math.ceil(rows / block), n_negatives)
    return torch.randint(rows, shape, generator=generator, device=where).to(device), block


def _blocks(x: Tensor, size: int) -> Tensor:
    """(N, D) -> (G, size, D); the last block is filled up with the last row."""
    missing = -x.shape[0] % size
    return torch.cat([x, x[-1:].expand(missing, -1)]).unflatten(0, (-1, size))


def _one_direction(
    queries: Tensor,
    keys: Tensor,
    positive: Tensor,
    drawn: Tensor,
    drop: Tensor,
    size: int,
    temperature: float,
) -> Tensor:
    negatives = _blocks(queries, size) @ keys[drawn].transpose(1, 2)  # (G, size, K)
    flat = negatives.masked_fill(drop, -torch.inf).flatten(0, 1)[: len(queries)]  # (N, K)
    logits = torch.cat([positive.unsqueeze(1), flat], dim=1) / temperature
    return masked_cross_entropy(logits, torch.zeros(len(queries), dtype=torch.int64, device=queries.device))
