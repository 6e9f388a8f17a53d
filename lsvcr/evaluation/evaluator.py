"""Ranks a split's positives with a model's vectors; the figures do not depend on how the work is cut.

User vectors are computed in blocks of fixed size that start at fixed rows, so that a row meets the same
arithmetic whatever the batch size and whichever process it falls to. Each process takes every n-th block; the
counts are gathered by row and reduced once.
"""

from collections.abc import Mapping
from typing import Protocol as Interface
from typing import runtime_checkable

import numpy as np
import torch
from torch import Tensor

from lsvcr.data.people import people_of
from lsvcr.data.rank import RankBatch, RankData
from lsvcr.data.spans import Spans, ranges
from lsvcr.evaluation.counting import Counts, count_catalogue, count_listed
from lsvcr.evaluation.lists import Banned, ListTally, split_metrics
from lsvcr.evaluation.metrics import DEFAULT_METRICS, Ranks, compute
from lsvcr.evaluation.protocol import FULL, Drawn, Protocol, check, fingerprint, listed_candidates
from lsvcr.evaluation.result import Fingerprint, Result
from lsvcr.evaluation.slices import slices
from lsvcr.schema import Task
from lsvcr.utils.distributed import gather_rows, rank, world_size
from lsvcr.utils.errors import UserError

BLOCK = 128
"""Rows whose user vectors are computed together."""

CPU_CHUNK, GPU_CHUNK = 1 << 12, 1 << 16
"""Items scored at once. On a CPU, measured: 1,024 cost 1.3 times 4,096, and 16,384 1.6 times."""


@runtime_checkable
class CatalogueScorer(Interface):
    """A model without vectors, which scores the whole catalogue for each user."""

    def catalogue_scores(self, batch: RankBatch) -> Tensor:
        """(B, N + 1) float32 by item index, finite; column 0 is padding, which never ranks whatever it holds."""
        ...


class Scorer(Interface):
    """The part of `Recommender` that evaluation needs; a score is the inner product of two vectors."""

    def user_vectors(self, batch: RankBatch) -> Tensor:
        """(B, w) float32."""
        ...

    def item_vectors(self) -> Tensor:
        """(N + 1, w) float32 by index, row 0 is padding."""
        ...


@torch.no_grad()
def evaluate(
    scorer: Scorer | CatalogueScorer,
    data: RankData,
    protocols: Mapping[str, Protocol] | None = None,
    *,
    metrics: tuple[str, ...] = DEFAULT_METRICS,
    batch_size: int = 512,
    chunk: int | None = None,
    device: torch.device | None = None,
    drawn: Drawn | None = None,
) -> dict[str, Result]:
    """Evaluate a model on a split under one or more protocols.

    Args:
        scorer: the model, in evaluation mode; its item vectors, if it has any, are computed once.
        data: the samples.
        protocols: by a name of the caller's; None = {"full": FULL}.
        metrics: names such as `ndcg@10`; of `lists.LIST_METRICS` only where a protocol ranks the whole catalogue, which
            alone has them in its result.
        batch_size: rows ranked at once, rounded up to whole blocks.
        chunk: items scored at once; None = what suits the device. Neither changes a figure.
        device: where batches go; None = CPU.
        drawn: these rows alone, which is then part of the fingerprints; None = all.

    Returns:
        A `Result` for each protocol, complete on every process.

    Raises:
        UserError: an unknown metric, the split has no rows, vectors are not finite, or the dataset cannot serve a
            protocol.
    """
    chosen = {"full": FULL} if protocols is None else protocols
    for protocol in chosen.values():
        check(protocol, data)
    ranked, listed = _wanted(metrics, chosen, data)
    if not len(data):
        raise UserError(
            f"{data.dataset.root} has no {data.task.label} samples in its {data.split.value} split"
        )
    items = None if isinstance(scorer, CatalogueScorer) else _finite(scorer.item_vectors(), "item")
    where = (device or torch.device("cpu")) if items is None else items.device
    chunk = chunk or (CPU_CHUNK if where.type == "cpu" else GPU_CHUNK)
    counted: dict[str, list[np.ndarray]] = {name: [] for name in chosen}
    numbers: list[np.ndarray] = []
    every = np.arange(len(data)) if drawn is None else drawn.rows
    offsets = np.concatenate([[0], np.cumsum(data.positives(every).counts)])
    lists = {
        name: ListTally(listed, data.dataset.train_counts(), data.samples.video[every], where)
        for name, protocol in chosen.items()
        if listed and _whole_catalogue(protocol, data)
    }
    for places in _own_rows(len(every), batch_size):
        rows = every[places]
        users = _users(scorer, data, rows, device)
        positives = data.positives(rows)
        numbers.append(ranges(offsets[places], positives.counts))
        for name, protocol in chosen.items():
            counts = _rank(users, items, data, rows, positives, protocol, chunk)
            counted[name].append(torch.stack([counts.higher, counts.tied], dim=1).cpu().numpy())
            if name in lists:
                banned = _without_targets(_seen(data, rows, protocol, users), _to(positives.flat(), users))
                lists[name].add(rows, users, items, banned, chunk)
    ids = np.concatenate([*numbers, np.zeros(0, dtype=np.int64)])
    results = {}
    for name, protocol in chosen.items():
        local = np.concatenate([*counted[name], np.zeros((0, 2), dtype=np.int64)])
        _, table = gather_rows(ids, local)
        ranks = Ranks(offsets, table[:, 0], table[:, 1])
        more, overall = lists[name].finish() if name in lists else ({}, {})
        mark = fingerprint(protocol, data, drawn)
        results[name] = _result(ranks, data, every, mark, compute(ranks, ranked) | more, overall)
    return results


def _wanted(
    metrics: tuple[str, ...], protocols: Mapping[str, Protocol], data: RankData
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The metrics of ranks and those of lists, after checking that some protocol has the latter."""
    ranked, listed = split_metrics(metrics)
    if listed and not any(_whole_catalogue(protocol, data) for protocol in protocols.values()):
        raise UserError(
            f"{', '.join(listed)}: what is recommended is measured on the whole catalogue of videos alone; ask for it "
            f"on Rec under the protocol full, not on {data.task.label} under {', '.join(protocols)}"
        )
    return ranked, listed


def _whole_catalogue(protocol: Protocol, data: RankData) -> bool:
    return protocol.name == "full" and data.task is Task.REC


def _own_rows(total: int, batch_size: int) -> list[np.ndarray]:
    """Places of this process among the rows, a batch at a time, in whole blocks."""
    blocks = [np.arange(start, min(start + BLOCK, total)) for start in range(0, total, BLOCK)]
    mine = blocks[rank() :: world_size()]
    together = max(1, -(-batch_size // BLOCK))
    return [np.concatenate(mine[start : start + together]) for start in range(0, len(mine), together)]


def _users(
    scorer: Scorer | CatalogueScorer, data: RankData, rows: np.ndarray, device: torch.device | None
) -> Tensor:
    """(B, w): user vectors of `rows`, or their scores (B, N + 1), block by block."""
    score = scorer.catalogue_scores if isinstance(scorer, CatalogueScorer) else scorer.user_vectors
    parts = []
    for start in range(0, len(rows), BLOCK):
        batch = data.evaluation(rows[start : start + BLOCK])
        parts.append(score(batch if device is None else batch.to(device)))
    return _finite(torch.cat(parts), "user")


def _rank(
    users: Tensor,
    items: Tensor | None,
    data: RankData,
    rows: np.ndarray,
    positives: Spans,
    protocol: Protocol,
    chunk: int,
) -> Counts:
    owner = _to(positives.owner(), users)
    targets = _to(positives.flat(), users)
    if _whole_catalogue(protocol, data):
        return count_catalogue(users, items, owner, targets, _seen(data, rows, protocol, users), chunk)
    lists = listed_candidates(protocol, data, rows)
    borders = _to(np.concatenate([[0], np.cumsum(lists.counts)]), users)
    return count_listed(users, items, owner, targets, borders, _to(lists.flat(), users))


def _seen(data: RankData, rows: np.ndarray, protocol: Protocol, like: Tensor) -> Banned:
    """Pairs of the users' histories that the protocol keeps from ranking; None where it lets all rank."""
    if not protocol.filter_seen:
        return None
    history = data.seen_videos(rows)
    return _to(history.owner(), like), _to(history.flat(), like)


def _without_targets(seen: Banned, targets: Tensor) -> Banned:
    """The pairs but for each row's own target (B,), which ranks though it has been seen."""
    if seen is None:
        return None
    rows, ids = seen
    others = ids != targets[rows]
    return rows[others], ids[others]


def _result(
    ranks: Ranks,
    data: RankData,
    rows: np.ndarray,
    mark: Fingerprint,
    values: Mapping[str, np.ndarray],
    overall: dict[str, float],
) -> Result:
    counted = ranks.positives > 0
    return Result(
        fingerprint=mark,
        rows=rows[counted],
        values={name: column[counted] for name, column in values.items()},
        slices={name: part[rows][counted] for name, part in slices(data).items()},
        overall=overall,
        users=people_of(data.dataset, data.task, data.split)[rows][counted],
        rows_without_positives=int((~counted).sum()),
        positives_not_listed=int((ranks.tied == 0).sum()),
    )


def _finite(vectors: Tensor, kind: str) -> Tensor:
    if not bool(torch.isfinite(vectors).all()):
        raise UserError(
            f"the model's {kind} vectors hold NaN or infinity: the run has diverged, lower the learning rate"
        )
    return vectors.float()


def _to(array: np.ndarray, like: Tensor) -> Tensor:
    return torch.from_numpy(array.astype(np.int64)).to(like.device)
