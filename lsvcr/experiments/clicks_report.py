"""Click models side by side: AUC and loss by epoch, and by size with a power law, as pages and pictures."""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lsvcr.experiments.power_law import FEWEST_POINTS, PowerLaw, fit_power_law
from lsvcr.experiments.report_axes import Axis, size_axis, step_axis
from lsvcr.experiments.report_html import Html, facts, page, section, table, tag
from lsvcr.experiments.report_log import Chart, Series
from lsvcr.experiments.report_read import read_run
from lsvcr.experiments.report_svg import figure_over, svg_file
from lsvcr.schema import CLICKS, METRICS_FILE
from lsvcr.utils.errors import UserError
from lsvcr.utils.io import atomic_file, read_json

SHOWN = {
    "test/auc": "test AUC",
    "test/gauc": "test GAUC",
    "test/log_loss": "test log-loss",
    "train/loss": "training loss",
}
"""Curves of a page: name in the log -> title."""

FITTED = 60
"""Points of a fitted curve."""


@dataclass(frozen=True)
class ClickRun:
    """A run of `lsvcr clicks` as its folder tells it.

    Attributes:
        epochs: value by epoch, by the name in its log.
        test: what its metrics.json says of the test; None while it is not there.
        parameters: its sizes by `all`, `trained` and `dense`; empty while there is no test.
        best_epoch: that validation has chosen; None while there is no test.
        data_hash: of its dataset.
    """

    epochs: Mapping[str, Series]
    test: Mapping[str, Any] | None
    parameters: Mapping[str, int]
    best_epoch: int | None
    data_hash: str


Group = Mapping[str, Sequence[ClickRun]]
"""Runs by label; those of one label differ in their seed alone."""


def read_click_run(folder: str | Path) -> ClickRun:
    """Read a run folder of `lsvcr clicks`, finished or not.

    Raises:
        UserError: it is none, or has no whole epoch yet.
    """
    record = read_run(folder)
    if record.stage != CLICKS:
        raise UserError(f"{folder} is no run of `lsvcr clicks`; give the output folders of such runs")
    steps = sorted({step for values in record.log.series.values() for step in values})
    number = {step: place for place, step in enumerate(steps, start=1)}
    epochs = {
        name: {number[step]: value for step, value in values.items()}
        for name, values in record.log.series.items()
    }
    path = Path(folder) / METRICS_FILE
    report = read_json(path) if path.is_file() else {}
    protocols = report.get("protocols") or {}
    return ClickRun(
        epochs,
        next(iter(protocols.values()), None),
        report.get("parameters") or {},
        (report.get("checkpoint") or {}).get("epoch"),
        str(record.manifest.get("data_hash", "")),
    )


def write_curves(runs: Mapping[str, str], out: str) -> list[Path]:
    """Write the page of some runs, and test AUC by epoch as an SVG file beside it.

    Args:
        runs: folder by label.
        out: the page.

    Returns:
        Both files.

    Raises:
        UserError: a folder is no run, runs of different datasets, or a place that cannot be written to.
    """
    group = {label: [read_click_run(folder)] for label, folder in runs.items()}
    if len({run.data_hash for own in group.values() for run in own}) > 1:
        raise UserError("the runs are of different datasets, so that their figures are not comparable")
    target = html_name(out)
    parts = section("Figures", summary(group)), section("By epoch", *curves(group, "curves"))
    text = page("Click models", tag("h1", "Click models"), *parts)
    chart = over_epochs(group, "test/auc")
    return [write(target, text), write(target.with_suffix(".svg"), svg_file(chart, _axis(chart), "epoch"))]


def html_name(out: str) -> Path:
    """The file that a page goes to.

    Raises:
        UserError: a folder, or a name that does not end in .html.
    """
    path = Path(out)
    if path.is_dir() or path.suffix != ".html":
        raise UserError(f"--out {out} must name an HTML file, such as clicks.html")
    return path


def write(path: Path, text: str) -> Path:
    """Write a file whole; returns its path."""
    with atomic_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8", errors="replace")
    return path


def over_epochs(group: Group, name: str) -> Chart:
    """One figure by epoch, a line a label: the mean over its seeds, as far as all of them have come."""
    series = {}
    for label, runs in group.items():
        own = [run.epochs.get(name, {}) for run in runs]
        shared = sorted(set(own[0]).intersection(*own[1:]))
        series[label] = {epoch: _mean([values[epoch] for values in own]) for epoch in shared}
    return Chart(SHOWN[name], series)


def curves(group: Group, name: str) -> list[Html]:
    """A picture a figure; `name` is unique on the page."""
    figures = []
    for number, shown in enumerate(SHOWN):
        chart = over_epochs(group, shown)
        figures.append(figure_over(chart, _axis(chart), "epoch", f"{name}-{number}"))
    hint = "Point at a curve for its values. Means over seeds where there are several."
    return [tag("p", hint, class_="soft"), tag("div", *figures, class_="charts")]


def summary(group: Group) -> Html:
    """A row a label: test figures at the epoch that validation has chosen, and what becomes of AUC by epoch."""
    heads = [
        "",
        "seeds",
        "parameters that train",
        "best epoch (validation)",
        "test AUC",
        "GAUC",
        "log-loss",
        "AUC after epoch 1",
        "highest AUC",
        "AUC after the last",
    ]
    rows = []
    for label, runs in group.items():
        line = [value for value in over_epochs({label: runs}, "test/auc").series[label].values() if value]
        done = [run for run in runs if run.test is not None]
        figures = [_mean([run.test["metrics"][m]["value"] for run in done if run.test]) for m in _METRICS]
        ends = [line[0], max(line), line[-1]] if line else [None] * 3
        best = [str(run.best_epoch) for run in done]
        size = f"{done[0].parameters['trained']:,}" if done else "–"
        rows.append([label, str(len(runs)), size, ", ".join(best) or "–", *map(_shown, (*figures, *ends))])
    return table(heads, rows)


_METRICS = ("auc", "gauc", "log_loss")


@dataclass(frozen=True)
class Scaling:
    """A figure by size.

    Attributes:
        points: for each label (size of the transformer, test value), rising in size.
        laws: fitted to them, where there are sizes enough.
    """

    title: str
    points: Mapping[str, Sequence[tuple[int, float]]]
    laws: Mapping[str, PowerLaw]


def by_size(groups: Mapping[str, Group], metric: str) -> Scaling:
    """Test figures of finished runs by the numbers in their transformer, seeds averaged, each label with its law.

    Args:
        groups: by the name of the size.
        metric: `log_loss`, or `auc`, of which what lacks to 1 is meant.
    """
    points: dict[str, list[tuple[int, float]]] = {}
    for group in groups.values():
        for label, runs in group.items():
            done = [run for run in runs if run.test is not None]
            values = [run.test["metrics"][metric]["value"] for run in done if run.test]
            mean = _mean([1 - value if metric == "auc" else value for value in values if value is not None])
            if mean is not None:
                points.setdefault(label, []).append((done[0].parameters["dense"], mean))
    ordered = {label: sorted(own) for label, own in points.items()}
    laws = {
        label: fit_power_law(*zip(*own, strict=True))
        for label, own in ordered.items()
        if len({size for size, _ in own}) >= FEWEST_POINTS
    }
    title = "1 - test AUC" if metric == "auc" else "test log-loss"
    return Scaling(f"{title} by parameters of the transformer", ordered, laws)


def scaling_chart(scaling: Scaling) -> Chart:
    """Measured points, and each law between them."""
    series: dict[str, Series] = {label: dict(points) for label, points in scaling.points.items()}
    sizes = _sizes(scaling)
    for label, law in scaling.laws.items():
        ratio = max(sizes) / min(sizes)
        places = [min(sizes) * ratio ** (i / FITTED) for i in range(FITTED + 1)]
        series[f"{label}, law"] = {place: law.at(place) for place in places}
    return Chart(scaling.title, series)


def scaling_parts(scalings: Sequence[Scaling]) -> list[Html]:
    """Pictures by size, and the laws in words."""
    if not scalings[0].points:
        return [tag("p", "No finished run.", class_="soft")]
    figures = [
        figure_over(scaling_chart(own), size_axis(_sizes(own)), "parameters", f"size-{number}")
        for number, own in enumerate(scalings)
    ]
    laws = [
        (f"{label}, {own.title.partition(' by ')[0]}", law.told())
        for own in scalings
        for label, law in own.laws.items()
    ]
    return [tag("div", *figures, class_="charts"), facts(laws)]


def scaling_svg(scaling: Scaling) -> str:
    """The picture of sizes as a file."""
    return svg_file(scaling_chart(scaling), size_axis(_sizes(scaling)), "parameters")


def _sizes(scaling: Scaling) -> list[int]:
    return [size for points in scaling.points.values() for size, _ in points]


def _axis(chart: Chart) -> Axis:
    return step_axis(max(chart.steps, default=1))


def _mean(values: Sequence[float | None]) -> float | None:
    """None where one is missing, or there are none."""
    known = [value for value in values if value is not None]
    return statistics.fmean(known) if known and len(known) == len(values) else None


def _shown(value: float | None) -> str:
    return "–" if value is None else f"{value:.4f}"
