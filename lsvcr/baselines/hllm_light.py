"""HLLM (Chen et al. 2024, arXiv 2409.12740) with a frozen item LLM: a small causal transformer over item vectors that
`lsvcr embed --item_prompt hllm` has made once, trained by NCE at every position.
"""

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lsvcr.baselines.registry import NEEDS, Entry, Inputs
from lsvcr.baselines.sequence_model import TransformerBody, TransformerSettings, check_shape
from lsvcr.data.item_vectors import find_item_vectors
from lsvcr.data.rank import RankBatch
from lsvcr.data.rank_sequences import SequenceBatch, SequenceData
from lsvcr.data.samplers import log_draw_probability
from lsvcr.data.store import Dataset
from lsvcr.losses.nce import (
    LARGEST_SCALE,
    START_TEMPERATURE,
    false_negatives,
    learned_scale,
    nce,
    sampled_nce,
    start_log_scale,
)
from lsvcr.nn.attention import initialise
from lsvcr.nn.similarity import unit
from lsvcr.nn.time_buckets import PADDING_BUCKET, Scale, time_buckets
from lsvcr.schema import PAD
from lsvcr.settings import option
from lsvcr.utils.distributed import gather_values
from lsvcr.utils.errors import UserError

TABLE_ROWS = 1 << 16
"""Items projected at once when all are."""

WHITENED_ROWS = 1 << 13
"""Items in double precision at once."""

_LEAST_SHARE = 1e-10
"""Directions with less than this share of the largest one's variance are rounding, and left out."""


@dataclass
class HllmLightSettings(TransformerSettings):
    """Settings of `lsvcr train hllm_light`."""

    item_vectors: str = option(
        "",
        "file of item vectors; empty = item_embs.npy of the dataset, which lsvcr embed --item_prompt hllm writes",
    )
    pooling: Literal["last", "mean"] = option("last", "pooling that they must have been made by")
    directions: int = option(
        256, "leading principal directions of the item vectors that are read, each brought to spread 1"
    )
    use_id: bool = option(False, "add a learned vector of the video's id to its projected one")
    time_buckets: Literal["auto", "sqrt", "log", "none"] = option(
        "auto", "scale of the learned time differences; auto = sqrt, or none where the dataset has no times"
    )
    time_bucket_count: int = option(2048, "buckets of them; sqrt reaches 8 years with 2048")
    temperature: float = option(0.2, "that the learned temperature starts at; HLLM's published code has 0.07")
    logq: bool = option(
        False, "take off a negative's score the log of how often it is expected among the negatives"
    )
    mask_history: bool = option(
        True,
        "a row's own videos are no negatives of it; False: only a target's own video is no negative of it",
    )
    max_his: int = option(50, "latest videos of a history that the recommender sees")
    neg_video_num: int = option(
        0, "sampled negatives that a batch shares; 0 = the other targets of the batch"
    )
    hidden: int = option(128, "width d")
    heads: int = option(4, "attention heads")
    inner: int = option(512, "inner width of the feed-forward layers")
    activation: Literal["relu", "gelu"] = option("gelu", "of the feed-forward layers")


class HllmLight(TransformerBody):
    """The model, on histories that are padded on the right.

    A video is its frozen vector, whitened over the catalogue and projected to width d, plus a vector of its id if there
    are such. That is read, with learned positions and time buckets, and that is ranked, by cosine with the user's
    state.

    The transformer is causal and padding stands on the right, so that no real step sees padding: the key-padding mask
    that other layouts need.

    A step may know when its target will be asked for, and nothing else of it: its time bucket is that of the time from
    its own event to its query, which in training is the time of the step's target, and in evaluation that of the next
    event, and of the sample's cut at the last step. The earlier steps of a query were so coded for queries of their
    own, in training as in evaluation; a bucket of the time to the very last query would tell them of the future.

    Args:
        vectors: (N + 1, h) frozen item vectors by index, row 0 zeros; may be mapped. Not in the state dict.
        max_his: longest history.
        directions: of the whitening, see `_whitening`; at most h.
        use_id: add id vectors.
        time_scale: of the time buckets; None = without.
        time_bucket_count: how many there are.
        temperature: that the learned one starts at.
        mask_history: a row's own videos are no negatives of it.
        log_shares: (N + 1,) log of each video's share of the training targets, for the logQ correction of in-batch
            negatives. Sampled ones are uniform. None = no correction of either.
        shape: see `TransformerBody`.
    """

    vectors: Tensor
    mean: Tensor
    whitening: Tensor
    log_shares: Tensor | None

    def __init__(
        self,
        vectors: Tensor,
        max_his: int,
        *,
        directions: int = 256,
        use_id: bool = False,
        time_scale: Scale | None = None,
        time_bucket_count: int = 2048,
        temperature: float = START_TEMPERATURE,
        mask_history: bool = True,
        log_shares: Tensor | None = None,
        **shape: Any,
    ) -> None:
        rows, hidden = len(vectors), shape["hidden"]
        super().__init__(nn.Embedding(rows, hidden, padding_idx=PAD) if use_id else None, max_his, **shape)
        self.mask_history = mask_history
        self.use_id, self.time_scale, self.time_bucket_count = use_id, time_scale, time_bucket_count
        mean, whitening = _whitening(vectors, directions)
        self.projection = nn.Linear(whitening.shape[1], hidden)
        if time_scale is not None:
            self.times = nn.Embedding(time_bucket_count + 1, hidden, padding_idx=PADDING_BUCKET)
        self.apply(initialise)
        self.log_scale = nn.Parameter(start_log_scale(temperature))
        # Kept in checkpoints and made the same on all processes: another machine may turn a direction round.
        self.register_buffer("mean", mean)
        self.register_buffer("whitening", whitening)
        self.register_buffer("vectors", vectors, persistent=False)
        self.register_buffer("log_shares", log_shares, persistent=False)
        # Large and the same on every process: DDP need not send them around.
        self._ddp_params_and_buffers_to_ignore = ["vectors", "log_shares"]

    def training_loss(self, batch: SequenceBatch) -> dict[str, Tensor]:
        """Scalars: `loss`, the mean over the targets of the batch, and the `temperature` at which it stands."""
        real = batch.targets != PAD
        targets, owners = batch.targets[real], real.nonzero()[:, 0]  # (P,)
        sampled = batch.negatives.numel() > 0
        # In-batch negatives are the targets of all processes, of which each projects what it needs.
        asked = targets if sampled else gather_values(targets)
        others = batch.negatives if sampled else asked.unique()
        distinct = torch.cat([batch.video_ids.flatten(), targets, others]).unique()
        items = self.represent(distinct)
        read, own, drawn = (
            F.embedding(torch.searchsorted(distinct, ids), items)
            for ids in (batch.video_ids, targets, others)
        )
        states = self.states(read, batch.video_ids != PAD, batch.times, batch.next_times)[real]
        if self.mask_history:
            drop = false_negatives(others, torch.cat([batch.video_ids, batch.targets], dim=1), owners)
        else:
            drop = others == targets.unsqueeze(1)
        counts = self._log_counts(others, len(asked), sampled)
        if sampled:
            loss = sampled_nce(states, own, drawn, self.log_scale, drop, counts)
        else:
            loss = nce(states, drawn, torch.searchsorted(others, targets), self.log_scale, drop, counts)
        return {"loss": loss, "temperature": 1 / learned_scale(self.log_scale.detach())}

    def user_vectors(self, batch: RankBatch) -> Tensor:
        """(B, d) float32 of length 1: the state of the latest video, asked at the sample's cut."""
        real = batch.video_ids != PAD
        last = real.sum(dim=1, keepdim=True).sub(1).clamp(min=0)
        distinct, places = batch.video_ids.unique(return_inverse=True)
        asked = F.pad(batch.video_times[:, 1:], (0, 1)).scatter(1, last, batch.cuts.unsqueeze(1))
        read = F.embedding(places, self.represent(distinct))
        states = self.states(read, real, batch.video_times, asked)
        return unit(states[torch.arange(len(last), device=last.device), last.squeeze(1)])

    def item_vectors(self) -> Tensor:
        """(N + 1, d) float32 of length 1 by index; row 0 is padding."""
        return unit(self.every())

    def every(self) -> Tensor:
        """(N + 1, d): all videos as they are read; row 0 is padding."""
        ids = torch.arange(len(self.vectors), device=self.vectors.device)
        return torch.cat([self.represent(part) for part in ids.split(TABLE_ROWS)])

    def represent(self, ids: Tensor) -> Tensor:
        """Videos (n,) -> (n, d). One without text has the projection of the catalogue's mean."""
        projected: Tensor = self.projection(self.normalised(ids))
        return projected + self.items(ids) if self.use_id else projected

    def normalised(self, ids: Tensor) -> Tensor:
        """Videos (n,) -> their frozen vectors, whitened (n, directions); zeros where there is no text.

        In double precision: directions of little variance are scaled up, and what float32 rounds off with them, which
        differs with the number of videos that are asked for.
        """
        given = self.vectors[ids].double()
        whitened = (given - self.mean) @ self.whitening.double()
        return whitened.float() * given.any(dim=1, keepdim=True)

    def states(self, items: Tensor, real: Tensor, times: Tensor, asked: Tensor) -> Tensor:
        """The transformer's states.

        Args:
            items: (B, L, d) of the videos read, L <= max_his.
            real: (B, L) bool, no padding.
            times: (B, L) Unix milliseconds of their events.
            asked: (B, L) Unix milliseconds at which each step is asked for what comes next.

        Returns:
            (B, L, d).
        """
        x = self.placed(items, real)
        if self.time_scale is not None:
            x = x + self.times(time_buckets(times, asked, real, self.time_scale, self.time_bucket_count))
        return self.through_blocks(x)

    def _log_counts(self, others: Tensor, targets: int, sampled: bool) -> Tensor | None:
        """Log of how often each of these videos is expected among the negatives; None without correction."""
        if self.log_shares is None:
            return None
        if sampled:
            return torch.full(others.shape, len(others) / (len(self.vectors) - 1), device=others.device).log()
        # Each stands there once if any of the targets is it: 1 - (1 - share) ** targets.
        absent = torch.log1p(-self.log_shares[others].exp().clamp(max=0.999)) * max(1, targets)
        return torch.log(-torch.expm1(absent))


def _whitening(vectors: Tensor, directions: int) -> tuple[Tensor, Tensor]:
    """Mean (h,) of the rows that are not zero, and what turns a difference from it into whitened numbers.

    States of an LLM at its last token are nearly parallel, and a few of their directions hold nearly all that differs,
    so that a projection of them as they are learns slowly. Measured on ml-latest-small with 4 layers of a small LLM and
    without ids: after 400 steps the loss is 5.6, and 6.3 where every number has mean 0 and spread 1.

    Args:
        vectors: (N + 1, h); at least one row is not zero.
        directions: K, at most h are taken: those in which the rows differ most.

    Returns:
        The mean and (h, K), float32: columns of the second for directions of no variance are zero.
    """
    width = vectors.shape[1]
    total, square = torch.zeros(width, dtype=torch.float64), torch.zeros(width, width, dtype=torch.float64)
    count = 0
    for part in vectors.split(WHITENED_ROWS):
        some = part[part.any(dim=1)].double()
        total += some.sum(dim=0)
        square.addmm_(some.T, some)
        count += len(some)
    mean = total / max(1, count)
    variances, axes = torch.linalg.eigh(square / max(1, count) - torch.outer(mean, mean))
    variances, axes = variances.flip(0)[:directions], axes.flip(1)[:, :directions]
    some = variances > _LEAST_SHARE * variances[0]
    scale = torch.where(some, variances.clamp(min=torch.finfo(torch.float64).tiny).rsqrt(), 0.0)
    return mean.float(), (axes * scale).float()


def build(settings: HllmLightSettings, dataset: Dataset) -> HllmLight:
    """The model of these settings.

    Raises:
        UserError: settings that do not go together, or no vectors of this dataset's videos by this pooling.
    """
    check(settings, dataset)
    vectors = find_item_vectors(dataset, settings.item_vectors, settings.pooling).array()
    shares = log_draw_probability(dataset, "in_batch") if settings.logq else None
    return HllmLight(
        torch.from_numpy(vectors if vectors.dtype == np.float32 else vectors.astype(np.float32)),
        settings.max_his,
        directions=settings.directions,
        use_id=settings.use_id,
        time_scale=time_scale(settings, dataset),
        time_bucket_count=settings.time_bucket_count,
        temperature=settings.temperature,
        mask_history=settings.mask_history,
        log_shares=None if shares is None else torch.from_numpy(shares),
        **settings.shape(),
    )


def check(settings: HllmLightSettings, dataset: Dataset) -> None:
    """Raise a UserError where settings are out of range or do not go together."""
    check_shape(settings)
    if not 1 / LARGEST_SCALE <= settings.temperature <= 1:
        raise UserError(f"--temperature {settings.temperature} must be from {1 / LARGEST_SCALE:g} to 1")
    time_scale(settings, dataset)


def time_scale(settings: HllmLightSettings, dataset: Dataset) -> Scale | None:
    """Scale of the time buckets; None where there are none.

    Raises:
        UserError: they are asked for, and the dataset has no times.
    """
    has_times = NEEDS["times"][1](dataset)
    if settings.time_buckets == "none" or (settings.time_buckets == "auto" and not has_times):
        return None
    if not has_times:
        raise UserError(
            f"--time_buckets {settings.time_buckets}: {dataset.root} has no times of its events; give none, or "
            "leave it to auto"
        )
    return "sqrt" if settings.time_buckets == "auto" else settings.time_buckets


def inputs(settings: HllmLightSettings, dataset: Dataset) -> Inputs:
    """The file of item vectors."""
    return {"item vectors": find_item_vectors(dataset, settings.item_vectors, settings.pooling).about}


def train_data(settings: HllmLightSettings, dataset: Dataset) -> SequenceData:
    """A row a user's sequence, or a window of it."""
    return SequenceData(dataset, settings.max_his, share="batch", windows=settings.windows)


ENTRIES = (
    Entry(
        "hllm_light",
        "Causal transformer over item vectors of a frozen LLM (HLLM), trained by NCE; wants lsvcr embed first.",
        HllmLightSettings,
        build,
        train_data,
        inputs=inputs,
        instead="sasrec",
        exporter="hllm_light",
    ),
)
