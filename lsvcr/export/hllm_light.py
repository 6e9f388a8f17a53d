"""HLLM light as a part of a bundle: every video's projected vector, and the user encoder as SASRec's graph."""

import torch

from lsvcr.baselines.hllm_light import HllmLight
from lsvcr.export.graph import array
from lsvcr.export.sasrec import encoder_graph
from lsvcr.serving.bundle_write import Part
from lsvcr.utils.errors import UserError


@torch.no_grad()
def part(model: HllmLight) -> Part:
    """Graph and tables of a model in evaluation mode, on the CPU. The LLM's own vectors are not needed any more.

    Raises:
        UserError: it reads times, which a request does not have.
    """
    if model.time_scale is not None:
        raise UserError(
            "this run of hllm_light reads the times of events, which requests to a bundle do not have: train it with "
            "--time_buckets none to export it"
        )
    entries = array(model.every())
    return Part(
        encoder=encoder_graph(model, entries, cosine=True),
        items=array(model.item_vectors()),
        entries=entries,
        score="cosine",
        about={"encoder": "float32", "ids": True, "texts": False, "comments": False},
    )
