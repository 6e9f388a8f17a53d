"""Several models in one table: both tasks, one protocol, cold videos apart."""

from collections.abc import Mapping
from typing import Any, Literal

from rich import box
from rich.table import Table

from lsvcr.baselines.popularity import evaluate_popularity
from lsvcr.data.store import open_dataset
from lsvcr.evaluation.protocol import Protocol
from lsvcr.evaluation.result import Result, same_protocol
from lsvcr.evaluation.significance import paired
from lsvcr.experiments.runs import load_task_runs, with_users
from lsvcr.schema import Split, Task
from lsvcr.utils.tables import print_whole

COLUMNS = ("recall@10", "ndcg@10", "mrr@10")
COLD_COLUMN = "ndcg@10"
COLD = "cold"
POPULARITY = "popularity"


def compare_runs(
    data: str, runs: Mapping[str, str], protocol: Literal["full", "sampled"] = "full"
) -> dict[str, Any]:
    """Read finished runs and set popularity beside them, on the test split.

    Args:
        data: the prepared dataset.
        runs: label -> folder with the runs Rec/ and CommRank/, in the order of the table.
        protocol: every video, or every comment of the video; or the stored candidates.

    Returns:
        `models`: label -> task -> metric -> value (and `cold`, NDCG@10 of cold targets, for Rec).
        `last_minus_previous`: task -> metric -> difference, 95 % interval and p-value of the last row against the one
        before it.

    Raises:
        UserError: a run is not finished, or was measured under another protocol or on other data.
    """
    dataset = open_dataset(data)
    models: dict[str, dict[Task, Result]] = {
        POPULARITY: {
            task: evaluate_popularity(dataset, task, Split.TEST, protocols={"": Protocol(protocol)})[""]
            for task in Task
        }
    }
    for label, folder in runs.items():
        found = load_task_runs(folder, protocol)
        models[label] = {task: with_users(result, dataset) for task, result in found.items()}
    for task in Task:
        same_protocol({label: results[task] for label, results in models.items() if task in results})
    return {
        "models": {
            label: {task.value: _figures(result) for task, result in results.items()}
            for label, results in models.items()
        },
        "last_minus_previous": _difference(models) if len(runs) > 1 else {},
    }


def print_table(report: Mapping[str, Any]) -> None:
    """Print what `compare_runs` gives, for a person."""
    table = Table(box=box.SIMPLE_HEAD)
    table.add_column("")
    for task in Task:
        for metric in COLUMNS:
            table.add_column(f"{task.label}\n{_short(metric)}", justify="right")
        if task is Task.REC:
            table.add_column(f"cold videos\n{_short(COLD_COLUMN)}", justify="right")
    for label, tasks in report["models"].items():
        cells = []
        for task in Task:
            figures = tasks.get(task.value, {})
            names = [*COLUMNS, COLD] if task is Task.REC else list(COLUMNS)
            cells += ["-" if figures.get(name) is None else f"{figures[name]:.4f}" for name in names]
        table.add_row(label, *cells)
    console = print_whole(table)
    for sentence in _sentences(report):
        console.print(sentence, highlight=False)


def _figures(result: Result) -> dict[str, float | None]:
    figures = {metric: result.mean(metric) for metric in COLUMNS}
    if COLD in result.slices:
        figures[COLD] = result.mean(COLD_COLUMN, COLD)
    return figures


def _difference(models: Mapping[str, Mapping[Task, Result]]) -> dict[str, Any]:
    before, last = list(models)[-2:]
    found: dict[str, Any] = {"of": last, "against": before}
    for task in Task:
        if task not in models[last] or task not in models[before]:
            continue
        a, b = models[last][task], models[before][task]
        parts = {metric: paired(a, b, metric) for metric in COLUMNS}
        if task is Task.REC and COLD in a.slices and a.count_users(COLD) > 1:
            parts[COLD] = paired(a, b, COLD_COLUMN, COLD)
        found[task.value] = {
            name: {
                "difference": c.difference,
                "interval": list(c.interval),
                "p": c.bootstrap_p,
                "rows": c.rows,
                "users": c.users,
            }
            for name, c in parts.items()
        }
    return found


def _sentences(report: Mapping[str, Any]) -> list[str]:
    gain = report["last_minus_previous"]
    if not gain:
        return []
    lines = [
        f"What '{gain['of']}' adds over '{gain['against']}' (NDCG@10, 95 % interval over users, this one seed):"
    ]
    for task in Task:
        for name, where in ((COLD_COLUMN, task.label), (COLD, f"{task.label}, cold videos")):
            part = gain.get(task.value, {}).get(name)
            if part is not None:
                low, high = part["interval"]
                lines.append(
                    f"  {where}: {part['difference']:+.4f}  ({low:+.4f} to {high:+.4f}, {part['rows']} rows)"
                )
    return lines


def _short(metric: str) -> str:
    name, _, k = metric.partition("@")
    return f"{ {'recall': 'Recall', 'ndcg': 'NDCG', 'mrr': 'MRR'}[name] }@{k}"
