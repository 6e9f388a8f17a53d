"""Which recommenders of `lsvcr train` can be exported, and by what.

An `Entry` of the registry names a file of this folder in `exporter`. The file has a function `part`: a model in
evaluation mode on the CPU -> `Part`. The model has `user_vectors` and `item_vectors`, which
the bundle is checked against.
"""

from importlib import import_module
from pathlib import Path
from typing import Protocol

from torch import nn

import lsvcr.export
from lsvcr.baselines.registry import Entry, entries
from lsvcr.schema import HLLM, MANIFEST_FILE
from lsvcr.serving.bundle_write import Part
from lsvcr.utils.errors import UserError
from lsvcr.utils.io import read_json


class Exporter(Protocol):
    """Makes the part `rec` of a bundle."""

    def __call__(self, model: nn.Module) -> Part:
        """Graph and tables of a model in evaluation mode, on the CPU."""
        ...


def exporter(entry: Entry, folder: Path) -> Exporter:
    """What exports the models of a recommender; `folder` is a run of it, for the message.

    Raises:
        UserError: nothing does; what can be exported is named.
    """
    if not entry.exporter:
        raise UserError(f"{folder} is a run of {entry.name}, which cannot be exported; {_can_be()}")
    found: Exporter = import_module(f"{lsvcr.export.__name__}.{entry.exporter}").part
    return found


def refuse_llm(folder: Path) -> None:
    """Tell of a checkpoint that answers with an LLM before that is read.

    Raises:
        UserError: it is one; what can be exported is named.
    """
    if read_json(folder / MANIFEST_FILE).get("kind") == HLLM:
        raise UserError(
            f"{folder} is a run of `lsvcr hllm`, whose user model is an LLM, and a bundle answers without any: train "
            f"`lsvcr train hllm_light --time_buckets none` on item vectors of the LLM instead; {_can_be()}"
        )


def _can_be() -> str:
    can = ", ".join(f"`lsvcr train {one.name}`" for one in entries().values() if one.exporter)
    return f"runs of finetune.py and of {can} can be"
