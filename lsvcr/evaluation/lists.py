"""What is recommended, right or not: coverage, concentration, novelty and popularity of the first K of the catalogue.

Where several videos share the score of the K-th place, each has the same chance of the places that are left, drawn
anew in every row, and a figure is its expectation (that of coverage and novelty is exact; Gini is the index of expected
exposures). Sums are of whole numbers, `ONE` standing for 1, so that neither chunks nor processes change a digit.
"""

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from lsvcr.evaluation.counting import forget
from lsvcr.evaluation.metrics import METRICS, split_name
from lsvcr.utils.distributed import gather_rows, reduce_sum

PER_ROW = ("novelty", "arp", "popularity_bias")
OVERALL = ("coverage", "gini")
LIST_METRICS = (*PER_ROW, *OVERALL)
"""What these words mean is said in `ListTally.finish`."""

ONE = 1 << 32
SCORES_AT_ONCE = 1 << 25
"""Scores that are held together for rows with a tie at the K-th place."""

_SURE, _TIED, _FREE, _SURE_SUMS, _TIED_SUMS = 0, 1, 2, slice(3, 5), slice(5, 7)
_COLUMNS = 7
"""Of a row and K: items certain of a place, items tied for the places that are free, and sums over both sorts of
(training interactions, self-information)."""

Banned = tuple[Tensor, Tensor] | None
"""User rows (S,) and item indices (S,) int64 that are not recommended."""


def split_metrics(names: Sequence[str]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Lower-case metric names: those of ranks (`metrics.METRICS`), and those of lists.

    Raises:
        UserError: an unknown metric, or K below 1.

    >>> split_metrics(["NDCG@10", "coverage@10"])
    (('ndcg@10',), ('coverage@10',))
    """
    ranked: list[str] = []
    listed: list[str] = []
    for name in names:
        word, k = split_name(name, (*METRICS, *LIST_METRICS))
        (listed if word in LIST_METRICS else ranked).append(f"{word}@{k}")
    return tuple(ranked), tuple(listed)


class ListTally:
    """Adds up what a model recommends, batch by batch, and says at the end what that amounts to.

    Args:
        names: such as `coverage@10`.
        counts: (N + 1,) int64, training interactions of each item, row 0 being padding.
        targets: (P,) int64, the items that were right, over all rows.
        device: where user and item vectors are.
    """

    def __init__(
        self, names: Sequence[str], counts: np.ndarray, targets: np.ndarray, device: torch.device
    ) -> None:
        self._names = [split_name(name, LIST_METRICS) for name in names]
        self._longest = len(counts) - 1
        self._ks = sorted({min(k, self._longest) for _, k in self._names})
        self._typical = float(counts[targets].mean()) if len(targets) else 0.0
        known = np.asarray(counts, dtype=np.int64)
        surprise = np.rint(self_information(known) * ONE).astype(np.int64)
        self._worth = torch.from_numpy(np.stack([known, surprise], axis=1)).to(device)
        shape = (len(self._ks), len(known))
        self._sure, self._shared, self._missed = (
            torch.zeros(shape, dtype=torch.int64, device=device) for _ in range(3)
        )
        self._rows: list[np.ndarray] = []
        self._figures: list[np.ndarray] = []

    def add(self, rows: np.ndarray, users: Tensor, items: Tensor | None, banned: Banned, chunk: int) -> None:
        """Take in the lists of a batch.

        Args:
            rows: (B,) int64 sample numbers.
            users: (B, w) float32 user vectors; (B, N + 1) scores without `items`.
            items: (N + 1, w) float32 item vectors; row 0 is padding and never recommended. None: users are scores.
            banned: pairs that are not recommended, their rows counted within the batch; or None.
            chunk: items scored at once.
        """
        scores, places = best(users, items, banned, self._ks[-1] + 1, chunk)
        figures = torch.zeros((len(rows), len(self._ks), _COLUMNS), dtype=torch.int64, device=users.device)
        ties = []
        for number, k in enumerate(self._ks):
            last = scores[:, k - 1]
            tie = (last == scores[:, k]) & (last > -torch.inf)
            sure = (scores[:, :k] > -torch.inf) & ~(tie[:, None] & (scores[:, :k] == last[:, None]))
            chosen = places[:, :k]
            self._sure[number] += torch.bincount(chosen[sure], minlength=len(self._worth))
            figures[:, number, _SURE] = sure.sum(1)
            figures[:, number, _SURE_SUMS] = (self._worth[chosen] * sure[..., None]).sum(1)
            ties.append(tie)
        tied = torch.stack(ties, dim=1)
        shared = tied.any(dim=1).nonzero().flatten()
        for part in shared.split(max(1, SCORES_AT_ONCE // len(self._worth))) if len(shared) else ():
            # The same products as before, in the same shape, so that ties are found again to the bit.
            every = torch.cat([block[part] for _, block in _scored(users, items, banned, chunk)], dim=1)
            for own, row in zip(every, part.tolist(), strict=True):
                for number in tied[row].nonzero().flatten().tolist():
                    alike = (own == scores[row, self._ks[number] - 1]).nonzero().flatten() + 1
                    self._share_out(number, alike, figures[row, number])
        self._rows.append(rows)
        self._figures.append(figures.flatten(1).cpu().numpy())

    def _share_out(self, number: int, alike: Tensor, figures: Tensor) -> None:
        """Give the items `alike` (g,) equal chances of the places that are free in one row's list, in place."""
        free = self._ks[number] - int(figures[_SURE])
        figures[_TIED], figures[_FREE] = len(alike), free
        figures[_TIED_SUMS] = self._worth[alike].sum(0)
        share = free / len(alike)
        self._shared[number, alike] += round(share * ONE)
        self._missed[number, alike] += round(float(np.log1p(-share)) * ONE)

    def finish(self) -> tuple[dict[str, np.ndarray], dict[str, float]]:
        """The figures, once all processes have added their rows; every process must call it, and gets them all.

        With q(u, i) the probability that item i is in row u's list of K, and c(i) its training interactions:

        - `novelty@K`: mean over the list of -log2((c(i) + 1) / (sum of c + N)).
        - `arp@K`: average recommendation popularity, the mean over the list of c(i).
        - `popularity_bias@K`: arp@K over the mean of c over all rows' targets (where that is 0: over 1).
        - `coverage@K`: mean over all N items of 1 - product over rows of (1 - q(u, i)).
        - `gini@K`: Gini index of e(i) = sum over rows of q(u, i): 0 = all items equally often, near 1 = few alone.

        Returns:
            Values by row, (n,) float64 in the order of sample numbers (0 for a row without a candidate), and values of
            all rows together.
        """
        width = len(self._ks) * _COLUMNS
        none = np.zeros((0, width), dtype=np.int64)
        ids = np.concatenate([*self._rows, np.zeros(0, dtype=np.int64)])
        _, table = gather_rows(ids, np.concatenate([*self._figures, none]))
        by_k = table.reshape(len(table), len(self._ks), _COLUMNS)
        sure, shared, missed = (
            reduce_sum(part).cpu().numpy()[:, 1:] for part in (self._sure, self._shared, self._missed)
        )
        values: dict[str, np.ndarray] = {}
        overall: dict[str, float] = {}
        for word, k in self._names:
            number, name = self._ks.index(min(k, self._longest)), f"{word}@{k}"
            if word == "coverage":
                covered = np.where(sure[number] > 0, 1.0, -np.expm1(missed[number] / ONE))
                # Sorted, so that the items' numbers do not decide how the sum is rounded.
                overall[name] = float(np.sort(covered).mean())
            elif word == "gini":
                overall[name] = gini(sure[number] + shared[number] / ONE)
            else:
                values[name] = self._per_row(word, by_k[:, number])
        return values, overall

    def _per_row(self, word: str, figures: np.ndarray) -> np.ndarray:
        """(n, _COLUMNS) -> (n,) float64."""
        which = 1 if word == "novelty" else 0
        chance = figures[:, _FREE] / np.maximum(figures[:, _TIED], 1)
        total = figures[:, _SURE_SUMS][:, which] + chance * figures[:, _TIED_SUMS][:, which]
        mean = total / np.maximum(figures[:, _SURE] + figures[:, _FREE], 1)
        if word == "novelty":
            return mean / ONE
        return mean if word == "arp" else mean / (self._typical or 1.0)


def self_information(counts: np.ndarray) -> np.ndarray:
    """-log2 of each item's share of the training interactions, one being added to each count: (N + 1,) float64.

    >>> self_information(np.array([0, 6, 0])).tolist()  # 7 and 1 of 8; padding, which comes first, has nothing
    [0.0, 0.19264507794239588, 3.0]
    """
    shares = (counts[1:] + 1) / (counts[1:].sum() + len(counts) - 1)
    return np.concatenate([[0.0], -np.log2(shares)])


def gini(exposure: np.ndarray) -> float:
    """Gini index of (N,) numbers >= 0; 0 where all are 0.

    >>> gini(np.array([1.0, 1.0, 1.0])), gini(np.array([0.0, 0.0, 0.0, 2.0]))
    (0.0, 0.75)
    """
    rising = np.sort(exposure)
    total = rising.sum()
    if total == 0:
        return 0.0
    weights = 2.0 * np.arange(1, len(rising) + 1) - len(rising) - 1
    return float((weights * rising).sum() / (len(rising) * total))


def best(users: Tensor, items: Tensor | None, banned: Banned, size: int, chunk: int) -> tuple[Tensor, Tensor]:
    """The `size` best items of each user, without sorting the catalogue.

    Args:
        users: (B, w) float32; (B, N + 1) scores without `items`.
        items: (N + 1, w) float32; row 0 never counts. None: users are scores.
        banned: pairs that do not count, or None.
        size: how many.
        chunk: items scored at once.

    Returns:
        Scores (B, size) float32, falling, -inf where there are no more; item indices (B, size) int64, of which those
        that share a score come in any order, and those that share the last one may be any of that score.
    """
    scores = torch.full((len(users), size), -torch.inf, device=users.device)
    places = torch.zeros((len(users), size), dtype=torch.int64, device=users.device)
    for start, block in _scored(users, items, banned, chunk):
        # After the first chunks few rows find anything better: only those are selected from again.
        rows = (block.amax(dim=1) > scores[:, -1]).nonzero().flatten()
        held, found = torch.cat([scores[rows], block[rows]], dim=1).topk(size, dim=1)
        earlier = places[rows].gather(1, found.clamp(max=size - 1))
        scores[rows], places[rows] = held, torch.where(found < size, earlier, found - size + start)
    return scores, places


def _scored(users: Tensor, items: Tensor | None, banned: Banned, chunk: int) -> Iterator[tuple[int, Tensor]]:
    """First item of each chunk, and the chunk's scores (B, c) float32, rounded as `counting` does."""
    left = users.double()
    for start in range(1, users.shape[1] if items is None else len(items), chunk):
        part = slice(start, start + chunk)
        scores = (left[:, part] if items is None else left @ items[part].double().T).float()
        if banned is not None:
            forget(scores, banned, start)
        yield start, scores
