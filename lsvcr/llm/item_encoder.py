"""Texts to vectors by the state of the last token, or of learned tokens behind the text (HLLM, section 3.1)."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn

from lsvcr.llm.encoder import padded, token_budget_batches
from lsvcr.llm.families import backbone, unwrap


def encode_ends(
    llm: nn.Module, ids: Sequence[Sequence[int]], tokens: Tensor, *, pad_id: int, budget: int
) -> Tensor:
    """Mean of the last hidden states at the learned tokens, or the state of the last token where there are none.

    Padding is on the right, where a causal model's real tokens do not see it; see `encoder.hidden_states`.

    Args:
        llm: causal LM or a `PeftModel` around one.
        ids: N lists of token ids.
        tokens: (n, h) learned tokens; (0, h) for none.
        pad_id: any id of the vocabulary.
        budget: tokens of one batch, padding included.

    Returns:
        (N, h) float32 in the order of `ids`, with gradient; zeros for an empty list of ids.
    """
    device = next(llm.parameters()).device
    # With no text at all the LLM reads something nevertheless: where weights are cut among the processes (ZeRO-3) the
    # others would wait for this one.
    texts = ids if any(ids) else [*ids, [pad_id]]
    read = [[*row, *[pad_id] * len(tokens)] if row else [] for row in texts]
    lengths = np.fromiter(map(len, read), np.int64, len(read))
    parts, order = [], []
    for batch in token_budget_batches(lengths, budget):
        ends = torch.from_numpy(lengths[batch]).to(device)
        numbers, _ = padded([read[index] for index in batch], pad_id, device)
        parts.append(_ends(llm, numbers, ends, tokens))
        order.append(batch)
    # The row behind the last is the zero vector of the empty texts.
    vectors = torch.cat([*parts, torch.zeros_like(parts[0][:1])])
    place = torch.full((len(read),), len(vectors) - 1, dtype=torch.int64)
    place[torch.from_numpy(np.concatenate(order))] = torch.arange(len(vectors) - 1)
    return vectors[place[: len(ids)].to(device)]


def _ends(llm: nn.Module, numbers: Tensor, ends: Tensor, tokens: Tensor) -> Tensor:
    """(B, h) of right-padded ids (B, T) of which `ends` (B,) count, the learned tokens' places among them."""
    decoder, count = backbone(llm), len(tokens)
    rows = torch.arange(len(numbers), device=numbers.device)[:, None]
    places = ends[:, None] - 1 - torch.arange(max(1, count), device=numbers.device).flip(0)  # (B, n or 1)
    if not count:
        states = decoder(input_ids=numbers, use_cache=False).last_hidden_state
    else:
        embedded = unwrap(llm).get_input_embeddings()(numbers)
        learned = tokens.to(embedded.dtype).expand(len(numbers), -1, -1)
        embedded = embedded.index_put((rows, places), learned)
        states = decoder(inputs_embeds=embedded, use_cache=False).last_hidden_state
    means: Tensor = states[rows, places].float().mean(dim=1)
    return means
