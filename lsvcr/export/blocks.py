"""The transformer blocks of the other recommenders (`lsvcr.nn.transformer`) as operations of an ONNX graph.

A recommender asks the state of one step alone. So the last block computes that step's query and feed-forward part only,
and keys and values of all.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import nn

from lsvcr.export.graph import Graph, array
from lsvcr.export.hiding import Reach, lowest, reach_of_norm, shares
from lsvcr.nn.transformer import Block, SelfAttention


@dataclass(frozen=True)
class Sight:
    """What the steps of a batch see, as values of the graph.

    Attributes:
        shape: (2,) int64: B, L.
        limit: what the attention scores (B, H, L or 1, L) of whoever asks are brought down to.
        asking: (B,) int64, the steps that ask, as rows of (B L, d); None = all do.
    """

    shape: str
    limit: str
    asking: str | None = None


def block(graph: Graph, module: Block, states: str, sight: Sight) -> str:
    """States (B L, d) through a block -> (B L, d), or (B, d) of the steps that ask."""
    if module.norm_first:
        read = norm(graph, module.attention_norm, states)
        states = graph.op("Add", _attention(graph, module, read, sight), _asking(graph, states, sight))
        return graph.op("Add", _fed(graph, module, norm(graph, module.inner_norm, states)), states)
    summed = graph.op("Add", _attention(graph, module, states, sight), _asking(graph, states, sight))
    states = norm(graph, module.attention_norm, summed)
    return norm(graph, module.inner_norm, graph.op("Add", _fed(graph, module, states), states))


def norm(graph: Graph, module: nn.LayerNorm, value: str) -> str:
    """LayerNorm over the last axis."""
    weight, bias = array(module.weight), array(module.bias)
    return graph.op("LayerNormalization", value, weight, bias, axis=-1, epsilon=module.eps)


def linear(graph: Graph, module: nn.Linear, value: str) -> str:
    """A linear map of (n, in) -> (n, out)."""
    return graph.linear(value, array(module.weight), array(module.bias))


def lowest_of_blocks(blocks: nn.ModuleList, entering: Reach) -> np.float32:
    """A score that is nothing beside any in the attention of these `Block`s, whose input can lie in `entering`."""
    modules: list[Any] = list(blocks)
    found = []
    for module in modules:
        read = reach_of_norm(module.attention_norm) if module.norm_first else entering
        found.append(lowest(_score_maps(module.attention), read, read))
        entering = reach_of_norm(module.inner_norm)  # so it is where the norm comes last
    return min(found)


def _score_maps(attention: SelfAttention) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Of each head, (d, d) and (d,) float64: see `lsvcr.export.hiding.lowest`."""
    weights, biases = _maps(attention)
    parts = (np.split(rows.astype(np.float64), attention.heads) for rows in (*weights[:2], biases[0]))
    for query, key, bias in zip(*parts, strict=True):
        yield key.T @ query, key.T @ bias


def _maps(attention: SelfAttention) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Weights (d, d) and biases (d,) of query, key and value; a score is the product of query and key, no more."""
    weights, biases = (np.split(array(part), 3) for part in (attention.inputs.weight, attention.inputs.bias))
    scale = np.float32((attention.output.in_features // attention.heads) ** -0.5)
    # The key's bias adds the same for all keys, which softmax does not see.
    biases = [biases[0] * scale, np.zeros_like(biases[1]), biases[2]]
    return [weights[0] * scale, *weights[1:]], biases


def _attention(graph: Graph, module: Block, read: str, sight: Sight) -> str:
    """Self-attention with its output projection, (B L, d) -> as `block`."""
    attention = module.attention
    heads, width = attention.heads, attention.output.in_features
    weights, biases = _maps(attention)
    if sight.asking is None:
        query, key, value = _heads(graph, read, weights, biases, sight.shape, heads)
    else:
        key, value = _heads(graph, read, weights[1:], biases[1:], sight.shape, heads)
        asked = graph.linear(_asking(graph, read, sight), weights[0], biases[0])
        query = graph.op("Reshape", asked, np.array([-1, heads, 1, width // heads]))
    # ONNX Runtime makes one operation of the transposition and the product.
    scores = graph.op("MatMul", query, graph.op("Transpose", key, perm=[0, 1, 3, 2]))
    seen = graph.op("MatMul", shares(graph, scores, sight.limit), value)
    context = graph.op("Transpose", seen, perm=[0, 2, 1, 3])
    return linear(graph, attention.output, graph.op("Reshape", context, np.array([-1, width])))


def _heads(
    graph: Graph, read: str, weights: list[np.ndarray], biases: list[np.ndarray], shape: str, heads: int
) -> list[str]:
    """Linear maps of (B L, d) in one product, each (B, H, L, d / H)."""
    width, count = len(biases[0]), len(biases)
    flat = graph.linear(read, np.concatenate(weights), np.concatenate(biases))
    split = graph.op("Concat", shape, np.array([count * heads, width // heads]), axis=0)
    moved = graph.op("Transpose", graph.op("Reshape", flat, split), perm=[0, 2, 1, 3])
    return graph.split("Split", count, moved, axis=1, num_outputs=count)


def _fed(graph: Graph, module: Block, value: str) -> str:
    kind = "Relu" if module.activation is nn.functional.relu else "Gelu"
    return linear(graph, module.down, graph.op(kind, linear(graph, module.up, value)))


def _asking(graph: Graph, states: str, sight: Sight) -> str:
    return states if sight.asking is None else graph.op("Gather", states, sight.asking, axis=0)
