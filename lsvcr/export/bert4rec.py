"""BERT4Rec as a part of a bundle: its table of videos, and the user encoder as an ONNX graph.

The graph computes what `BERT4Rec.user_vectors` does, for steps that are rows of the table already: it puts the mask
behind each history by itself, so that an empty one is the mask alone.
"""

import numpy as np
import torch
from torch import nn

from lsvcr.baselines.bert4rec import BERT4Rec, BertHead
from lsvcr.export.blocks import Sight, linear, lowest_of_blocks, norm
from lsvcr.export.graph import Graph, array
from lsvcr.export.hiding import Reach, reach_of_norm, reach_of_rows
from lsvcr.export.sequences import answered, counted, inputs, key_limit, lengths, placed, rows_of
from lsvcr.serving.bundle_write import Part


@torch.no_grad()
def part(model: BERT4Rec) -> Part:
    """Graph and tables of a model in evaluation mode, on the CPU."""
    return Part(
        encoder=encoder_graph(model),
        items=array(model.item_vectors()),
        entries=array(model.items.weight)[: model.mask],
        score="inner product",
        about={"encoder": "float32", "ids": True, "texts": False, "comments": False},
    )


def encoder_graph(model: BERT4Rec) -> bytes:
    """The encoder of a bundle's part `rec`: inputs and outputs as `Part` has them, comments without effect.

    At most `model.max_his` steps are read.
    """
    graph, width = Graph("user_encoder"), model.items.embedding_dim
    video, mask = inputs(graph, width)
    steps = counted(graph, graph.op("Add", graph.op("Shape", mask, start=1), np.array([1])))
    real = lengths(graph, mask)  # the place of the mask, too
    states = answered(
        graph, model, _read(graph, model, video, steps, real), *_sights(graph, model, steps, real)
    )
    graph.output(_headed(graph, model.head, states), "user", ["B", width])
    return graph.to_bytes()


def _headed(graph: Graph, head: BertHead | None, states: str) -> str:
    """(B, d) -> (B, d), what `user_vectors` of the head makes of the states."""
    if head is None:
        return states
    filled = graph.op("Gelu", linear(graph, head.output, states))
    one = np.ones(head.output.out_features, dtype=np.float32)
    return graph.op("LayerNormalization", filled, one, one, axis=-1, epsilon=head.norm.eps)


def _read(graph: Graph, model: BERT4Rec, video: str, steps: str, real: str) -> str:
    """What enters the blocks, (B, V + 1, d): the mask stands behind the real steps, and where padding is."""
    one_more = graph.op("Slice", video, np.array([0]), np.array([1]), np.array([1]))
    longer = graph.op("Concat", video, one_more, axis=1)
    is_video = graph.op("Unsqueeze", graph.op("Less", steps, real), np.array([2]))
    read = graph.op("Where", is_video, longer, array(model.items.weight)[model.mask])
    read = placed(graph, model, read, steps, graph.op("Add", real, np.array(1)))
    return norm(graph, model.input_norm, read) if isinstance(model.input_norm, nn.LayerNorm) else read


def _reach(model: BERT4Rec) -> Reach:
    """Of what enters the blocks."""
    if isinstance(model.input_norm, nn.LayerNorm):
        return reach_of_norm(model.input_norm)
    tables = [model.items, *([] if model.positions is None else [model.positions])]
    return reach_of_rows(*(array(table.weight) for table in tables))


def _sights(graph: Graph, model: BERT4Rec, steps: str, real: str) -> tuple[Sight, Sight]:
    """All steps see the history and the mask behind it, which asks."""
    hidden = lowest_of_blocks(model.blocks, _reach(model))
    visible = graph.op("LessOrEqual", steps, real)  # (B, V + 1)
    limit = key_limit(graph, visible, hidden)
    shape = graph.op("Shape", visible)
    return Sight(shape, limit), Sight(shape, limit, rows_of(graph, shape, real))
