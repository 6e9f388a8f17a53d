"""What both trainings of GPSD share: tables of the features of a video (sparse) and a transformer (dense)."""

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor, nn

from lsvcr.baselines.gpsd_settings import BodySettings
from lsvcr.data.features import chosen_features
from lsvcr.data.store import Dataset
from lsvcr.nn.decoder import RMS_EPS, GatedBlock, Packing, gated_inner
from lsvcr.nn.dropout import Dropout
from lsvcr.schema import PAD

ID = "id"


class FeatureTables(nn.Module):
    """A vector a value of each feature; a video's is the sum of those of its features, its id being one.

    Args:
        n_videos: N.
        hidden: d.
        codes: of the other features: int64 (N + 1,) each, 0 = padding or not told, whose vector is zero.
    """

    def __init__(self, n_videos: int, hidden: int, codes: Mapping[str, np.ndarray]) -> None:
        super().__init__()
        sizes = {ID: n_videos} | {name: int(code.max(initial=0)) for name, code in codes.items()}
        self.tables = nn.ModuleDict(
            {name: nn.Embedding(size + 1, hidden, padding_idx=PAD) for name, size in sizes.items()}
        )
        # Codes are the dataset's, not the model's: a checkpoint belongs to one dataset.
        for name, code in codes.items():
            self.register_buffer(f"{name}_codes", torch.from_numpy(code), persistent=False)
        self.names = tuple(codes)

    def forward(self, ids: Tensor) -> Tensor:
        """Video indices (...) -> (..., d)."""
        total: Tensor = self.tables[ID](ids)
        for name in self.names:
            total = total + self.tables[name](self.codes(name, ids))
        return total

    def weight(self, name: str) -> Tensor:
        """(values + 1, d): the table of a feature; row 0 is padding."""
        return self.tables[name].get_parameter("weight")

    def codes(self, name: str, ids: Tensor) -> Tensor:
        """Values (...) of a feature of the videos (...)."""
        return self.get_buffer(f"{name}_codes")[ids]


class Body(nn.Module):
    """Pre-norm transformer blocks with rotary positions, on packed sequences.

    Args:
        hidden, layers, heads, inner, dropout, attention_dropout: its shape; inner 0 = 8/3 of hidden.
    """

    def __init__(
        self, hidden: int, layers: int, heads: int, inner: int, dropout: float, attention_dropout: float
    ) -> None:
        super().__init__()
        self.head_width = hidden // heads
        self.dropout = Dropout(dropout)
        self.blocks = nn.ModuleList(
            GatedBlock(hidden, heads, inner or gated_inner(hidden), dropout, attention_dropout)
            for _ in range(layers)
        )
        self.norm = nn.RMSNorm(hidden, eps=RMS_EPS)

    def packing(self, ids: Tensor, both_ways: bool = False) -> Packing:
        """Of video indices (B, L), padded with 0 on the right."""
        return Packing.of(ids != PAD, self.head_width, both_ways)

    def forward(self, vectors: Tensor, packing: Packing) -> Tensor:
        """(P, d) of the real steps -> (P, d)."""
        x = self.dropout(vectors)
        for block in self.blocks:
            x = block(x, packing)
        finished: Tensor = self.norm(x)
        return finished


def build_parts(settings: BodySettings, dataset: Dataset) -> tuple[FeatureTables, Body]:
    """Both parts, of these settings.

    Raises:
        UserError: a feature that the dataset does not have.
    """
    tables = FeatureTables(dataset.n_videos, settings.hidden, chosen_features(dataset, settings.features))
    names = "hidden layers heads inner dropout attention_dropout"
    return tables, Body(**{name: getattr(settings, name) for name in names.split()})
