"""The metrics against those of torchmetrics, an independent implementation, on random input."""

import numpy as np
import pytest
import torch
from torchmetrics.functional import retrieval

from lsvcr.evaluation.metrics import Ranks, compute

ROWS, CANDIDATES = 60, 30
KS = (1, 3, 10, 30)
NAMES = tuple(f"{word}@{k}" for word in ("recall", "hr", "precision", "ndcg", "mrr", "map") for k in KS)


def random_rows(ties: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """Scores and relevance (ROWS, CANDIDATES); each row has between one and six positives.

    Scores are above 0, because the library takes a candidate of score 0 for one that was not found.
    """
    rng = np.random.default_rng(7)
    if ties:
        scores = rng.integers(1, 9, (ROWS, CANDIDATES)).astype(np.float32)
    else:
        scores = np.stack([rng.permutation(CANDIDATES) + 1 for _ in range(ROWS)]).astype(np.float32)
    right = np.zeros((ROWS, CANDIDATES), dtype=bool)
    for row in right:
        row[rng.choice(CANDIDATES, rng.integers(1, 7), replace=False)] = True
    return torch.from_numpy(scores), torch.from_numpy(right)


def ranks(scores: torch.Tensor, right: torch.Tensor) -> Ranks:
    """Ranks of all positives, row by row."""
    row, item = right.nonzero(as_tuple=True)
    own = scores[row, item][:, None]
    offsets = np.concatenate([[0], np.cumsum(right.sum(1).numpy())])
    return Ranks(offsets, (scores[row] > own).sum(1).numpy(), (scores[row] == own).sum(1).numpy())


def test_every_metric_agrees_without_ties() -> None:
    scores, right = random_rows(ties=False)
    ours = compute(ranks(scores, right), NAMES)
    for k in KS:
        for row in range(ROWS):
            s, r = scores[row], right[row]
            hits = float(r[s.argsort(descending=True)[:k]].sum())
            theirs = {
                "recall": retrieval.retrieval_recall(s, r, top_k=k),
                "hr": retrieval.retrieval_hit_rate(s, r, top_k=k),
                "precision": retrieval.retrieval_precision(s, r, top_k=k),
                "ndcg": retrieval.retrieval_normalized_dcg(s, r, top_k=k),
                "mrr": retrieval.retrieval_reciprocal_rank(s, r, top_k=k),
                # Theirs is divided by the positives among the first K, ours by those that could be there.
                "map": retrieval.retrieval_average_precision(s, r, top_k=k) * hits / min(k, int(r.sum())),
            }
            for word, value in theirs.items():
                assert ours[f"{word}@{k}"][row] == pytest.approx(float(value), abs=1e-6), (word, k, row)


def test_ndcg_agrees_under_ties() -> None:
    """Theirs averages the discounts within each group of ties, which is the expectation, too."""
    scores, right = random_rows(ties=True)
    ours = compute(ranks(scores, right), NAMES)
    for k in KS:
        for row in range(ROWS):
            theirs = retrieval.retrieval_normalized_dcg(scores[row], right[row], top_k=k)
            assert ours[f"ndcg@{k}"][row] == pytest.approx(float(theirs), abs=1e-6), (k, row)
