"""The checkpoints that a bundle is made of, opened and checked against each other."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lsvcr.data.store import Dataset
from lsvcr.schema import BEST_DIR, LAST_DIR, METRICS_FILE, SR_WEIGHTS_FILE, Task
from lsvcr.training.rank_evaluate import checkpoint_folder
from lsvcr.training.rank_setup import Setup, restore
from lsvcr.utils.errors import UserError
from lsvcr.utils.io import read_json, sha256_file


@dataclass(frozen=True)
class Source:
    """A stage-two checkpoint.

    Attributes:
        folder: with its weights.
        setup: its model in evaluation mode, its settings and text vectors.
        manifest: of the checkpoint.
    """

    folder: Path
    setup: Setup
    manifest: dict[str, Any]

    def about(self) -> dict[str, Any]:
        """Where the part comes from, for the bundle's manifest: names and hashes, no path."""
        run = self.folder.parent if self.folder.name in (BEST_DIR, LAST_DIR) else self.folder
        digest = sha256_file(self.folder / SR_WEIGHTS_FILE)
        return {
            "run": run.name,
            "sha256": digest,
            "epoch": self.manifest.get("progress", {}).get("epoch"),
            "seed": self.manifest["seed"],
            "metrics": _metrics(run, digest),
        }


def open_sources(checkpoints: Sequence[str], dataset: Dataset) -> dict[Task, Source]:
    """The checkpoints by task.

    Args:
        checkpoints: one or two run folders of stage two, or their best/ or last/.
        dataset: the one they were trained on.

    Raises:
        UserError: whatever is wrong with a checkpoint, or two that do not go together.
    """
    found: dict[Task, Source] = {}
    for given in checkpoints:
        folder = checkpoint_folder(given)
        setup, manifest = restore(folder, dataset)
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
    for flag in ("hidden", "max_phis_len", "max_chis_len"):
        values = [getattr(source.setup.settings, flag) for source in (first, second)]
        if values[0] != values[1]:
            raise UserError(
                f"{first.folder} was trained with --{flag} {values[0]}, {second.folder} with {values[1]}, which the "
                f"parts of a bundle share: {remedy}"
            )
    texts = [source.setup.texts for source in (first, second)]
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
