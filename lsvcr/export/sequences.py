"""What the graphs of the transformers over a user's videos share (`lsvcr.baselines.sequence_model`).

A padded step holds what the model has there, whatever the caller left there, and a state is asked of one step alone.
"""

from typing import Any

import numpy as np
from torch import nn

from lsvcr.baselines.sequence_model import TransformerBody
from lsvcr.export.blocks import Sight, block, norm
from lsvcr.export.graph import Graph, array
from lsvcr.export.hiding import SHOWN

_INT64 = 7
"""TensorProto.INT64."""


def inputs(graph: Graph, width: int) -> tuple[str, str]:
    """The steps (B, V, d) and their mask (B, V). Comments are inputs, too, without effect."""
    video = graph.input("video", "float32", ["B", "V", width])
    mask = graph.input("video_mask", "bool", ["B", "V"])
    graph.input("comment", "float32", ["B", "C", width])
    graph.input("comment_mask", "bool", ["B", "C"])
    return video, mask


def lengths(graph: Graph, mask: str) -> str:
    """(B, 1) int64: real steps of each history, by the mask (B, V)."""
    return graph.op("ReduceSum", graph.op("Cast", mask, to=_INT64), np.array([1]), keepdims=1)


def counted(graph: Graph, count: str) -> str:
    """(L,) int64, from 0 on; `count` is (1,)."""
    return graph.op("Range", np.array(0), _scalar(graph, count), np.array(1))


def placed(graph: Graph, model: TransformerBody, read: str, steps: str, real: str) -> str:
    """Steps (B, L, d) plus their positions; `steps` (L,) are counted, `real` (B, 1) says how many are no padding."""
    table = model.positions
    if table is None:
        return read
    places = steps
    if model.from_end:
        places = graph.op("Add", steps, graph.op("Sub", np.array(model.longest), real))
        places = graph.op("Min", places, np.array(model.longest - 1))
    return graph.op("Add", read, graph.op("Gather", array(table.weight), places, axis=0))


def answered(graph: Graph, model: TransformerBody, read: str, all_see: Sight, asked: Sight) -> str:
    """Steps (B, L, d) through the blocks -> (B, d), the states of the steps that `asked` names.

    Args:
        all_see: what the steps see in all blocks but the last.
        asked: who asks in the last, and what they see.
    """
    blocks: list[Any] = list(model.blocks)
    *first, last = blocks
    states = graph.op("Reshape", read, np.array([-1, last.attention.output.in_features]))
    for one in first:
        states = block(graph, one, states, all_see)
    states = block(graph, last, states, asked)
    return norm(graph, model.norm, states) if isinstance(model.norm, nn.LayerNorm) else states


def key_limit(graph: Graph, seen: str, hidden: np.float32) -> str:
    """The limit (B, 1, 1, L) that brings steps which nobody sees, by `seen` (B, L), to the score `hidden`."""
    return graph.op("Unsqueeze", graph.op("Where", seen, np.array(SHOWN), np.array(hidden)), np.array([1, 2]))


def rows_of(graph: Graph, shape: str, place: str) -> str:
    """(B,) int64: of step `place` (B, 1) of each history, its row in (B L, d); `shape` (2,) is B, L."""
    batch = graph.op("Slice", shape, np.array([0]), np.array([1]))
    before = graph.op("Mul", counted(graph, batch), length_of(graph, shape))
    return graph.op("Add", before, graph.op("Squeeze", place, np.array([1])))


def length_of(graph: Graph, shape: str) -> str:
    """(1,): L of a shape (2,)."""
    return graph.op("Slice", shape, np.array([1]), np.array([2]))


def _scalar(graph: Graph, value: str) -> str:
    """(1,) -> ()."""
    return graph.op("Squeeze", value, np.array([0]))
