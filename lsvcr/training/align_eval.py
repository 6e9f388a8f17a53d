"""Stage-one validation on a fixed pool: are the two branches aligned, and does the SR model rank?"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from lsvcr.data.align import AlignBatch, AlignCollator
from lsvcr.data.align_samples import AlignSamples
from lsvcr.data.store import Dataset
from lsvcr.data.text_bank import TextBank, comment_code
from lsvcr.evaluation.alignment import linear_cka, uniformity
from lsvcr.evaluation.counting import count_catalogue, count_listed
from lsvcr.evaluation.metrics import Ranks, mrr, ndcg, recall, single
from lsvcr.llm.aligned import AlignedModel
from lsvcr.nn.similarity import unit
from lsvcr.schema import Split, Task
from lsvcr.utils.distributed import gather_rows, rank, world_size
from lsvcr.utils.seeding import generator

COMMENTS_A_ROW = 10
"""CommRank: this many of a row's stored candidates are ranked, its positives first: to encode all of them with
the LLM at every evaluation would cost more than the training between two."""

CUTOFF = 10
SELECTION = "selection"
"""The figure that picks the best checkpoint: the mean of the tasks' NDCG@10."""

_CANDIDATE_STREAM = 31


@dataclass(frozen=True)
class _Pool:
    """The pool's vectors, one row a sample, sorted by sample."""

    rows: np.ndarray
    users: Tensor
    llm_users: Tensor
    targets: Tensor
    target_ids: np.ndarray
    lm: np.ndarray


class AlignEvaluator:
    """Measures a stage-one model on the same validation samples and candidates every time.

    Args:
        dataset: with validation samples.
        samples: the pool.
        collator, bank: as in training.
        batch: samples a process and step.
        budget: tokens of one batch of candidate texts.
        seed: of the candidates.
    """

    def __init__(
        self,
        dataset: Dataset,
        samples: AlignSamples,
        collator: AlignCollator,
        bank: TextBank,
        *,
        batch: int,
        seed: int,
    ) -> None:
        self._samples, self._collator, self._bank, self._batch = samples, collator, bank, batch
        self._index = {int(row): index for index, row in enumerate(samples.rows)}
        self._candidates = _comment_candidates(dataset, samples.rows, seed)

    def __call__(self, model: AlignedModel) -> dict[str, float]:
        """Figures by name, the same for any number of processes; the model's training mode is left as it was.

        Returns:
            `lm`: mean LM loss. `retrieval@1`, `retrieval_mrr`: of each user's own LLM vector by the SR vector in
            the pool, and `retrieval@1_chance`. `cka` of the two branches' user vectors, and the `sr_uniformity` and
            `llm_uniformity` of each (`lsvcr.evaluation.alignment`). `rec_ndcg@10`, `rec_mrr`: the SR model ranking
            the pool's distinct target videos. `comm_rank_ndcg@10`, `comm_rank_mrr`: ranking comments of the watched
            video.
            `selection`: see `SELECTION`. Figures of a task the pool lacks are left out.
        """
        training = model.training
        model.eval()
        with torch.no_grad():
            pool = self._run(model)
            figures = {"lm": float(pool.lm.mean()), **_retrieval(pool), **_likeness(pool)}
            selection = []
            for name, ranks in self._rankings(model, pool):
                figures[f"{name}_ndcg@{CUTOFF}"] = float(ndcg(ranks, CUTOFF).mean())
                figures[f"{name}_mrr"] = float(
                    mrr(ranks, int(ranks.higher.max()) + int(ranks.tied.max())).mean()
                )
                selection.append(figures[f"{name}_ndcg@{CUTOFF}"])
        model.train(training)
        return {**figures, SELECTION: float(np.mean(selection))}

    def _run(self, model: AlignedModel) -> _Pool:
        """All processes' share of the pool, gathered and in order."""
        rows, numbers, target_ids = [], [], []
        for batch, targets in self._batches():
            vectors = model.vectors(batch.to(_device(model)), None)
            parts = (vectors.users, vectors.llm_users, vectors.targets, vectors.lm.unsqueeze(1))
            rows.append(batch.rows.numpy())
            numbers.append(torch.cat([part.float() for part in parts], dim=1).cpu().numpy())
            target_ids.append(targets)
        width = 3 * model.heads.sr.hidden + 1
        mine = np.concatenate([np.zeros(0, np.int64), *rows])
        all_rows, values = gather_rows(mine, np.concatenate([np.zeros((0, width), np.float32), *numbers]))
        _, ids = gather_rows(mine, np.concatenate([np.zeros(0, np.int64), *target_ids]))
        sides = [unit(torch.from_numpy(side)) for side in np.split(values[:, :-1], 3, axis=1)]
        return _Pool(all_rows, sides[0], sides[1], sides[2], ids, values[:, -1])

    def _batches(self) -> Iterator[tuple[AlignBatch, np.ndarray]]:
        """This process's batches and the indices of their targets."""
        mine = _share(len(self._samples)).tolist()
        for start in range(0, len(mine), self._batch):
            samples = [self._samples.evaluation(index) for index in mine[start : start + self._batch]]
            yield self._collator(samples), np.array([sample.target for sample in samples], dtype=np.int64)

    def _rankings(self, model: AlignedModel, pool: _Pool) -> Iterator[tuple[str, Ranks]]:
        is_rec = pool.rows % 2 == 0
        if is_rec.any():
            yield Task.REC.value, _rank_targets(pool, is_rec)
        if not is_rec.all():
            yield Task.COMM_RANK.value, self._rank_comments(model, pool, ~is_rec)

    def _rank_comments(self, model: AlignedModel, pool: _Pool, here: np.ndarray) -> Ranks:
        """Each row's positives among its own candidates."""
        lists = [self._candidates[int(row)] for row in pool.rows[here]]
        comments = np.unique(np.concatenate([items for items, _ in lists]))
        vectors = torch.cat([torch.zeros(1, model.heads.sr.hidden), self._comment_vectors(model, comments)])
        items = [np.searchsorted(comments, items) + 1 for items, _ in lists]
        positives = [place[:count] for place, (_, count) in zip(items, lists, strict=True)]
        offsets = _offsets(positives)
        counts = count_listed(
            pool.users[torch.from_numpy(here)],
            vectors,
            torch.repeat_interleave(torch.arange(len(positives)), torch.from_numpy(np.diff(offsets))),
            torch.from_numpy(np.concatenate(positives)),
            torch.from_numpy(_offsets(items)),
            torch.from_numpy(np.concatenate(items)),
        )
        return Ranks(offsets, counts.higher.numpy(), counts.tied.numpy())

    def _comment_vectors(self, model: AlignedModel, comments: np.ndarray) -> Tensor:
        """Unit item vectors of comments (n,) int64 -> (n, d), each encoded by one process."""
        mine = _share(len(comments))
        codes = [comment_code(int(comment)) for comment in comments[mine]]
        ids = self._bank.ids(codes)
        vectors = model.text_vectors([ids[code] for code in codes]).float().cpu().numpy()
        return unit(torch.from_numpy(gather_rows(mine, vectors)[1]))


def _share(count: int) -> np.ndarray:
    """Which of `count` things this process takes; each takes equally many, so some are taken twice.

    All processes then run the LLM equally often, which they must where each holds a part of it.
    """
    most = -(-count // world_size())
    return (rank() + world_size() * np.arange(most)) % max(1, count)


def _retrieval(pool: _Pool) -> dict[str, float]:
    """How well an SR user vector finds the same sample's LLM user vector among the pool's."""
    size = len(pool.rows)
    counts = count_catalogue(
        pool.users, _with_padding(pool.llm_users), torch.arange(size), torch.arange(1, size + 1), None, size
    )
    ranks = single(counts.higher.numpy(), counts.tied.numpy())
    return {
        "retrieval@1": float(recall(ranks, 1).mean()),
        "retrieval_mrr": float(mrr(ranks, size).mean()),
        "retrieval@1_chance": 1.0 / size,
    }


def _likeness(pool: _Pool) -> dict[str, float]:
    """How alike the branches are, and how spread out each; nothing for a pool of one."""
    if len(pool.rows) < 2:
        return {}
    return {
        "cka": linear_cka(pool.users, pool.llm_users),
        "sr_uniformity": uniformity(pool.users),
        "llm_uniformity": uniformity(pool.llm_users),
    }


def _rank_targets(pool: _Pool, here: np.ndarray) -> Ranks:
    """Each Rec row's target among the distinct targets of the pool's Rec rows."""
    videos, first, own = np.unique(pool.target_ids[here], return_index=True, return_inverse=True)
    rows = torch.from_numpy(np.flatnonzero(here))
    counts = count_catalogue(
        pool.users[rows],
        _with_padding(pool.targets[rows[torch.from_numpy(first)]]),
        torch.arange(len(rows)),
        torch.from_numpy(own.astype(np.int64)) + 1,
        None,
        len(videos),
    )
    return single(counts.higher.numpy(), counts.tied.numpy())


def _comment_candidates(dataset: Dataset, rows: np.ndarray, seed: int) -> dict[int, tuple[np.ndarray, int]]:
    """For each CommRank row its candidates, positives first, and the number of positives among them."""
    chosen: dict[int, tuple[np.ndarray, int]] = {}
    numbers = rows[rows % 2 == 1]
    if not len(numbers):
        return chosen
    stored = dataset.candidates(Task.COMM_RANK, Split.VAL)
    truth = dataset.samples(Task.COMM_RANK, Split.VAL).positives
    assert truth is not None  # CommRank samples always have them
    for number in numbers:
        rng = generator(seed, _CANDIDATE_STREAM, int(number))
        positives = np.unique(truth.row(int(number) // 2))[: COMMENTS_A_ROW // 2]
        others = np.setdiff1d(stored.row(int(number) // 2), truth.row(int(number) // 2))
        others = others[rng.permutation(len(others))[: COMMENTS_A_ROW - len(positives)]]
        chosen[int(number)] = (np.concatenate([positives, others]).astype(np.int64), len(positives))
    return chosen


def _offsets(lists: Sequence[np.ndarray]) -> np.ndarray:
    return np.concatenate([[0], np.cumsum([len(items) for items in lists])]).astype(np.int64)


def _with_padding(vectors: Tensor) -> Tensor:
    return torch.cat([vectors.new_zeros(1, vectors.shape[1]), vectors])


def _device(model: AlignedModel) -> torch.device:
    return next(model.parameters()).device
