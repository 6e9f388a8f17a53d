"""BERT4Rec (Sun et al. 2019, arXiv 1904.06690): a transformer that looks both ways fills in hidden videos.

Trained on sequences of which some videos are replaced by a mask, it recommends by filling a mask that is put behind a
history, or in front of it, or at both ends in turn (`complete`).
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lsvcr.baselines.registry import Entry
from lsvcr.baselines.sequence_model import SequenceTransformer, TransformerSettings, check_shape
from lsvcr.data.draws import uniforms
from lsvcr.data.rank import RankBatch
from lsvcr.data.rank_sequences import SequenceData
from lsvcr.data.store import Dataset
from lsvcr.losses.linear import linear_cross_entropy
from lsvcr.nn.attention import LAYER_NORM_EPS, initialise
from lsvcr.nn.transformer import Activation, NormPlace
from lsvcr.schema import PAD
from lsvcr.settings import option
from lsvcr.utils.errors import UserError

Direction = Literal["post", "pre", "both"]

Ends = Literal["plain", "bert"]

_MASKING, _SHOWING = 8, 9
"""Purposes of a row's random streams."""

_BLOCK = 4096
"""Rows whose masks are drawn at once where only their number is wanted."""


@dataclass
class Bert4RecSettings(TransformerSettings):
    """Settings of `lsvcr train bert4rec`."""

    num_train_epochs: int = option(500, "at most this many epochs; patience ends most runs before")
    heads: int = option(2, "attention heads")
    inner: int = option(256, "inner width of the feed-forward layers")
    more_dropout: bool = option(True, "dropout between the feed-forward maps and behind each block, too")
    norm: NormPlace = option("first", "LayerNorm before each sub-layer, or after it")
    ends: Ends = option(
        "plain",
        "bert: LayerNorm in front of the blocks and behind them, and a layer, LayerNorm and bias before the scores",
    )
    initial: Literal["normal", "xavier"] = option(
        "xavier", "weights and tables are drawn with deviation 0.02, or with one that fits their size"
    )
    activation: Activation = option("gelu", "of the feed-forward layers")
    adam_beta2: float = option(0.98, "AdamW: how slowly the mean of squared gradients forgets")
    windows: bool = option(
        True, "train on all of a history longer than max_his, window by window; False: on its latest videos"
    )
    mask_probability: float = option(0.2, "chance of each video of a sequence to be hidden")
    replaced: float = option(
        0.2,
        "share of hidden videos that show another video, or themselves, in equal parts, instead of a mask",
    )
    last_only: float = option(
        0.0, "share of sequences of which the latest video alone is hidden, as it is when recommending"
    )


@dataclass
class MaskedBatch:
    """B sequences, oldest first, padded with 0 on the right; all tensors are int64.

    Attributes:
        rows: (B,) row numbers.
        video_ids: (B, L) what is read, N + 1 where a mask hides a video.
        targets: (B, L) the hidden video, 0 where none is.
    """

    rows: Tensor
    video_ids: Tensor
    targets: Tensor

    def __len__(self) -> int:
        return len(self.rows)

    def to(self, device: torch.device) -> "MaskedBatch":
        """The same batch on another device."""
        moved = {
            field.name: getattr(self, field.name).to(device, non_blocking=True) for field in fields(self)
        }
        return MaskedBatch(**moved)


class MaskedData:
    """The sequences of `SequenceData` as wholes, with hidden videos.

    Args:
        dataset: the prepared dataset.
        length: longest history; a sequence has one video more, as it has when recommending.
        probability: chance of each video to be hidden; at least one always is.
        last_only: share of sequences of which the latest video alone is hidden.
        replaced: share of hidden places that show any video, or the hidden one itself, in equal parts.
        windows: a longer history becomes several rows; neighbours share a video.
    """

    def __init__(
        self,
        dataset: Dataset,
        length: int,
        *,
        probability: float = 0.2,
        last_only: float = 0.5,
        replaced: float = 0.0,
        windows: bool = False,
    ) -> None:
        self.sequences = SequenceData(dataset, length, windows=windows)
        self.mask = dataset.n_videos + 1
        self.probability, self.last_only, self.replaced = probability, last_only, replaced

    def __len__(self) -> int:
        return len(self.sequences)

    def terms(self, rows: np.ndarray, keys: tuple[int, int]) -> int:
        """Hidden videos of these rows."""
        parts = (rows[start : start + _BLOCK] for start in range(0, len(rows), _BLOCK))
        return sum(int(self.hidden(part, keys).sum()) for part in parts)

    def training(self, rows: np.ndarray, keys: tuple[int, int], negatives: int = 0) -> MaskedBatch:
        """Batch of rows (B,); what is hidden is a function of keys (seed, epoch) and a row's number."""
        spans = self.sequences.spans(rows)
        steps = np.arange(int(spans.counts.max(initial=1)))
        inside = steps < spans.counts[:, None]
        ids = np.where(inside, spans.items[np.where(inside, spans.starts[:, None] + steps, 0)], PAD)
        hidden = self.hidden(rows, keys)
        arrays = {
            "rows": rows,
            "video_ids": np.where(hidden, self._shown(rows, ids, keys), ids),
            "targets": np.where(hidden, ids, PAD),
        }
        return MaskedBatch(
            **{name: torch.from_numpy(array.astype(np.int64)) for name, array in arrays.items()}
        )

    def _shown(self, rows: np.ndarray, ids: np.ndarray, keys: tuple[int, int]) -> np.ndarray:
        """(B, L) int64: what the places of these rows (B,) with videos ids (B, L) show where they are hidden."""
        draws = uniforms((*keys, _SHOWING), rows, 2 * ids.shape[1]).reshape(*ids.shape, 2)
        others = 1 + (draws[..., 1] * (self.mask - 1)).astype(np.int64)
        masked = np.where(draws[..., 0] < self.replaced / 2, others, self.mask)
        return np.where(draws[..., 0] >= 1 - self.replaced / 2, ids, masked)

    def hidden(self, rows: np.ndarray, keys: tuple[int, int]) -> np.ndarray:
        """(B, L) bool: which places of these rows (B,) are hidden, L being the longest row's length."""
        counts = self.sequences.spans(rows).counts
        steps = np.arange(int(counts.max(initial=1)))
        # One stream a row, read from its start: neither the batch nor its padding changes a draw.
        draws = uniforms((*keys, _MASKING), rows, 1 + len(steps))
        chances = np.where(steps < counts[:, None], draws[:, 1:], 1.0)
        some = chances < self.probability
        some[np.arange(len(rows)), chances.argmin(axis=1)] = True
        latest = steps == counts[:, None] - 1
        return np.where(draws[:, :1] < self.last_only, latest, some)


class BertHead(nn.Module):
    """From the state at a mask to scores, as BERT has it: norm(GELU(h W + c)) with the videos' table, and a bias each.

    Args:
        n_videos: N.
        width: d.
    """

    def __init__(self, n_videos: int, width: int) -> None:
        super().__init__()
        # The paper has no norm here; its authors' code, which is BERT's, does.
        self.output, self.norm = nn.Linear(width, width), nn.LayerNorm(width, eps=LAYER_NORM_EPS)
        self.bias = nn.Parameter(torch.zeros(n_videos + 1))

    def training_pair(self, states: Tensor, items: Tensor) -> tuple[Tensor, Tensor]:
        """States (P, d) and items (N + 1, d) -> (P, d + 1) and (N + 1, d + 1) float32, whose products are scores."""
        x = self.norm(self._filled(states))
        rows = torch.cat([items, self.bias.unsqueeze(1)], dim=1).float()
        return torch.cat([x, x.new_ones(len(x), 1)], dim=1), rows  # the last number meets the bias

    def user_vectors(self, states: Tensor) -> Tensor:
        """(P, d) -> (P, d) float32, for products with `item_vectors`."""
        filled = self._filled(states)
        return F.layer_norm(filled, filled.shape[-1:], eps=self.norm.eps) + 1

    def item_vectors(self, items: Tensor) -> Tensor:
        """(N + 1, d) -> (N + 1, d) float32.

        A query is w z + b with a z of mean 0, so a score is z (w e) plus what a video gets of every query: e b and its
        bias. This constant lies along (1, ..., 1), where no z has a part, and the vectors of users are z + 1: so the
        inner products of d numbers are the scores.
        """
        scaled = items * self.norm.weight
        constant = (items * self.norm.bias).sum(dim=1) + self.bias
        return scaled - (scaled.mean(dim=1) - constant / items.shape[1]).unsqueeze(1)

    def _filled(self, states: Tensor) -> Tensor:
        return F.gelu(self.output(states.float()))


class BERT4Rec(SequenceTransformer):
    """The model, on sequences that are padded on the right.

    Args:
        n_videos: N, size of the catalogue. The table of videos has a row N + 1 for hidden ones.
        max_his: longest history; a mask beside it makes a sequence of max_his + 1.
        ends: what stands around the blocks. plain: nothing, a state's product with a video is its score. bert: a
            LayerNorm on either side, and a `BertHead`.
        xavier: draw weights and tables from N(0, 2 / (rows + columns)) (Glorot and Bengio 2010), not N(0, 0.02^2).
        shape: see `SequenceTransformer`.
    """

    def __init__(
        self, n_videos: int, max_his: int, *, ends: Ends = "plain", xavier: bool = True, **shape: Any
    ) -> None:
        super().__init__(n_videos + 2, max_his + 1, **shape)
        self.mask, self.max_his = n_videos + 1, max_his
        width = self.items.embedding_dim
        self.input_norm: nn.Module = nn.Identity()
        self.head: BertHead | None = None
        if ends == "bert":
            self.input_norm = nn.LayerNorm(width, eps=LAYER_NORM_EPS)
            self.head = BertHead(n_videos, width)
        else:
            self.norm = nn.Identity()
        self.apply(initialise)
        if xavier:
            for parameter in self.parameters():
                if parameter.dim() > 1:
                    nn.init.xavier_normal_(parameter)
            nn.init.zeros_(self.items.weight[PAD])

    def training_loss(self, batch: MaskedBatch) -> dict[str, Tensor]:
        """`loss`, a scalar: the mean over the hidden videos of the batch, of cross-entropy among all videos."""
        hidden = batch.targets != PAD
        states = self.states(batch.video_ids)[hidden]  # (P, d)
        with torch.autocast(device_type=states.device.type, enabled=False):  # scores are single precision
            items = self.items.weight[:-1]
            if self.head is None:
                queries, rows = states.float(), items.float()
            else:
                queries, rows = self.head.training_pair(states, items)
        return {"loss": linear_cross_entropy(queries, rows, batch.targets[hidden])}

    def user_vectors(self, batch: RankBatch) -> Tensor:
        """(B, d) float32: what a mask behind the history (B, L) asks for."""
        lengths = (batch.video_ids != PAD).sum(dim=1)
        ids = F.pad(batch.video_ids, (0, 1)).scatter(1, lengths.unsqueeze(1), self.mask)
        return self.vectors_at(ids, lengths)

    def item_vectors(self) -> Tensor:
        """(N + 1, d) float32 by index; row 0 is padding."""
        items = self.items.weight[:-1].float()
        return items if self.head is None else self.head.item_vectors(items)

    def vectors_at(self, ids: Tensor, places: Tensor) -> Tensor:
        """(B, d) float32: what the masks at `places` (B,) of sequences (B, L) ask for."""
        states = self.states(ids)[torch.arange(len(places), device=places.device), places]
        with torch.autocast(device_type=states.device.type, enabled=False):
            return states.float() if self.head is None else self.head.user_vectors(states)

    def states(self, ids: Tensor) -> Tensor:
        """Sequences (B, L), padded with 0 on the right, with a video or mask in each -> (B, L, d)."""
        visible = ids != PAD
        return self.through_blocks(self.input_norm(self.placed(self.items(ids), visible)), visible)


@dataclass(frozen=True)
class Completion:
    """A history with what was filled in around it.

    Attributes:
        before: filled in before it, oldest first: the first one filled in is the last here.
        history: video indices as given.
        after: filled in after it, in the order in which it was.
    """

    before: tuple[int, ...]
    history: tuple[int, ...]
    after: tuple[int, ...]

    @property
    def sequence(self) -> tuple[int, ...]:
        """All of it, oldest first."""
        return (*self.before, *self.history, *self.after)


def complete(model: BERT4Rec, history: Sequence[int], n: int, direction: Direction = "post") -> Completion:
    """Fill in n videos around a history, one at a time, each with the earlier ones in sight; none stands there twice.

    Of what is longer than `model.max_his`, the videos next to the mask are read: the window slides with the end that
    grows.

    Args:
        model: in any mode, on any device.
        history: video indices, oldest first; may be empty.
        n: how many.
        direction: `post` appends, `pre` prepends, `both` does so in turn, beginning with the latest end.

    Raises:
        UserError: an index that is no video, or fewer than n videos left.
    """
    items = model.item_vectors().detach()
    taken = torch.zeros(len(items), dtype=torch.bool, device=items.device)
    taken[PAD] = True
    if any(not 0 < video < len(items) for video in history):
        raise UserError(f"a history holds video indices from 1 to {len(items) - 1}, not {list(history)}")
    taken[list(history)] = True
    if not 0 <= n <= int((~taken).sum()):
        raise UserError(f"{n} videos cannot be filled in: {int((~taken).sum())} are not in the history")
    line, before = list(history), 0
    was_training = model.training
    model.eval()
    try:
        for step in range(n):
            at_end = direction == "post" or (direction == "both" and step % 2 == 0)
            video = _next(model, items, line, at_end, taken)
            taken[video] = True
            line.insert(len(line) if at_end else 0, video)
            before += not at_end
    finally:
        model.train(was_training)
    end = before + len(history)
    return Completion(tuple(line[:before]), tuple(history), tuple(line[end:]))


@torch.no_grad()
def _next(model: BERT4Rec, items: Tensor, line: list[int], at_end: bool, taken: Tensor) -> int:
    """The best video that is not taken for one end of `line`."""
    read = [*line[-model.max_his :], model.mask] if at_end else [model.mask, *line[: model.max_his]]
    ids = torch.tensor([read], device=items.device)
    place = torch.tensor([len(read) - 1 if at_end else 0], device=items.device)
    scores = model.vectors_at(ids, place)[0] @ items.T
    return int(scores.masked_fill(taken, -torch.inf).argmax())


def build(settings: Bert4RecSettings, dataset: Dataset) -> BERT4Rec:
    """The model of these settings.

    Raises:
        UserError: settings that are out of range or do not go together.
    """
    check(settings)
    return BERT4Rec(
        dataset.n_videos,
        settings.max_his,
        ends=settings.ends,
        xavier=settings.initial == "xavier",
        **settings.shape(),
    )


def check(settings: Bert4RecSettings) -> None:
    """Raise a UserError where settings are out of range or do not go together."""
    check_shape(settings)
    for flag in ("mask_probability", "last_only", "replaced"):
        if not 0 <= getattr(settings, flag) <= 1:
            raise UserError(f"--{flag} {getattr(settings, flag)} must be between 0 and 1")
    if settings.neg_video_num:
        raise UserError(
            f"--neg_video_num {settings.neg_video_num}: bert4rec learns from the whole catalogue; leave it away, or "
            "use sasrec"
        )


def train_data(settings: Bert4RecSettings, dataset: Dataset) -> MaskedData:
    """A row a user's sequence, or a window of it."""
    return MaskedData(
        dataset,
        settings.max_his,
        probability=settings.mask_probability,
        last_only=settings.last_only,
        replaced=settings.replaced,
        windows=settings.windows,
    )


ENTRIES = (
    Entry(
        "bert4rec",
        "Transformer that looks both ways and fills in masked videos; `lsvcr complete` asks it at either end.",
        Bert4RecSettings,
        build,
        train_data,
        instead="popularity",
        exporter="bert4rec",
    ),
)
