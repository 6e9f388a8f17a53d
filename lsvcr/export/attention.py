"""Attention of a history's states as operations of an ONNX graph, in the form that costs least on one core.

With one or two heads the maps are joined. A score q K^T is one map of the state that asks, times the other state as it
is; the map of the values is part of the output projection. So keys and values are the states themselves, the heads of a
step stand side by side, and nothing is moved between layouts. With more heads that would be more work than it saves:
there queries, keys and values are products of their own, moved to their heads.

What may not be seen is hidden as `lsvcr.export.hiding` has it.
"""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from torch import nn

from lsvcr.export import hiding
from lsvcr.export.graph import Graph, array
from lsvcr.export.hiding import HIDDEN, SHOWN, below, bias_of, reach_of_norm, real_limit, shares
from lsvcr.nn.attention import MultiHeadAttention
from lsvcr.nn.pooling import AdditivePooling

_JOINED_HEADS = 2
"""Up to so many heads the joined form is the faster one (at width 64 and 50 steps)."""
_STEADY = 100.0
"""Condition number up to which the shift of a self-attention is solved for."""
_SAME = 1e-6
"""Biases that differ by no more, rounding, are the same."""


@dataclass(frozen=True)
class States:
    """States of a history as values of the graph: what a norm gives, plus `shift`.

    Attributes:
        value: (B L, d).
        cube: the same, (B, L, d).
        norm: what they come from.
        shift: (d,), what a reader has to take off again.
        mask: (B, L) bool, True = real.
        shape: (3,) int64: B, -1, d.
    """

    value: str
    cube: str
    norm: nn.LayerNorm
    shift: np.ndarray
    mask: str
    shape: str


class Context(NamedTuple):
    """What the steps of a batch have seen, before the output projection."""

    value: str
    """(B L, n)."""
    weight: np.ndarray
    """(d, n): the projection that is left to do."""
    bias: np.ndarray
    """(d,), of this projection."""


def attended(
    graph: Graph, attention: MultiHeadAttention, asking: States, seen: States, causal: str | None = None
) -> Context:
    """Attention of the states `asking` over the real ones of `seen`.

    Args:
        causal: from `causal_limit`; then each step sees those up to its own place, padded or not.
    """
    if attention.heads > _JOINED_HEADS:
        return _by_heads(graph, attention, asking, seen, causal)
    limit = causal or real_limit(graph, seen.mask, lowest(attention, asking.norm, seen.norm, seen.shift))
    score, score_bias = _score_map(attention)
    query = graph.linear(asking.value, _float(score), _float(score_bias - score @ asking.shift))
    query = graph.op("Reshape", query, asking.shape)  # (B, L H, d): the heads of a step one below the other
    # ONNX Runtime makes one operation of the transposition and the product.
    scores = graph.op("MatMul", query, graph.op("Transpose", seen.cube, perm=[0, 2, 1]))
    context = graph.op("MatMul", shares(graph, scores, limit), seen.cube)
    weight = np.concatenate(_output_maps(attention), axis=1)
    flat = graph.op("Reshape", context, np.array([-1, weight.shape[1]]))
    return Context(flat, _float(weight), _bias_after(attention, seen.shift))


def answered(graph: Graph, attention: MultiHeadAttention, asking: str, seen: str, mask: str) -> str:
    """Attention of one vector a user (B, d) over real states (B, L, d), with output projection and residual, (B, d)."""
    width = attention.query.in_features
    score, bias = _score_map(attention)
    query = graph.op(
        "Reshape", graph.linear(asking, _float(score), _float(bias)), np.array([-1, attention.heads, width])
    )
    scores = graph.op("MatMul", query, graph.op("Transpose", seen, perm=[0, 2, 1]))
    context = graph.op("MatMul", shares(graph, scores, real_limit(graph, mask, HIDDEN)), seen)
    weight = _float(np.concatenate(_output_maps(attention), axis=1))
    flat = graph.op("Reshape", context, np.array([-1, weight.shape[1]]))
    none = np.zeros(width, dtype=np.float32)
    return graph.op("Add", graph.linear(flat, weight, _bias_after(attention, none)), asking)


def own_shift(attention: MultiHeadAttention) -> np.ndarray:
    """The shift of a history's states with which the `bias` of their own `attended` is that shift; zeros if none is.

    Then the residual brings the bias with it, and nothing is left to add.
    """
    bias = bias_of(attention.output)
    if attention.heads > _JOINED_HEADS:
        return bias
    brought = np.eye(len(bias)) + sum(_output_maps(attention))
    if np.linalg.cond(brought) > _STEADY:
        return np.zeros_like(bias)
    return _float(np.linalg.solve(brought, others_shift(attention)))


def others_shift(attention: MultiHeadAttention) -> np.ndarray:
    """The same for states that ask others without shift."""
    none = np.zeros(attention.output.out_features, dtype=np.float32)
    return bias_of(attention.output) if attention.heads > _JOINED_HEADS else _bias_after(attention, none)


def projected(graph: Graph, context: Context, states: States) -> str:
    """The output projection and the residual, (B L, d) without shift."""
    summed = graph.op("Gemm", context.value, context.weight.T, states.value)
    left = context.bias - states.shift
    return summed if np.abs(left).max() <= _SAME else graph.op("Add", summed, left)


def causal_limit(graph: Graph, heads: int, length: str, longest: int, hidden: np.float32) -> str:
    """The limit that shows each of `length` (1,) steps, at most `longest`, those up to its own place.

    (L H, L) for the joined form of attention, (L, L) for that by heads.
    """
    rows = heads if heads <= _JOINED_HEADS else 1
    limit = np.where(np.tri(longest, dtype=bool), SHOWN, hidden).repeat(rows, axis=0)
    ends = graph.op("Mul", length, np.array([rows, 1]))
    return graph.op("Slice", limit, np.array([0, 0]), ends, np.array([0, 1]))


def lowest(
    attention: MultiHeadAttention, asking: nn.LayerNorm, seen: nn.LayerNorm, shift: np.ndarray
) -> np.float32:
    """A score that is nothing beside that of any states that come of these norms, `shift` being that of those seen.

    A norm makes w z + b with |z|^2 at most d. In the joined form states are read with their shift.
    """
    key = reach_of_norm(seen)
    if attention.heads <= _JOINED_HEADS:
        key = key._replace(bias=key.bias + shift)
    parts = (np.split(part, attention.heads) for part in _score_map(attention))
    return hiding.lowest(zip(*parts, strict=True), reach_of_norm(asking), key)


def lowest_of_pooling(pooling: AdditivePooling) -> np.float32:
    """As `lowest`, of the scores of a pooling, which the GELU of a norm's output makes: |GELU(x)| is at most |x|."""
    weight = np.abs(array(pooling.score.weight)[0])
    longest = len(weight) ** 0.5
    largest = np.linalg.norm(weight * array(pooling.norm.weight)) * longest + weight @ np.abs(
        bias_of(pooling.norm)
    )
    return below(largest)


def _score_map(attention: MultiHeadAttention) -> tuple[np.ndarray, np.ndarray]:
    """((H d, d), (H d,)) float64: a state to what, times another state, is its score for that, of each head.

    The key's bias adds the same for all keys, which softmax does not see.
    """
    queries = _by_head(attention, array(attention.query.weight))
    biases = _by_head(attention, bias_of(attention.query))
    keys = _by_head(attention, array(attention.key.weight))
    scale = len(keys[0]) ** -0.5
    maps = [scale * key.T @ query for key, query in zip(keys, queries, strict=True)]
    return np.concatenate(maps), np.concatenate(
        [scale * key.T @ bias for key, bias in zip(keys, biases, strict=True)]
    )


def _output_maps(attention: MultiHeadAttention) -> list[np.ndarray]:
    """Of each head (d, d) float64: the states that it sees, weighted and summed, to what it adds to the output."""
    outputs = _by_head(attention, array(attention.output.weight).T)
    values = _by_head(attention, array(attention.value.weight))
    return [output.T @ value for output, value in zip(outputs, values, strict=True)]


def _bias_after(attention: MultiHeadAttention, seen_shift: np.ndarray) -> np.ndarray:
    """(d,): a head's shares sum to 1, so what its values hold besides is a part of the output's bias."""
    held = bias_of(attention.value).astype(np.float64)
    added = array(attention.output.weight) @ held - sum(_output_maps(attention)) @ seen_shift
    return _float(added + bias_of(attention.output))


def _by_heads(
    graph: Graph, attention: MultiHeadAttention, asking: States, seen: States, causal: str | None
) -> Context:
    """Attention with a query, key and value of each head."""
    width = len(asking.shift)
    limit = causal
    if limit is None:
        limit = real_limit(graph, seen.mask, lowest(attention, asking.norm, seen.norm, seen.shift))
        limit = graph.op("Unsqueeze", limit, np.array([1]))  # (B, 1, 1, L)
    scale = np.float32((width // attention.heads) ** -0.5)
    query = _moved(
        graph, attention, asking, scale * array(attention.query.weight), scale * bias_of(attention.query)
    )
    # The key's bias adds the same for all keys.
    key = _moved(graph, attention, seen, array(attention.key.weight), np.zeros_like(asking.shift))
    value = _moved(graph, attention, seen, array(attention.value.weight), bias_of(attention.value))
    scores = graph.op("MatMul", query, graph.op("Transpose", key, perm=[0, 1, 3, 2]))
    context = graph.op("MatMul", shares(graph, scores, limit), value)
    flat = graph.op("Reshape", graph.op("Transpose", context, perm=[0, 2, 1, 3]), np.array([-1, width]))
    return Context(flat, array(attention.output.weight), bias_of(attention.output))


def _moved(
    graph: Graph, attention: MultiHeadAttention, states: States, weight: np.ndarray, bias: np.ndarray
) -> str:
    """A linear map of states, (B, H, L, d / H)."""
    flat = graph.linear(states.value, weight, bias - weight @ states.shift)
    cube = graph.op("Reshape", flat, states.shape)
    heads = np.array([0, 0, attention.heads, -1])
    return graph.op("Transpose", graph.op("Reshape", cube, heads), perm=[0, 2, 1, 3])


def _by_head(attention: MultiHeadAttention, rows: np.ndarray) -> list[np.ndarray]:
    """The rows (d, ...) of each head, float64."""
    return np.split(rows.astype(np.float64), attention.heads)


def _float(numbers: np.ndarray) -> np.ndarray:
    return numbers.astype(np.float32)
