"""GPSD's discriminative training (KDD 2025, arXiv 2506.03699): will this video be clicked, by whom has this history?

History and candidate pass together through the transformer that pretraining has made, or a fresh one; a small network
reads the candidate's state.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lsvcr.baselines.gpsd_body import Body, FeatureTables, build_parts
from lsvcr.baselines.gpsd_settings import ClickSettings
from lsvcr.data.rank_clicks import CONTEXT, ClickBatch
from lsvcr.data.store import Dataset
from lsvcr.models.base import TrainedModel
from lsvcr.nn.attention import initialise
from lsvcr.nn.dropout import Dropout
from lsvcr.utils.arguments import nearest
from lsvcr.utils.errors import UserError

SPARSE, DENSE, FRESH = "sparse", "dense", "fresh"
"""Parameter groups: the embedding tables; the transformer; segments and head, which no pretraining has."""

_BEGINNINGS = {"tables.": SPARSE, "body.": DENSE}


class Transfer(NamedTuple):
    """What a click model takes from pretraining.

    Attributes:
        load: groups that start with the pretrained weights; all others start fresh.
        freeze: groups that keep what they start with.
    """

    load: tuple[str, ...] = ()
    freeze: tuple[str, ...] = ()


TRANSFERS = {
    "nt": Transfer(),
    "ft": Transfer((SPARSE, DENSE)),
    "st": Transfer((SPARSE,)),
    "ft-sf": Transfer((SPARSE, DENSE), (SPARSE,)),
    "st-sf": Transfer((SPARSE,), (SPARSE,)),
}
"""The paper's five, by the names it gives them but for the ampersand."""


def transfer_name(text: str) -> str:
    """`FT&SF`, `ft_sf` or `ft-sf` -> `ft-sf`.

    Raises:
        UserError: another word; the nearest is named.
    """
    name = text.strip().lower().replace("&", "-").replace("_", "-")
    if name not in TRANSFERS:
        hint = nearest(name, TRANSFERS)
        raise UserError(
            f"--transfer is one of {', '.join(TRANSFERS)}, not {text!r}{'; ' + hint if hint else ''}"
        )
    return name


def group_of(name: str) -> str:
    """The group of a parameter of `ClickModel`, by its name."""
    return next((group for start, group in _BEGINNINGS.items() if name.startswith(start)), FRESH)


class ClickModel(TrainedModel):
    """The discriminative model.

    Args:
        tables: the sparse part.
        body: the dense part.
        hidden: d.
        both_ways: every step sees all others; else the candidate, which stands last, does.
        context: the head reads `ClickBatch.context` too.
        dropout: inside the head.
    """

    def __init__(
        self, tables: FeatureTables, body: Body, hidden: int, both_ways: bool, context: bool, dropout: float
    ) -> None:
        super().__init__()
        self.tables, self.body = tables, body
        self.segments = nn.Embedding(2, hidden)  # history, candidate
        self.head = nn.Sequential(
            nn.Linear(hidden + context * CONTEXT, hidden), nn.GELU(), Dropout(dropout), nn.Linear(hidden, 1)
        )
        self.both_ways, self.context = both_ways, context
        self.apply(initialise)

    def training_loss(self, batch: ClickBatch) -> dict[str, Tensor]:
        """`loss`, a scalar: the mean binary cross-entropy."""
        logits = self.logits(batch)
        with torch.autocast(device_type=logits.device.type, enabled=False):
            return {"loss": F.binary_cross_entropy_with_logits(logits, batch.labels)}

    def logits(self, batch: ClickBatch) -> Tensor:
        """(B,) float32: log odds of a click."""
        packing = self.body.packing(batch.ids, self.both_ways)
        last = (batch.places + 1).cumsum(0) - 1  # the candidates, each behind its history
        segment = torch.zeros_like(packing.flat)
        segment[last] = 1
        states = self.body(self.tables(packing.packed(batch.ids)) + self.segments(segment), packing)
        read = states[last]
        if self.context:
            read = torch.cat([read, batch.context.to(read.dtype)], dim=1)
        found: Tensor = self.head(read).squeeze(1).float()
        return found


def build(settings: ClickSettings, dataset: Dataset) -> ClickModel:
    """A fresh model of checked settings.

    Raises:
        UserError: a feature that the dataset does not have.
    """
    return ClickModel(
        *build_parts(settings, dataset),
        hidden=settings.hidden,
        both_ways=settings.look == "both_ways",
        context=settings.context,
        dropout=settings.dropout,
    )
