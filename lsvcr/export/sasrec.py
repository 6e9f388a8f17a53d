"""SASRec as a part of a bundle: its table of videos, and the user encoder as an ONNX graph.

The graph computes what `SASRec.user_vectors` does, for steps that are rows of the table already. A padded step holds
padding's row, whatever the caller left there; an empty history is one such step, as the model has it.
"""

from typing import Any

import numpy as np
import torch
from torch import nn

from lsvcr.baselines.sasrec import SASRec
from lsvcr.baselines.sequence_model import TransformerBody
from lsvcr.export.blocks import HIDDEN, Sight, block, norm
from lsvcr.export.graph import Graph, array
from lsvcr.schema import PAD
from lsvcr.serving.bundle_write import Part

_INT64 = 7
"""TensorProto.INT64."""


@torch.no_grad()
def part(model: SASRec) -> Part:
    """Graph and tables of a model in evaluation mode, on the CPU."""
    entries = array(model.items.weight) * np.float32(model.scale)
    return Part(
        encoder=encoder_graph(model, entries[PAD], model.cosine),
        items=array(model.item_vectors()),
        entries=entries,
        score="cosine" if model.cosine else "inner product",
        about={"encoder": "float32", "ids": True, "texts": False, "comments": False},
    )


def encoder_graph(model: TransformerBody, padding: np.ndarray, cosine: bool) -> bytes:
    """The encoder of a bundle's part `rec`: inputs and outputs as `Part` has them, comments without effect.

    Args:
        model: causal; at most `model.longest` steps are read.
        padding: (d,) float32, the step of an empty history.
        cosine: the state is brought to length 1.
    """
    graph, width = Graph("user_encoder"), len(padding)
    video = graph.input("video", "float32", ["B", "V", width])
    mask = graph.input("video_mask", "bool", ["B", "V"])
    graph.input("comment", "float32", ["B", "C", width])
    graph.input("comment_mask", "bool", ["B", "C"])
    shape = graph.op("Shape", mask)
    steps = graph.op("Range", np.array(0), _scalar(graph, graph.op("Shape", mask, start=1)), np.array(1))
    lengths = graph.op("ReduceSum", graph.op("Cast", mask, to=_INT64), np.array([1]), keepdims=1)  # (B, 1)
    read = graph.op("Where", graph.op("Unsqueeze", mask, np.array([2])), video, padding)
    if model.positions is not None:
        read = graph.op("Add", read, _positions(graph, model, model.positions, steps, lengths))
    states = graph.op("Reshape", read, np.array([-1, width]))
    blocks: list[Any] = list(model.blocks)
    *first, last = blocks
    causal = Sight(shape, _causal(graph, shape, model.longest))
    for one in first:
        states = block(graph, one, states, causal)
    states = block(graph, last, states, _latest(graph, shape, steps, lengths))
    if isinstance(model.norm, nn.LayerNorm):
        states = norm(graph, model.norm, states)
    graph.output(graph.unit(states) if cosine else states, "user", ["B", width])
    return graph.to_bytes()


def _positions(graph: Graph, model: TransformerBody, table: nn.Embedding, steps: str, lengths: str) -> str:
    """Rows of the position table, (B, L, d), or (L, d) where they are counted from the oldest."""
    if not model.from_end:
        return graph.op("Gather", array(table.weight), steps, axis=0)
    places = graph.op("Add", steps, graph.op("Sub", np.array(model.longest), lengths))
    return graph.op(
        "Gather", array(table.weight), graph.op("Min", places, np.array(model.longest - 1)), axis=0
    )


def _causal(graph: Graph, shape: str, longest: int) -> str:
    """(L, L): a step sees those up to its own place."""
    length = graph.op("Slice", shape, np.array([1]), np.array([2]))
    square = graph.op("Concat", length, length, axis=0)
    return graph.op(
        "Slice", np.triu(np.full((longest, longest), HIDDEN), 1), np.array([0, 0]), square, np.array([0, 1])
    )


def _latest(graph: Graph, shape: str, steps: str, lengths: str) -> Sight:
    """The latest real step of each history asks, and sees all real ones; of an empty history it is the first step."""
    at_least_one = graph.op("Max", lengths, np.array(1))  # (B, 1)
    seen = graph.op("Less", steps, at_least_one)  # (B, L)
    hidden = graph.op("Unsqueeze", graph.op("Where", seen, np.float32(0), HIDDEN), np.array([1, 2]))
    rows = _scalar(graph, graph.op("Slice", shape, np.array([0]), np.array([1])))
    length = graph.op("Slice", shape, np.array([1]), np.array([2]))
    before = graph.op("Mul", graph.op("Range", np.array(0), rows, np.array(1)), length)  # (B,)
    own = graph.op("Sub", graph.op("Squeeze", at_least_one, np.array([1])), np.array(1))
    return Sight(shape, hidden, graph.op("Add", before, own))


def _scalar(graph: Graph, value: str) -> str:
    """(1,) -> ()."""
    return graph.op("Squeeze", value, np.array([0]))
