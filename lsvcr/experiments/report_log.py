"""The metrics log of a run, read whole and told apart into charts by the names it holds."""

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lsvcr.utils.errors import UserError

CHANCE = "_chance"
"""A name with this ending is the chance level of the name before it, and stands in its chart."""

_STEPS = 1 << 63
_CUTOFF = re.compile(r"@\d+")

Series = Mapping[Any, float | None]
"""Value by step (or by another number), rising; None where it was not finite."""


@dataclass(frozen=True)
class MetricsLog:
    """What `metrics.jsonl` holds.

    Attributes:
        series: by name, in the order in which the names first come.
        last_step: the highest step, 0 in an empty log.
        cut: the last line was left unfinished by a run that was killed.
    """

    series: Mapping[str, Series] = field(default_factory=dict)
    last_step: int = 0
    cut: bool = False

    @property
    def not_finite(self) -> list[str]:
        """Names with a value that was not finite."""
        return [name for name, values in self.series.items() if any(v is None for v in values.values())]


@dataclass(frozen=True)
class Chart:
    """Series that share one picture: the cut-offs of one figure, and its chance level."""

    title: str
    series: Mapping[str, Series]

    @property
    def steps(self) -> list[Any]:
        """All steps (or other numbers) at which one of the series has an entry, rising."""
        return sorted({step for values in self.series.values() for step in values})


def read_log(path: Path) -> MetricsLog:
    """Read a metrics log; a missing one is empty. Where a name comes twice at a step, the later value counts.

    Raises:
        UserError: a line is not what `MetricsWriter` writes; an unfinished last line is none.
    """
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        return MetricsLog()
    except OSError as broken:
        raise UserError(f"{path} cannot be read: {broken.strerror}") from None
    lines = content.split(b"\n")
    rest = lines.pop()  # what stands behind the last line end
    rows = [_row(line, f"{path}, line {number}") for number, line in enumerate(lines, start=1)]
    cut = False
    if rest.strip():
        try:
            rows.append(_row(rest, ""))
        except UserError:
            cut = True
    found: dict[str, dict[int, float | None]] = {}
    for step, values in rows:
        for name, value in values.items():
            found.setdefault(name, {})[step] = value
    series = {name: dict(sorted(values.items())) for name, values in found.items()}
    return MetricsLog(series, max((step for step, _ in rows), default=0), cut)


def charts_by_prefix(log: MetricsLog) -> dict[str, list[Chart]]:
    """Charts of each prefix (`train` of `train/loss`; a name without one has the prefix ``).

    Names that differ in `@K` alone, and the chance level of a name, share a chart.
    """
    groups: dict[str, dict[str, dict[str, Series]]] = {}
    for name, values in log.series.items():
        prefix, _, own = name.rpartition("/")
        stem = _CUTOFF.sub("", own.removesuffix(CHANCE))
        groups.setdefault(prefix, {}).setdefault(stem, {})[own] = values
    return {
        prefix: [Chart(_title(stem, series), series) for stem, series in charts.items()]
        for prefix, charts in groups.items()
    }


def _title(stem: str, series: Mapping[str, Series]) -> str:
    """The figure's own name where the chart shows one, else what the names share."""
    figures = [name for name in series if not name.endswith(CHANCE)]
    return figures[0] if len(figures) == 1 else stem


def _row(line: bytes, where: str) -> tuple[int, dict[str, float | None]]:
    try:
        row = json.loads(line.decode("utf-8"))
        step = row.pop("step")
        values = {name: _value(value) for name, value in row.items()}
        if type(step) is not int or not 0 <= step < _STEPS:
            raise ValueError("its step is no whole number from 0")
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as broken:
        reason = broken if isinstance(broken, ValueError) else "it has no step, or is no JSON object"
        raise UserError(
            f"{where}: not a line of a metrics log ({reason}); take the line out, or train the run again"
        ) from None
    return step, values


def _value(value: Any) -> float | None:
    """A number or null; what JSON writers of other programs put for values that are not finite counts as null."""
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise ValueError(f"{value!r} is no number")
    try:
        number = float(value)
    except OverflowError:
        return None
    return number if math.isfinite(number) else None
