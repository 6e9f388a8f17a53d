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
from lsvcr.serving.bundle_write import Part
from lsvcr.utils.errors import UserError


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
        can = ", ".join(f"`lsvcr train {one.name}`" for one in entries().values() if one.exporter)
        raise UserError(
            f"{folder} is a run of {entry.name}, which cannot be exported; runs of finetune.py and of {can} can be"
        )
    found: Exporter = import_module(f"{lsvcr.export.__name__}.{entry.exporter}").part
    return found
