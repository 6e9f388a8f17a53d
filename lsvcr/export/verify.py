"""A written bundle answers the test split as its checkpoints do, or it is not put in place.

The samples are asked as a client would ask them, through the serving runtime itself: what is compared is everything
from raw ids to ranked raw ids.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from lsvcr.data.rank import RankData
from lsvcr.data.spans import Spans
from lsvcr.evaluation.metrics import Ranks, compute
from lsvcr.export.asked import Questions
from lsvcr.export.parts import Source
from lsvcr.models.rank import RankModel
from lsvcr.schema import Split, Task
from lsvcr.serving.runtime import Recommender
from lsvcr.serving.types import Item
from lsvcr.utils.errors import UserError

K = 10
METRICS = ("ndcg@10", "recall@10")
EXACT = 1e-4
"""A float32 bundle's scores differ by less from the checkpoint's."""
LOSSY = {"float16": 5e-3, "int8": 0.05, "int8 encoder": 0.2}
"""The same for rounded rows and the 8-bit encoder: what rounding explains, and a wrong table does not. Measured: a
tenth of each (docs/method.md)."""
TIE = 1e-6
"""Scores that are nearer than this may change places."""
_BATCH = 256
_SCORES = 1 << 25
"""Scores of the checkpoint held at once (128 MiB)."""


@dataclass
class Comparison:
    """What the bundle and the checkpoint said of the same samples.

    Attributes:
        rows: samples asked.
        difference: largest difference of a score.
        other_lists: samples whose first ten differ other than by ties.
        overlap: sum over samples of the share of the checkpoint's first ten that are in the bundle's.
        ours, theirs: places of the positives in the bundle's and the checkpoint's first ten, -1 = not among them.
        positives: how many each sample has.
        example: the first sample that differs, told to a person.
    """

    rows: int = 0
    difference: float = 0.0
    other_lists: int = 0
    overlap: float = 0.0
    ours: list[np.ndarray] = field(default_factory=list)
    theirs: list[np.ndarray] = field(default_factory=list)
    positives: list[int] = field(default_factory=list)
    example: str = ""

    def add(self, row: int, ours: np.ndarray, own: np.ndarray, scores: np.ndarray, right: np.ndarray) -> None:
        """Take in a sample.

        Args:
            row: its number.
            ours: (m,) candidates in the bundle's order, as places in `scores`.
            own: (m,) the bundle's scores of them.
            scores: (n,) the checkpoint's scores of all candidates.
            right: the positives, as places in `scores`; -1 for one that is no candidate.
        """
        first = min(K, len(scores))
        theirs = _best(scores, first)
        difference = float(np.abs(own - scores[ours]).max(initial=0.0))
        ours = ours[:K]
        same = len(ours) == first and bool((np.abs(scores[ours] - scores[theirs]) <= TIE).all())
        if not self.example and (not same or not difference <= EXACT):
            self.example = f"sample {row}: scores differ by up to {difference:.1e}" + (
                "" if same else ", and so do the first ten"
            )
        self.rows += 1
        self.difference = float(np.maximum(self.difference, difference))
        self.other_lists += not same
        # By score, so that equal candidates count as one.
        kept = scores[ours] >= scores[theirs[-1]] - TIE if first else np.zeros(0, dtype=bool)
        self.overlap += float(kept.sum() / first) if first else 1.0
        self.positives.append(len(right))
        self.ours.append(_places(ours, right))
        self.theirs.append(_places(theirs, right))

    def metrics(self) -> dict[str, dict[str, float]]:
        """Each of `METRICS` of checkpoint and bundle, from the first ten alone, and what the bundle loses."""
        offsets = np.concatenate([[0], np.cumsum(self.positives)]).astype(np.int64)
        some = np.diff(offsets) > 0
        found = {}
        for name, places in (("checkpoint", self.theirs), ("bundle", self.ours)):
            flat = np.concatenate([*places, np.zeros(0, dtype=np.int64)])
            ranks = Ranks(offsets, np.maximum(flat, 0), (flat >= 0).astype(np.int64))
            found[name] = {
                metric: float(values[some].mean()) if some.any() else 0.0
                for metric, values in compute(ranks, METRICS).items()
            }
        return {
            metric: {
                "checkpoint": found["checkpoint"][metric],
                "bundle": found["bundle"][metric],
                "loss": found["checkpoint"][metric] - found["bundle"][metric],
            }
            for metric in METRICS
        }


def verify(
    recommender: Recommender, sources: Mapping[Task, Source], rows: int, allowed: float, same_lists: bool
) -> dict[str, Any]:
    """Ask the bundle about the test split and compare.

    Args:
        recommender: the bundle.
        sources: its checkpoints.
        rows: samples of each task, spread over the split; 0 = all.
        allowed: largest difference of a score.
        same_lists: the first ten must be the same but for ties.

    Returns:
        For each task: samples, largest difference, samples with other lists, overlap of the first ten, metrics.

    Raises:
        UserError: they differ, and where.
    """
    report = {}
    for task, source in sources.items():
        data = _samples(source)
        chosen = np.arange(len(data))
        if 0 < rows < len(data):
            chosen = np.unique(np.linspace(0, len(data) - 1, rows).round().astype(np.int64))
        compared = compare(recommender, source.setup.model, data, chosen)
        if not compared.difference <= allowed or (same_lists and compared.other_lists):
            raise UserError(
                f"the bundle does not answer as {source.folder} does, so it was not written: of {compared.rows} "
                f"{data.split.value} samples of {task.label} {compared.other_lists} have another top {K}, and a score "
                f"differs by {compared.difference:.1e} ({allowed:.0e} is allowed). The first: {compared.example}. "
                "Export again; if that ends the same way, the dataset or the checkpoint was changed, or this is a "
                "defect of ours"
            )
        report[task.value] = {
            "split": data.split.value,
            "rows": compared.rows,
            "max_difference": compared.difference,
            "other_top_10": compared.other_lists,
            "overlap@10": compared.overlap / max(1, compared.rows),
            "metrics": compared.metrics(),
        }
    return report


def _samples(source: Source) -> RankData:
    """The test split; where it is empty, the next one that is not."""
    splits = [source.setup.data(split) for split in (Split.TEST, Split.VAL, Split.TRAIN)]
    return next((data for data in splits if len(data)), splits[0])


@torch.no_grad()
def compare(recommender: Recommender, model: RankModel, data: RankData, rows: np.ndarray) -> Comparison:
    """Bundle and model side by side on the samples `rows`."""
    questions, result = Questions(data), Comparison()
    items = model.item_vectors()
    step = max(1, min(_BATCH, _SCORES // len(items)))
    for start in range(0, len(rows), step):
        part = rows[start : start + step]
        users = model.user_vectors(data.evaluation(part))
        if data.task is Task.REC:
            _compare_videos(recommender, questions, data, part, (users @ items.T).numpy(), result)
        else:
            _compare_comments(recommender, questions, data, part, users, items, result)
    return result


def _compare_videos(
    recommender: Recommender,
    questions: Questions,
    data: RankData,
    rows: np.ndarray,
    scores: np.ndarray,
    result: Comparison,
) -> None:
    scores[:, 0] = -np.inf
    answers = recommender.recommend_many(questions.videos(rows, K))
    for row, answer, own, target in zip(rows, answers, scores, data.samples.video[rows], strict=True):
        places = np.array([questions.video_index[item.id] for item in answer.items], dtype=np.int64)
        result.add(int(row), places, _scores(answer.items), own, np.array([target]))


def _compare_comments(
    recommender: Recommender,
    questions: Questions,
    data: RankData,
    rows: np.ndarray,
    users: torch.Tensor,
    items: torch.Tensor,
    result: Comparison,
) -> None:
    listed, positives = data.video_comments(rows), data.positives(rows)
    answers = recommender.rank_comments_many(questions.comments(rows))
    for place, (row, answer) in enumerate(zip(rows, answers, strict=True)):
        comments = _row(listed, place)
        position = {raw: at for at, raw in enumerate(questions.comment_ids(comments))}
        scores = (items[torch.from_numpy(comments)] @ users[place]).numpy()
        places = np.array([position[item.id] for item in answer.items], dtype=np.int64)
        index_of = {index: at for at, index in enumerate(comments.tolist())}
        right = np.array(
            [index_of.get(index, -1) for index in _row(positives, place).tolist()], dtype=np.int64
        )
        result.add(int(row), places, _scores(answer.items), scores, right)


def _best(scores: np.ndarray, count: int) -> np.ndarray:
    """Places of the highest scores (n,), best first, equal ones in their order."""
    if not count:
        return np.zeros(0, dtype=np.int64)
    bound = np.partition(scores, len(scores) - count)[len(scores) - count]
    places = np.flatnonzero(scores >= bound)
    return places[np.argsort(-scores[places], kind="stable")][:count]


def _row(spans: Spans, place: int) -> np.ndarray:
    start = spans.starts[place]
    return spans.items[start : start + spans.counts[place]].astype(np.int64)


def _scores(items: list[Item]) -> np.ndarray:
    return np.array([item.score for item in items], dtype=np.float32)


def _places(ranked: np.ndarray, right: np.ndarray) -> np.ndarray:
    """Where each of `right` stands in `ranked`, -1 = nowhere."""
    found = ranked[None, :] == right[:, None]
    return np.where(found.any(axis=1), found.argmax(axis=1) if found.shape[1] else 0, -1)
