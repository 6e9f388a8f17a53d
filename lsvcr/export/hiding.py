"""Hiding steps from attention in an ONNX graph: their scores are brought down to a limit before softmax.

The limit is so low that a hidden step's share is nothing beside the others', but no lower: far below, the exponential
function works on denormal numbers, with which softmax takes four times as long on some processors. What scores are
possible follows from where the states come from.
"""

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
from torch import Tensor, nn

from lsvcr.export.graph import Graph, array

HIDDEN = np.float32(-1e30)
"""The score of a step that may not be seen where no bound is known; finite, because a row of such steps must stay
finite."""
SHOWN = np.float32(3e38)
"""No score is higher."""
NOTHING = 30.0
"""A score lower by this has e^-30 = 1e-13 of the other's share, a millionth of what float32 rounds off."""


class Reach(NamedTuple):
    """Where states can lie: weight * z + bias, with z no longer than `radius`."""

    weight: np.ndarray
    """(d,)."""
    bias: np.ndarray
    """(d,)."""
    radius: float


def reach_of_norm(norm: nn.LayerNorm) -> Reach:
    """Of what a norm gives."""
    weight = array(norm.weight)
    return Reach(weight, bias_of(norm), len(weight) ** 0.5)


def reach_of_rows(*tables: np.ndarray) -> Reach:
    """Of sums of one row (d,) of each table."""
    width = tables[0].shape[1]
    longest = sum(float(np.linalg.norm(table, axis=1).max()) for table in tables)
    return Reach(np.ones(width, dtype=np.float32), np.zeros(width, dtype=np.float32), longest)


def lowest(maps: Iterable[tuple[np.ndarray, np.ndarray]], asking: Reach, seen: Reach) -> np.float32:
    """A limit that is nothing beside any score.

    Args:
        maps: of each head, (d, d) and (d,): map times the state that asks, plus the vector, times the state that is
            seen is the score.
        asking, seen: where these states can lie.
    """
    largest = 0.0
    for score, bias in maps:
        stretched = seen.weight[:, None] * score * asking.weight
        if not np.isfinite(stretched).all():
            return HIDDEN  # of a broken checkpoint, which the bundle's own checks refuse
        asked = score @ asking.bias + bias
        both = np.linalg.norm(stretched, ord=2) * asking.radius
        own = np.linalg.norm(seen.weight * asked)
        other = np.linalg.norm((seen.bias @ score) * asking.weight) * asking.radius
        largest = max(largest, float((both + own) * seen.radius + other + abs(asked @ seen.bias)))
    return below(largest)


def below(largest: float) -> np.float32:
    """The limit where no score is larger than this, either way."""
    return np.float32(-1.001 * largest - NOTHING)  # a thousandth is more than rounding adds


def shares(graph: Graph, scores: str, limit: str) -> str:
    """Softmax over the last axis of scores that are brought down to `limit`."""
    return graph.op("Softmax", graph.op("Min", scores, limit), axis=-1)


def real_limit(graph: Graph, mask: str, hidden: np.float32) -> str:
    """The limit (B, 1, L) that brings padding, by the mask (B, L), to the score `hidden`, which all others exceed."""
    chosen = graph.op("Gather", np.array([hidden, SHOWN]), graph.integers(mask), axis=0)
    return graph.op("Unsqueeze", chosen, np.array([1]))


def bias_of(module: nn.Linear | nn.LayerNorm) -> np.ndarray:
    """Its bias as float32."""
    bias = module.bias
    assert isinstance(bias, Tensor)
    return array(bias)
