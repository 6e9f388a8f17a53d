"""A comparison as one HTML page that needs nothing beside itself."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lsvcr.experiments.compare_figures import COLD
from lsvcr.experiments.compare_text import (
    FULL_HEADS,
    cells,
    done,
    failed,
    full,
    notes,
    title,
    trial_heads,
    trial_rows,
)
from lsvcr.experiments.report_bars import Bar, bar_figure
from lsvcr.experiments.report_html import Html, breakable, details, facts, page, section, table, tag

NO_BREAK = "\u00a0"
SHOWN_DIGITS = 12
"""Of a hash, where a person compares."""


def comparison_page(report: Mapping[str, Any]) -> str:
    """The whole page of what `compare` gives."""
    heads, rows = cells(report)
    said = [tag("p", sentence) for sentence in notes(report)]
    warned = [
        tag("p", f"{name} failed: {why}", class_="warning", role="note")
        for name, why in failed(report).items()
    ]
    return page(
        f"Comparison: {title(report)}",
        tag("h1", title(report)),
        *warned,
        _head(report),
        section("Table", table(heads, _unbroken(rows))),
        _pictures(report),
        _full(report),
        section("How to read it", *said),
        *_trials(report),
        _models(report),
    )


def _head(report: Mapping[str, Any]) -> Html:
    return facts(
        [
            ("dataset", f"{Path(report['data']).resolve().name}, hash {report['data_hash'][:SHOWN_DIGITS]}"),
            (
                "protocol",
                f"{report['fingerprint']['protocol']}, fingerprint {report['fingerprint']['digest']}",
            ),
            ("seeds", ", ".join(map(str, report["seeds"]))),
            ("trials a model", str(report["trials"])),
            ("chosen by", f"{report['metric']} on validation"),
            ("best baseline", report["reference"] or "none"),
        ]
    )


def _pictures(report: Mapping[str, Any]) -> Html:
    rows = done(report)
    named = {name: {row["name"]: row["metrics"][name] for row in rows} for name in report["metrics"]}
    if all(row[COLD] for row in rows):
        main = report["main"]
        named[f"{main}, cold targets"] = {row["name"]: row[COLD][main] for row in rows}
    figures = []
    for number, (name, entries) in enumerate(named.items(), start=1):
        bars = [_bar(row, entry, report) for row, entry in entries.items()]
        figures.append(bar_figure(name, bars, f"bars-{number}"))
    hint = (
        "Bars: means over test rows and seeds. Lines: 95 % intervals over users. Dots: the means of the single seeds. "
        "Point at a bar for its figures."
    )
    return section("Pictures", tag("p", hint, class_="soft"), tag("div", *figures, class_="charts"))


def _bar(name: str, entry: Mapping[str, Any], report: Mapping[str, Any]) -> Bar:
    low, high = entry["interval"]
    return Bar(name, entry["value"], (low, high), tuple(entry["by_seed"]), name == report["reference"])


def _full(report: Mapping[str, Any]) -> Html:
    """Every metric with its interval, its seeds and its test."""
    rows = done(report)
    tables = [
        table(FULL_HEADS, _unbroken([[row["name"], *full(row["metrics"][name])] for row in rows]), name)
        for name in report["metrics"]
    ]
    main = report["main"]
    cold = [[row["name"], *full(row[COLD][main])] for row in rows if row[COLD]]
    if cold:
        tables.append(table(FULL_HEADS, _unbroken(cold), f"{main}, cold targets"))
    return section("Every metric", *tables)


def _unbroken(rows: Sequence[Sequence[str]]) -> list[list[str]]:
    """Figures that keep to one line; a narrow window scrolls the table instead."""
    return [[row[0], *(cell.replace(" ", NO_BREAK) for cell in row[1:])] for row in rows]


def _trials(report: Mapping[str, Any]) -> list[Html]:
    rows = trial_rows(report)
    if not rows:
        return []
    shown = [[row[0], breakable(row[1]), *row[2:]] for row in rows]
    return [
        section(
            "Trials", details(f"all {len(rows)} trials", table(trial_heads(report), shown, numbers=False))
        )
    ]


def _models(report: Mapping[str, Any]) -> Html:
    """What each row is, and its settings, folded."""
    parts = []
    for row in done(report):
        values = [[name, breakable(_shown(value))] for name, value in row["settings"].items()]
        values += [[name, breakable(value[:SHOWN_DIGITS])] for name, value in row["inputs"].items()]
        where = [
            tag("p", row["summary"]),
            tag("p", f"Settings: {row['file'] or 'the defaults'}.", class_="soft"),
        ]
        runs = [tag("p", breakable(f"Runs: {', '.join(row['runs'])}"), class_="soft")]
        parts.append(details(row["name"], *where, *runs, table(["setting", "value"], values, numbers=False)))
    return section("Models", *parts)


def _shown(value: Any) -> str:
    """As a person would write it behind the flag."""
    return "auto" if value is None else str(value) if value != "" else '""'
