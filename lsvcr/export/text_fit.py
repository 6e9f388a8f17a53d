"""Fits the bundle's text encoder: ridge regression from hashed n-grams to the dataset's own text vectors."""

from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from lsvcr.data.store import Dataset
from lsvcr.serving.text_encoder import (
    FOLDER,
    MEAN_FILE,
    RARITY_FILE,
    WEIGHTS_FILE,
    TextEncoder,
    buckets_of,
    weighted,
)
from lsvcr.training.rank_texts import TextTables
from lsvcr.utils.errors import UserError

BUCKETS = 1 << 12
MOST_TEXTS = 40_000
"""Distinct texts that are learned from; of more, a draw."""
RIDGE = 0.3
"""Measured on the simulator's demo world (docs/method.md)."""
_NEIGHBOURS = 10
_MOST_HELD = 2_000
"""Texts that quality is measured on, a tenth of all or so many."""
_PART, _ROWS = 256, 1024
_DRAWN = 4
"""Texts drawn for each that is learned from, because many are equal."""
_SEED = 20_240


class Fitted(NamedTuple):
    """A fitted encoder for `write_bundle`."""

    files: dict[str, np.ndarray]
    about: dict[str, Any]
    """For the manifest: numbers of texts, and quality on those held out."""


def fit_text_encoder(dataset: Dataset, texts: TextTables, buckets: int = BUCKETS) -> Fitted:
    """Fit on nine tenths of the distinct texts, measure on the others, then fit on all.

    Args:
        dataset: titles and comments.
        texts: their vectors.
        buckets: rows of the map.

    Raises:
        UserError: fewer than ten distinct texts.
    """
    words, vectors = _distinct(dataset, texts)
    if len(words) < 10:
        raise UserError(
            f"--text_encoder: {dataset.root} has {len(words)} distinct texts with vectors, too few to learn from; "
            "leave the flag away"
        )
    generator = np.random.default_rng(_SEED)
    order = generator.permutation(len(words))[:MOST_TEXTS]
    words, vectors = [words[i] for i in order], vectors[order]
    held = min(max(1, len(words) // 10), _MOST_HELD)
    system = _System(words, vectors, buckets)
    system.add(held, len(words))
    quality = _quality(system.encoder(), words[:held], vectors[:held], vectors[held:])
    system.add(0, held)
    whole = system.weights()
    about = {"buckets": buckets, "texts": len(words), "held_out": quality}
    files = {WEIGHTS_FILE: whole, RARITY_FILE: system.rarity, MEAN_FILE: system.mean}
    return Fitted({f"{FOLDER}/{name}": array for name, array in files.items()}, about)


def _distinct(dataset: Dataset, texts: TextTables) -> tuple[list[str], np.ndarray]:
    """Texts that have a vector, each once, and their vectors (n, w) float32; of very many, a draw."""
    found: dict[str, tuple[Tensor, int]] = {}
    generator = np.random.default_rng((_SEED, 1))
    for words, table in ((dataset.titles(), texts.videos), (dataset.contents(), texts.comments)):
        count = len(words) - 1
        drawn = np.arange(1, count + 1)
        if count > _DRAWN * MOST_TEXTS:
            drawn = np.sort(generator.choice(count, _DRAWN * MOST_TEXTS, replace=False)) + 1
        for index, word in zip(drawn.tolist(), words.take(drawn), strict=True):
            if word:
                found.setdefault(word, (table, index))
    names = list(found)
    if len(names) > _DRAWN * MOST_TEXTS:
        names = [names[i] for i in generator.choice(len(names), _DRAWN * MOST_TEXTS, replace=False)]
    if not names:
        return [], np.zeros((0, texts.width), dtype=np.float32)
    vectors = np.stack([found[name][0][found[name][1]].numpy() for name in names])
    some = (vectors != 0).any(axis=1)
    return [name for name, kept in zip(names, some, strict=True) if kept], vectors[some]


class _System:
    """Minimises |X W - (Y - mean)|^2 + RIDGE |W|^2, X being the weighted n-grams of the texts.

    By (X'X + RIDGE) W = X'Y, or where texts are fewer than buckets by the same W = X'(XX' + RIDGE)^-1 Y.

    Args:
        words: n texts.
        vectors: (n, w) float32, Y.
        buckets: columns of X.
    """

    def __init__(self, words: list[str], vectors: np.ndarray, buckets: int) -> None:
        seen = np.zeros(buckets)
        for word in words:
            seen[np.unique(buckets_of(word, buckets))] += 1
        self.rarity = (np.log((1 + len(words)) / (1 + seen)) + 1).astype(np.float32)
        self.mean = vectors.mean(axis=0).astype(np.float32)
        self._rows = [weighted(word, self.rarity) for word in words]
        self._target = torch.from_numpy(vectors - self.mean)
        self._learned: list[tuple[int, int]] = []
        self._few = len(words) < buckets
        size = 0 if self._few else buckets
        self._left, self._right = torch.zeros(size, size), torch.zeros(size, vectors.shape[1])

    def add(self, start: int, stop: int) -> None:
        """Learn from the texts `start` to `stop` (exclusive) too."""
        self._learned.append((start, stop))
        if self._few:
            return
        for first in range(start, stop, _ROWS):
            last = min(first + _ROWS, stop)
            rows = self._dense(first, last)
            self._left.addmm_(rows.T, rows)
            self._right.addmm_(rows.T, self._target[first:last])

    def weights(self) -> np.ndarray:
        """W, (buckets, w) float32."""
        if not self._few:
            return _solved(self._left, self._right).numpy()
        rows = torch.cat([self._dense(*span) for span in self._learned])
        target = torch.cat([self._target[first:last] for first, last in self._learned])
        return (rows.T @ _solved(rows @ rows.T, target)).numpy()

    def _dense(self, first: int, last: int) -> Tensor:
        """Rows `first` to `last` (exclusive) of X."""
        rows = np.zeros((last - first, len(self.rarity)), dtype=np.float32)
        for row, (columns, values) in zip(rows, self._rows[first:last], strict=True):
            row[columns] = values
        return torch.from_numpy(rows)

    def encoder(self) -> TextEncoder:
        """What has been learned so far, in use."""
        return TextEncoder(self.weights(), self.rarity, self.mean)


def _solved(left: Tensor, right: Tensor) -> Tensor:
    """(left + RIDGE)^-1 right."""
    ridged = left.clone()
    ridged.diagonal().add_(RIDGE)
    return torch.cholesky_solve(right, torch.linalg.cholesky(ridged))


def _quality(
    encoder: TextEncoder, words: list[str], true: np.ndarray, others: np.ndarray
) -> dict[str, float]:
    """How near the vectors of unseen texts come to the true ones.

    Returns:
        `cosine`: with the true vector; `centred_cosine`: after the mean is taken off both, which the vectors of a
        language model mostly consist of; `same_nearest` and `neighbours@10`: how often the nearest of all other texts
        is the same, and the share of the ten nearest that are.
    """
    made, right = torch.from_numpy(encoder.encode(words)), torch.from_numpy(true)
    mean = torch.from_numpy(others.mean(axis=0))
    known = F.normalize(torch.from_numpy(others) - mean, dim=-1)
    pairs = [F.normalize(x - mean, dim=-1) for x in (made, right)]
    count = min(_NEIGHBOURS, len(known))
    ours, theirs = (
        torch.cat([(part @ known.T).topk(count).indices for part in x.split(_PART)]) for x in pairs
    )
    shared = (ours[:, :, None] == theirs[:, None, :]).any(dim=-1).float().mean()
    return {
        "texts": len(words),
        "cosine": float(F.cosine_similarity(made, right).mean()),
        "centred_cosine": float((pairs[0] * pairs[1]).sum(-1).mean()),
        "same_nearest": float((ours[:, 0] == theirs[:, 0]).float().mean()),
        f"neighbours@{_NEIGHBOURS}": float(shared),
    }
