"""Texts to vectors: the mean of the LLM's last hidden states over real tokens, or the last token's.

Shared by stage one, which trains through it, and by the embedding of the whole catalogue.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Literal

import numpy as np
import torch
import torch.nn as nn
from torch import Tensor
from transformers import PreTrainedTokenizerBase

Pooling = Literal["mean", "last"]
"""How a text's states become its vector: LSVCR's mean over all tokens, or HLLM's last token, which has read all others.
"""


def tokenize(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], max_tokens: int) -> list[list[int]]:
    """Token ids of each text, cut on the right at `max_tokens`, unpadded.

    Special tokens are those the tokenizer adds by itself; one that is typed in a text stays plain text.
    A text of nothing but white space has no ids.
    """
    real = [index for index, text in enumerate(texts) if text.strip()]
    ids: list[list[int]] = [[] for _ in texts]
    if not real:
        return ids
    encoded = tokenizer(
        [texts[index] for index in real],
        truncation=True,
        max_length=max_tokens,
        padding=False,
        split_special_tokens=True,
        return_attention_mask=False,
        return_token_type_ids=False,
    )["input_ids"]
    for index, row in zip(real, encoded, strict=True):
        ids[index] = row
    return ids


def token_budget_batches(lengths: np.ndarray, budget: int) -> list[np.ndarray]:
    """Cut texts into batches of similar length, each at most `budget` tokens, padding included.

    Args:
        lengths: (N,) integers, tokens of each text. Texts without tokens are in no batch.
        budget: a text longer than it gets a batch of its own.

    Returns:
        int64 indices into `lengths`, longest texts first (so that what does not fit in memory fails at once);
        ties keep their order. The batches depend on the arguments alone.
    """
    lengths = np.asarray(lengths)
    order = np.argsort(-lengths, kind="stable")
    order = order[: int(np.count_nonzero(lengths > 0))]
    batches, start = [], 0
    while start < len(order):
        rows = max(1, budget // int(lengths[order[start]]))
        batches.append(order[start : start + rows])
        start += rows
    return batches


def padded(
    ids: Sequence[Sequence[int]], pad_id: int, device: torch.device | str = "cpu"
) -> tuple[Tensor, Tensor]:
    """Right-padded ids (B, T) int64 and their mask (B, T) bool."""
    lengths = torch.tensor([len(row) for row in ids])
    tokens = torch.full((len(ids), int(lengths.max())), pad_id, dtype=torch.int64)
    mask = torch.arange(tokens.shape[1])[None, :] < lengths[:, None]
    tokens[mask] = torch.tensor([token for row in ids for token in row], dtype=torch.int64)
    return tokens.to(device), mask.to(device)


def mean_pool(states: Tensor, mask: Tensor) -> Tensor:
    """Mean of `states` (B, T, h) over the positions where `mask` (B, T) is true, in float32: (B, h).

    A row without real positions gives zeros.
    """
    kept = mask[..., None]
    total = states.float().masked_fill(~kept, 0.0).sum(dim=1)
    return total / mask.sum(dim=1, keepdim=True).clamp(min=1)


def last_pool(states: Tensor, mask: Tensor) -> Tensor:
    """`states` (B, T, h) at the last real token of each row, padded on the right, in float32: (B, h).

    That is the last token that the tokeniser gives: an end token in families whose tokeniser puts one there by itself,
    the text's own last token in all others. A row without real positions gives zeros.
    """
    last = mask.sum(dim=1).sub(1).clamp(min=0)
    picked = states[torch.arange(len(states), device=states.device), last].float()
    return picked.masked_fill(~mask.any(dim=1, keepdim=True), 0.0)


POOLS: dict[Pooling, Callable[[Tensor, Tensor], Tensor]] = {"mean": mean_pool, "last": last_pool}


def hidden_states(
    backbone: nn.Module, ids: Sequence[Sequence[int]], *, pad_id: int, budget: int
) -> Iterator[tuple[np.ndarray, Tensor, Tensor]]:
    """Last hidden states of token sequences, with gradient, in batches of similar length.

    Padding is on the right: in a causal model no real token sees it, so a sequence's states do not depend on its
    batch (up to rounding), its positions are 0, 1, ... and the model is given no mask, which lets it take its
    fastest attention.

    Args:
        backbone: a causal decoder, see `families.backbone`.
        ids: N lists of token ids; empty ones are left out.
        pad_id: any id of the vocabulary.
        budget: tokens of one batch, padding included; a longer sequence is a batch of its own.

    Yields:
        Which sequences (B,) int64, their states (B, T, h) in the model's dtype, and their mask (B, T) bool.
    """
    device = next(backbone.parameters()).device
    lengths = np.fromiter((len(row) for row in ids), dtype=np.int64, count=len(ids))
    for batch in token_budget_batches(lengths, budget):
        tokens, mask = padded([ids[index] for index in batch], pad_id, device)
        yield batch, backbone(input_ids=tokens, use_cache=False).last_hidden_state, mask


def encode(
    backbone: nn.Module,
    ids: Sequence[Sequence[int]],
    *,
    pad_id: int,
    budget: int,
    pooling: Pooling = "mean",
) -> Tensor:
    """Pooled last hidden states, with gradient; arguments as in `hidden_states`.

    Returns:
        (N, h) float32 in the order of `ids`, on the backbone's device; zeros for an empty list of ids.
    """
    device = next(backbone.parameters()).device
    parts, order = [], []
    # With no text at all the LLM reads something nevertheless: a process that went without would keep the others
    # waiting where weights are cut among them (ZeRO-3).
    read = ids if any(ids) else [*ids, [pad_id]]
    for batch, states, mask in hidden_states(backbone, read, pad_id=pad_id, budget=budget):
        parts.append(POOLS[pooling](states, mask))
        order.append(batch)
    width = backbone.config.get_text_config().hidden_size  # type: ignore[union-attr,operator]
    # Row `count` is the zero vector of the empty texts.
    count = sum(map(len, order))
    vectors = torch.cat([*parts, torch.zeros(1, width, device=device)])
    place = torch.full((len(read),), count, dtype=torch.int64)
    place[torch.from_numpy(np.concatenate(order))] = torch.arange(count)
    return vectors[place[: len(ids)].to(device)]


@torch.inference_mode()
def encode_inference(
    backbone: nn.Module,
    ids: Sequence[Sequence[int]],
    *,
    pad_id: int,
    budget: int,
    pooling: Pooling = "mean",
) -> Tensor:
    """`encode` without gradient; dropout is the caller's business (`model.eval()`)."""
    return encode(backbone, ids, pad_id=pad_id, budget=budget, pooling=pooling)
