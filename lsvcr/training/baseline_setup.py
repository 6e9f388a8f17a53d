"""What a run of `lsvcr train` is made of: dataset, recommender, training rows."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from torch import nn

from lsvcr.baselines.registry import Entry, Inputs, check_needs, find
from lsvcr.data.rank import RankData
from lsvcr.data.rank_rows import TrainingRows
from lsvcr.data.store import Dataset, open_dataset
from lsvcr.evaluation.metrics import parse_metric
from lsvcr.models import checkpoint
from lsvcr.schema import BASELINE, Split, Task
from lsvcr.settings import BaselineSettings, FittedSettings
from lsvcr.settings.bounds import check_bounds
from lsvcr.training.rank_setup import check_dataset, metric_name, recorded_settings, versions
from lsvcr.utils.errors import UserError
from lsvcr.utils.seeding import seed_everything

_INITIALISATION = 1


@dataclass
class FittedSetup:
    """A recommender of the registry on a dataset, fitted or to be trained.

    Attributes:
        entry: of the registry.
        settings: as given.
        dataset: open.
        model: on the CPU.
    """

    entry: Entry
    settings: FittedSettings
    dataset: Dataset
    model: nn.Module

    @property
    def task(self) -> Task:
        """They all recommend videos."""
        return Task.REC

    def data(self, split: Split) -> RankData:
        """Evaluation batches of a split with the settings' history length."""
        comments = "comments" in self.entry.needs
        return RankData(
            self.dataset, self.task, split, max_videos=self.settings.max_his, with_comments=comments
        )

    def about(self, processes: int) -> dict[str, Any]:
        """The part of every manifest that says where the weights come from."""
        return {
            "kind": BASELINE,
            "model": self.entry.name,
            "task": self.task.value,
            "settings": asdict(self.settings),
            "seed": self.settings.seed if isinstance(self.settings, BaselineSettings) else None,
            "data_hash": self.dataset.data_hash,
            "inputs": {name: dict(entry) for name, entry in self.inputs.items()},
            "processes": processes,
            "versions": versions(),
        }

    def identity(self, about: Mapping[str, Any]) -> dict[str, Any]:
        """Which recommender it is, and what it reads beside its dataset."""
        read = {name: entry["sha256"] for name, entry in about["inputs"].items()}
        return {"recommender": about["model"], **read}

    @cached_property
    def inputs(self) -> Inputs:
        """The files that the model reads beside its dataset."""
        return self.entry.inputs(self.settings, self.dataset)


@dataclass
class TrainedSetup(FittedSetup):
    """A recommender that the loop trains."""

    settings: BaselineSettings

    @property
    def label(self) -> str:
        """How progress bars call it."""
        return f"training {self.entry.name}"

    @property
    def negatives(self) -> int:
        """Sampled negatives."""
        return self.settings.neg_video_num

    def training(self) -> TrainingRows:
        """The training rows."""
        return self._rows

    @cached_property
    def _rows(self) -> TrainingRows:
        rows = self.entry.train_data(self.settings, self.dataset)
        assert rows is not None, f"{self.entry.name} has training settings but nothing to train on"
        return rows


def set_up(name: str, settings: FittedSettings) -> FittedSetup:
    """Check the settings, open the dataset and build the model, initialised from `settings.seed`, or fit it.

    Raises:
        UserError: no such recommender, settings out of range, or a dataset without what the recommender needs.
    """
    entry = find(name)
    check_settings(settings)
    dataset = open_dataset(settings.data_path)
    check_needs(entry, dataset)
    return _build(entry, settings, dataset)


def check_settings(settings: FittedSettings) -> None:
    """Refuse numbers that no recommender can work with.

    Raises:
        UserError: naming the flag.
    """
    check_bounds(settings, "num_train_epochs")
    if isinstance(settings, BaselineSettings):
        parse_metric(metric_name(settings))


def restore(
    weights: checkpoint.Checkpoint, folder: Path, dataset: Dataset
) -> tuple[FittedSetup, dict[str, Any]]:
    """The recommender of a checkpoint, and its manifest.

    Args:
        weights: what `folder` holds.
        folder: for messages.
        dataset: that it was trained on.

    Raises:
        UserError: another dataset, or a recommender, a setting or a file it reads that is not there any more or has
            changed.
    """
    manifest = weights.manifest
    check_dataset(folder, manifest, dataset)
    entry = find(manifest["model"])
    settings = recorded_settings(entry.settings, manifest)
    _check_inputs(entry.inputs(settings, dataset), manifest.get("inputs", {}), folder)
    setup = _build(entry, settings, dataset)
    checkpoint.load_into(setup.model, weights.tensors, source=str(folder))
    return setup, manifest


def _check_inputs(found: Inputs, recorded: Inputs, folder: Path) -> None:
    """Raise a UserError unless the files are those that the checkpoint in `folder` was trained on."""
    for name, entry in found.items():
        if name not in recorded or entry["sha256"] != recorded[name]["sha256"]:
            was = recorded.get(name, {}).get("path", "another file")
            raise UserError(
                f"{entry['path']} does not hold the {name} that {folder} was trained on ({was}, as it was then): put "
                "that file back, or train again"
            )


def _build(entry: Entry, settings: FittedSettings, dataset: Dataset) -> FittedSetup:
    if not isinstance(settings, BaselineSettings):
        return FittedSetup(entry, settings, dataset, entry.build(settings, dataset))
    seed_everything(settings.seed, _INITIALISATION)
    return TrainedSetup(entry, settings, dataset, entry.build(settings, dataset))
