"""The losses once more, from their formulas, row by row: NumPy float64, no code shared with the package."""

import math

import numpy as np


def cosine(a: np.ndarray, b: np.ndarray) -> float:
    """Cosine of two vectors."""
    return float(a @ b) / (math.sqrt(float(a @ a)) * math.sqrt(float(b @ b)))


def pick(query: np.ndarray, positive: np.ndarray, negatives: list[np.ndarray], temperature: float) -> float:
    """-log of the softmax share of the positive among itself and the negatives."""
    top = cosine(query, positive) / temperature
    others = [cosine(query, negative) / temperature for negative in negatives]
    return math.log(sum(math.exp(other - top) for other in others) + 1.0)


def info_nce(queries, keys, labels, dropped, temperature) -> float:
    """`dropped[i]` is the set of keys that are no negatives of query i."""
    total = 0.0
    for i, query in enumerate(queries):
        negatives = [k for j, k in enumerate(keys) if j != labels[i] and j not in dropped[i]]
        total += pick(query, keys[labels[i]], negatives, temperature)
    return total / len(queries)


def behaviour(llm, own, other, temperature) -> float:
    """Two-way cross-entropy, own history positive."""
    return sum(pick(q, a, [b], temperature) for q, a, b in zip(llm, own, other, strict=True)) / len(llm)


def preference(sr, llm, temperature) -> float:
    """InfoNCE both ways over one joined batch."""
    labels, none = range(len(sr)), [set() for _ in sr]
    return (info_nce(sr, llm, labels, none, temperature) + info_nce(llm, sr, labels, none, temperature)) / 2


def recommendation(users, targets, keys, temperature) -> float:
    """InfoNCE over the targets of one joined batch; targets with the row's key are no negatives."""
    dropped = [{j for j, other in enumerate(keys) if other == own} for own in keys]
    return info_nce(users, targets, range(len(users)), dropped, temperature)


def id_text(ids, texts, temperature) -> float:
    """The symmetric contrast when every other row is a negative."""
    return preference(ids, texts, temperature)


def catalogue(users, items, targets, temperature) -> float:
    """Softmax over items 1 .. N; item 0 is padding."""
    total = 0.0
    for user, target in zip(users, targets, strict=True):
        negatives = [items[j] for j in range(1, len(items)) if j != target]
        total += pick(user, items[target], negatives, temperature)
    return total / len(users)
