"""`lsvcr complete`: a BERT4Rec run fills in videos around a history, by the ids of the raw files."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from rich import box
from rich.table import Table
from rich.text import Text

from lsvcr.baselines.bert4rec import BERT4Rec, complete
from lsvcr.data.store import Dataset, open_dataset
from lsvcr.settings import CompleteSettings
from lsvcr.training.rank_evaluate import checkpoint_folder
from lsvcr.training.rank_restore import restore
from lsvcr.utils.errors import UserError
from lsvcr.utils.logging import get_logger
from lsvcr.utils.tables import print_whole

_log = get_logger(__name__)


def complete_history(settings: CompleteSettings) -> dict[str, Any]:
    """What the command prints: `before`, `history` and `after`, each a list of {id, title}, oldest first.

    `unknown` has the ids of `--history` that the dataset does not hold; they were skipped.

    Raises:
        UserError: no checkpoint of BERT4Rec, another dataset, a history without a known video, or more videos asked
            for than there are.
    """
    folder = checkpoint_folder(settings.run)
    dataset = open_dataset(settings.data)
    setup, manifest = restore(folder, dataset)
    if not isinstance(setup.model, BERT4Rec):
        raise UserError(
            f"{settings.run} holds {manifest.get('model', 'LSVCR')}, which looks back only; lsvcr complete needs a run "
            "of `lsvcr train bert4rec`"
        )
    if settings.n < 1:
        raise UserError(f"--n {settings.n} must be above 0")
    setup.model.to(torch.device("cuda" if torch.cuda.is_available() else "cpu"))
    history, unknown = _indices(dataset, settings.history.replace(",", " ").split())
    if not history:
        raise UserError(f"{settings.data} holds none of the videos of --history {settings.history!r}")
    made = complete(setup.model, history, settings.n, settings.direction)
    parts = {"before": made.before, "history": made.history, "after": made.after}
    return {
        "run": settings.run,
        "direction": settings.direction,
        **{name: _named(dataset, videos) for name, videos in parts.items()},
        "unknown": unknown,
    }


def print_completion(report: Mapping[str, Any]) -> None:
    """Print what `complete_history` gives, for a person: places are counted from the history."""
    table = Table(box=box.SIMPLE)
    table.add_column("", justify="right")
    table.add_column("id")
    table.add_column("title")
    before, history, after = (report[name] for name in ("before", "history", "after"))
    _add(table, before, (str(place - len(before)) for place in range(len(before))))
    _add(table, history, ["history"] + [""] * (len(history) - 1))
    _add(table, after, (f"+{place}" for place in range(1, len(after) + 1)))
    print_whole(table)
    if report["unknown"]:
        _log.warning(
            f"{len(report['unknown'])} videos that the dataset does not know were skipped: "
            f"{', '.join(report['unknown'][:20])}"
        )


def _add(table: Table, videos: Iterable[Mapping[str, Any]], places: Iterable[str]) -> None:
    for video, place in zip(videos, places, strict=True):
        table.add_row(place, Text(str(video["id"])), Text(video["title"]))


def _indices(dataset: Dataset, words: Sequence[str]) -> tuple[list[int], list[str]]:
    """Indices of the videos that the dataset knows, in order, and the words that it does not."""
    wanted = set(words)
    ids = map(str, dataset.raw_ids("videos"))
    found = {raw: index for index, raw in enumerate(ids, start=1) if raw in wanted}
    return [found[word] for word in words if word in found], [word for word in words if word not in found]


def _named(dataset: Dataset, videos: Sequence[int]) -> list[dict[str, Any]]:
    ids = dataset.raw_ids("videos")
    titles = dataset.titles().take(videos)
    return [{"id": ids[video - 1], "title": title} for video, title in zip(videos, titles, strict=True)]
