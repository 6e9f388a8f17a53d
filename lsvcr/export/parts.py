"""The checkpoints that a bundle is made of, opened and checked against each other."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lsvcr.data.store import Dataset
from lsvcr.export.models import exporter, refuse_llm
from lsvcr.schema import BEST_DIR, LAST_DIR, METRICS_FILE, SR_WEIGHTS_FILE, Task
from lsvcr.training.baseline_setup import FittedSetup
from lsvcr.training.rank_contract import Evaluated
from lsvcr.training.rank_evaluate import checkpoint_folder
from lsvcr.training.rank_restore import restore
from lsvcr.training.rank_setup import Setup
from lsvcr.training.rank_texts import TextTables
from lsvcr.utils.errors import UserError
from lsvcr.utils.io import read_json, sha256_file


@dataclass(frozen=True)
class Source:
    """A checkpoint of stage two, or of a recommender of `lsvcr train` that can be exported.

    Attributes:
        folder: with its weights.
        setup: its model in evaluation mode, its settings and text vectors.
        manifest: of the checkpoint.
    """

    folder: Path
    setup: Evaluated
    manifest: dict[str, Any]

    @property
    def texts(self) -> TextTables | None:
        """The text vectors of a model of stage two; None where the model has none."""
        return self.setup.texts if isinstance(self.setup, Setup) else None

    @property
    def lengths(self) -> dict[str, tuple[str, int]]:
        """What the parts of a bundle share: the flag that sets it, and its value.

        `videos` and `entries` are the longest histories; without `entries` comments are not read.
        """
        if isinstance(self.setup, FittedSetup):
            model: Any = self.setup.model
            width = model.item_vectors().shape[1]
            return {"width": ("hidden", width), "videos": ("max_his", self.setup.settings.max_his)}
        flags = {"width": "hidden", "videos": "max_phis_len", "entries": "max_chis_len"}
        return {name: (flag, getattr(self.setup.settings, flag)) for name, flag in flags.items()}

    def about(self) -> dict[str, Any]:
        """Where the part comes from, for the bundle's manifest: names and hashes, no path."""
        run = self.folder.parent if self.folder.name in (BEST_DIR, LAST_DIR) else self.folder
        digest = sha256_file(self.folder / SR_WEIGHTS_FILE)
        return {
            "run": run.name,
            "model": self.manifest.get("model", "lsvcr"),
            "sha256": digest,
            "epoch": self.manifest.get("progress", {}).get("epoch"),
            "seed": self.manifest["seed"],
            "metrics": _metrics(run, digest),
        }


def open_sources(checkpoints: Sequence[str], dataset: Dataset) -> dict[Task, Source]:
    """The checkpoints by task.

    Args:
        checkpoints: one or two run folders of stage two or `lsvcr train`, or their best/ or last/.
        dataset: the one they were trained on.

    Raises:
        UserError: whatever is wrong with a checkpoint, or two that do not go together.
    """
    found: dict[Task, Source] = {}
    for given in checkpoints:
        folder = checkpoint_folder(given)
        refuse_llm(folder)
        setup, manifest = restore(folder, dataset)
        if isinstance(setup, FittedSetup):
            exporter(setup.entry, folder)
        setup.model.eval()
        if setup.task in found:
            raise UserError(
                f"{found[setup.task].folder} and {folder} are both checkpoints for {setup.task.label}; a bundle has "
                "one for Rec and one for CommRank"
            )
        found[setup.task] = Source(folder, setup, manifest)
    if len(found) == 2:
        _check_together(*found.values())
    return found


def _check_together(first: Source, second: Source) -> None:
    """Raise a UserError where two checkpoints differ in what the parts of a bundle share."""
    remedy = "export a bundle of each, or train one of them again"
    for name in first.lengths.keys() & second.lengths.keys():
        (flag, value), (other_flag, other_value) = first.lengths[name], second.lengths[name]
        if value != other_value:
            raise UserError(
                f"{first.folder} was trained with --{flag} {value}, {second.folder} with --{other_flag} {other_value}, "
                f"which the parts of a bundle share: {remedy}"
            )
    texts = [source.texts for source in (first, second)]
    if texts[0] is None or texts[1] is None:
        return
    for name, entry in texts[0].about.items():
        other = texts[1].about[name]
        if entry["sha256"] != other["sha256"]:
            raise UserError(
                f"{first.folder} was trained on the text vectors in {entry['path']}, {second.folder} on those in "
                f"{other['path']}, and a new title or comment comes with one vector for both: {remedy}"
            )


def _metrics(run: Path, digest: str) -> dict[str, float] | None:
    """What the run's test found on the full catalogue; None where it did not test this checkpoint."""
    path = run / METRICS_FILE
    report = read_json(path) if path.is_file() else None
    if report is None or report["checkpoint"]["sha256"] != digest:
        return None
    return {name: entry["value"] for name, entry in report["protocols"]["full"]["metrics"].items()}
