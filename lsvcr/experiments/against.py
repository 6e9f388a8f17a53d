"""One stage-two run against another on the same rows, with paired tests: `lsvcr evaluate A --against B`."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich import box
from rich.table import Table

from lsvcr.data.store import open_dataset
from lsvcr.evaluation.lists import LIST_METRICS, split_metrics
from lsvcr.evaluation.metrics import METRICS, split_name
from lsvcr.evaluation.protocol import split_words
from lsvcr.evaluation.result import Result, load_rows, same_protocol
from lsvcr.evaluation.significance import paired_all
from lsvcr.evaluation.slices import NAMES
from lsvcr.experiments.runs import with_users
from lsvcr.schema import Task
from lsvcr.training.rank_evaluate import Asked, evaluate_rows
from lsvcr.training.rank_state import ROWS_FILE
from lsvcr.utils.errors import UserError
from lsvcr.utils.tables import print_whole

ALL_ROWS = "all rows"
_PROTOCOLS = ("full", "sampled")
_HEADINGS = ("", "metric", "A", "B", "A - B", "95 % interval", "p, bootstrap", "p, t-test", "rows")


@dataclass(frozen=True)
class Question:
    """What two runs are compared on.

    Attributes:
        data: prepared dataset, or empty where both runs have stored rows. It also says whose rows of an earlier version
            are.
        split: `test` or `val`.
        protocol: `full`, `sampled` or all.
        metrics: none = what both have.
        filter_seen: Rec: videos of a user's history do not rank, unless one is the target.
    """

    data: str = ""
    split: str = "test"
    protocol: Asked = "all"
    metrics: tuple[str, ...] = ()
    filter_seen: bool = False

    @property
    def protocols(self) -> tuple[str, ...]:
        """Names of the protocols that are asked for."""
        return _PROTOCOLS if self.protocol == "all" else (self.protocol,)


def compare(a: str, b: str, question: Question) -> dict[str, Any]:
    """A against B, row by row: from the rows that finished runs keep, or, unless both have them, by evaluating both.

    Args:
        a, b: run folders, or their best/ or last/, which are always evaluated.
        question: what they are compared on.

    Returns:
        `a`, `b`, `task`, `split`, `data_hash`, `source` (`stored` or `evaluated`) and `protocols`: name -> fingerprint,
        rows, users (null where nothing says whose the rows are: each then counts as a user of its own), metrics (`a`,
        `b`, `difference`, `interval`, `bootstrap_p`, `t_p`, `rows`; null where too few users leave nothing to say) and
        the same for each of the slices that both results have.

    Raises:
        UserError: the two were measured under different protocols (the message names what differs), nothing is stored
            and no dataset given, or whatever `evaluate_rows` refuses.
    """
    names = {"A": a, "B": b}
    stored = {label: _stored(folder, question) for label, folder in names.items()}
    source = "stored" if all(found is not None for found in stored.values()) else "evaluated"
    if source == "stored":
        results = {label: found for label, found in stored.items() if found is not None}
        if question.data:
            results = _on_data(results, a, question.data)
    else:
        results = _evaluated(names, stored, question)
    left, right = results["A"], results["B"]
    first = next(iter(left.values())).fingerprint
    for name in left:
        same_protocol({f"A ({a})": left[name], f"B ({b})": right[name]})
    return {
        **{label.lower(): folder for label, folder in names.items()},
        "task": first.task,
        "split": first.split,
        "data_hash": first.data_hash,
        "source": source,
        "protocols": {name: _protocol(left[name], right[name], question.metrics) for name in left},
    }


def _stored(folder: str, question: Question) -> dict[str, Result] | None:
    """By protocol what a finished run keeps of its test, if that answers the question."""
    if question.split != "test" or question.filter_seen:
        return None
    files = {name: Path(folder) / ROWS_FILE.format(name=name) for name in question.protocols}
    if not all(file.is_file() for file in files.values()):
        return None
    found = {name: load_rows(file) for name, file in files.items()}
    wanted = {name for names in split_metrics(question.metrics) for name in names}
    answered = all(wanted <= {*result.values, *result.overall} for result in found.values())
    return found if answered else None


def _evaluated(
    names: Mapping[str, str], stored: Mapping[str, object], question: Question
) -> dict[str, dict[str, Result]]:
    if not question.data:
        lacking = [folder for label, folder in names.items() if stored[label] is None]
        raise UserError(
            f"{' and '.join(lacking)}: no stored rows that answer this, so both must be evaluated: give their prepared "
            "dataset with --data"
        )
    return {
        label: evaluate_rows(
            folder, question.data, question.split, question.protocol, question.metrics, question.filter_seen
        )[2]
        for label, folder in names.items()
    }


def _on_data(
    results: Mapping[str, dict[str, Result]], folder: str, data: str
) -> dict[str, dict[str, Result]]:
    """Stored results with their users. Whoever names a dataset is not told figures of another one."""
    dataset = open_dataset(data)
    measured = next(iter(results["A"].values())).fingerprint.data_hash
    if measured != dataset.data_hash:
        raise UserError(
            f"{folder} was measured on other data ({measured}) than {data} ({dataset.data_hash}); give the dataset it "
            "was trained on, or leave --data away"
        )
    return {
        label: {name: with_users(result, dataset) for name, result in found.items()}
        for label, found in results.items()
    }


def _protocol(a: Result, b: Result, asked: Sequence[str]) -> dict[str, Any]:
    """All rows and every slice under one protocol."""
    metrics = [name for name in asked or _in_order(a.values) if name in a.values and name in b.values]
    whole = _part(a, b, metrics, None)
    for name in asked or _in_order(a.overall):
        if name in a.overall and name in b.overall:
            ours, theirs = a.overall[name], b.overall[name]
            whole["metrics"][name] = _entry(ours, theirs, ours - theirs, rows=whole["rows"])
    parts = [name for name in NAMES if name in a.slices and name in b.slices]
    return {
        "fingerprint": a.fingerprint.to_json(),
        **whole,
        "slices": {name: _part(a, b, metrics, name) for name in parts},
    }


def _in_order(names: Iterable[str]) -> list[str]:
    """Names of metrics by kind, then K: a file does not keep their order."""
    kinds = (*METRICS, *LIST_METRICS)
    return sorted(
        names, key=lambda name: (kinds.index(split_name(name, kinds)[0]), split_name(name, kinds)[1])
    )


def _part(a: Result, b: Result, metrics: Sequence[str], part: str | None) -> dict[str, Any]:
    told = a if b.users is None else b
    users = None if told.users is None else told.count_users(part)
    rows = len(a.rows) if part is None else int(a.slices[part].sum())
    about = {"rows": rows, "users": users}
    means = {name: (a.mean(name, part), b.mean(name, part)) for name in metrics}
    if not metrics or told.count_users(part) < 2:
        few = {
            name: _entry(ours, theirs, None if ours is None or theirs is None else ours - theirs, rows=rows)
            for name, (ours, theirs) in means.items()
        }
        return {**about, "metrics": few}
    found = {}
    for c in paired_all(a, b, metrics, part):
        tests = {"interval": list(c.interval), "bootstrap_p": c.bootstrap_p, "t_p": c.t_p}
        found[c.metric] = _entry(*means[c.metric], c.difference, rows=rows) | tests
    return {**about, "metrics": found}


def _entry(a: float | None, b: float | None, difference: float | None, rows: int) -> dict[str, Any]:
    """A metric of two runs before any test."""
    tests = {"interval": None, "bootstrap_p": None, "t_p": None}
    return {"a": a, "b": b, "difference": difference, **tests, "rows": rows}


def print_comparison(report: Mapping[str, Any]) -> None:
    """Print what `compare` gives, for a person: a table a protocol; slices of no row or of all are left out."""
    task = Task(report["task"]).label
    for name, protocol in report["protocols"].items():
        table = Table(title=f"{task}, {split_words(report['split'])}, {name}", box=box.SIMPLE_HEAD)
        for heading in _HEADINGS:
            table.add_column(heading, justify="left" if heading in ("", "metric") else "right")
        slices = {k: v for k, v in protocol["slices"].items() if 0 < v["rows"] < protocol["rows"]}
        for part, figures in {ALL_ROWS: protocol, **slices}.items():
            for number, (metric, entry) in enumerate(figures["metrics"].items()):
                table.add_row(part if number == 0 else "", metric, *_cells(entry))
            table.add_section()
        console = print_whole(table)
    said = [f"A = {report['a']}", f"B = {report['b']}", *_of_users(report)]
    console.print("\n".join(said), highlight=False, markup=False, soft_wrap=True)


def _of_users(report: Mapping[str, Any]) -> list[str]:
    """What must be said of the rows' users, where they are not as many."""
    whole = next(iter(report["protocols"].values()))
    if whole["users"] is None:
        return [
            "Each row counts as a user of its own: these rows, stored by an earlier version, do not say whose they "
            "are. Where users have several (`lsvcr prepare --split temporal`) intervals are too narrow and p-values "
            "too small: give the dataset with --data, which says it."
        ]
    if whole["users"] < whole["rows"]:
        return [
            f"The {whole['rows']:,} rows are of {whole['users']:,} users: intervals and tests are over users."
        ]
    return []


def _cells(entry: Mapping[str, Any]) -> list[str]:
    interval = entry["interval"]
    return [
        *(_shown(entry[key], ".4f") for key in ("a", "b")),
        _shown(entry["difference"], "+.4f"),
        "-" if interval is None else f"{interval[0]:+.4f} to {interval[1]:+.4f}",
        *(_p_value(entry[key]) for key in ("bootstrap_p", "t_p")),
        str(entry["rows"]),
    ]


def _p_value(value: float | None) -> str:
    return "<0.001" if value is not None and value < 0.001 else _shown(value, ".3f")


def _shown(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)
