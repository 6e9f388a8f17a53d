"""The user encoder of a stage-two model as an ONNX graph: steps in, a unit vector out.

It computes what `RankModel.user_vectors` does, for steps that hold titles, comments and ids already
(`lsvcr.export.tables`), in a form made for one request on one core:

- States are (B L, d), so that a linear map is one `Gemm`, which adds its bias or the residual on the way.
- A norm adds the bias of the projection that comes next to its own, and what else reads its states takes it off again
  in its own bias: so the residual is all that a `Gemm` has to add.
- Queries, keys and values are one product, the scale of the attention is in the query's weights.
- A padded step holds the entry of an empty history, whatever the caller left there. In an empty history all steps are
  then equal, and with them their states, so that attention over all of them is attention over the one empty entry.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor, nn

from lsvcr.export.blocks import HIDDEN
from lsvcr.export.graph import Graph, array
from lsvcr.models.rank import RankModel
from lsvcr.models.sr import SRModel
from lsvcr.nn.attention import CausalLayer, FeedForward, MultiHeadAttention
from lsvcr.nn.pooling import AdditivePooling
from lsvcr.schema import Task


def encoder_graph(model: RankModel, max_videos: int, max_entries: int) -> bytes:
    """The encoder of one part of a bundle.

    Inputs: `video` (B, V, d) float32 and `video_mask` (B, V) bool, True = real, padded on the right, V >= 1;
    `comment` (B, C, d) and `comment_mask` (B, C); for CommRank also `watched` (B, d). Output: `user` (B, d).

    Args:
        model: a stage-two model.
        max_videos, max_entries: longest histories, at most the rows of the model's position tables.
    """
    graph = Graph("user_encoder")
    sr, width = model.sr, model.sr.hidden
    video, video_mask = _inputs(graph, "video", "V", width)
    comment, comment_mask = _inputs(graph, "comment", "C", width)
    if not sr.use_comments:
        comment_mask = graph.op("And", comment_mask, np.array(False))
    watched = graph.input("watched", "float32", ["B", width]) if model.task is Task.COMM_RANK else None
    shift = _bias(sr.video_cross.attention.output) if watched is None else None
    videos = _history(graph, sr, "video", video, video_mask, max_videos, shift)
    shift = None if watched is None else _bias(sr.comment_cross.attention.output)
    comments = _history(graph, sr, "comment", comment, comment_mask, max_entries, shift)
    if watched is None:
        states = _joined(graph, sr, "video", videos, comments)
        user = _pooled(graph, sr.rec_pooling, states, videos)
    else:
        states = _joined(graph, sr, "comment", comments, videos)
        user = _answer(graph, sr.comm_rank_attention, watched, states, comments)
    graph.output(graph.unit(user), "user", ["B", width])
    return graph.to_bytes()


@dataclass(frozen=True)
class _States:
    """States of a history as values of the graph.

    Attributes:
        value: (B L, d), the states plus `shift`.
        shift: (d,), what a reader has to take off again.
        shape: (2,) int64: B, L.
        hidden: (B, 1, 1, L): 0 at real steps, `HIDDEN` at padded ones.
    """

    value: str
    shift: np.ndarray
    shape: str
    hidden: str


def _inputs(graph: Graph, name: str, axis: str, width: int) -> tuple[str, str]:
    steps = graph.input(name, "float32", ["B", axis, width])
    return steps, graph.input(f"{name}_mask", "bool", ["B", axis])


def _history(
    graph: Graph, sr: SRModel, side: str, steps: str, mask: str, longest: int, last_shift: np.ndarray | None
) -> _States:
    """A history through its own layers; `last_shift` is what its states are to hold besides."""
    table: nn.Embedding = getattr(sr, f"{side}_position")
    norm: nn.LayerNorm = getattr(sr, f"{side}_norm")
    layers: list[CausalLayer] = list(getattr(sr, f"{side}_encoder"))
    shape = graph.op("Shape", mask)
    length = graph.op("Shape", mask, start=1)
    positions = array(table.weight)[:longest]
    own = graph.op("Slice", positions, np.array([0]), length, np.array([0]))
    real = graph.op("Unsqueeze", mask, np.array([2]))
    placed = graph.op("Where", real, graph.op("Add", steps, own), array(sr.merge.bias) + positions[0])
    flat = graph.op("Reshape", placed, np.array([-1, sr.hidden]))
    causal = np.triu(np.full((longest, longest), HIDDEN), 1)
    square = graph.op("Concat", length, length, axis=0)
    causal_now = graph.op("Slice", causal, np.array([0, 0]), square, np.array([0, 1]))
    hidden = graph.op("Where", mask, np.float32(0), HIDDEN)
    hidden = graph.op("Unsqueeze", hidden, np.array([1, 2]))
    none = np.zeros(sr.hidden, dtype=np.float32)
    # The shift of each layer's input is the bias of that layer's output projection.
    shifts = [_bias(layer.attention.output) for layer in layers] + [
        none if last_shift is None else last_shift
    ]
    states = _States(_norm(graph, norm, flat, shifts[0]), shifts[0], shape, hidden)
    for layer, shift in zip(layers, shifts[1:], strict=True):
        context = _own_attention(graph, layer.attention, states, causal_now)
        states = _layer_end(graph, layer, states, context, shift)
    return states


def _joined(graph: Graph, sr: SRModel, side: str, states: _States, others: _States) -> str:
    """States after the cross layer to the other history, (B L, d) without shift."""
    cross, join = getattr(sr, f"{side}_cross"), getattr(sr, f"{side}_join")
    attention = cross.attention
    query = _heads(graph, attention, [attention.query], states, scaled=True)[0]
    key, value = _heads(graph, attention, [attention.key, attention.value], others)
    context = _attend(graph, query, key, value, others.hidden, sr.hidden)
    crossed = _layer_end(graph, cross, states, context, np.zeros_like(states.shift))
    weight, bias = array(join.weight), _bias(join)
    own, other = weight[:, : sr.hidden], weight[:, sr.hidden :]
    first = graph.linear(states.value, own, bias - own @ states.shift)
    return graph.op("Gemm", crossed.value, other.T, first)


def _own_attention(graph: Graph, attention: MultiHeadAttention, states: _States, causal: str) -> str:
    parts = [attention.query, attention.key, attention.value]
    query, key, value = _heads(graph, attention, parts, states, scaled=True)
    return _attend(graph, query, key, value, causal, states.shift.shape[0])


def _layer_end(graph: Graph, layer: Any, states: _States, context: str, shift: np.ndarray) -> _States:
    """Output projection, residual, norm and feed-forward part of a layer whose input's shift is its output's bias."""
    attention: MultiHeadAttention = layer.attention
    forward: FeedForward = layer.feed_forward
    summed = graph.op("Gemm", context, array(attention.output.weight).T, states.value)
    middle_shift = _bias(forward.down)
    middle = _norm(graph, attention.norm, summed, middle_shift)
    up = array(forward.up.weight)
    inner = graph.op("Gelu", graph.linear(middle, up, _bias(forward.up) - up @ middle_shift))
    summed = graph.op("Gemm", inner, array(forward.down.weight).T, middle)
    return _States(_norm(graph, forward.norm, summed, shift), shift, states.shape, states.hidden)


def _heads(
    graph: Graph, attention: MultiHeadAttention, parts: list[nn.Linear], states: _States, scaled: bool = False
) -> list[str]:
    """What each of `parts` makes of the states, (B, H, L, d / H); the first is scaled as a query if `scaled`."""
    width, heads = parts[0].out_features, attention.heads
    weight = np.concatenate([array(part.weight) for part in parts])
    bias = np.concatenate([_bias(part) for part in parts]) - weight @ states.shift
    if scaled:
        scale = np.float32((width // heads) ** -0.5)
        weight[:width] *= scale
        bias[:width] *= scale
    together = len(parts) * heads
    shape = graph.op("Concat", states.shape, np.array([together, width // heads]), axis=0)
    flat = graph.linear(states.value, weight, bias)
    moved = graph.op("Transpose", graph.op("Reshape", flat, shape), perm=[0, 2, 1, 3])
    if len(parts) == 1:
        return [moved]
    return graph.split("Split", len(parts), moved, axis=1, num_outputs=len(parts))


def _attend(graph: Graph, query: str, key: str, value: str, hidden: str, width: int) -> str:
    """Attention of (B, H, L, d / H) over keys and values (B, H, K, d / H) -> (B L, d)."""
    # ONNX Runtime makes one operation of the transposition and the product.
    scores = graph.op("MatMul", query, graph.op("Transpose", key, perm=[0, 1, 3, 2]))
    weights = graph.op("Softmax", graph.op("Add", scores, hidden), axis=-1)
    context = graph.op("Transpose", graph.op("MatMul", weights, value), perm=[0, 2, 1, 3])
    return graph.op("Reshape", context, np.array([-1, width]))


def _pooled(graph: Graph, pooling: AdditivePooling, states: str, of: _States) -> str:
    """Additive pooling of states (B L, d) over the real steps -> (B, d)."""
    width = pooling.inner.in_features
    inner = graph.linear(states, array(pooling.inner.weight), _bias(pooling.inner))
    inner = graph.op("Gelu", _norm(graph, pooling.norm, inner, np.zeros(2 * width, dtype=np.float32)))
    # The bias of the score is the same for all steps: softmax does not see it.
    scores = graph.op("MatMul", inner, array(pooling.score.weight).T)
    row = graph.op("Concat", of.shape, np.array([1]), axis=0)
    row_scores = graph.op("Reshape", scores, row)  # (B, L, 1)
    seen = graph.op(
        "Add",
        graph.op("Transpose", row_scores, perm=[0, 2, 1]),
        graph.op("Squeeze", of.hidden, np.array([1])),
    )
    weights = graph.op("Softmax", seen, axis=-1)  # (B, 1, L)
    steps = graph.op("Reshape", states, graph.op("Concat", of.shape, np.array([width]), axis=0))
    return graph.op("Reshape", graph.op("MatMul", weights, steps), np.array([-1, width]))


def _answer(graph: Graph, attention: MultiHeadAttention, watched: str, states: str, of: _States) -> str:
    """The watched video (B, d) asks the states (B L, d) -> (B, d)."""
    width, heads = attention.query.in_features, attention.heads
    plain = _States(states, np.zeros(width, dtype=np.float32), of.shape, of.hidden)
    scale = np.float32((width // heads) ** -0.5)
    query = graph.linear(watched, array(attention.query.weight) * scale, _bias(attention.query) * scale)
    query = graph.op("Reshape", query, np.array([-1, heads, 1, width // heads]))
    key, value = _heads(graph, attention, [attention.key, attention.value], plain)
    context = _attend(graph, query, key, value, of.hidden, width)
    summed = graph.op(
        "Add", graph.linear(context, array(attention.output.weight), _bias(attention.output)), watched
    )
    return _norm(graph, attention.norm, summed, plain.shift)


def _norm(graph: Graph, norm: nn.LayerNorm, value: str, shift: np.ndarray) -> str:
    """LayerNorm plus `shift`."""
    weight, bias = array(norm.weight), _bias(norm) + shift
    return graph.op("LayerNormalization", value, weight, bias, axis=-1, epsilon=norm.eps)


def _bias(module: nn.Module) -> np.ndarray:
    bias = module.bias
    assert isinstance(bias, Tensor)
    return array(bias)
