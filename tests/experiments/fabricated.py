"""Per-row test results made by hand, in memory and as run folders."""

from pathlib import Path

import numpy as np

from lsvcr.evaluation.result import Fingerprint, Result, save_rows


def fingerprint(task: str = "rec", **changes: str) -> Fingerprint:
    """The full-catalogue protocol of a dataset called `data`."""
    fields = {
        "task": task,
        "split": "test",
        "protocol": "full",
        "candidates": "all",
        "seen": "kept",
        "ties": "expected",
        "data_hash": "data",
    }
    return Fingerprint(**{**fields, **changes})


def result(values: list[float], cold: list[bool] | None = None, task: str = "rec", **changes: str) -> Result:
    """A result whose three shown metrics all have `values`, one a row."""
    column = np.array(values, dtype=np.float64)
    slices = {} if cold is None else {"cold": np.array(cold)}
    metrics = dict.fromkeys(("recall@10", "ndcg@10", "mrr@10"), column)
    return Result(fingerprint(task, **changes), np.arange(len(values)), metrics, slices)


def write_run(folder: Path, content: Result, protocol: str = "full") -> Path:
    """What a finished stage-two run leaves for a table."""
    folder.mkdir(parents=True, exist_ok=True)
    save_rows(folder / f"rows_{protocol}.safetensors", content)
    return folder
