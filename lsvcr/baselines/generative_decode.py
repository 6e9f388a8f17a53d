"""Beam search over a batch of prompts, free or along a trie of titles.

It is the search of transformers' `generate` (`early_stopping=False`), with two differences. A prompt is read once, not
once a beam: most of a recommender's tokens are its prompt's. And the scores of a step are not kept, which would be
beams x steps x vocabulary numbers.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lsvcr.baselines.alpaca_prompts import left_padded, positions_of
from lsvcr.baselines.title_trie import Node, TitleTrie
from lsvcr.llm.families import unwrap

_NEVER = -1e9
"""Score of what is no hypothesis; finite, so that it can be compared and divided."""


@dataclass(frozen=True)
class BeamSettings:
    """How to search.

    Attributes:
        beams: hypotheses that are followed.
        returned: best ones that are given, at most `beams`.
        max_new: tokens of an answer, its end included.
        length_penalty: a finished hypothesis scores its log-probability / length ** length_penalty.
        end, pad: token ids.
    """

    beams: int
    returned: int
    max_new: int
    length_penalty: float
    end: int
    pad: int


@dataclass(frozen=True)
class Hypothesis:
    """One answer: its token ids without the end, and its score."""

    tokens: tuple[int, ...]
    score: float


@torch.inference_mode()
def beam_search(
    model: Any, prompts: Sequence[Sequence[int]], settings: BeamSettings, trie: TitleTrie | None = None
) -> list[list[Hypothesis]]:
    """The best answers to each prompt.

    Args:
        model: a causal LM in evaluation mode, with or without adapters.
        prompts: B lists of token ids, none empty.
        settings: how to search.
        trie: answers are sequences of it alone; None = any.

    Returns:
        For each prompt at most `returned` hypotheses, best first. A trie with fewer sequences gives fewer.
    """
    device = next(model.parameters()).device
    ids, mask = left_padded(prompts, settings.pad)
    ids, mask = ids.to(device), mask.to(device)
    options: dict[str, Any] = {"use_cache": True}
    if unwrap(model)._supports_logits_to_keep():
        options["logits_to_keep"] = 1
    output = model(input_ids=ids, attention_mask=mask.long(), position_ids=positions_of(mask), **options)
    state = _State(len(prompts), settings, trie, device)
    position, cache = mask.sum(dim=1).repeat_interleave(settings.beams), output.past_key_values
    log_probs = output.logits[:, -1].float().log_softmax(dim=-1)[:, None]
    mask = mask.repeat_interleave(settings.beams, dim=0)
    for step in range(settings.max_new):
        chosen = state.advance(log_probs, step)
        if step + 1 == settings.max_new or not state.can_improve(step + 1):
            break
        # After the first step this gives every beam its own copy of the prompt's cache.
        cache.reorder_cache(chosen)
        mask = torch.cat([mask, mask.new_ones(len(mask), 1)], dim=1)
        output = model(
            input_ids=state.tokens[:, :, step].reshape(-1, 1),
            attention_mask=mask.long(),
            position_ids=(position + step)[:, None],
            past_key_values=cache,
            **options,
        )
        cache = output.past_key_values
        log_probs = output.logits[:, -1].float().log_softmax(dim=-1).unflatten(0, (-1, settings.beams))
    return state.finish()


class _State:
    """Running and finished hypotheses of B prompts.

    Attributes:
        tokens: (B, K, max_new) int64, the running ones.
    """

    def __init__(
        self, batch: int, settings: BeamSettings, trie: TitleTrie | None, device: torch.device
    ) -> None:
        self._settings, self._trie, self._batch = settings, trie, batch
        shape = (batch, settings.beams)
        self.tokens = torch.full((*shape, settings.max_new), settings.end, device=device)
        self._scores = torch.zeros(batch, 1, device=device)
        self._done = torch.full((*shape, settings.max_new), settings.end, device=device)
        self._done_scores = torch.full(shape, _NEVER, device=device)
        self._open = torch.ones(batch, dtype=torch.bool, device=device)
        self._nodes: list[list[Node]] = [] if trie is None else [[trie.root] for _ in range(batch)]

    def advance(self, log_probs: Tensor, step: int) -> Tensor:
        """Take one token more.

        Args:
            log_probs: (B, R, vocabulary) of the R running hypotheses; R is 1 at the first step, then K.
            step: tokens there are already.

        Returns:
            (B * K,) int64: which cached hypothesis each new running one goes on from.
        """
        beams, end = self._settings.beams, self._settings.end
        running, vocabulary = log_probs.shape[1:]
        if self._trie is not None:
            flat = [node for row in self._nodes for node in row]
            log_probs = log_probs + self._trie.mask(flat, vocabulary).to(log_probs).view_as(log_probs)
        total = (log_probs + self._scores[..., None]).flatten(1)
        # Twice as many as beams: as many as end may, and enough remain.
        scores, places = total.topk(min(2 * beams, total.shape[1]), dim=1)
        scores = scores.clamp(min=_NEVER)
        parents, tokens = places // vocabulary, places % vocabulary
        grown = self.tokens.gather(1, parents[..., None].expand(-1, -1, self.tokens.shape[2])).clone()
        grown[:, :, step] = tokens
        last = step + 1 == self._settings.max_new
        ends = (tokens == end) | last
        self._keep_finished(grown, scores, ends, step + 1)
        # Stable, so that of equal scores the better place stays first.
        order = scores.masked_fill(ends, _NEVER).sort(dim=1, descending=True, stable=True).indices[:, :beams]
        self.tokens = grown.gather(1, order[..., None].expand(-1, -1, grown.shape[2]))
        self._scores = scores.masked_fill(ends, _NEVER).gather(1, order)
        parents, tokens = parents.gather(1, order), tokens.gather(1, order)
        if self._trie is not None:
            pairs = zip(self._nodes, parents.tolist(), tokens.tolist(), strict=True)
            self._nodes = [
                [self._trie.step(nodes[p], t) for p, t in zip(row, ids, strict=True)]
                for nodes, row, ids in pairs
            ]
        first = torch.arange(self._batch, device=parents.device)[:, None] * running
        return (parents + first).flatten()

    def can_improve(self, length: int) -> bool:
        """Close prompts whose running hypotheses cannot beat the worst kept one any more; is one left open?

        A closed prompt stays so: what it gives must not depend on how long others of the batch go on.
        """
        alive = self._scores[:, 0] > _NEVER / 2
        best = self._scores[:, 0] / length**self._settings.length_penalty
        self._open &= alive & (best > self._done_scores.min(dim=1).values)
        return bool(self._open.any())

    def finish(self) -> list[list[Hypothesis]]:
        """The best finished hypotheses of each prompt."""
        found = []
        for rows, scores in zip(self._done.tolist(), self._done_scores.tolist(), strict=True):
            kept = [(row, score) for row, score in zip(rows, scores, strict=True) if score > _NEVER / 2]
            found.append(
                [Hypothesis(self._without_end(row), score) for row, score in kept[: self._settings.returned]]
            )
        return found

    def _keep_finished(self, grown: Tensor, scores: Tensor, ends: Tensor, length: int) -> None:
        """Put those of the best K that have ended among the finished, of which the best K stay."""
        beams = self._settings.beams
        ended = ends[:, :beams] & (scores[:, :beams] > _NEVER / 2) & self._open[:, None]
        if self._trie is not None:
            # Where the last step cuts an answer off, it is no title.
            ended &= grown[:, :beams, length - 1] == self._settings.end
        fresh = (scores[:, :beams] / length**self._settings.length_penalty).masked_fill(~ended, _NEVER)
        every, rows = torch.cat([self._done_scores, fresh], 1), torch.cat([self._done, grown[:, :beams]], 1)
        order = every.sort(dim=1, descending=True, stable=True).indices[:, :beams]
        self._done_scores = every.gather(1, order)
        self._done = rows.gather(1, order[..., None].expand(-1, -1, rows.shape[2]))

    def _without_end(self, row: list[int]) -> tuple[int, ...]:
        end = self._settings.end
        return tuple(row[: row.index(end)] if end in row else row)
