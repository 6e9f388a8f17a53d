"""SASRec (Kang and McAuley 2018, arXiv 1808.09781): a causal transformer over video ids, trained at every position.

The losses are what later work found decisive: softmax over the whole catalogue (the default, as in Klenitskiy and
Vasilev 2023) or over sampled videos, binary cross-entropy with one negative (the original), and gBCE with many
(gSASRec, Petrov and Macdonald 2023, arXiv 2308.07192).
"""

import math
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from lsvcr.baselines.registry import Entry
from lsvcr.baselines.sequence_model import SequenceTransformer, TransformerSettings, check_shape
from lsvcr.data.rank import RankBatch
from lsvcr.data.rank_sequences import SequenceBatch, SequenceData, Share
from lsvcr.data.store import Dataset
from lsvcr.losses.linear import linear_cross_entropy
from lsvcr.losses.ranking import gbce_beta
from lsvcr.losses.scores import binary_of_scores, softmax_of_scores
from lsvcr.nn.attention import initialise
from lsvcr.nn.similarity import unit
from lsvcr.schema import PAD
from lsvcr.settings import option
from lsvcr.utils.errors import UserError

Loss = Literal["softmax", "bce", "gbce"]


@dataclass
class SasrecSettings(TransformerSettings):
    """Settings of `lsvcr train sasrec`; the defaults are those of the well-tuned SASRec of the literature."""

    scale_items: bool = option(True, "multiply the video vectors that are read by the square root of hidden")
    loss: Loss = option(
        "softmax", "softmax, over all videos or neg_video_num; or bce or gbce with neg_video_num negatives"
    )
    gbce_t: float = option(0.75, "gbce: calibration from 0 (bce) to 1 (as if all videos were negatives)")
    base_rate: bool = option(
        True,
        "bce, gbce: in training scores get the logarithm of a target's odds, which they then need not learn first",
    )
    share_negatives: Share = option("position", "each target has negatives of its own, or shares them")
    score: Literal["inner", "cosine"] = option("inner", "inner product, or cosine, of user and video")
    temperature: float = option(1.0, "divides the scores; cosine needs a small one, such as 0.07")


class SASRec(SequenceTransformer):
    """The model, on histories that are padded on the right.

    Args:
        n_videos: size of the catalogue.
        max_his: longest history.
        scale_items: multiply video vectors by sqrt(hidden) where they are read.
        loss: of a training batch; in the binary losses `beta` is the weight of the target's part, and `offset` is added
            to all scores.
        cosine: score by cosine, not by inner product.
        temperature: divides the scores in training.
        shape: see `SequenceTransformer`.
    """

    def __init__(
        self,
        n_videos: int,
        max_his: int,
        *,
        scale_items: bool = True,
        loss: Loss = "softmax",
        beta: float = 1.0,
        offset: float = 0.0,
        cosine: bool = False,
        temperature: float = 1.0,
        **shape: Any,
    ) -> None:
        super().__init__(n_videos + 1, max_his, **shape)
        self.scale = self.items.embedding_dim**0.5 if scale_items else 1.0
        self.loss, self.beta, self.offset = loss, beta, offset
        self.cosine, self.temperature = cosine, temperature
        self.apply(initialise)

    def training_loss(self, batch: SequenceBatch) -> dict[str, Tensor]:
        """`loss`, a scalar: the mean over the targets of the batch."""
        states = self.states(batch.video_ids)
        with torch.autocast(device_type=states.device.type, enabled=False):  # scores are single precision
            return {"loss": self._loss(states, batch)}

    def _loss(self, states: Tensor, batch: SequenceBatch) -> Tensor:
        real = batch.targets != PAD
        users, targets = self._scorable(states[real]) / self.temperature, batch.targets[real]  # (P, d), (P,)
        if batch.negatives.numel() == 0:
            return linear_cross_entropy(users, self._scorable(self.items.weight), targets)
        own = (users * self._scorable(self.items(targets))).sum(dim=-1)
        others, drawn = self._sampled_scores(users, real, batch.negatives)
        same = drawn == targets.unsqueeze(1)
        if self.loss == "softmax":
            return softmax_of_scores(own, others, same)
        return binary_of_scores(own + self.offset, others + self.offset, same, self.beta)

    def user_vectors(self, batch: RankBatch) -> Tensor:
        """(B, d) float32: the state of the latest video."""
        last = (batch.video_ids != PAD).sum(dim=1).sub(1).clamp(min=0)
        states = self.states(batch.video_ids)
        return self._scorable(states[torch.arange(len(last), device=last.device), last])

    def item_vectors(self) -> Tensor:
        """(N + 1, d) float32 by index; row 0 is padding."""
        return self._scorable(self.items.weight)

    def states(self, video_ids: Tensor) -> Tensor:
        """Histories (B, L), L <= max_his, padded with 0 on the right -> (B, L, d)."""
        return self.through_blocks(self.placed(self.items(video_ids) * self.scale, video_ids != PAD))

    def _scorable(self, vectors: Tensor) -> Tensor:
        return unit(vectors) if self.cosine else vectors.float()

    def _sampled_scores(self, users: Tensor, real: Tensor, negatives: Tensor) -> tuple[Tensor, Tensor]:
        """Scores (P, K) of each target's negatives, and which videos they are.

        Args:
            users: (P, d) of the real positions.
            real: (B, L) bool, which they are.
            negatives: (B, L, K), (B, K) or (K,).
        """
        vectors = self._scorable(self.items(negatives if negatives.dim() < 3 else negatives[real]))
        if negatives.dim() == 1:
            return users @ vectors.T, negatives.expand(len(users), -1)
        if negatives.dim() == 3:
            return (vectors @ users.unsqueeze(-1)).squeeze(-1), negatives[real]
        # Products of whole sequences, of which the real positions are kept.
        spread = users.new_zeros(*real.shape, users.shape[1]).masked_scatter(real.unsqueeze(-1), users)
        owner = real.nonzero()[:, 0]
        return (spread @ vectors.transpose(1, 2))[real], negatives[owner]


def build(settings: SasrecSettings, dataset: Dataset) -> SASRec:
    """The model of these settings.

    Raises:
        UserError: settings that do not go together.
    """
    check(settings, dataset)
    beta = _beta(settings, dataset)
    return SASRec(
        dataset.n_videos,
        settings.max_his,
        scale_items=settings.scale_items,
        loss=settings.loss,
        beta=beta,
        offset=_offset(settings, beta),
        cosine=settings.score == "cosine",
        temperature=settings.temperature,
        **settings.shape(),
    )


def check(settings: SasrecSettings, dataset: Dataset) -> None:
    """Raise a UserError where settings are out of range or do not go together."""
    check_shape(settings)
    if settings.loss != "softmax" and not settings.neg_video_num:
        raise UserError(
            f"--loss {settings.loss} learns from sampled negatives: give --neg_video_num, such as "
            f"{1 if settings.loss == 'bce' else 256}"
        )
    if settings.loss == "gbce" and settings.neg_video_num >= dataset.n_videos:
        raise UserError(
            f"--neg_video_num {settings.neg_video_num}: a target has {dataset.n_videos - 1} negatives in "
            f"{dataset.root}; gbce wants at most as many"
        )


def _beta(settings: SasrecSettings, dataset: Dataset) -> float:
    if settings.loss != "gbce":
        return 1.0
    return gbce_beta(settings.neg_video_num, dataset.n_videos, settings.gbce_t)


def _offset(settings: SasrecSettings, beta: float) -> float:
    """What is added to all scores in training so that scores of 0 predict a target as often as there is one.

    It changes no order. Without it the first thing to learn from many negatives is that nearly nothing is a target; all
    users' vectors turn one way for that, and with seeds of bad luck stay so for dozens of epochs. Lin et al. 2017
    (arXiv 1708.02002, section 3.3) begin with such a bias for the same reason.
    """
    if settings.loss == "softmax" or not settings.base_rate:
        return 0.0
    return math.log(beta / settings.neg_video_num)


def train_data(settings: SasrecSettings, dataset: Dataset) -> SequenceData:
    """A row a user's sequence, or a window of it."""
    return SequenceData(dataset, settings.max_his, share=settings.share_negatives, windows=settings.windows)


ENTRIES = (
    Entry(
        "sasrec",
        "Causal transformer over video ids: softmax (the default), sampled softmax, BCE or gBCE.",
        SasrecSettings,
        build,
        train_data,
        instead="popularity",
        exporter="sasrec",
    ),
)
