"""Where the sampled negatives of Rec come from, and how probable each video is as one."""

from typing import TYPE_CHECKING, Literal

import numpy as np

from lsvcr.data.draws import integers, uniforms
from lsvcr.schema import Split, Task

if TYPE_CHECKING:
    from lsvcr.data.store import Dataset

Sampler = Literal["uniform", "log_uniform", "in_batch"]
"""uniform: all videos alike. log_uniform: by rank of popularity. in_batch: the targets of the batch's rows."""


class VideoSampler:
    """Draws videos 1 .. n_videos for a batch.

    Args:
        dataset: whose training interactions rank the videos.
        sampler: `uniform` or `log_uniform`.
    """

    def __init__(self, dataset: "Dataset", sampler: Sampler) -> None:
        self._videos = dataset.n_videos
        self._by_popularity = popularity_order(dataset.train_counts()) if sampler == "log_uniform" else None

    def draw(self, keys: tuple[int, ...], row: np.ndarray, count: int) -> np.ndarray:
        """(count,) int64 videos, with replacement, from the stream that `keys` and `row` (1,) name."""
        if self._by_popularity is None:
            return integers(keys, row, count, self._videos)[0] + 1
        return self._by_popularity[log_uniform_ranks(uniforms(keys, row, count)[0], self._videos)]


def popularity_order(counts: np.ndarray) -> np.ndarray:
    """Videos by training interactions, most first, ties by index; (n_videos,) int64, place r has rank r.

    Args:
        counts: (n_videos + 1,) interactions by index; entry 0 is padding.
    """
    return np.argsort(-counts[1:].astype(np.int64), kind="stable") + 1


def log_uniform_ranks(numbers: np.ndarray, size: int) -> np.ndarray:
    """Uniform numbers in [0, 1) as ranks 0 .. size - 1 with the probabilities of `log_uniform_shares`; int64."""
    ranks = np.exp(numbers * np.log1p(size)).astype(np.int64) - 1
    return np.minimum(ranks, size - 1)  # rounding may reach the end


def log_uniform_shares(size: int) -> np.ndarray:
    """Probability of each rank, (size,) float64: log((r + 2) / (r + 1)) / log(size + 1).

    That is TensorFlow's LogUniformCandidateSampler, near Zipf's law.
    """
    return np.log1p(1.0 / np.arange(1, size + 1)) / np.log1p(size)


def log_draw_probability(dataset: "Dataset", sampler: Sampler) -> np.ndarray | None:
    """Log of the probability that one draw is the video, (n_videos + 1,) float32; None for uniform draws.

    in_batch: of the other training samples the share that has the video as target, n / (samples - 1). A video that is
    no target cannot be drawn; it gets the value of one sample, which is finite.
    """
    if sampler == "uniform":
        return None
    shares = np.ones(dataset.n_videos + 1)
    if sampler == "log_uniform":
        shares[popularity_order(dataset.train_counts())] = log_uniform_shares(dataset.n_videos)
    else:
        targets = dataset.samples(Task.REC, Split.TRAIN).video
        counts = np.bincount(targets, minlength=dataset.n_videos + 1)
        shares = np.maximum(counts, 1) / max(1, len(targets) - 1)
    logs: np.ndarray = np.log(shares).astype(np.float32)
    return logs
