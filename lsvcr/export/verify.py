"""A written bundle answers the test split as its checkpoints do, or it is not put in place.

The samples are asked as a client would ask them, through the serving runtime itself: what is compared is everything
from raw ids to ranked raw ids.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lsvcr.data.rank import RankBatch, RankData
from lsvcr.data.spans import Spans
from lsvcr.evaluation.metrics import Ranks, compute
from lsvcr.export.asked import Questions
from lsvcr.export.parts import Source
from lsvcr.models.base import Recommender as Model
from lsvcr.schema import Split, Task
from lsvcr.serving.bundle_write import RowKind, stored_rows
from lsvcr.serving.runtime import Recommender
from lsvcr.serving.types import Item
from lsvcr.utils.errors import UserError
from lsvcr.utils.logging import progress

K = 10
METRICS = ("ndcg@10", "recall@10")
EXACT = 1e-4
"""A score differs by less from that of the checkpoint, its item vectors rounded as the bundle stores them.

Scores here are cosines; inner products are compared as parts of the largest that the user's vector could have with any
as long as the longest item's, which is what rounding goes by.
"""
EIGHT_BITS = 0.25
"""The same for an encoder of 8 bits, whose loss is measured besides: more than this is no rounding (docs/method.md)."""
TIE = 1e-6
"""Scores that are nearer than this may change places; so may those nearer than twice what the bundle's own scores of
the sample are off, which no ranking by them could tell apart."""
_BATCH = 256
_SCORES = 1 << 25
"""Scores of the checkpoint held at once (128 MiB)."""


@dataclass
class Comparison:
    """What the bundle and the checkpoint said of the same samples.

    Attributes:
        rows: samples asked.
        difference: largest difference of a score from the checkpoint's, its item vectors rounded as they are stored.
        from_checkpoint: the same with the item vectors as they are.
        other_lists: samples whose first ten differ from the rounded ones' other than by ties.
        overlap: sum over samples of the share of the checkpoint's first ten that are in the bundle's.
        ours, theirs: places of the positives in the bundle's and the checkpoint's first ten, -1 = not among them.
        positives: how many each sample has.
        example: the first sample that differs, told to a person.
    """

    rows: int = 0
    difference: float = 0.0
    from_checkpoint: float = 0.0
    other_lists: int = 0
    overlap: float = 0.0
    ours: list[np.ndarray] = field(default_factory=list)
    theirs: list[np.ndarray] = field(default_factory=list)
    positives: list[int] = field(default_factory=list)
    example: str = ""

    def add(
        self,
        row: int,
        ours: np.ndarray,
        own: np.ndarray,
        rounded: np.ndarray,
        true: np.ndarray,
        right: np.ndarray,
    ) -> None:
        """Take in a sample.

        Args:
            row: its number.
            ours: (m,) candidates in the bundle's order, as places in `true`; -1 for one that is none.
            own: (m,) the bundle's scores of them.
            rounded, true: (n,) the checkpoint's scores of all candidates, with item vectors as stored and as they are.
            right: the positives, as places in `true`; -1 for one that is no candidate.
        """
        first = min(K, len(true))
        known = ours >= 0
        ours, own = ours[known], own[known]
        difference = float(np.abs(own - rounded[ours]).max(initial=0.0))
        self.from_checkpoint = _larger(self.from_checkpoint, float(np.abs(own - true[ours]).max(initial=0.0)))
        ours, theirs = ours[:K], _best(true, first)
        gaps = rounded[ours] - rounded[_best(rounded, first)][: len(ours)]
        same = bool(known.all()) and len(ours) == first and bool((np.abs(gaps) <= TIE + 2 * difference).all())
        if not self.example and (not same or not difference <= EXACT):
            lists = "" if same else ", and the first ten are others"
            self.example = f"sample {row}, whose scores differ by up to {difference:.1e}{lists}"
        self.rows += 1
        self.difference = _larger(self.difference, difference)
        self.other_lists += not same
        # By score, so that equal candidates count as one.
        self.overlap += (
            float((true[ours] >= true[theirs[-1]] - TIE).mean()) if len(ours) else float(not first)
        )
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
    recommender: Recommender, sources: Mapping[Task, Source], rows: int, kind: RowKind, exact: bool = True
) -> dict[str, Any]:
    """Ask the bundle about the test split and compare.

    Args:
        recommender: the bundle.
        sources: its checkpoints.
        rows: samples of each task, spread over the split; 0 = all.
        kind: how the bundle stores item vectors.
        exact: apart from that rounding all is to be as the checkpoint has it; False: the encoder rounds too.

    The lists of an approximate index may be others (its recall is in the manifest); the scores in them may not.

    Returns:
        For each task: samples, largest differences, overlap of the first ten, metrics of checkpoint and bundle.

    Raises:
        UserError: they differ, and where.
    """
    allowed = EXACT if exact else EIGHT_BITS
    approximate = recommender.manifest["index"]["kind"] != "exact"
    report = {}
    for task, source in sources.items():
        same_lists = exact and not (approximate and task is Task.REC)
        data = _samples(source)
        chosen = np.arange(len(data))
        if 0 < rows < len(data):
            chosen = np.unique(np.linspace(0, len(data) - 1, rows).round().astype(np.int64))
        # A setup has it as a plain module; that it is such a model is what `lsvcr.export.models` asks for.
        model: Any = source.setup.model
        compared = compare(recommender, model, data, chosen, kind)
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
            "max_difference": compared.from_checkpoint,
            "max_difference_but_for_rounded_rows": compared.difference,
            "other_top_10_but_for_rounded_rows": compared.other_lists,
            "overlap@10": compared.overlap / max(1, compared.rows),
            "metrics": compared.metrics(),
        }
    return report


def _samples(source: Source) -> RankData:
    """The test split; where it is empty, the next one that is not."""
    splits = [source.setup.data(split) for split in (Split.TEST, Split.VAL, Split.TRAIN)]
    return next((data for data in splits if len(data)), splits[0])


@torch.no_grad()
def compare(
    recommender: Recommender, model: Model[RankBatch], data: RankData, rows: np.ndarray, kind: RowKind
) -> Comparison:
    """Bundle and model side by side on the samples `rows`; `kind` is how the bundle stores item vectors."""
    items = model.item_vectors()
    stored = items if kind == "float32" else _rounded(items, kind)
    asked = _Asked(recommender, Questions(data), data, (stored, items))
    compare_part = _compare_videos if data.task is Task.REC else _compare_comments
    result = Comparison()
    step = max(1, min(_BATCH, _SCORES // len(items)))
    for start in progress(range(0, len(rows), step), f"asking about {data.task.label}"):
        part = rows[start : start + step]
        users = model.user_vectors(data.evaluation(part))
        compare_part(asked, part, users, _sizes(recommender, data.task, users, items), result)
    return result


@dataclass(frozen=True)
class _Asked:
    """What all samples of a comparison share.

    Attributes:
        items: (n + 1, d) float32, item vectors as the bundle stores them, and as they are.
    """

    recommender: Recommender
    questions: Questions
    data: RankData
    items: tuple[Tensor, Tensor]


def _compare_videos(
    asked: _Asked, rows: np.ndarray, users: Tensor, sizes: Tensor, result: Comparison
) -> None:
    answers = asked.recommender.recommend_many(asked.questions.videos(rows, K))
    # Column 0 is video 1.
    rounded, true = ((users / sizes[:, None] @ one[1:].T).numpy() for one in asked.items)
    for place, (row, answer) in enumerate(zip(rows, answers, strict=True)):
        found = [asked.questions.video_index.get(item.id, 0) - 1 for item in answer.items]
        target = asked.data.samples.video[row : row + 1].astype(np.int64) - 1
        own = _own_scores(answer.items, sizes[place])
        result.add(int(row), np.array(found, dtype=np.int64), own, rounded[place], true[place], target)


def _compare_comments(
    asked: _Asked, rows: np.ndarray, users: Tensor, sizes: Tensor, result: Comparison
) -> None:
    listed, positives = asked.data.video_comments(rows), asked.data.positives(rows)
    answers = asked.recommender.rank_comments_many(asked.questions.comments(rows))
    for place, (row, answer) in enumerate(zip(rows, answers, strict=True)):
        comments = _row(listed, place)
        by_id = {raw: at for at, raw in enumerate(asked.questions.comment_ids(comments))}
        by_index = {index: at for at, index in enumerate(comments.tolist())}
        user = users[place] / sizes[place]
        rounded, true = ((one[torch.from_numpy(comments)] @ user).numpy() for one in asked.items)
        found = np.array([by_id.get(item.id, -1) for item in answer.items], dtype=np.int64)
        right = np.array([by_index.get(i, -1) for i in _row(positives, place).tolist()], dtype=np.int64)
        result.add(int(row), found, _own_scores(answer.items, sizes[place]), rounded, true, right)


def _own_scores(items: Sequence[Item], size: Tensor) -> np.ndarray:
    """The bundle's scores (m,) float32 of what it answered, as parts of `size`."""
    return np.array([item.score for item in items], dtype=np.float32) / float(size)


def _sizes(recommender: Recommender, task: Task, users: Tensor, items: Tensor) -> Tensor:
    """(B,) what the scores of each user are divided by: see `EXACT`."""
    if recommender.bundle.parts[task].score == "cosine":
        return torch.ones(len(users))
    return (users.norm(dim=1) * items.norm(dim=1).max()).clamp(min=torch.finfo(torch.float32).tiny)


def _rounded(items: Tensor, kind: RowKind) -> Tensor:
    """Item vectors as the bundle stores them, in float32."""
    values, scale = stored_rows(items.numpy(), kind)
    floats = values.astype(np.float32)
    return torch.from_numpy(floats if scale is None else floats * scale[:, None])


def _larger(first: float, second: float) -> float:
    """The larger one; NaN if one of them is."""
    return float(np.maximum(first, second))


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


def _places(ranked: np.ndarray, right: np.ndarray) -> np.ndarray:
    """Where each of `right` stands in `ranked`, -1 = nowhere."""
    found = ranked[None, :] == right[:, None]
    return np.where(found.any(axis=1), found.argmax(axis=1) if found.shape[1] else 0, -1)
