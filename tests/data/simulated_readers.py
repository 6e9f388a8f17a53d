"""Readers of a simulated world who know ever more of it, each fitted the same way: popularity, ids, texts, comments.

A reader turns every video into a few features for a user: how often it is liked, how often it is liked by
the people who like what the user likes, how often the user liked its topic and its tone. A conditional logit
with one weight a feature is fitted on the validation targets and judged on the test targets. Topics and tones are
the planted ones, which is what a perfect reader of the texts would see; nothing else of the truth is used.
"""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from lsvcr.data.simulation.truth import Truth, load_truth, video_scores
from lsvcr.data.simulation.world import NONE
from lsvcr.data.store import Dataset, Samples, open_dataset
from lsvcr.schema import Split, Task

HALF_LIFE = 4.0
"""Events after which a like counts half."""
SMOOTHING = 0.05
"""Likes that a topic or tone has before any is seen, so that a new one is unlikely but possible."""
STEPS = 25
FITTED_ROWS = 500
"""Validation rows of a fit: six weights need no more, and all of them would take four times the memory."""
TOP = 10

LADDER = {
    "popularity": ("popular",),
    "ids": ("popular", "alike"),
    "ids and texts": ("popular", "alike", "topic", "tone"),
    "ids, texts and comments": ("popular", "alike", "topic", "tone", "comment topic", "comment tone"),
}


@dataclass
class Readers:
    """A world and its prepared dataset, seen by all readers."""

    dataset: Dataset
    truth: Truth
    shuffle: np.random.Generator | None = None
    """Gives every user the comment history of another one."""

    @classmethod
    def open(cls, data: Path, raw: Path, shuffle: np.random.Generator | None = None) -> "Readers":
        """Dataset and truth from their folders."""
        return cls(open_dataset(data), load_truth(raw), shuffle)

    def judge(self, names: tuple[str, ...]) -> np.ndarray:
        """NDCG@10 of every test row over the whole catalogue, (n,)."""
        fitted = np.arange(min(FITTED_ROWS, len(self._samples(Split.VAL))))
        weights = self._fit(self._features(Split.VAL, names, fitted), self._targets(Split.VAL)[fitted])
        parts = np.array_split(np.arange(len(self._samples(Split.TEST))), 4)
        scores = torch.cat([self._features(Split.TEST, names, part) @ weights for part in parts])
        return ndcg(scores, self._targets(Split.TEST))

    def oracle(self) -> np.ndarray:
        """The same of the planted truth itself."""
        samples = self._samples(Split.TEST)
        users = np.array([self.truth.user_row[int(raw)] for raw in self.dataset.raw_ids("users")])
        scores = video_scores(self.truth, users[samples.user - 1], samples.cut)[:, self._videos]
        return ndcg(torch.from_numpy(scores), self._targets(Split.TEST))

    def _fit(self, features: Tensor, targets: Tensor) -> Tensor:
        """Maximum likelihood weights (F,) of the conditional logit."""
        weights = torch.zeros(features.shape[2], requires_grad=True)
        optimizer = torch.optim.LBFGS([weights], max_iter=STEPS, line_search_fn="strong_wolfe")

        def closure() -> Tensor:
            optimizer.zero_grad()
            loss = torch.nn.functional.cross_entropy(features @ weights, targets)
            loss.backward()
            return loss

        optimizer.step(closure)  # type: ignore[no-untyped-call]
        return weights.detach()

    def _features(self, split: Split, names: tuple[str, ...], rows: np.ndarray) -> Tensor:
        samples = Samples(self._samples(split).rows[rows])
        made = [torch.from_numpy(self._feature(name, samples)).float() for name in names]
        return torch.stack(made, dim=2)  # (n, N, F)

    def _feature(self, name: str, samples: Samples) -> np.ndarray:
        rows = len(samples)
        if name == "popular":
            return np.tile(np.log(self._counts + 0.5), (rows, 1))
        if name == "alike":
            return np.log(self._history(samples, "video") @ self._alike + 1e-3)
        source, _, what = name.rpartition(" ")
        label = self._topic if what == "topic" else self._tone
        kinds = len(self.truth.topics if what == "topic" else self.truth.tones)
        if not source:
            seen = self._history(samples, "video") @ np.eye(kinds)[label]
        else:
            comments = self._comment_topic if what == "topic" else self._comment_tone
            seen = self._history(samples, "comment") @ np.eye(kinds)[comments]
        share = (seen + SMOOTHING) / (seen + SMOOTHING).sum(axis=1, keepdims=True)
        return np.log(share)[:, label]

    def _history(self, samples: Samples, kind: str) -> np.ndarray:
        """(n, items): every earlier event of the sample's user, weighed by its age."""
        events = self.dataset.video_events if kind == "video" else self.dataset.comment_events
        width = self.dataset.n_videos if kind == "video" else self.dataset.n_comments
        ends = samples.video_end if kind == "video" else samples.comment_end
        users = samples.user
        if kind == "comment" and self.shuffle is not None:
            swapped = self.shuffle.permutation(len(samples))
            users, ends = users[swapped], ends[swapped]
        table = np.zeros((len(samples), width), np.float32)
        for row, (user, end) in enumerate(zip(users, ends, strict=True)):
            start = events.offsets[user]
            items = events.items[start : max(start, end)] - 1
            np.add.at(table[row], items, 0.5 ** (np.arange(len(items))[::-1] / HALF_LIFE))
        return table

    def _samples(self, split: Split) -> Samples:
        return self.dataset.samples(Task.REC, split)

    def _targets(self, split: Split) -> Tensor:
        return torch.from_numpy(self._samples(split).video.astype(np.int64) - 1)

    @cached_property
    def _videos(self) -> np.ndarray:
        """Row of the truth of each video."""
        return np.array([self.truth.video_row[int(raw)] for raw in self.dataset.raw_ids("videos")])

    @cached_property
    def _comments(self) -> np.ndarray:
        return np.array([self.truth.comment_row[int(raw)] for raw in self.dataset.raw_ids("comments")])

    @cached_property
    def _counts(self) -> np.ndarray:
        return self.dataset.train_counts()[1:]

    @cached_property
    def _topic(self) -> np.ndarray:
        return self.truth.videos.topic[self._videos]

    @cached_property
    def _tone(self) -> np.ndarray:
        return self.truth.videos.tone[self._videos]

    @cached_property
    def _comment_topic(self) -> np.ndarray:
        """The topic that a comment names; without one, its video's."""
        comments = self.truth.comments
        home = self.truth.videos.topic[comments.video]
        return np.where(comments.mention == NONE, home, comments.mention)[self._comments]

    @cached_property
    def _comment_tone(self) -> np.ndarray:
        return self.truth.comments.tone[self._comments]

    @cached_property
    def _alike(self) -> np.ndarray:
        """(N, N) cosine between videos by who liked them, of the likes that training knows, with shrinkage."""
        events = self.dataset.video_events
        liked = np.zeros((self.dataset.n_users + 1, self.dataset.n_videos), np.float32)
        for sample in self._samples(Split.VAL).rows:
            user, start = sample["user"], events.offsets[sample["user"]]
            liked[user, events.items[start : sample["video_end"]] - 1] = 1
        together = liked.T @ liked
        sizes = np.sqrt(np.diag(together))
        alike = together / (np.outer(sizes, sizes) + 2.0)
        np.fill_diagonal(alike, 0.0)
        return alike


def ndcg(scores: Tensor, targets: Tensor) -> np.ndarray:
    """NDCG@10 of each row (n, N) with one target (n,)."""
    own = scores.gather(1, targets[:, None])
    place = (scores > own).sum(dim=1) + ((scores == own).sum(dim=1) - 1) / 2
    return torch.where(place < TOP, 1 / torch.log2(place + 2), 0.0).numpy()
