"""SASRec as a part of a bundle: its table of videos, and the user encoder as an ONNX graph.

The graph computes what `SASRec.user_vectors` does, for steps that are rows of the table already. A padded step holds
padding's row; an empty history is one such step, as the model has it.
"""

import numpy as np
import torch

from lsvcr.baselines.sasrec import SASRec
from lsvcr.baselines.sequence_model import TransformerBody
from lsvcr.export.blocks import Sight, lowest_of_blocks
from lsvcr.export.graph import Graph, array
from lsvcr.export.hiding import SHOWN, reach_of_rows
from lsvcr.export.sequences import answered, counted, inputs, key_limit, length_of, lengths, placed, rows_of
from lsvcr.schema import PAD
from lsvcr.serving.bundle_write import Part


@torch.no_grad()
def part(model: SASRec) -> Part:
    """Graph and tables of a model in evaluation mode, on the CPU."""
    entries = array(model.items.weight) * np.float32(model.scale)
    return Part(
        encoder=encoder_graph(model, entries, model.cosine),
        items=array(model.item_vectors()),
        entries=entries,
        score="cosine" if model.cosine else "inner product",
        about={"encoder": "float32", "ids": True, "texts": False, "comments": False},
    )


def encoder_graph(model: TransformerBody, entries: np.ndarray, cosine: bool) -> bytes:
    """The encoder of a bundle's part `rec`: inputs and outputs as `Part` has them, comments without effect.

    Args:
        model: causal; at most `model.longest` steps are read.
        entries: (N + 1, d) float32, all steps that there are; row 0 is padding, the step of an empty history.
        cosine: the state is brought to length 1.
    """
    graph, width = Graph("user_encoder"), entries.shape[1]
    video, mask = inputs(graph, width)
    steps = counted(graph, graph.op("Shape", mask, start=1))
    real = lengths(graph, mask)
    read = graph.op("Where", graph.op("Unsqueeze", mask, np.array([2])), video, entries[PAD])
    read = placed(graph, model, read, steps, real)
    states = answered(graph, model, read, *_sights(graph, model, entries, mask, (steps, real)))
    graph.output(graph.unit(states) if cosine else states, "user", ["B", width])
    return graph.to_bytes()


def _sights(
    graph: Graph, model: TransformerBody, entries: np.ndarray, mask: str, counts: tuple[str, str]
) -> tuple[Sight, Sight]:
    """A step sees those up to its own place; the latest real one asks, of an empty history the first.

    Args:
        counts: the steps (L,), and how many are real (B, 1).
    """
    steps, real = counts
    tables = [entries] if model.positions is None else [entries, array(model.positions.weight)]
    hidden = lowest_of_blocks(model.blocks, reach_of_rows(*tables))
    shape = graph.op("Shape", mask)
    latest = graph.op("Sub", graph.op("Max", real, np.array(1)), np.array(1))  # (B, 1)
    limit = key_limit(graph, graph.op("LessOrEqual", steps, latest), hidden)
    causal = Sight(shape, _causal(graph, shape, model.longest, hidden))
    return causal, Sight(shape, limit, rows_of(graph, shape, latest))


def _causal(graph: Graph, shape: str, longest: int, hidden: np.float32) -> str:
    """The limit (L, L) with which a step sees those up to its own place."""
    length = length_of(graph, shape)
    square = graph.op("Concat", length, length, axis=0)
    limit = np.where(np.tri(longest, dtype=bool), SHOWN, hidden)
    return graph.op("Slice", limit, np.array([0, 0]), square, np.array([0, 1]))
