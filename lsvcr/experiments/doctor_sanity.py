"""Two scorers whose result is known without evaluating: one that knows nothing and one that knows the targets.

On a sound dataset the first gets exactly chance level and the second exactly 1, under both protocols.
"""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from lsvcr.data.rank import RankBatch, RankData
from lsvcr.data.spans import rows_of
from lsvcr.data.store import Csr, Dataset, Samples
from lsvcr.evaluation.evaluator import evaluate
from lsvcr.evaluation.protocol import FULL, Protocol, listed_candidates
from lsvcr.evaluation.result import Result
from lsvcr.schema import Split, Task

ROWS = 2_000
"""Test rows at most; they are the first ones, so that their numbers are those of the stored candidates."""

SCORES = 200_000_000
"""Scores at most: a large catalogue is looked at with fewer rows."""

TELLABLE = 8
"""Rows of one video that the oracle of CommRank can tell apart; further rows are left out of its check."""

TOLERANCE = 1e-6
K = 10
METRICS = (f"recall@{K}", f"ndcg@{K}", f"mrr@{K}")
_PROTOCOLS = {"full": FULL, "sampled": Protocol("sampled")}


def sanity(dataset: Dataset) -> list[dict[str, Any]]:
    """Evaluate both scorers on the first test rows of every task that has some.

    Returns:
        One dict a task, protocol and scorer: `task`, `protocol`, `scorer`, `rows`, and for each metric `expected` and
        `got` (means), and `ok`: no row is further than `TOLERANCE` from what is expected of it.
    """
    found = []
    for task in Task:
        data = FirstRows(dataset, task)
        if not len(data):
            continue
        spans = data.positives(np.arange(len(data)))
        oracle = _RecOracle(data) if task is Task.REC else _CommentOracle(data)
        checked = oracle.told & (spans.counts > 0)
        constant = evaluate(_Constant(data), data, _PROTOCOLS, metrics=METRICS)
        known = evaluate(oracle, data, _PROTOCOLS, metrics=METRICS)
        for name, protocol in _PROTOCOLS.items():
            chance = _chance(_candidate_counts(data, protocol), spans.counts)
            best = dict.fromkeys(METRICS, np.ones(len(data)))
            best[METRICS[0]] = np.minimum(spans.counts, K) / np.maximum(spans.counts, 1)
            every = spans.counts > 0
            found += [
                _compare(task, name, "constant", constant[name], chance, every),
                _compare(task, name, "oracle", known[name], best, checked),
            ]
    return found


class FirstRows(RankData):
    """The first test rows of a task: at most `ROWS`, and at most `SCORES` scores on the whole catalogue."""

    def __init__(self, dataset: Dataset, task: Task) -> None:
        super().__init__(dataset, task, Split.TEST, max_videos=1, max_entries=1)
        catalogue = dataset.n_videos if task is Task.REC else 1
        rows = min(len(self.samples), ROWS, max(1, SCORES // catalogue))
        positives = self.samples.positives
        if positives is not None:
            positives = Csr(positives.offsets[: rows + 1], positives.items)
        self.samples = Samples(self.samples.rows[:rows], positives)


class _Constant:
    """Every vector is the same."""

    def __init__(self, data: RankData) -> None:
        dataset = data.dataset
        self._items = dataset.n_videos if data.task is Task.REC else dataset.n_comments

    def user_vectors(self, batch: RankBatch) -> Tensor:
        """(B, 1) ones."""
        return torch.ones(len(batch), 1)

    def item_vectors(self) -> Tensor:
        """(N + 1, 1) ones."""
        return torch.ones(self._items + 1, 1)


class _RecOracle:
    """An item's vector is its number in binary, as signs; a user's is the target's.

    Two of W signs that differ cost 2 of the score W, so the target alone has the highest score, exactly.
    """

    def __init__(self, data: RankData) -> None:
        self.told = np.ones(len(data), bool)
        items = torch.arange(data.dataset.n_videos + 1)
        places = torch.arange(max(1, int(data.dataset.n_videos).bit_length()))
        self._codes = ((items[:, None] >> places) & 1).float() * 2 - 1

    def user_vectors(self, batch: RankBatch) -> Tensor:
        """(B, W) the targets' vectors."""
        return self._codes[batch.videos]

    def item_vectors(self) -> Tensor:
        """(N + 1, W) of 1 and -1."""
        return self._codes


class _CommentOracle:
    """Positives score 1 and all others 0, exactly.

    Candidates are comments of the watched video, so only rows of one video meet: the j-th of them has the j-th unit
    vector, and a comment's vector marks the rows of its video that have it as a positive.
    """

    def __init__(self, data: RankData) -> None:
        count = len(data)
        videos = np.asarray(data.samples.video)
        order = np.argsort(videos, kind="stable")
        starts = np.searchsorted(videos[order], videos[order])
        place = np.empty(count, np.int64)
        place[order] = np.arange(count) - starts
        self.told = place < TELLABLE
        width = int(place[self.told].max()) + 1
        self._users = torch.zeros(count, width)
        rows = np.flatnonzero(self.told)
        self._users[rows, place[rows]] = 1.0
        positives = data.positives(rows)
        self._items = torch.zeros(data.dataset.n_comments + 1, width)
        self._items[positives.flat(), place[rows][positives.owner()]] = 1.0

    def user_vectors(self, batch: RankBatch) -> Tensor:
        """(B, TELLABLE or fewer); zeros for a row that cannot be told apart."""
        return self._users[batch.rows]

    def item_vectors(self) -> Tensor:
        """(N + 1, as wide) of 0 and 1."""
        return self._items


def _candidate_counts(data: RankData, protocol: Protocol) -> np.ndarray:
    """(n,) int64: candidates of each row."""
    rows = np.arange(len(data))
    if protocol.name == "full" and data.task is Task.REC:
        return np.full(len(data), data.dataset.n_videos)
    if protocol.name == "full":
        return listed_candidates(protocol, data, rows).counts
    table = data.dataset.candidates(data.task, data.split)
    return rows_of(table.offsets, table.items, rows).counts


def _chance(candidates: np.ndarray, positives: np.ndarray) -> dict[str, np.ndarray]:
    """What random order gives, from the hypergeometric law: n candidates, p of them right, (rows,) float64.

    Recall@K = min(K, n) / n. NDCG@K = p / n * sum over r <= min(K, n) of 1 / log2(r + 1), over the ideal sum to
    min(K, p). MRR@K = sum over r of P(the first right one has rank r) / r.
    """
    n, p = np.maximum(candidates, 1).astype(np.float64), positives.astype(np.float64)
    dcg = np.concatenate([[0.0], np.cumsum(1 / np.log2(np.arange(2, K + 2)))])
    shown = np.minimum(candidates, K)
    recall = shown / n
    ndcg = p / n * dcg[shown] / dcg[np.clip(positives, 1, K)]
    mrr, none_before = np.zeros(len(n)), np.ones(len(n))
    for r in range(1, K + 1):
        left = n - r + 1
        here = np.clip(p / np.maximum(left, 1), 0, 1) * (left >= 1)
        mrr += none_before * here / r
        none_before = none_before * (1 - here)
    return dict(zip(METRICS, (recall, ndcg, mrr), strict=True))


def _compare(
    task: Task, protocol: str, scorer: str, result: Result, expected: dict[str, np.ndarray], which: np.ndarray
) -> dict[str, Any]:
    """Means over the rows `which` (n,) bool, and whether every one of them is as expected."""
    rows = result.rows[which[result.rows]]
    chosen = which[result.rows]
    told: dict[str, Any] = {"task": task.value, "protocol": protocol, "scorer": scorer, "rows": len(rows)}
    ok = True
    for metric in METRICS:
        got, wanted = result.values[metric][chosen], expected[metric][rows]
        ok &= bool((np.abs(got - wanted) <= TOLERANCE).all())
        told[metric] = {
            "expected": float(wanted.mean()) if len(rows) else None,
            "got": float(got.mean()) if len(rows) else None,
        }
    return {**told, "ok": ok}
