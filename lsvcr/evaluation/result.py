"""What an evaluation gives: per-row values under a named protocol, their means, intervals and files."""

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from lsvcr.utils.errors import UserError
from lsvcr.utils.io import atomic_file, sha256_text

CONFIDENCE = 0.95
RESAMPLES = 1000
_BOOTSTRAP_SEED = 2024


@dataclass(frozen=True)
class Fingerprint:
    """All that two figures must share to be comparable; K is part of a metric's name."""

    task: str
    split: str
    protocol: str
    candidates: str
    seen: str
    ties: str
    data_hash: str

    @property
    def digest(self) -> str:
        """Twelve hexadecimal digits that stand for all fields."""
        return sha256_text(json.dumps(asdict(self), sort_keys=True))[:12]

    def to_json(self) -> dict[str, str]:
        """All fields and the digest."""
        return {**asdict(self), "digest": self.digest}


@dataclass(frozen=True)
class Result:
    """Per-row metric values of one model under one protocol.

    Attributes:
        fingerprint: the protocol.
        rows: (n,) int64 sample numbers of the rows that count, rising.
        values: metric name -> (n,) float64.
        slices: name of a part of the rows -> (n,) bool.
        rows_without_positives: rows left out of every mean because nothing could have been right.
        positives_not_listed: positives missing from their row's candidates; each counts as a miss.
        overall: figures of all rows together that no row has a share in, such as `coverage@10`.
        users: (n,) int64, whose row it is, for a user's rows are no independent evidence; None where it is not known,
            as in files of an earlier version: each row then counts as a user of its own.
    """

    fingerprint: Fingerprint
    rows: np.ndarray
    values: dict[str, np.ndarray]
    slices: dict[str, np.ndarray] = field(default_factory=dict)
    rows_without_positives: int = 0
    positives_not_listed: int = 0
    overall: dict[str, float] = field(default_factory=dict)
    users: np.ndarray | None = None

    def count_users(self, part: str | None = None) -> int:
        """How many users the rows (of a slice) are of, as far as that is known; else how many rows there are."""
        mask = np.ones(len(self.rows), dtype=bool) if part is None else self.slices[part]
        return int(mask.sum()) if self.users is None else len(np.unique(self.users[mask]))

    def mean(self, metric: str, part: str | None = None) -> float | None:
        """Mean over the rows (of a slice), or a figure of all rows together; None when there are no rows."""
        if part is None and metric in self.overall:
            return self.overall[metric]
        values = self._column(metric, part)
        return float(values.mean()) if len(values) else None

    def _column(self, metric: str, part: str | None) -> np.ndarray:
        if metric not in self.values:
            known = ", ".join([*self.values, *(self.overall if part is None else ())])
            raise UserError(f"{metric} was not measured; measured: {known}")
        return self.values[metric] if part is None else self.values[metric][self.slices[part]]

    def summary(self) -> dict[str, Any]:
        """What `metrics.json` holds of it: fingerprint, rows, users (None = not known), value and interval a metric,
        and the slices."""
        everything = np.ones(len(self.rows), dtype=bool)
        whole = self._part(everything)
        whole["metrics"] |= {name: {"value": v, "interval": None} for name, v in self.overall.items()}
        return {
            "fingerprint": self.fingerprint.to_json(),
            "rows_without_positives": self.rows_without_positives,
            "positives_not_listed": self.positives_not_listed,
            **whole,
            "slices": {name: self._part(mask) for name, mask in self.slices.items()},
        }

    def _part(self, mask: np.ndarray) -> dict[str, Any]:
        rows = int(mask.sum())
        users = None if self.users is None else self.users[mask]
        about = {"rows": rows, "users": None if users is None else len(np.unique(users))}
        if not rows or not self.values:
            return {**about, "metrics": {name: {"value": None, "interval": None} for name in self.values}}
        table = np.stack([column[mask] for column in self.values.values()], axis=1)
        low, high = bootstrap_interval(table, users)
        figures = {
            name: {"value": float(table[:, i].mean()), "interval": [float(low[i]), float(high[i])]}
            for i, name in enumerate(self.values)
        }
        return {**about, "metrics": figures}


def by_user(table: np.ndarray, users: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
    """Sums over each user's rows and how many these are: (n, M) -> (U, M) and (U,) int64.

    Where no user has two rows, or `users` (n,) is None, these are the rows themselves in their order.
    """
    if users is not None:
        order = np.argsort(users, kind="stable")
        starts = np.unique(users[order], return_index=True)[1]
        if len(starts) < len(users):
            return np.add.reduceat(table[order], starts, axis=0), np.diff(starts, append=len(users))
    return table, np.ones(len(table), dtype=np.int64)


def bootstrap_means(
    table: np.ndarray,
    users: np.ndarray | None = None,
    resamples: int = RESAMPLES,
    seed: int = _BOOTSTRAP_SEED,
) -> np.ndarray:
    """Means over `resamples` samples of users with replacement, each with all of its rows.

    Args:
        table: (n, M), a row a row.
        users: (n,), whose row it is; None = nobody has two.
        resamples: how many samples.
        seed: with the number of users it says what is drawn.

    Returns:
        (resamples, M) float64.
    """
    sums, sizes = by_user(table, users)
    rng = np.random.default_rng((seed, len(sums)))
    means = np.empty((resamples, table.shape[1]))
    for number in range(resamples):
        counts = np.bincount(rng.integers(0, len(sums), len(sums)), minlength=len(sums))
        means[number] = counts @ sums / (counts @ sizes)
    return means


def bootstrap_interval(
    table: np.ndarray, users: np.ndarray | None = None, seed: int = _BOOTSTRAP_SEED
) -> tuple[np.ndarray, np.ndarray]:
    """Percentile interval of the mean at 95 %: two arrays (M,), from what `bootstrap_means` takes."""
    tail = (1 - CONFIDENCE) / 2
    low, high = np.quantile(bootstrap_means(table, users, seed=seed), [tail, 1 - tail], axis=0)
    return low, high


def same_protocol(results: dict[str, Result]) -> Fingerprint:
    """The one fingerprint of all results.

    Raises:
        UserError: two differ; the message names what differs.
    """
    names = list(results)
    first = results[names[0]].fingerprint
    for name in names[1:]:
        other = results[name].fingerprint
        differing = [
            f"{key} ({value!r} against {asdict(other)[key]!r})"
            for key, value in asdict(first).items()
            if asdict(other)[key] != value
        ]
        if differing:
            raise UserError(
                f"{names[0]} and {name} cannot stand in one table, they differ in {', '.join(differing)}; "
                "evaluate both under the same protocol on the same dataset"
            )
    return first


def table(results: dict[str, Result], metrics: tuple[str, ...], part: str | None = None) -> list[list[str]]:
    """Rows of a table for people: a header, then one row a model with four decimals.

    Raises:
        UserError: the results come from different protocols.
    """
    same_protocol(results)
    lines = [["", *metrics]]
    for name, result in results.items():
        means = [result.mean(metric, part) for metric in metrics]
        lines.append([name, *("-" if mean is None else f"{mean:.4f}" for mean in means)])
    return lines


def save_rows(path: str | Path, result: Result) -> None:
    """Keep a result's per-row values as safetensors, for paired tests later."""
    from safetensors.numpy import save_file

    tensors = {"rows": result.rows.astype(np.int64)}
    tensors |= {} if result.users is None else {"users": result.users.astype(np.int64)}
    tensors |= {f"metric/{name}": np.ascontiguousarray(column) for name, column in result.values.items()}
    tensors |= {f"slice/{name}": mask.astype(np.uint8) for name, mask in result.slices.items()}
    counts = {
        "rows_without_positives": result.rows_without_positives,
        "positives_not_listed": result.positives_not_listed,
    }
    about = {
        "fingerprint": json.dumps(asdict(result.fingerprint)),
        "counts": json.dumps(counts),
        "overall": json.dumps(result.overall),
    }
    with atomic_file(path) as temporary:
        save_file(tensors, temporary, metadata=about)


def load_rows(path: str | Path) -> Result:
    """What `save_rows` wrote, in this version or an earlier one, whose files have fewer slices or no users.

    Raises:
        UserError: the file is missing or is not such a file.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="numpy") as stream:
            about = stream.metadata() or {}
            tensors = {name: stream.get_tensor(name) for name in stream.keys()}  # noqa: SIM118 - no mapping
        fingerprint, counts = Fingerprint(**json.loads(about["fingerprint"])), json.loads(about["counts"])
        overall = json.loads(about.get("overall", "{}"))
    except (OSError, SafetensorError, KeyError, TypeError, ValueError) as broken:
        raise UserError(
            f"{path} does not hold per-row results ({broken}); evaluate the checkpoint again"
        ) from None
    values = {
        name.removeprefix("metric/"): array for name, array in tensors.items() if name.startswith("metric/")
    }
    slices = {
        name.removeprefix("slice/"): array > 0 for name, array in tensors.items() if name.startswith("slice/")
    }
    users = tensors.get("users")
    return Result(fingerprint, tensors["rows"], values, slices, overall=overall, users=users, **counts)
