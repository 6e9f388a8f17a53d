"""LLM and SR model together, as stage one trains them (LSVCR paper, personalised preference alignment)."""

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lsvcr.data.align import AlignBatch
from lsvcr.data.align_taste import TasteBatch
from lsvcr.data.rank_wide import WideBatch
from lsvcr.llm.contrast import CONTRASTED, Share, Vectors
from lsvcr.llm.encoder import encode, hidden_states
from lsvcr.llm.families import backbone, output_head
from lsvcr.llm.wide import TasteLoss, TextStates, WideLoss
from lsvcr.losses.alignment import behaviour_contrast, preference_contrast, recommendation_contrast
from lsvcr.models.sr import EmbeddingHead, Histories, Positions, SRModel, random_positions
from lsvcr.nn.ragged import segment_mean
from lsvcr.nn.similarity import unit
from lsvcr.utils.seeding import generator

_POSITION_STREAM = 21


class AlignedHeads(nn.Module):
    """All that trains in full: SR model, embedding head and contrast projection.

    Args:
        llm_width: h, width of the LLM.
        text_width: e, width of a text vector.
        sr: SR model without ids.
    """

    def __init__(self, sr: SRModel, llm_width: int, text_width: int) -> None:
        super().__init__()
        self.sr = sr
        self.head = EmbeddingHead(llm_width, text_width)
        self.contrast = nn.Linear(llm_width, sr.hidden)

    def texts(self, pooled: Tensor) -> Tensor:
        """Item vectors of texts, without ids: (N, h) -> (N, d)."""
        return self.sr.project(self.head(pooled))

    def forward(
        self, pooled: Tensor, states: Tensor, batch: AlignBatch, positions: Positions | None
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Vectors of both branches.

        Args:
            pooled: (N, h) pooled LLM states of `batch.texts`.
            states: (B, h) LLM states at the last prompt token.
            batch: the indices.
            positions: rows of the position tables; None = 0 .. L-1.

        Returns:
            users, others, LLM users and targets, each (B, d).
        """
        texts = self.texts(pooled)
        encoded = self.sr.encode(gather_histories(texts, batch), positions)
        watched = self.sr.video_vectors(texts[batch.watched])
        # Both tasks are computed for every row: each parameter then takes part on every process, whatever
        # mixture of tasks its rows are, as the reduction of gradients needs.
        is_rec = batch.is_rec.unsqueeze(1)
        users = torch.where(is_rec, self.sr.rec_user(encoded), self.sr.comm_rank_user(encoded, watched))
        others = torch.where(is_rec, self.sr.rec_other(encoded), self.sr.comm_rank_other(encoded, watched))
        # Without ids a video's and a comment's item vector are both their projected text.
        return users, others, self.contrast(states), texts[batch.target]


class _TextsAlone(nn.Module):
    """`AlignedHeads.texts` as a forward pass."""

    def __init__(self, heads: AlignedHeads) -> None:
        super().__init__()
        self.heads = heads

    def forward(self, pooled: Tensor) -> Tensor:
        """(N, h) -> (N, d)."""
        return self.heads.texts(pooled)


class AlignedModel(nn.Module):
    """LLM (with LoRA or frozen) and `AlignedHeads`; a forward pass gives the named losses of a batch.

    Args:
        llm: causal LM or a `PeftModel` around one.
        heads: trained in full; computed in float32 whatever the precision its parameters are kept in.
        pad_id: fills batches of texts and prompts.
        text_token_budget: tokens of one batch of texts or prompts, padding included.
        weights: of the losses `lm`, `rec` and `contrast` (published: 1, 1, 0.5), and of `wide_rec` and
            `taste` where there are wide batches.
    """

    def __init__(
        self,
        llm: nn.Module,
        heads: AlignedHeads,
        *,
        pad_id: int,
        text_token_budget: int,
        weights: Mapping[str, float],
    ) -> None:
        super().__init__()
        self.llm, self.heads = llm, heads
        self._pad_id, self._budget, self._weights = pad_id, text_token_budget, dict(weights)

    def forward(
        self,
        batch: AlignBatch,
        positions: Positions | None,
        wide: Sequence[WideBatch | TasteBatch] = (),
        cache: TextStates | None = None,
        share: Share | None = None,
    ) -> dict[str, Tensor]:
        """Losses of a batch by name, `loss` their weighted sum; see `losses`, `shared_losses` and `wide_loss`.

        Also `directions`, (2, d) without gradient: the sums of the unit vectors of SR and LLM users.
        """
        vectors = self.vectors(batch, positions)
        parts = self.losses(vectors, batch) if share is None else self.shared_losses(vectors, share)
        for part in wide:
            assert cache is not None
            name, value = self.wide_loss(part, cache)
            parts[name] = value
            parts["loss"] = parts["loss"] + self._weights[name] * value
        sides = (vectors.users, vectors.llm_users)
        return {**parts, "directions": torch.stack([unit(side.detach()).sum(0) for side in sides])}

    def wide_loss(self, batch: WideBatch | TasteBatch, cache: TextStates) -> tuple[str, Tensor]:
        """Loss of many samples on few texts, with its name; the cache learns the texts' new states."""
        fresh = self.pooled(batch.texts)
        exact = {
            name: value for name, value in self._exact_heads().items() if not name.startswith("contrast.")
        }
        kind = WideLoss if isinstance(batch, WideBatch) else TasteLoss
        wide = kind(self.heads.sr, self.heads.head)
        loss: Tensor = torch.func.functional_call(wide.train(self.training), exact, (fresh, batch, cache))
        cache.update(batch.codes, fresh)
        return wide.name, loss

    def vectors(self, batch: AlignBatch, positions: Positions | None) -> Vectors:
        """Both branches of a batch. Every distinct text goes through the LLM once.

        Args:
            batch: on the model's device.
            positions: see `draw_positions`; None in evaluation.
        """
        pooled = self.pooled(batch.texts)
        last, lm = self._read_prompts(batch)
        users, others, llm_users, targets = torch.func.functional_call(
            self.heads, self._exact_heads(), (pooled, last, batch, positions)
        )
        return Vectors(users, others, llm_users, targets, lm)

    def text_vectors(self, texts: Sequence[Sequence[int]]) -> Tensor:
        """Item vectors of texts given as token ids: (N, d) float32. No text has the vector zero."""
        exact = {f"heads.{name}": value for name, value in self._exact_heads().items()}
        vectors: Tensor = torch.func.functional_call(_TextsAlone(self.heads), exact, (self.pooled(texts),))
        return vectors

    def pooled(self, texts: Sequence[Sequence[int]]) -> Tensor:
        """The LLM's mean-pooled states of texts given as token ids: (N, h) float32."""
        return encode(backbone(self.llm), texts, pad_id=self._pad_id, budget=self._budget)

    def _exact_heads(self) -> dict[str, Tensor]:
        """The heads' parameters in float32, where the optimiser may keep them in bf16: the heads are small, and
        their cosines are divided by 0.07, which makes bf16's rounding felt."""
        return {name: value.float() for name, value in self.heads.named_parameters()}

    def losses(self, vectors: Vectors, batch: AlignBatch) -> dict[str, Tensor]:
        """The loss parts, means over this process's samples, with negatives from all processes.

        The LM loss is the mean over samples of each sample's mean over response tokens, so that with equally many
        samples on every process the processes' average is the loss of the joined batch.

        Returns:
            `lm`, `rec`, `behaviour`, `preference` and `loss`, their weighted sum; float32 scalars.
        """
        contrasted = {name: getattr(vectors, name) for name in CONTRASTED}
        contrasts = self.contrasts(
            **contrasted, target_keys=batch.target_keys, positive_keys=batch.positive_keys
        )
        lm = vectors.lm.mean()
        return {"loss": self._weights["lm"] * lm + self.contrast_total(contrasts), "lm": lm, **contrasts}

    def shared_losses(self, vectors: Vectors, share: Share) -> dict[str, Tensor]:
        """As `losses`, of a micro-batch whose contrast is that of a larger batch.

        `loss` is worth the weighted sum and has the gradient of this micro-batch's share.
        """
        lm = vectors.lm.mean()
        value = self._weights["lm"] * lm + self.contrast_total(share.losses)
        back = self._weights["lm"] * lm
        for name, gradient in share.gradients.items():
            back = back + (getattr(vectors, name) * gradient).sum()
        return {"loss": back + (value - back).detach(), "lm": lm, **share.losses}

    def contrasts(
        self,
        *,
        users: Tensor,
        others: Tensor,
        llm_users: Tensor,
        targets: Tensor,
        target_keys: Tensor,
        positive_keys: Tensor,
    ) -> dict[str, Tensor]:
        """`rec`, `behaviour` and `preference` of vectors (B, d) as in `Vectors` and keys as in `AlignBatch`."""
        tau = self.heads.sr.temperature
        return {
            "rec": recommendation_contrast(users, targets, target_keys, positive_keys, tau),
            "behaviour": behaviour_contrast(llm_users, users, others, tau),
            "preference": preference_contrast(users, llm_users, tau),
        }

    def contrast_total(self, contrasts: Mapping[str, Tensor]) -> Tensor:
        """The weighted sum of `contrasts`."""
        alike = contrasts["behaviour"] + contrasts["preference"]
        return self._weights["rec"] * contrasts["rec"] + self._weights["contrast"] * alike

    def _read_prompts(self, batch: AlignBatch) -> tuple[Tensor, Tensor]:
        """States at the last prompt token (B, h) and each sample's LM loss (B,), float32."""
        order, kept = [], []
        for rows, states, _ in self._read(batch.sequences):
            for row, own in zip(rows.tolist(), states, strict=True):
                # The last prompt token predicts the response's first token, and so on.
                end = len(batch.sequences[row]) - 1
                kept.append(own[end - batch.response_lengths[row] : end])
                order.append(row)
        device = kept[0].device
        said = torch.tensor([batch.response_lengths[row] for row in order])
        labels = torch.tensor([token for row in order for token in batch.response(row)], device=device)
        predicting = torch.cat(kept)  # (R, h)
        # Vocabulary logits for response tokens alone.
        logits = output_head(self.llm)(predicting).float()  # (R, vocabulary)
        token_losses = F.cross_entropy(logits, labels, reduction="none")
        place = torch.tensor(order).argsort()  # sample -> where it stands among those read
        own = torch.arange(len(order)).repeat_interleave(said).to(device)
        sums = token_losses.new_zeros(len(order)).index_add(0, own, token_losses)
        first = (said.cumsum(0) - said)[place].to(device)
        return predicting[first].float(), (sums / said.to(device))[place.to(device)]

    def _read(self, sequences: Sequence[Sequence[int]]) -> Iterator[tuple[np.ndarray, Tensor, Tensor]]:
        return hidden_states(backbone(self.llm), sequences, pad_id=self._pad_id, budget=self._budget)


def gather_histories(texts: Tensor, batch: AlignBatch) -> Histories:
    """Histories of a batch from its distinct, projected texts (N, d)."""
    rows, steps = batch.comment_title.shape
    comments = segment_mean(texts[batch.comment_texts], batch.comment_segments, rows * steps)
    return Histories(
        video_title=texts[batch.video_title],
        video_comment=texts[batch.video_comment],
        video_ids=batch.video_ids,
        video_mask=batch.video_ids > 0,
        comment_title=texts[batch.comment_title],
        comment_comment=comments.view(rows, steps, -1),
        comment_video_ids=batch.comment_video_ids,
        comment_mask=batch.comment_video_ids > 0,
    )


def draw_positions(batch: AlignBatch, longest: tuple[int, int], max_position: int, *keys: int) -> Positions:
    """The positions of one training batch: for each history a random increasing subset.

    The subset is drawn for the longest history there can be and its first rows are used, so that it is the same
    on every process and does not depend on how a batch is padded.

    Args:
        batch: on any device.
        longest: most entries of the video and of the comment history.
        max_position: rows of the position tables.
        keys: of the random stream, such as (seed, step).
    """
    rng = generator(*keys, _POSITION_STREAM)
    rows = [random_positions(length, max_position, rng) for length in longest]
    widths = (batch.video_title.shape[1], batch.comment_title.shape[1])
    video, comment = (row[:width].to(batch.rows.device) for row, width in zip(rows, widths, strict=True))
    return video, comment
