"""What stands in front of the encoder, as tables; and the graph that makes such rows of texts that come later.

`merge`, which makes a history step of a title and a comment, is linear. With its weight cut in two, a step is the sum
of a row of the video and a row of the comment (or the mean over rows of several): nothing but sums is left for a
request.
"""

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from lsvcr.export.graph import Graph, array
from lsvcr.models.rank import TABLE_ROWS, RankModel
from lsvcr.models.sr import EmbeddingHead
from lsvcr.schema import PAD, Task


class Tables(NamedTuple):
    """Rows by index, float32; row 0 belongs to padding."""

    items: np.ndarray
    """(n_videos + 1, d) for Rec, (n_comments + 1, d) for CommRank: unit vectors of what is ranked."""
    entries: np.ndarray
    """(n_videos + 1, d): a video as a step of either history."""
    shown: np.ndarray | None
    """(n_comments + 1, d): what a comment adds to its step, row 0 zeros; None where the model ignores comments."""
    watched: np.ndarray | None
    """(n_videos + 1, d): the watched video as a question; None for Rec."""


@torch.no_grad()
def tables(model: RankModel) -> Tables:
    """The tables of a stage-two model in evaluation mode, on the CPU."""
    width = model.sr.hidden
    merge = model.sr.merge
    titles = model.titles()
    entries = model.with_ids(_mapped(titles, merge.weight[:, :width], merge.bias))
    shown = None
    if model.sr.use_comments:
        shown = _mapped(model.comment_vectors(), merge.weight[:, width:], None)
        shown[PAD] = 0
    watched = model.with_ids(titles).numpy() if model.task is Task.COMM_RANK else None
    return Tables(
        items=model.item_vectors().numpy(),
        entries=entries.numpy(),
        shown=None if shown is None else shown.numpy(),
        watched=watched,
    )


def tower_graph(model: RankModel, text_width: int) -> bytes | None:
    """The graph that makes rows of new texts; None for a model without text.

    Input: `text` (n, w) float32, vectors as in the files that stage two read; zeros stand for no text. Outputs, each
    (n, d): `projected`, the text part of an item vector; `entry` and `shown`, rows as in `Tables`, without an id.
    """
    sr = model.sr
    if sr.adapter is None:
        return None
    graph, width = Graph("text_tower"), sr.hidden
    text = graph.input("text", "float32", ["n", text_width])
    vectors = text if model.head is None else _head(graph, model.head, text)
    projected = graph.op("MatMul", vectors, array(sr.adapter.weight).T)
    graph.output(projected, "projected", ["n", width])
    merge = array(sr.merge.weight)
    graph.output(graph.linear(projected, merge[:, :width], array(sr.merge.bias)), "entry", ["n", width])
    comment = merge[:, width:].T if sr.use_comments else np.zeros((width, width), dtype=np.float32)
    shown = graph.op("MatMul", projected, comment)
    graph.output(shown, "shown", ["n", width])
    return graph.to_bytes()


def _head(graph: Graph, head: EmbeddingHead, text: str) -> str:
    """`EmbeddingHead.forward`."""
    standard = graph.op("Div", graph.op("Sub", text, array(head.center)), array(head.scale))
    inner = graph.op("Gelu", graph.linear(standard, array(head.inner.weight), array(head.inner.bias)))
    outer = graph.linear(inner, array(head.outer.weight), array(head.outer.bias))
    largest = graph.op("ReduceMax", graph.op("Abs", text), np.array([1]), keepdims=1)
    some_text = graph.op("Greater", largest, np.float32(0))
    return graph.op("Where", some_text, outer, np.float32(0))


def _mapped(rows: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """rows @ weight.T + bias, in parts so that no table is held a third time."""
    mapped = torch.empty(len(rows), weight.shape[0])
    for part, out in zip(rows.split(TABLE_ROWS), mapped.split(TABLE_ROWS), strict=True):
        out.copy_(nn.functional.linear(part, weight, bias))
    return mapped
