"""A comparison in words: the table of a terminal, and Markdown."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich import box
from rich.markup import escape
from rich.table import Table

from lsvcr.evaluation.protocol import split_words
from lsvcr.experiments.compare_figures import COLD, LEVEL
from lsvcr.experiments.compare_speed import ABOUT
from lsvcr.utils.logging import duration
from lsvcr.utils.tables import print_whole

DASH = "-"
_SHORT = {"recall": "R", "ndcg": "N"}


def short(metric: str) -> str:
    """`recall@10` -> `R@10`, `ndcg@5` -> `N@5`, `mrr@10` -> `MRR@10`."""
    word, _, k = metric.partition("@")
    return f"{_SHORT.get(word, word.upper())}@{k}"


def done(report: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The rows that have figures."""
    return [row for row in report["rows"] if not row["failed"]]


def failed(report: Mapping[str, Any]) -> dict[str, str]:
    """Why the others have none, by name."""
    return {row["name"]: row["failed"] for row in report["rows"] if row["failed"]}


def cells(report: Mapping[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Headings and rows of the one table; a failed model has a row of dashes."""
    main = report["main"]
    others = [name for name in report["metrics"] if name != main]
    has_cold = any(row[COLD] for row in done(report))
    heads = ["model", short(main), "95 % interval", "spread", *map(short, others)]
    heads += [f"cold {short(main)}"] if has_cold else []
    if report["reference"]:
        heads += [f"{short(main)} - {report['reference']}", "p (Holm)"]
    heads += ["training", "parameters", "ms a user"]
    rows = []
    for row in report["rows"]:
        if row["failed"]:
            rows.append([row["name"], "failed", *[DASH] * (len(heads) - 2)])
            continue
        figures = row["metrics"]
        shown = [row["name"] + (" (best baseline)" if row["name"] == report["reference"] else "")]
        shown += [marked(figures[main]), interval(figures[main]), spread(figures[main])]
        shown += [marked(figures[name]) for name in others]
        shown += [marked(row[COLD][main])] if has_cold else []
        if report["reference"]:
            shown += [difference(figures[main]), p_value(figures[main])]
        shown += [duration_of(row), f"{row['parameters']:,}", answer(row)]
        rows.append(shown)
    return heads, rows


def marked(entry: Mapping[str, Any]) -> str:
    """A value, with a star where it differs from the best baseline's."""
    versus = entry["versus"]
    star = "*" if versus is not None and versus["holm_p"] < LEVEL else ""
    return f"{entry['value']:.4f}{star}"


def interval(entry: Mapping[str, Any]) -> str:
    """`0.0401 to 0.0523`."""
    low, high = entry["interval"]
    return f"{low:.4f} to {high:.4f}"


def spread(entry: Mapping[str, Any]) -> str:
    """Standard deviation of the seeds' means."""
    return DASH if entry["spread"] is None else f"{entry['spread']:.4f}"


def difference(entry: Mapping[str, Any]) -> str:
    """`+0.0123 (+0.0023 to +0.0223)` against the best baseline."""
    versus = entry["versus"]
    if versus is None:
        return DASH
    low, high = versus["interval"]
    return f"{versus['difference']:+.4f} ({low:+.4f} to {high:+.4f})"


def p_value(entry: Mapping[str, Any]) -> str:
    """The corrected p-value."""
    versus = entry["versus"]
    if versus is None:
        return DASH
    return "<0.001" if versus["holm_p"] < 0.001 else f"{versus['holm_p']:.3f}"


def duration_of(row: Mapping[str, Any]) -> str:
    """Training time of a model, mean over seeds."""
    seconds = row["seconds"]
    if seconds is None:
        return DASH
    return "<0.1 s" if seconds < 0.1 else f"{seconds:.1f} s" if seconds < 10 else duration(seconds)


def answer(row: Mapping[str, Any]) -> str:
    """Milliseconds a user."""
    return DASH if row["answer_ms"] is None else f"{row['answer_ms']:.3f}"


def title(report: Mapping[str, Any]) -> str:
    """What was compared on what."""
    print_ = report["fingerprint"]
    return (
        f"{report['task_label']} on {Path(report['data']).resolve().name}, {split_words(report['split'])}, "
        f"candidates: {print_['candidates']}"
    )


def notes(report: Mapping[str, Any]) -> list[str]:
    """What must be said of the table, in sentences."""
    seeds = report["seeds"]
    said = [
        f"Seeds: {', '.join(map(str, seeds))} (what is fitted without a seed: one model). {budget(report)}",
        *report["statistics"],
        "Training: mean time of a model in its steps, without validation and, for LSVCR, without stage one; "
        f"parameters: those that trained. Answers: {ABOUT[0].lower()}{ABOUT[1:]}",
    ]
    said += _of_llms(report)
    said += [f"Failed: {name}: {why}" for name, why in failed(report).items()]
    said += [f"Left out: {why}" for why in report["left_out"].values()]
    return said


def _of_llms(report: Mapping[str, Any]) -> list[str]:
    """What is to be said of the rows that ask an LLM."""
    rows = [row for row in done(report) if row["asks_llm"]]
    if not rows:
        return []
    names = ", ".join(row["name"] for row in rows)
    told = [f"{row['name']}: {'; '.join(dict.fromkeys(row['details']))}." for row in rows if row["details"]]
    return [f"Answers of {names}: the LLM's time for a prompt, taken on its own and not in turns.", *told]


def budget(report: Mapping[str, Any]) -> str:
    """How settings were chosen."""
    bound = f" At most {report['epochs']} epochs for each." if report["epochs"] else ""
    if report["trials"] == 1:
        return "No search: every model has the settings of its file." + bound
    fewer = [row["name"] for row in report["rows"] if 0 < len(row["trials"]) < report["trials"]]
    plain = [row["name"] for row in done(report) if not row["trials"]]
    rates = [row["name"] for row in report["rows"] if row["fallback_search"]]
    text = (
        f"Search: {report['trials']} trials a model by {report['metric']} on validation, with the first seed."
    )
    text += bound
    text += f" Fewer combinations than that: {', '.join(fewer)}." if fewer else ""
    text += f" Nothing to search: {', '.join(plain)}." if plain else ""
    text += (
        f" Without a search section, so learning rate and weight decay alone: {', '.join(rates)}."
        if rates
        else ""
    )
    return text


def print_report(report: Mapping[str, Any]) -> None:
    """Print a comparison for a person."""
    heads, rows = cells(report)
    table = Table(title=escape(title(report)), box=box.SIMPLE_HEAD)
    for number, head in enumerate(heads):
        table.add_column(escape(head), justify="right" if number else "left")
    for row in rows:
        table.add_row(*map(escape, row))
    console = print_whole(table)
    for sentence in notes(report):
        console.print(sentence, highlight=False, markup=False, soft_wrap=True)


def markdown(report: Mapping[str, Any]) -> str:
    """A comparison as Markdown: the table, every metric with its interval and test, what was tried."""
    heads, rows = cells(report)
    parts = [f"# {title(report)}", _table(heads, rows), *notes(report)]
    for name in report["metrics"]:
        body = [_full(row["name"], row["metrics"][name]) for row in done(report)]
        parts += [f"## {name}", _table(FULL_HEADS, body)]
    main = report["main"]
    cold = [_full(row["name"], row[COLD][main]) for row in done(report) if row[COLD]]
    if cold:
        parts += [f"## {main}, cold targets", _table(FULL_HEADS, cold)]
    tried = trial_rows(report)
    if tried:
        parts += ["## Trials", _table(trial_heads(report), tried)]
    return "\n\n".join(parts) + "\n"


FULL_HEADS = (
    "model", "rows", "mean", "95 % interval", "by seed", "spread", "difference (95 % interval)", "p, t-test",
    "p (Holm)",
)  # fmt: skip


def _full(name: str, entry: Mapping[str, Any]) -> list[str]:
    return [name, *full(entry)]


def full(entry: Mapping[str, Any]) -> list[str]:
    """All that is known of one metric of a row, in the order of `FULL_HEADS`."""
    versus = entry["versus"]
    seeds = ", ".join(f"{value:.4f}" for value in entry["by_seed"])
    t_p = DASH if versus is None else "<0.001" if versus["t_p"] < 0.001 else f"{versus['t_p']:.3f}"
    return [
        str(entry["rows"]), marked(entry), interval(entry), seeds, spread(entry), difference(entry), t_p, p_value(entry)
    ]  # fmt: skip


def trial_heads(report: Mapping[str, Any]) -> list[str]:
    """Headings of the table of trials."""
    return ["model", "settings", f"validation {report['metric']}", ""]


def trial_rows(report: Mapping[str, Any]) -> list[list[str]]:
    """What was tried, the chosen one marked."""
    rows = []
    for row in report["rows"]:
        for note in row["trials"]:
            shown = ", ".join(f"{name} {value}" for name, value in note["settings"].items())
            value = "failed" if note["value"] is None else f"{note['value']:.4f}"
            chosen = "chosen" if note["settings"] == row.get("chosen") else note["why"]
            rows.append([row["name"], shown, value, chosen])
    return rows


def _table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [heads, ["---", *["---:"] * (len(heads) - 1)], *rows]
    return "\n".join("| " + " | ".join(_cell(cell) for cell in line) + " |" for line in lines)


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")
