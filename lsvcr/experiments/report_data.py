"""The data card of a run's report: what it was trained on, and whether that is still what lies there."""

from dataclasses import dataclass, field
from pathlib import Path

from lsvcr.data.store import Dataset, open_dataset
from lsvcr.experiments.report_read import RunRecord
from lsvcr.schema import STAGE_TWO, Split, Task
from lsvcr.utils.errors import UserError

SHOWN_DIGITS = 12
"""Of a hash, where a person compares."""


@dataclass(frozen=True)
class DataCard:
    """A dataset as a report shows it.

    Attributes:
        name: of its folder.
        facts: terms and values.
        samples: a row a task: its name and how many samples train, val and test have.
        warning: why this may not be what the run was trained on, or empty.
        train_samples: of a stage-two run's task; None unless this is what the run was trained on.
    """

    name: str
    facts: list[tuple[str, str]] = field(default_factory=list)
    samples: list[list[str]] = field(default_factory=list)
    warning: str = ""
    train_samples: int | None = None


def data_card(record: RunRecord, given: str = "") -> DataCard:
    """The dataset of a run.

    Args:
        record: the run.
        given: its folder; empty = the one that the settings name, from the current folder on if it is relative.
    """
    path = given or str(record.settings.get("data_path") or "")
    name = Path(path).resolve().name if path else "unknown"
    own = str(record.manifest.get("data_hash") or "")
    if not path:
        return DataCard(name, warning="No settings were found that name a dataset; --data names one.")
    try:
        dataset = open_dataset(path)
    except UserError as reason:
        return DataCard(
            name,
            [("hash of the run's dataset", own[:SHOWN_DIGITS] or "unknown")],
            warning=f"The dataset cannot be described: {reason}. If it lies elsewhere, name it with --data.",
        )
    warning = ""
    if not own:
        warning = "The run names no dataset, so it cannot be told whether it was trained on this one."
    elif own != dataset.data_hash:
        warning = (
            f"This is not what the run was trained on: the run's dataset has the hash {own[:SHOWN_DIGITS]}, "
            f"{path} now has {dataset.data_hash[:SHOWN_DIGITS]}."
        )
    return DataCard(
        name, _facts(dataset), _samples(dataset), warning, None if warning else _train(record, dataset)
    )


def _facts(dataset: Dataset) -> list[tuple[str, str]]:
    counts, split = dataset.manifest["counts"], dataset.manifest.get("split") or {}
    cold = f" ({counts['cold_videos']:,} cold)" if "cold_videos" in counts else ""
    skipped = sum(entry["rows"] for entry in (dataset.manifest.get("skipped_rows") or {}).values())
    found = [
        ("users", f"{dataset.n_users:,}"),
        ("videos", f"{dataset.n_videos:,}{cold}"),
        ("comments", f"{dataset.n_comments:,}"),
        ("likes", f"{len(dataset.video_events.items):,}"),
        ("interactions with comments", f"{len(dataset.comment_events.items):,}"),
        ("source", str(dataset.manifest.get("source", "unknown"))),
        ("split", str(split.get("name", "unknown"))),
        ("hash", dataset.data_hash[:SHOWN_DIGITS]),
    ]
    return [*found, ("broken rows left out", f"{skipped:,}")] if skipped else found


def _samples(dataset: Dataset) -> list[list[str]]:
    return [[task.label, *(f"{len(dataset.samples(task, split)):,}" for split in Split)] for task in Task]


def _train(record: RunRecord, dataset: Dataset) -> int | None:
    return len(dataset.samples(record.manifest["task"], Split.TRAIN)) if record.stage == STAGE_TWO else None
