"""What a run of `lsvcr clicks` is made of: dataset, samples, a click model, and what pretraining hands on to it."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from lsvcr.baselines.gpsd_clicks import (
    DENSE,
    SPARSE,
    TRANSFERS,
    ClickModel,
    Transfer,
    build,
    group_of,
    transfer_name,
)
from lsvcr.baselines.gpsd_settings import BodySettings, ClickSettings, GpsdSettings, check_clicks
from lsvcr.baselines.registry import NEEDS
from lsvcr.data.features import NONE, chosen_features
from lsvcr.data.rank_clicks import ClickData, Source, choose_source
from lsvcr.data.store import Dataset, open_dataset
from lsvcr.models import checkpoint
from lsvcr.nn.decoder import gated_inner
from lsvcr.schema import BASELINE, CLICKS, SR_WEIGHTS_FILE, Split
from lsvcr.training.rank_evaluate import checkpoint_folder
from lsvcr.training.rank_setup import check_dataset, recorded_settings, versions
from lsvcr.utils.errors import UserError
from lsvcr.utils.io import sha256_file
from lsvcr.utils.logging import get_logger
from lsvcr.utils.seeding import seed_everything

PRETRAINING = "gpsd"
"""Name of the recommender that click models are pretrained as."""

_INITIALISATION = 1
_HOW = "`lsvcr train gpsd --data_path DIR --output_dir RUN` makes one"

logger = get_logger(__name__)


@dataclass(frozen=True)
class Pretrained:
    """Weights of a pretraining run.

    Attributes:
        folder: its checkpoint's.
        tensors: by name.
        sha256: of the weights.
    """

    folder: Path
    tensors: Mapping[str, Any]
    sha256: str


@dataclass
class ClickSetup:
    """A click model on a dataset.

    Attributes:
        settings: as given, with `transfer` and `click_samples` resolved.
        dataset: open.
        source: of the samples.
        model: on the CPU.
        handover: tensors that were loaded, left behind, fresh, and frozen, by name.
        parent: where they come from, or None.
    """

    settings: ClickSettings
    dataset: Dataset
    source: Source
    model: ClickModel
    handover: dict[str, list[str]]
    parent: Pretrained | None

    @property
    def label(self) -> str:
        """How progress bars call it."""
        return f"clicks {self.settings.transfer}"

    @property
    def negatives(self) -> int:
        """None: a sample is one video."""
        return 0

    def training(self) -> ClickData:
        """The training samples."""
        return self.data(Split.TRAIN)

    def data(self, split: Split) -> ClickData:
        """Samples of a split."""
        settings = self.settings
        return ClickData(
            self.dataset,
            split,
            length=settings.max_his,
            source=self.source,
            negatives=settings.negatives,
            seed=settings.sample_seed,
        )

    def about(self, processes: int) -> dict[str, Any]:
        """The part of every manifest that says where the weights come from."""
        parent = self.parent
        return {
            "kind": CLICKS,
            "model": "gpsd_clicks",
            "settings": asdict(self.settings),
            "seed": self.settings.seed,
            "data_hash": self.dataset.data_hash,
            "parent": None if parent is None else {"path": str(parent.folder), "sha256": parent.sha256},
            "handover": self.handover,
            "processes": processes,
            "versions": versions(),
        }

    def identity(self, about: Mapping[str, Any]) -> dict[str, Any]:
        """By content what the settings name by path."""
        return {"pretrained weights": None if about["parent"] is None else about["parent"]["sha256"]}


def set_up(settings: ClickSettings) -> ClickSetup:
    """Check the settings, open what they name, build the model and take over from pretraining.

    The fresh parts start from `settings.seed` alone, so that runs that differ in `transfer` share them.

    Raises:
        UserError: settings out of range, a dataset without times, a pretraining run of another dataset or shape.
    """
    check_clicks(settings)
    name = transfer_name(settings.transfer)
    plan = TRANSFERS[name]
    dataset = open_dataset(settings.data_path)
    words, has = NEEDS["times"]
    if not has(dataset):
        raise UserError(
            f"lsvcr clicks needs {words}, which {dataset.root} does not have; use `lsvcr train gpsd`"
        )
    source = choose_source(dataset, settings.click_samples)
    settings = replace(settings, transfer=name, click_samples=source)
    parent = _find_pretrained(settings, plan, dataset)
    seed_everything(settings.seed, _INITIALISATION)
    model = build(settings, dataset)
    handover = transfer(model, plan, parent)
    return ClickSetup(settings, dataset, source, model, handover, parent)


def transfer(model: ClickModel, plan: Transfer, parent: Pretrained | None) -> dict[str, list[str]]:
    """Load and freeze the groups of a plan, in place, and tell the log.

    Returns:
        Names of tensors: `loaded`, `left` behind in the checkpoint, `fresh`, and `frozen`.

    Raises:
        UserError: a tensor of a group is missing, unexpected or of another shape; each is listed.
    """
    given = {} if parent is None else parent.tensors
    chosen = {name: tensor for name, tensor in given.items() if group_of(name) in plan.load}
    own = list(model.state_dict())
    fresh = [name for name in own if group_of(name) not in plan.load]
    if parent is not None:
        checkpoint.load_into(model, chosen, source=str(parent.folder), may_miss=fresh)
    frozen = []
    for name, parameter in model.named_parameters():
        if group_of(name) in plan.freeze:
            parameter.requires_grad_(False)
            frozen.append(name)
    report = {
        "loaded": sorted(chosen),
        "left": sorted(given.keys() - chosen.keys()),
        "fresh": sorted(fresh),
        "frozen": sorted(frozen),
    }
    if parent is not None:
        logger.info(
            f"from {parent.folder}: " + "; ".join(f"{key} {_few(names)}" for key, names in report.items())
        )
    return report


def _find_pretrained(settings: ClickSettings, plan: Transfer, dataset: Dataset) -> Pretrained | None:
    """The pretraining run that the settings name, checked against dataset and shape; None where nothing is loaded."""
    if not plan.load:
        if settings.pretrained:
            raise UserError(
                f"--transfer {settings.transfer} takes nothing from {settings.pretrained}: leave --pretrained away, or "
                "choose another transfer"
            )
        return None
    if not settings.pretrained:
        raise UserError(
            f"--transfer {settings.transfer} needs --pretrained RUN ({_HOW}); --transfer nt trains without one"
        )
    folder = checkpoint_folder(settings.pretrained)
    weights = checkpoint.load(folder)
    manifest = weights.manifest
    if manifest.get("kind") != BASELINE or manifest.get("model") != PRETRAINING:
        made = manifest.get("model") or manifest.get("kind")
        raise UserError(f"{folder} holds a checkpoint of {made}, not a pretraining; {_HOW}")
    check_dataset(folder, manifest, dataset)
    _check_shape(folder, settings, recorded_settings(GpsdSettings, manifest), plan, dataset)
    return Pretrained(folder, weights.tensors, sha256_file(folder / SR_WEIGHTS_FILE))


def _check_shape(
    folder: Path, ours: ClickSettings, theirs: GpsdSettings, plan: Transfer, dataset: Dataset
) -> None:
    """Refuse a pretraining whose groups do not fit, in words that name the flags."""
    wanted, there = _shape(ours, plan, dataset), _shape(theirs, plan, dataset)
    wrong = [f"--{flag} {value}" for flag, value in there.items() if wanted[flag] != value]
    if wrong:
        raise UserError(
            f"{folder} was pretrained with {', '.join(wrong)}; give the same here, or pretrain again"
        )


def _shape(settings: BodySettings, plan: Transfer, dataset: Dataset) -> dict[str, Any]:
    """The settings that decide whether a plan's groups fit; features are those that `auto` and the like stand for."""
    shape: dict[str, Any] = {}
    if SPARSE in plan.load:
        features = ",".join(sorted(chosen_features(dataset, settings.features))) or NONE
        shape |= {"hidden": settings.hidden, "features": features}
    if DENSE in plan.load:
        shape |= {"hidden": settings.hidden, "layers": settings.layers, "heads": settings.heads}
        shape |= {"inner": settings.inner or gated_inner(settings.hidden)}
    return shape


def _few(names: list[str]) -> str:
    """How many, and the first two."""
    return f"{len(names)} ({', '.join(names[:2])}{', ...' if len(names) > 2 else ''})" if names else "none"
