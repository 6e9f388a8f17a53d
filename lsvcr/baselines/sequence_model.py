"""What the transformers over a user's videos have in common, whichever way they look."""

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from lsvcr.models.base import TrainedModel
from lsvcr.nn.attention import LAYER_NORM_EPS
from lsvcr.nn.dropout import Dropout
from lsvcr.nn.transformer import Activation, Block, NormPlace
from lsvcr.schema import PAD
from lsvcr.settings import BaselineSettings, option
from lsvcr.settings.bounds import check_bounds
from lsvcr.utils.errors import UserError

Positions = Literal["end", "start", "none"]


@dataclass
class TransformerSettings(BaselineSettings):
    """Shape of the transformer and length of its rows; each recommender has defaults of its own."""

    hidden: int = option(64, "width d")
    layers: int = option(2, "transformer blocks")
    heads: int = option(1, "attention heads")
    inner: int = option(64, "inner width of the feed-forward layers")
    dropout: float = option(0.1, "dropout on hidden states")
    attention_dropout: float = option(0.1, "dropout on attention weights")
    more_dropout: bool = option(False, "dropout between the feed-forward maps and behind each block, too")
    norm: NormPlace = option("first", "LayerNorm before each sub-layer, or after it")
    activation: Activation = option("relu", "of the feed-forward layers")
    positions: Positions = option(
        "end", "learned positions counted from the latest video or the oldest, or none"
    )
    windows: bool = option(
        False, "train on all of a history longer than max_his, window by window; False: on its latest videos"
    )

    def shape(self) -> dict[str, Any]:
        """Arguments of `SequenceTransformer`, apart from its sizes."""
        names = "hidden layers heads inner dropout attention_dropout more_dropout norm activation positions"
        return {name: getattr(self, name) for name in names.split()}


def check_shape(settings: TransformerSettings) -> None:
    """Raise a UserError where the shape is out of range or does not go together."""
    check_bounds(settings)
    if settings.hidden % settings.heads:
        raise UserError(f"--hidden {settings.hidden} must be a multiple of --heads {settings.heads}")


class TransformerBody(TrainedModel):
    """Learned positions and transformer blocks over vectors of steps, for sequences that are padded on the right.

    Args:
        table: of videos, if the model has one; its `items`.
        longest: sequence that is read.
        hidden, layers, heads, inner, dropout, attention_dropout, more_dropout, norm, activation: of the transformer.
        positions: what learned positions are counted from.
    """

    def __init__(
        self,
        table: nn.Embedding | None,
        longest: int,
        *,
        hidden: int,
        layers: int,
        heads: int,
        inner: int,
        dropout: float,
        attention_dropout: float,
        more_dropout: bool = False,
        norm: NormPlace,
        activation: Activation,
        positions: Positions,
    ) -> None:
        super().__init__()
        self.longest, self.from_end = longest, positions == "end"
        if table is not None:
            self.items = table
        self.positions = None if positions == "none" else nn.Embedding(longest, hidden)
        self.dropout = Dropout(dropout)
        self.blocks = nn.ModuleList(
            Block(hidden, heads, inner, dropout, attention_dropout, norm, activation, more_dropout)
            for _ in range(layers)
        )
        # Where the norm comes last, the last block has just normalised.
        self.norm = nn.LayerNorm(hidden, eps=LAYER_NORM_EPS) if norm == "first" else nn.Identity()

    def placed(self, vectors: Tensor, real: Tensor) -> Tensor:
        """Vectors (B, L, d) of steps, of which `real` (B, L) bool are no padding, plus their positions."""
        if self.positions is None:
            return vectors
        steps = torch.arange(real.shape[1], device=real.device)
        if self.from_end:
            steps = steps + self.longest - real.sum(dim=1, keepdim=True)
        # Padding gets the latest place; no real step sees it.
        placed: Tensor = vectors + self.positions(steps.clamp(max=self.longest - 1))
        return placed

    def through_blocks(self, vectors: Tensor, visible: Tensor | None = None) -> Tensor:
        """(B, L, d) -> (B, L, d); `visible` (B, L) bool: the steps that all others see; None = causal."""
        x = self.dropout(vectors)
        for block in self.blocks:
            x = block(x, visible)
        finished: Tensor = self.norm(x)
        return finished


class SequenceTransformer(TransformerBody):
    """The same with a table of videos.

    Args:
        rows: of the table; row 0 is padding.
        longest: sequence that is read.
        shape: the other arguments of `TransformerBody`.
    """

    items: nn.Embedding

    def __init__(self, rows: int, longest: int, **shape: Any) -> None:
        super().__init__(nn.Embedding(rows, shape["hidden"], padding_idx=PAD), longest, **shape)
