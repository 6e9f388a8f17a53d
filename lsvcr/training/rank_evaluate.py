"""The test of a run: the best checkpoint, once, under every protocol; and the same for `lsvcr evaluate`."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import torch

from lsvcr.data.store import open_dataset
from lsvcr.evaluation.evaluator import evaluate
from lsvcr.evaluation.lists import split_metrics
from lsvcr.evaluation.metrics import DEFAULT_METRICS
from lsvcr.evaluation.protocol import FULL, Protocol, check, split_words
from lsvcr.evaluation.result import Result, save_rows
from lsvcr.models import checkpoint
from lsvcr.schema import BEST_DIR, MANIFEST_FILE, METRICS_FILE, SR_WEIGHTS_FILE, Split, Task
from lsvcr.settings import FittedSettings, RankSettings
from lsvcr.training.rank_contract import Evaluated, Trainable
from lsvcr.training.rank_restore import restore
from lsvcr.training.rank_setup import metric_name
from lsvcr.training.rank_state import ROWS_FILE, RunFolder
from lsvcr.utils.distributed import barrier, is_main
from lsvcr.utils.errors import UserError
from lsvcr.utils.io import sha256_file, write_json

SHOWN = ("recall@1", "recall@5", "recall@10", "ndcg@5", "ndcg@10", "mrr@10")
"""Columns of a table where nobody has named metrics."""

_SHORT = {"recall": "R", "ndcg": "N"}

Asked = Literal["all", "full", "sampled"]
"""Protocols of `protocols`: both, or the one of that name."""


def protocols(settings: RankSettings | FittedSettings) -> dict[str, Protocol]:
    """What a checkpoint is tested under: the full catalogue, and the stored candidates."""
    return {"full": FULL, "sampled": Protocol("sampled", settings.max_candidate_num)}


class RankJudge:
    """Validates between epochs, among the candidates of `val_protocol`.

    Args:
        setup: of the run.

    Raises:
        UserError: the dataset cannot serve a protocol of validation or test.
    """

    def __init__(self, setup: Trainable) -> None:
        settings = setup.settings
        for protocol in protocols(settings).values():
            check(protocol, setup.data(Split.TEST))
        self._data = setup.data(Split.VAL)
        self._protocol = protocols(settings)[settings.val_protocol]
        check(self._protocol, self._data)
        self._metrics = tuple(dict.fromkeys((*DEFAULT_METRICS, metric_name(settings))))
        self._batch = settings.per_device_eval_batch_size

    def figures(self, model: Any, device: torch.device) -> dict[str, float]:
        """Means of the validation split."""
        result = evaluate(
            model,
            self._data,
            {self._protocol.name: self._protocol},
            metrics=self._metrics,
            batch_size=self._batch,
            device=device,
        )[self._protocol.name]
        return {f"val/{name}": result.mean(name) or 0.0 for name in result.values}


def final_test(setup: Evaluated, folder: RunFolder, device: torch.device) -> dict[str, Any]:
    """Test best/ of a run and write `metrics.json` and the per-row values beside it.

    Returns:
        What `metrics.json` holds.
    """
    weights = checkpoint.load(folder.best)
    checkpoint.load_into(setup.model, weights.tensors, source=str(folder.best))
    results = _evaluate(setup, Split.TEST, device, protocols(setup.settings), DEFAULT_METRICS)
    return write_test(folder.path, weights.manifest, results)


def write_test(run: Path, manifest: dict[str, Any], results: dict[str, Result]) -> dict[str, Any]:
    """Write `metrics.json` and the per-row values of a run's test.

    Args:
        run: its folder; best/ in it was tested.
        manifest: of best/.
        results: by protocol, on every process.

    Returns:
        What `metrics.json` holds.
    """
    report = _report(run / BEST_DIR, manifest, results)
    if is_main():
        for name, result in results.items():
            save_rows(run / ROWS_FILE.format(name=name), result)
        write_json(run / METRICS_FILE, report)
    barrier()
    return report


def evaluate_checkpoint(
    checkpoint_path: str,
    data: str,
    split: str = "test",
    protocol: Asked = "all",
    metrics: Sequence[str] = (),
    filter_seen: bool = False,
) -> dict[str, Any]:
    """Evaluate a checkpoint of stage two or of `lsvcr train`.

    As it stands, on the test split, this gives what its run's `metrics.json` holds.

    Args:
        checkpoint_path: run folder, or its best/ or last/.
        data: the prepared dataset it was trained on.
        split: `test` or `val`.
        protocol: `full`, `sampled` or both.
        metrics: names such as `map@20`; none = `DEFAULT_METRICS`.
        filter_seen: Rec: videos of a user's history do not rank, unless one is the target.

    Raises:
        UserError: no such checkpoint, another dataset, changed text vectors, an unknown metric, or one that no protocol
            has.
    """
    folder, manifest, results = evaluate_rows(checkpoint_path, data, split, protocol, metrics, filter_seen)
    return _report(folder, manifest, results)


def evaluate_rows(
    checkpoint_path: str,
    data: str,
    split: str,
    protocol: Asked,
    metrics: Sequence[str],
    filter_seen: bool,
) -> tuple[Path, dict[str, Any], dict[str, Result]]:
    """As `evaluate_checkpoint`: the folder, its manifest, and results by protocol with the values of every row."""
    folder = checkpoint_folder(checkpoint_path)
    ranked, listed = split_metrics(metrics or DEFAULT_METRICS)
    setup, manifest = restore(folder, open_dataset(data))
    if filter_seen and setup.task is not Task.REC:
        raise UserError(
            f"{checkpoint_path} ranks comments, and --filter_seen takes videos out of the race: leave it away"
        )
    chosen = {
        name: replace(own, filter_seen=filter_seen)
        for name, own in protocols(setup.settings).items()
        if protocol in ("all", name)
    }
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    setup.model.to(device)
    return folder, manifest, _evaluate(setup, Split(split), device, chosen, (*ranked, *listed))


def show(report: dict[str, Any], metrics: Sequence[str] = ()) -> None:
    """Print the figures of a report as a table, on the first process; slices of no row or of all are left out.

    Args:
        report: of `evaluate_checkpoint`.
        metrics: the columns; none = `SHOWN`.
    """
    if not is_main():
        return
    names = [name.lower() for name in metrics or SHOWN]
    from rich import box
    from rich.table import Table

    from lsvcr.utils.tables import print_whole

    table = Table(title=f"{report['task_label']}, {split_words(report['split'])}", box=box.SIMPLE_HEAD)
    table.add_column("candidates")
    table.add_column("rows", justify="right")
    for name in names:
        table.add_column(_short(name), justify="right")
    for name, result in report["protocols"].items():
        slices = {f"  {k}": v for k, v in result["slices"].items() if 0 < v["rows"] < result["rows"]}
        for label, part in {name: result, **slices}.items():
            values = [part["metrics"].get(metric, {}).get("value") for metric in names]
            table.add_row(
                label, str(part["rows"]), *("-" if value is None else f"{value:.4f}" for value in values)
            )
    print_whole(table)


def _short(metric: str) -> str:
    """`recall@10` -> `R@10`, `ndcg@5` -> `N@5`, `mrr@10` -> `MRR@10`, `popularity_bias@5` -> `POPULARITY BIAS@5`."""
    word, _, k = metric.partition("@")
    return f"{_SHORT.get(word, word.upper().replace('_', ' '))}@{k}"


def _evaluate(
    setup: Evaluated,
    split: Split,
    device: torch.device,
    chosen: dict[str, Protocol],
    metrics: tuple[str, ...],
) -> dict[str, Result]:
    setup.model.eval()
    return evaluate(
        setup.model,
        setup.data(split),
        chosen,
        metrics=metrics,
        batch_size=setup.settings.per_device_eval_batch_size,
        device=device,
    )


def _report(folder: Path, manifest: dict[str, Any], results: dict[str, Result]) -> dict[str, Any]:
    first = next(iter(results.values())).fingerprint
    named = {"model": manifest["model"]} if "model" in manifest else {}
    return {
        **named,
        "task": first.task,
        "task_label": Task(first.task).label,
        "split": first.split,
        "data_hash": first.data_hash,
        "seed": manifest["seed"],
        "checkpoint": {
            "epoch": manifest["progress"]["epoch"],
            "sha256": sha256_file(folder / SR_WEIGHTS_FILE),
        },
        "protocols": {name: result.summary() for name, result in results.items()},
    }


def checkpoint_folder(path: str) -> Path:
    """The folder with the weights of a stage-two checkpoint: `path` itself, or best/ of a run.

    Raises:
        UserError: there is none.
    """
    for folder in (Path(path), Path(path) / BEST_DIR):
        if (folder / MANIFEST_FILE).is_file() and (folder / SR_WEIGHTS_FILE).is_file():
            return folder
    raise UserError(
        f"{path} holds no stage-two checkpoint; give the output folder of a finished finetune.py or `lsvcr train` run"
    )
