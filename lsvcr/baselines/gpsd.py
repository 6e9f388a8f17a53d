"""GPSD, generative pretraining (KDD 2025, arXiv 2506.03699): a causal transformer says the next video and its features.

It is a recommender by itself; `lsvcr clicks --pretrained` trains a click model from it.
"""

import torch
from torch import Tensor

from lsvcr.baselines.gpsd_body import ID, Body, FeatureTables, build_parts
from lsvcr.baselines.gpsd_settings import GpsdSettings, check_body
from lsvcr.baselines.registry import Entry
from lsvcr.data.rank import RankBatch
from lsvcr.data.rank_sequences import SequenceBatch, SequenceData
from lsvcr.data.store import Dataset
from lsvcr.losses.linear import linear_cross_entropy
from lsvcr.losses.scores import softmax_of_scores
from lsvcr.models.base import TrainedModel
from lsvcr.nn.attention import initialise
from lsvcr.nn.decoder import Packing
from lsvcr.schema import PAD


class GPSD(TrainedModel):
    """The generative model, on histories that are padded on the right.

    The tables that are read are those that are predicted from: a score is the inner product of a state and a row.

    Args:
        tables: the sparse part.
        body: the dense part.
        feature_weight: of the loss of each feature but the id.
    """

    def __init__(self, tables: FeatureTables, body: Body, feature_weight: float = 1.0) -> None:
        super().__init__()
        self.tables, self.body, self.feature_weight = tables, body, feature_weight
        self.apply(initialise)

    def training_loss(self, batch: SequenceBatch) -> dict[str, Tensor]:
        """`loss`: the sum of `id` and of the weighted other features, each a mean over the targets of the batch.

        A target whose feature is not told adds nothing to that feature's loss, and counts in its mean.
        """
        states, packing = self.states(batch.video_ids)
        targets = packing.packed(batch.targets)  # a target stands where a video is read
        with torch.autocast(device_type=states.device.type, enabled=False):  # scores are single precision
            states = states.float()
            parts = {ID: self._next_video(states, packing, targets, batch.negatives)}
            for name in self.tables.names:
                parts[name] = self._next_value(name, states, self.tables.codes(name, targets))
        loss = parts[ID] + self.feature_weight * sum(parts[name] for name in self.tables.names)
        return {"loss": loss} | (parts if self.tables.names else {})

    def user_vectors(self, batch: RankBatch) -> Tensor:
        """(B, d) float32: the state of the latest video; zero without one."""
        lengths = (batch.video_ids != PAD).sum(dim=1)
        states, _ = self.states(batch.video_ids)
        ends = lengths.cumsum(0)
        found = states.new_zeros(len(lengths), states.shape[1]).float()
        some = lengths > 0
        found[some] = states[ends[some] - 1].float()
        return found

    def item_vectors(self) -> Tensor:
        """(N + 1, d) float32 by index; row 0 is padding."""
        return self.tables.weight(ID).float()

    def states(self, video_ids: Tensor) -> tuple[Tensor, Packing]:
        """Histories (B, L), padded with 0 on the right -> (P, d) of their videos, and where these stand."""
        packing = self.body.packing(video_ids)
        return self.body(self.tables(packing.packed(video_ids)), packing), packing

    def _next_video(self, states: Tensor, packing: Packing, targets: Tensor, negatives: Tensor) -> Tensor:
        """Softmax among target and the sequence's negatives (B, K), without correction, or among all videos."""
        ids = self.item_vectors()
        if negatives.numel() == 0:
            return linear_cross_entropy(states, ids, targets)
        own = (states * ids[targets]).sum(dim=-1)
        others = packing.packed(packing.spread(states) @ ids[negatives].transpose(1, 2))  # (P, K)
        same = negatives[packing.flat // packing.shape[1]] == targets.unsqueeze(1)
        return softmax_of_scores(own, others, same)

    def _next_value(self, name: str, queries: Tensor, values: Tensor) -> Tensor:
        """Softmax among all values of a feature; the sum over those that are told, over all targets."""
        told = values != PAD
        mean = linear_cross_entropy(queries[told], self.tables.weight(name).float(), values[told])
        return mean * told.sum() / max(1, len(values))


def build(settings: GpsdSettings, dataset: Dataset) -> GPSD:
    """The model of these settings.

    Raises:
        UserError: settings that are out of range, or a feature that the dataset does not have.
    """
    check_body(settings)
    return GPSD(*build_parts(settings, dataset), feature_weight=settings.feature_loss_weight)


def train_data(settings: GpsdSettings, dataset: Dataset) -> SequenceData:
    """A row a user's sequence, or a window of it."""
    return SequenceData(dataset, settings.max_his, share="sequence", windows=settings.windows)


ENTRIES = (
    Entry(
        "gpsd",
        "GPSD's pretraining: a LLaMA-like causal transformer over ids and features; `lsvcr clicks` goes on from it.",
        GpsdSettings,
        build,
        train_data,
        instead="popularity",
    ),
)
