"""`lsvcr clicks`: a click model through the loop and the checkpoints of stage two, measured by AUC."""

from typing import Any

import numpy as np
import torch

from lsvcr.baselines.gpsd_clicks import ClickModel
from lsvcr.baselines.gpsd_settings import ClickSettings
from lsvcr.data.rank_clicks import ClickData
from lsvcr.evaluation.clicks import auc, grouped_auc, log_loss
from lsvcr.models import checkpoint
from lsvcr.schema import CLICKS, SR_WEIGHTS_FILE, Split
from lsvcr.training.clicks_setup import ClickSetup, set_up
from lsvcr.training.rank import start_accelerator, train_and_test
from lsvcr.training.rank_state import RunFolder
from lsvcr.utils.distributed import barrier, gather_rows, is_main, rank, world_size
from lsvcr.utils.errors import UserError
from lsvcr.utils.io import sha256_file, write_json

BLOCK = 256
"""Rows that pass through the model together, always the same ones: neither the batch size nor the number of processes
changes a figure."""

METRICS = ("auc", "gauc", "log_loss")


def run(settings: ClickSettings) -> dict[str, Any]:
    """Train, keep the best checkpoint, test it once; an interrupted run goes on where it was.

    Validation and test are measured after each epoch, so that their curves can be drawn; validation alone decides.

    Returns:
        What `metrics.json` holds.

    Raises:
        UserError: whatever the user can mend.
    """
    accelerator = start_accelerator()
    setup = set_up(settings)
    report = train_and_test(
        accelerator,
        setup,
        lambda: ClickJudge(setup),
        lambda folder: _final_test(setup, folder, accelerator.device),
    )
    show(report)
    return report


class ClickJudge:
    """Measures a click model on validation and test.

    Raises:
        UserError: the dataset cannot serve a split.
    """

    def __init__(self, setup: ClickSetup) -> None:
        self._splits = {split: setup.data(split) for split in (Split.VAL, Split.TEST)}
        self._batch = setup.settings.per_device_eval_batch_size
        self._metric = setup.settings.metric_for_best_model

    def figures(self, model: Any, device: torch.device) -> dict[str, float]:
        """`val/auc`, `val/gauc`, `val/log_loss` and the same of the test."""
        found: dict[str, float] = {}
        for split, data in self._splits.items():
            measured = measure(model, data, self._batch, device)["metrics"]
            found |= {f"{split.value}/{name}": value for name, value in measured.items() if value is not None}
        if f"{Split.VAL.value}/{self._metric}" not in found:
            raise UserError(
                f"no user of the validation has both clicks and passes, so there is no {self._metric}; use "
                "--metric_for_best_model auc"
            )
        return found


@torch.no_grad()
def measure(model: ClickModel, data: ClickData, batch_size: int, device: torch.device) -> dict[str, Any]:
    """Figures of a split, the same on every process and for any number of them.

    Args:
        model: in evaluation mode, on `device`.
        data: the samples.
        batch_size: rows at once, rounded to whole blocks, of which each passes through the model by itself.
        device: where batches go.

    Returns:
        `rows`, `clicks`, `users` that count in the grouped AUC, `users_left_out`, and `metrics` by name.
    """
    blocks = [np.arange(start, min(start + BLOCK, len(data))) for start in range(0, len(data), BLOCK)]
    mine = blocks[rank() :: world_size()]
    found = [np.zeros(0)]
    together = max(1, batch_size // BLOCK)
    for start in range(0, len(mine), together):
        logits = [model.logits(data.training(rows).to(device)) for rows in mine[start : start + together]]
        found.append(torch.cat(logits).double().cpu().numpy())
    ids = np.concatenate([*mine, np.zeros(0, dtype=np.int64)])
    rows, scores = gather_rows(ids, np.concatenate(found))
    if not np.isfinite(scores).all():
        raise UserError(
            "the model's scores hold NaN or infinity: the run has diverged, lower --learning_rate"
        )
    moments = data.moments(rows)
    grouped = grouped_auc(scores, moments.labels, moments.users)
    values = (auc(scores, moments.labels), grouped.value, log_loss(scores, moments.labels))
    return {
        "rows": len(rows),
        "clicks": int(moments.labels.sum()),
        "users": grouped.users,
        "users_left_out": grouped.left_out,
        "metrics": dict(zip(METRICS, values, strict=True)),
    }


def _final_test(setup: ClickSetup, folder: RunFolder, device: torch.device) -> dict[str, Any]:
    """Test best/ and write `metrics.json`."""
    weights = checkpoint.load(folder.best)
    checkpoint.load_into(setup.model, weights.tensors, source=str(folder.best))
    setup.model.to(device).eval()
    settings = setup.settings
    measured = measure(setup.model, setup.data(Split.TEST), settings.per_device_eval_batch_size, device)
    metrics = {name: {"value": value, "interval": None} for name, value in measured["metrics"].items()}
    report = {
        "model": weights.manifest["model"],
        "task": CLICKS,
        "task_label": CLICKS,
        "split": Split.TEST.value,
        "transfer": settings.transfer,
        "data_hash": setup.dataset.data_hash,
        "seed": settings.seed,
        "checkpoint": {
            "epoch": weights.manifest["progress"]["epoch"],
            "sha256": sha256_file(folder.best / SR_WEIGHTS_FILE),
        },
        "parameters": _sizes(setup.model),
        "protocols": {setup.source: {**measured, "metrics": metrics, "slices": {}}},
    }
    if is_main():
        write_json(folder.metrics, report)
    barrier()
    return report


def _sizes(model: ClickModel) -> dict[str, int]:
    """Numbers in the parameters: all, those that train, those of the transformer."""
    return {
        "all": sum(p.numel() for p in model.parameters()),
        "trained": sum(p.numel() for p in model.parameters() if p.requires_grad),
        "dense": sum(p.numel() for p in model.body.parameters()),
    }


def show(report: dict[str, Any]) -> None:
    """Print the figures of a report as a table, on the first process."""
    if not is_main():
        return
    from rich import box
    from rich.table import Table

    from lsvcr.utils.tables import print_whole

    table = Table(title=f"clicks, {report['transfer']}, {report['split']} split", box=box.SIMPLE_HEAD)
    for name in ("samples", "rows", "clicks", "users", "left out", "AUC", "GAUC", "log-loss"):
        table.add_column(name, justify="left" if name == "samples" else "right")
    for source, result in report["protocols"].items():
        counts = [str(result[name]) for name in ("rows", "clicks", "users", "users_left_out")]
        values = [result["metrics"][name]["value"] for name in METRICS]
        table.add_row(source, *counts, *("-" if value is None else f"{value:.4f}" for value in values))
    print_whole(table)
