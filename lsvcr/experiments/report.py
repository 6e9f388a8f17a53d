"""`lsvcr report`: one HTML page about a run, which needs nothing beside itself."""

from collections.abc import Mapping
from dataclasses import fields
from datetime import datetime, timezone
from itertools import count
from pathlib import Path
from typing import Any

from lsvcr.baselines.gpsd_settings import ClickSettings
from lsvcr.experiments.report_data import SHOWN_DIGITS, DataCard, data_card
from lsvcr.experiments.report_html import Html, breakable, details, facts, joined, page, section, table, tag
from lsvcr.experiments.report_log import MetricsLog, charts_by_prefix
from lsvcr.experiments.report_read import RunRecord, TestPart, llm_of, read_run
from lsvcr.experiments.report_state import state_of, timings
from lsvcr.experiments.report_svg import figure, number
from lsvcr.schema import BASELINE, CLICKS, HLLM, METRICS_LOG_FILE, STAGE_ONE, STAGE_TWO, Task
from lsvcr.settings import AlignSettings, BaselineSettings, HllmSettings, RankSettings, ReportSettings
from lsvcr.utils.errors import UserError
from lsvcr.utils.io import atomic_file

REPORT_FILE = "report.html"

_STAGES = {
    STAGE_ONE: "stage one: alignment of LLM and SR model",
    STAGE_TWO: "stage two: fine-tuning",
    BASELINE: "another recommender",
    HLLM: "another recommender, with LLMs in training",
    CLICKS: "a click model",
    "": "unknown before the first checkpoint",
}
_CLASSES: dict[str, type] = {
    STAGE_ONE: AlignSettings,
    STAGE_TWO: RankSettings,
    HLLM: HllmSettings,
    CLICKS: ClickSettings,
}


def write_report(settings: ReportSettings) -> Path:
    """Write the page of a run folder.

    Returns:
        The file.

    Raises:
        UserError: not a run folder, a damaged file in it, or a place that cannot be written to.
    """
    record = read_run(settings.run)
    out = Path(settings.out) if settings.out else record.folder / REPORT_FILE
    if out.is_dir():
        raise UserError(f"--out {out} is a folder; give the name of an HTML file")
    text = report_page(record, data_card(record, settings.data))
    with atomic_file(out) as temporary:
        # A name that is no text in any encoding must not cost the page.
        temporary.write_text(text, encoding="utf-8", errors="replace")
    return out


def report_page(record: RunRecord, card: DataCard) -> str:
    """The whole page."""
    name = record.folder.resolve().name
    return page(
        f"{name}: {_STAGES[record.stage].partition(':')[0]}",
        tag("h1", name),
        *_head(record, card),
        *_tests(record.tests),
        _curves(record.log),
        section("Timings", facts(timings(record, card.train_samples))),
        *_checkpoints(record),
        _settings(record),
        _data(card),
    )


def _head(record: RunRecord, card: DataCard) -> list[Html]:
    state, manifest = state_of(record), record.manifest
    written = datetime.fromtimestamp(record.written, timezone.utc).strftime("%Y-%m-%d %H:%M UTC")
    pairs = [
        ("stage", _STAGES[record.stage]),
        ("task", _task(record)),
        ("LLM", llm_of(record)),
        ("dataset", f"{card.name}, hash {str(manifest.get('data_hash') or 'unknown')[:SHOWN_DIGITS]}"),
        ("seed", _seed(manifest)),
        ("last written (date of its files)", written),
        (
            "versions",
            ", ".join(f"{name} {value}" for name, value in (manifest.get("versions") or {}).items()),
        ),
    ]
    if converted := manifest.get("converted_from"):
        pairs.append(("converted from", str(converted.get("file", "unknown"))))
    if record.stage in (BASELINE, HLLM):
        pairs.insert(1, ("recommender", str(manifest.get("model", "unknown"))))
    if record.stage in (STAGE_TWO, CLICKS):
        parent = manifest.get("parent") or {}
        term = "pretraining" if record.stage == CLICKS else "stage-one checkpoint"
        pairs.append((term, str(parent.get("path", "none"))))
    warnings = [card.warning] if card.warning else []
    if record.log.not_finite:
        warnings.append(
            f"Not finite at some step: {', '.join(record.log.not_finite)}. The curves have a gap there."
        )
    if record.log.cut:
        warnings.append(
            f"The last line of {METRICS_LOG_FILE} is unfinished: the run was killed while it wrote."
        )
    return [
        tag("p", state.says, class_="state" if state.finished else "state open"),
        *(tag("p", text, class_="warning", role="note") for text in warnings),
        facts([(term, value or "unknown") for term, value in pairs]),
    ]


def _seed(manifest: Mapping[str, Any]) -> str:
    seed = manifest.get("seed", "unknown")
    return "none: nothing is drawn" if seed is None else str(seed)


def _task(record: RunRecord) -> str:
    if record.stage in (STAGE_TWO, BASELINE, HLLM):
        return Task(record.manifest["task"]).label
    if record.stage == CLICKS:
        return f"clicks, {record.settings.get('transfer', 'unknown')}"
    tasks = str(record.settings.get("tasks", "unknown"))
    return " and ".join(task.label for task in Task) if tasks == "both" else tasks


def _curves(log: MetricsLog) -> Html:
    groups = charts_by_prefix(log)
    if not groups:
        return section("Curves", tag("p", f"No metrics yet: {METRICS_LOG_FILE} holds none.", class_="soft"))
    hint = "Point at a curve for the values at a step. A dotted grey line is the chance level."
    parts, names = [tag("p", hint, class_="soft")], count(1)
    for prefix, charts in groups.items():
        figures = [figure(chart, log.last_step, f"curve-{next(names)}") for chart in charts]
        parts += [tag("h3", prefix or "other figures"), tag("div", *figures, class_="charts")]
    return section("Curves", *parts)


def _tests(tests: tuple[TestPart, ...]) -> list[Html]:
    """Test figures: a table a protocol, a column a slice."""
    if not tests:
        return []
    tables = []
    for protocol in dict.fromkeys(part.protocol for part in tests):
        parts = [part for part in tests if part.protocol == protocol]
        header = ["", *(f"{part.part} ({part.rows:,})" for part in parts)]
        metrics = dict.fromkeys(name for part in parts for name in part.figures)
        rows = [[name, *(_with_interval(part, name) for part in parts)] for name in metrics]
        tables.append(table(header, rows, f"{protocol} candidates"))
    return [section("Test figures", tag("p", "Means with their 95 % intervals.", class_="soft"), *tables)]


def _with_interval(part: TestPart, metric: str) -> str:
    value, interval = part.figures.get(metric, (None, None))
    if value is None:
        return "–"
    return f"{value:.4f}" if interval is None else f"{value:.4f} ({interval[0]:.4f} to {interval[1]:.4f})"


def _checkpoints(record: RunRecord) -> list[Html]:
    """Figures of best/ and last/ side by side."""
    columns = {"best/": record.best} | ({"last/": record.manifest} if record.has_last else {})
    shown = {name: manifest for name, manifest in columns.items() if manifest.get("metrics")}
    if not shown:
        return []
    header = ["", *(f"{name} ({_place(manifest)})" for name, manifest in shown.items())]
    metrics = dict.fromkeys(metric for manifest in shown.values() for metric in manifest["metrics"])
    rows = [
        [metric, *(_figure(manifest["metrics"].get(metric)) for manifest in shown.values())]
        for metric in metrics
    ]
    return [section("Checkpoints", table(header, rows, "Figures when the checkpoint was written"))]


def _place(manifest: Mapping[str, Any]) -> str:
    progress = manifest.get("progress") or {}
    return f"epoch {progress['epoch']}" if "epoch" in progress else f"step {manifest.get('step', 'unknown')}"


def _figure(value: Any) -> str:
    return number(value) if value is None or isinstance(value, (int, float)) else str(value)


def _settings(record: RunRecord) -> Html:
    """Settings that are not the defaults, then all of them."""
    if not record.settings:
        return section("Settings", tag("p", "No checkpoint tells the settings yet.", class_="soft"))
    known = {entry.name: entry for entry in fields(_class_of(record))}
    rows = []
    for name, value in record.settings.items():
        entry = known.get(name)
        default = "not in this version" if entry is None else _shown(entry.default)
        about = "" if entry is None else str(entry.metadata.get("help", ""))
        rows.append((entry is None or value != entry.default, [name, _shown(value), default], about))
    changed = [row for differs, row, _ in rows if differs]
    explained = [
        [joined([breakable(row[0]), tag("span", about, class_="soft")]), *row[1:]] for _, row, about in rows
    ]
    first = (
        table(["setting", "value", "default"], changed, "Other than the defaults", numbers=False)
        if changed
        else tag("p", "All settings are the defaults.")
    )
    everything = table(["setting", "value", "default"], explained, numbers=False)
    return section("Settings", first, details(f"all {len(rows)} settings", everything))


def _class_of(record: RunRecord) -> type:
    """The settings' class; of a recommender that is not in this version, what all of them have."""
    if record.stage != BASELINE:
        return _CLASSES[record.stage]
    from lsvcr.baselines.registry import entries  # needs torch, which pages of the two stages do without

    known = entries()
    name = str(record.manifest.get("model"))
    return known[name].settings if name in known else BaselineSettings


def _shown(value: Any) -> str:
    """As a person would write it behind the flag."""
    return "auto" if value is None else str(value) if value != "" else '""'


def _data(card: DataCard) -> Html:
    parts = [tag("p", card.warning, class_="warning", role="note")] if card.warning else []
    if card.facts:
        parts.append(facts(card.facts))
    if card.samples:
        parts.append(table(["samples", "train", "val", "test"], card.samples))
    return section(f"Data: {card.name}", *parts)
