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

BUCKETS = 1 << 15
MOST_TEXTS = 100_000
"""Distinct texts that are learned from; of more, a draw."""
RIDGE = 0.1
"""Measured on the simulator's demo world (docs/method.md)."""
_STEPS, _ENOUGH = 60, 1e-3
"""Of conjugate gradients: at most so many, or until the residual has fallen to this share."""
_NEIGHBOURS = 10
_MOST_HELD = 2_000
"""Texts that quality is measured on, a tenth of all or so many."""
_PART = 256
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
    held = order[: min(max(1, len(order) // 10), _MOST_HELD)]
    rest = order[len(held) :]
    first = _fit([words[i] for i in rest], vectors[rest], buckets)
    quality = _quality(first, [words[i] for i in held], vectors[held], vectors[rest])
    whole = _fit([words[i] for i in order], vectors[order], buckets)
    about = {"buckets": buckets, "texts": len(order), "distinct_texts": len(words), "held_out": quality}
    files = {WEIGHTS_FILE: whole.weights.astype(np.float16), RARITY_FILE: whole.rarity, MEAN_FILE: whole.mean}
    return Fitted({f"{FOLDER}/{name}": array for name, array in files.items()}, about)


class _Map(NamedTuple):
    weights: np.ndarray
    rarity: np.ndarray
    mean: np.ndarray


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


def _fit(words: list[str], vectors: np.ndarray, buckets: int) -> _Map:
    """Minimise |X W - (Y - mean)|^2 + RIDGE |W|^2, X being the weighted n-grams of the texts."""
    seen = np.zeros(buckets)
    for word in words:
        seen[np.unique(buckets_of(word, buckets))] += 1
    rarity = (np.log((1 + len(words)) / (1 + seen)) + 1).astype(np.float32)
    mean = vectors.mean(axis=0)
    rows = _matrix(words, rarity)
    target = torch.from_numpy(vectors - mean)
    weights = _ridge(rows, target, buckets)
    return _Map(weights.numpy(), rarity, mean.astype(np.float32))


class _Sparse(NamedTuple):
    """A matrix (n, m) by its rows."""

    offsets: Tensor
    """(n + 1,) int64."""
    columns: Tensor
    values: Tensor

    def times(self, dense: Tensor) -> Tensor:
        """The product with (m, w)."""
        return F.embedding_bag(
            self.columns,
            dense,
            self.offsets,
            mode="sum",
            per_sample_weights=self.values,
            include_last_offset=True,
        )

    def transposed(self, columns: int) -> "_Sparse":
        """The same matrix by its columns, of which there are so many."""
        rows = torch.repeat_interleave(torch.arange(len(self.offsets) - 1), self.offsets.diff())
        order = torch.argsort(self.columns, stable=True)
        counts = torch.bincount(self.columns, minlength=columns)
        offsets = torch.cat([counts.new_zeros(1), counts.cumsum(0)])
        return _Sparse(offsets, rows[order], self.values[order])


def _matrix(words: list[str], rarity: np.ndarray) -> _Sparse:
    """Weighted n-grams of texts, (n, buckets)."""
    pairs = [weighted(word, rarity) for word in words]
    return _Sparse(
        torch.tensor([0, *(len(found) for found, _ in pairs)]).cumsum(0),
        torch.from_numpy(np.concatenate([found for found, _ in pairs])),
        torch.from_numpy(np.concatenate([weights for _, weights in pairs])),
    )


def _ridge(rows: _Sparse, target: Tensor, buckets: int) -> Tensor:
    """(X'X + RIDGE) W = X'Y by conjugate gradients, all columns at once -> (buckets, w)."""
    columns = rows.transposed(buckets)
    residual = columns.times(target)
    solution, direction = torch.zeros_like(residual), residual.clone()
    norm = (residual**2).sum(0)
    goal = norm * _ENOUGH**2
    for _ in range(_STEPS):
        image = columns.times(rows.times(direction)) + RIDGE * direction
        step = norm / (direction * image).sum(0).clamp_min(1e-30)
        solution += step * direction
        residual -= step * image
        new = (residual**2).sum(0)
        if bool((new <= goal).all()):
            break
        direction = residual + new / norm.clamp_min(1e-30) * direction
        norm = new
    return solution


def _quality(fitted: _Map, words: list[str], true: np.ndarray, others: np.ndarray) -> dict[str, float]:
    """How near the vectors of unseen texts come to the true ones.

    Returns:
        `cosine`: with the true vector; `centred_cosine`: after the mean is taken off both, which the vectors of a
        language model mostly consist of; `same_nearest` and `neighbours@10`: how often the nearest of all other texts
        is the same, and the share of the ten nearest that are.
    """
    made = torch.from_numpy(TextEncoder(*fitted).encode(words))
    mean, right = torch.from_numpy(fitted.mean), torch.from_numpy(true)
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
