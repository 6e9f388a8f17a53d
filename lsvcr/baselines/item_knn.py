"""Item-kNN (Sarwar et al. 2001): what people liked who liked what this user liked; counted, not trained.

The similarity of two videos is the cosine of their columns in the table of who liked what, damped for few common
people: common / (sqrt(people of one * people of the other) + shrinkage). A video keeps its most similar ones; a user's
score of a video is the sum of its similarities to the videos of the history, of which later ones may count more.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from lsvcr.baselines.registry import Entry
from lsvcr.data.rank import RankBatch
from lsvcr.data.rank_sequences import known_ends
from lsvcr.data.spans import ranges
from lsvcr.data.store import Dataset
from lsvcr.schema import PAD
from lsvcr.settings import FittedSettings, option
from lsvcr.utils.errors import UserError

PAIRS_AT_ONCE = 1 << 22
"""Pairs of videos that are counted at once."""


@dataclass
class ItemKnnSettings(FittedSettings):
    """Settings of `lsvcr train item_knn`."""

    neighbours: int = option(100, "most similar videos that a video keeps")
    shrinkage: float = option(10.0, "damps the similarity of videos with few people in common; 0 = cosine")
    fading: float = option(
        1.0, "weight of a video of the history by that of the next later one; 1 = all alike"
    )


class ItemKNN(nn.Module):
    """Scores by stored neighbours; no parameters.

    Args:
        neighbours: (N + 1, K) int64 videos, 0 where there are fewer.
        similarities: (N + 1, K) float32, 0 there.
        fading: weight of a video of the history by that of the next later one.
    """

    neighbours: Tensor
    similarities: Tensor

    def __init__(self, neighbours: Tensor, similarities: Tensor, fading: float) -> None:
        super().__init__()
        self.register_buffer("neighbours", neighbours)
        self.register_buffer("similarities", similarities)
        self.fading = fading

    def catalogue_scores(self, batch: RankBatch) -> Tensor:
        """(B, N + 1) float32; 0 for videos that are no neighbour of any of the history."""
        history = batch.video_ids  # (B, V)
        later = (history != PAD).flip(1).cumsum(dim=1).flip(1) - 1
        weights = (self.fading ** later.double()) * (history != PAD)
        worth = weights.unsqueeze(-1) * self.similarities[history]  # (B, V, K) float64
        scores = worth.new_zeros(len(history), len(self.neighbours))
        scores.scatter_add_(1, self.neighbours[history].flatten(1), worth.flatten(1))
        return scores.float()


def build(settings: ItemKnnSettings, dataset: Dataset) -> ItemKNN:
    """Count common people of all pairs of videos, and keep each video's most similar ones.

    Raises:
        UserError: settings out of range.
    """
    if settings.neighbours < 1:
        raise UserError(f"--neighbours {settings.neighbours} must be at least 1")
    if settings.shrinkage < 0:
        raise UserError(f"--shrinkage {settings.shrinkage} must be 0 or more")
    if not 0 < settings.fading <= 1:
        raise UserError(f"--fading {settings.fading} must be above 0 and at most 1")
    users, videos = likes(dataset)
    kept = min(settings.neighbours, max(1, dataset.n_videos - 1))
    nearest, similar = neighbours(users, videos, dataset.n_videos, kept, settings.shrinkage)
    return ItemKNN(torch.from_numpy(nearest), torch.from_numpy(similar), settings.fading)


def likes(dataset: Dataset) -> tuple[np.ndarray, np.ndarray]:
    """Users and videos (n,) int64 of all pairs that training may know of, each once, by user and then video."""
    starts = dataset.video_events.offsets[:-1].astype(np.int64)
    counts = known_ends(dataset) - starts
    videos = dataset.video_events.items[ranges(starts, counts)].astype(np.int64)
    pairs = np.unique(np.repeat(np.arange(len(starts)), counts) * (dataset.n_videos + 1) + videos)
    return pairs // (dataset.n_videos + 1), pairs % (dataset.n_videos + 1)


def neighbours(
    users: np.ndarray, videos: np.ndarray, n_videos: int, kept: int, shrinkage: float
) -> tuple[np.ndarray, np.ndarray]:
    """The most similar videos of each.

    Videos are taken in blocks: a block's people are looked up, then all that these people liked, and the pairs
    counted. Work and memory grow with pairs that occur, not with the catalogue's square.

    Args:
        users, videos: (n,) distinct pairs, by user and then video.
        n_videos: N.
        kept: K.
        shrinkage: see above.

    Returns:
        (N + 1, K) int64 videos, the most similar first, ties by index, and (N + 1, K) float32 similarities; 0 where
        there are no more.
    """
    offsets = np.searchsorted(users, np.arange(int(users.max(initial=0)) + 2))
    by_video = np.argsort(videos, kind="stable")
    people = np.bincount(videos, minlength=n_videos + 1)
    nearest = np.zeros((n_videos + 1, kept), dtype=np.int64)
    similar = np.zeros((n_videos + 1, kept), dtype=np.float32)
    sizes = np.diff(offsets)[users[by_video]]  # how much each person of a video liked
    border = np.concatenate([[0], np.cumsum(people)])
    pairs = np.concatenate([[0], np.cumsum(sizes)])[border]  # (N + 2,) pairs before each video
    start = 1
    while start <= n_videos:
        stop = max(start + 1, int(np.searchsorted(pairs, pairs[start] + PAIRS_AT_ONCE, side="right")) - 1)
        block = slice(border[start], border[stop])
        fans = users[by_video[block]]
        owner = np.repeat(videos[by_video[block]], sizes[block])
        others = videos[ranges(offsets[fans], sizes[block])]
        _keep(owner, others, people, shrinkage, nearest, similar)
        start = stop
    return nearest, similar


def _keep(
    owner: np.ndarray,
    others: np.ndarray,
    people: np.ndarray,
    shrinkage: float,
    nearest: np.ndarray,
    similar: np.ndarray,
) -> None:
    """Write the neighbours of the videos `owner` (m,), each standing once for each person it shares with `others`."""
    width = len(people)
    found, common = np.unique((owner * width + others)[owner != others], return_counts=True)
    one, other = found // width, found % width
    similarity = common / (np.sqrt(people[one] * people[other]) + shrinkage)
    order = np.lexsort((other, -similarity, one))
    one, other, similarity = one[order], other[order], similarity[order]
    first = np.searchsorted(one, one)  # where each video's neighbours begin
    place = np.arange(len(one)) - first
    inside = place < nearest.shape[1]
    nearest[one[inside], place[inside]] = other[inside]
    similar[one[inside], place[inside]] = similarity[inside]


ENTRIES = (
    Entry(
        "item_knn",
        "What people liked who liked what this user liked, by cosine; not trained.",
        ItemKnnSettings,
        build,
        instead="popularity",
    ),
)
