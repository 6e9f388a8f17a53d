"""The user encoder of a stage-two model as an ONNX graph: steps in, a unit vector out.

It computes what `RankModel.user_vectors` does, for steps that hold titles, comments and ids already
(`lsvcr.export.tables`), in a form made for one request on one core:

- States are (B L, d), so that a linear map is one `Gemm`, which adds its bias or the residual on the way.
- A norm adds the bias of the projection that comes next to its own, and what else reads its states takes it off again
  in its own bias: so the residual is all that a `Gemm` has to add.
- Attention needs neither keys nor values of its own (`lsvcr.export.attention`).
- A padded step holds the entry of an empty history, whatever the caller left there. In an empty history all steps are
  then equal, and with them their states, so that attention over all of them is attention over the one empty entry.
"""

from typing import Any

import numpy as np
from torch import nn

from lsvcr.export.attention import (
    States,
    answered,
    attended,
    causal_limit,
    lowest,
    lowest_of_pooling,
    others_shift,
    own_shift,
    projected,
)
from lsvcr.export.graph import Graph, array
from lsvcr.export.hiding import bias_of, real_limit, shares
from lsvcr.models.rank import RankModel
from lsvcr.models.sr import SRModel
from lsvcr.nn.attention import CausalLayer, FeedForward
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
    shape = graph.op("Concat", graph.op("Shape", video_mask, end=1), np.array([-1, width]), axis=0)
    own, other = ("video", "comment") if watched is None else ("comment", "video")
    shifts = {own: others_shift(getattr(sr, f"{own}_cross").attention), other: np.zeros(width, np.float32)}
    videos = _history(graph, sr, "video", video, (video_mask, shape), max_videos, shifts["video"])
    comments = _history(graph, sr, "comment", comment, (comment_mask, shape), max_entries, shifts["comment"])
    if watched is None:
        user = _pooled(graph, sr.rec_pooling, _joined(graph, sr, "video", videos, comments), videos)
    else:
        states = graph.op("Reshape", _joined(graph, sr, "comment", comments, videos), shape)
        attention = sr.comm_rank_attention
        user = _norm(graph, attention.norm, answered(graph, attention, watched, states, comments.mask))
    graph.output(graph.unit(user), "user", ["B", width])
    return graph.to_bytes()


def _inputs(graph: Graph, name: str, axis: str, width: int) -> tuple[str, str]:
    steps = graph.input(name, "float32", ["B", axis, width])
    return steps, graph.input(f"{name}_mask", "bool", ["B", axis])


def _history(
    graph: Graph,
    sr: SRModel,
    side: str,
    steps: str,
    batch: tuple[str, str],
    longest: int,
    last_shift: np.ndarray,
) -> States:
    """A history through its own layers.

    Args:
        batch: mask and shape, as `States` has them.
        longest: steps, at most.
        last_shift: of the states that come out.
    """
    table: nn.Embedding = getattr(sr, f"{side}_position")
    layers: list[CausalLayer] = list(getattr(sr, f"{side}_encoder"))
    norms: list[nn.LayerNorm] = [getattr(sr, f"{side}_norm"), *(layer.feed_forward.norm for layer in layers)]
    mask, shape = batch
    length = graph.op("Shape", mask, start=1)
    positions = array(table.weight)[:longest]
    own = graph.op("Slice", positions, np.array([0]), length, np.array([0]))
    real = graph.op("Unsqueeze", mask, np.array([2]))
    placed = graph.op("Where", real, graph.op("Add", steps, own), array(sr.merge.bias) + positions[0])
    flat = graph.op("Reshape", placed, np.array([-1, sr.hidden]))
    shifts = [*(own_shift(layer.attention) for layer in layers), last_shift]
    hidden = min(
        lowest(layer.attention, norm, norm, shift)
        for layer, norm, shift in zip(layers, norms, shifts, strict=False)
    )
    limit = causal_limit(graph, layers[0].attention.heads, length, longest, hidden)

    def states(value: str, place: int) -> States:
        shifted = _norm(graph, norms[place], value, shifts[place])
        cube = graph.op("Reshape", shifted, shape)
        return States(shifted, cube, norms[place], shifts[place], mask, shape)

    found = states(flat, 0)
    for place, layer in enumerate(layers, start=1):
        context = attended(graph, layer.attention, found, found, limit)
        found = states(_fed(graph, layer, projected(graph, context, found)), place)
    return found


def _fed(graph: Graph, layer: Any, summed: str) -> str:
    """What follows the attention of a layer, up to its last norm: (B L, d) -> (B L, d)."""
    forward: FeedForward = layer.feed_forward
    shift = bias_of(forward.down)
    middle = _norm(graph, layer.attention.norm, summed, shift)
    up = array(forward.up.weight)
    inner = graph.op("Gelu", graph.linear(middle, up, bias_of(forward.up) - up @ shift))
    return graph.op("Gemm", inner, array(forward.down.weight).T, middle)


def _joined(graph: Graph, sr: SRModel, side: str, states: States, others: States) -> str:
    """States after the cross layer to the other history, (B L, d) without shift."""
    cross, join = getattr(sr, f"{side}_cross"), getattr(sr, f"{side}_join")
    context = attended(graph, cross.attention, states, others)
    crossed = _norm(graph, cross.feed_forward.norm, _fed(graph, cross, projected(graph, context, states)))
    weight, bias = array(join.weight), bias_of(join)
    own, other = weight[:, : sr.hidden], weight[:, sr.hidden :]
    first = graph.linear(states.value, own, bias - own @ states.shift)
    return graph.op("Gemm", crossed, other.T, first)


def _pooled(graph: Graph, pooling: AdditivePooling, states: str, of: States) -> str:
    """Additive pooling of states (B L, d) over the real steps -> (B, d)."""
    inner = graph.linear(states, array(pooling.inner.weight), bias_of(pooling.inner))
    inner = graph.op("Gelu", _norm(graph, pooling.norm, inner))
    # The bias of the score is the same for all steps: softmax does not see it.
    weight = array(pooling.score.weight)
    row = graph.op("Concat", graph.op("Shape", of.mask, end=1), np.array([1, -1]), axis=0)
    scores = graph.op("Reshape", graph.op("MatMul", inner, weight.T), row)  # (B, 1, L)
    limit = real_limit(graph, of.mask, lowest_of_pooling(pooling))
    cube = graph.op("Reshape", states, of.shape)
    pooled = graph.op("MatMul", shares(graph, scores, limit), cube)
    return graph.op("Reshape", pooled, np.array([-1, pooling.inner.in_features]))


def _norm(graph: Graph, norm: nn.LayerNorm, value: str, shift: np.ndarray | None = None) -> str:
    """LayerNorm plus `shift`."""
    bias = bias_of(norm) if shift is None else bias_of(norm) + shift
    return graph.op("LayerNormalization", value, array(norm.weight), bias, axis=-1, epsilon=norm.eps)
