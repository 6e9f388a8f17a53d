"""The recommenders of `lsvcr train`, found by their files: each names itself in `ENTRIES`.

A file of lsvcr/baselines/ with a line that begins with `ENTRIES` is a recommender's. docs/method.md shows one from
beginning to end.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

from torch import nn

from lsvcr import baselines
from lsvcr.data.rank_rows import TrainingRows
from lsvcr.data.store import Dataset
from lsvcr.settings import FittedSettings
from lsvcr.utils.arguments import nearest
from lsvcr.utils.errors import UserError

_NAMES_ITSELF = re.compile(r"^ENTRIES\b", re.M)


Inputs = Mapping[str, Mapping[str, str]]
"""By what it is, a file that a model reads beside its dataset and does not keep: its `path` and `sha256`."""


def no_inputs(settings: Any, dataset: Dataset) -> Inputs:
    """`inputs` of a recommender that is made of its dataset alone."""
    return {}


def no_rows(settings: Any, dataset: Dataset) -> TrainingRows | None:
    """`train_data` of a recommender that is fitted when it is built."""
    return None


@dataclass(frozen=True)
class Entry:
    """A recommender.

    Attributes:
        name: what a user types.
        summary: one sentence.
        settings: a subclass of `BaselineSettings`, or of `FittedSettings` where nothing is trained.
        build: (settings, dataset) -> the model; fresh parameters read torch's global generator, which is seeded. Its
            state dict is what a checkpoint keeps.
        train_data: (settings, dataset) -> rows for the training loop; None for models that are fitted in `build`.
        inputs: (settings, dataset) -> the files beside the dataset that `build` reads. A checkpoint keeps their
            hashes, and is restored with the same content only. Raises a UserError where they are missing or wrong.
        needs: of the dataset, see `NEEDS`.
        instead: the recommender to name where the dataset lacks that.
        exporter: the file of lsvcr/export/ that makes a bundle's part of its models (see `lsvcr.export.models`): a
            name, because that stands above this layer and needs ONNX; empty = they cannot be exported.
    """

    name: str
    summary: str
    settings: type[FittedSettings]
    build: Callable[[Any, Dataset], nn.Module]
    train_data: Callable[[Any, Dataset], TrainingRows | None] = no_rows
    inputs: Callable[[Any, Dataset], Inputs] = no_inputs
    needs: frozenset[str] = frozenset()
    instead: str = "sasrec"
    exporter: str = ""


def _has_times(dataset: Dataset) -> bool:
    # The official format has no times: what stands there then only tells the order.
    times = dataset.video_events.times
    return dataset.manifest["split"]["name"] != "as given" and len(times) > 0


def _has_impressions(dataset: Dataset) -> bool:
    return any(name.startswith("impressions/") for name in dataset.manifest["files"])


def _has_texts(dataset: Dataset) -> bool:
    return any(text.strip() for text in dataset.titles())


NEEDS: dict[str, tuple[str, Callable[[Dataset], bool]]] = {
    "times": ("times of its events", _has_times),
    "texts": ("titles", _has_texts),
    "impressions": ("impressions", _has_impressions),
    "comments": ("comments", lambda dataset: dataset.n_comments > 0),
}
"""What a recommender may need of a dataset: in words, and whether a dataset has it."""


def entries() -> dict[str, Entry]:
    """Every recommender by name, in the order of names.

    Raises:
        ValueError: two have one name, or one needs what is not in `NEEDS`.
    """
    found: dict[str, Entry] = {}
    files = [file for folder in baselines.__path__ for file in sorted(Path(folder).glob("*.py"))]
    for file in files:
        if not _NAMES_ITSELF.search(file.read_text(encoding="utf-8")):
            continue
        module = import_module(f"{baselines.__name__}.{file.stem}")
        for entry in module.ENTRIES:
            if entry.name in found or not entry.needs <= NEEDS.keys():
                raise ValueError(f"{file}: {entry.name} is there twice, or needs what NEEDS does not know")
            found[entry.name] = entry
    return dict(sorted(found.items()))


def find(name: str) -> Entry:
    """The recommender of that name.

    Raises:
        UserError: there is none; the nearest is named.
    """
    known = entries()
    if name not in known:
        raise UserError(f"no recommender {name!r}; {nearest(name, known) or 'there are ' + ', '.join(known)}")
    return known[name]


def check_needs(entry: Entry, dataset: Dataset) -> None:
    """Raise a UserError, naming another recommender, where the dataset lacks what this one needs."""
    lacking = [words for need, (words, has) in NEEDS.items() if need in entry.needs and not has(dataset)]
    if lacking:
        raise UserError(
            f"{entry.name} needs {' and '.join(lacking)}, which {dataset.root} does not have; use {entry.instead}"
        )
