"""The figures of a comparison: means over seeds, intervals over users, paired tests against the best baseline."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from lsvcr.data.store import Dataset
from lsvcr.evaluation.protocol import Drawn, draw
from lsvcr.evaluation.result import CONFIDENCE, RESAMPLES, Result, bootstrap_interval, same_protocol
from lsvcr.evaluation.significance import holm, paired_all
from lsvcr.experiments.compare_job import Job
from lsvcr.experiments.compare_models import Member
from lsvcr.experiments.compare_recipe import Recipe
from lsvcr.experiments.runs import with_users
from lsvcr.schema import Split, Task
from lsvcr.settings import CompareSettings
from lsvcr.utils.errors import UserError

COLD = "cold"
LEVEL = 1 - CONFIDENCE
"""A corrected p-value below it is marked."""


@dataclass
class Row:
    """A row as far as it has come.

    Attributes:
        recipe: which row, and the settings it began with.
        chosen: settings of the search that are used.
        trials: each with `settings`, `value` on validation, `why` it failed, `folder`.
        jobs: finished models, one a seed; empty where it failed.
        why: it failed.
    """

    recipe: Recipe
    chosen: Mapping[str, Any] = field(default_factory=dict)
    trials: list[dict[str, Any]] = field(default_factory=list)
    jobs: list[Job] = field(default_factory=list)
    why: str = ""

    @property
    def member(self) -> Member:
        """Which row it is."""
        return self.recipe.member

    def validations(self, drawn: Drawn | None) -> list[Result]:
        """Results on validation, one a model."""
        return [on_rows(job.validation(), drawn) for job in self.jobs]

    def tests(self, drawn: Drawn | None) -> list[Result]:
        """Results on test, one a model."""
        return [on_rows(job.test(), drawn) for job in self.jobs]


def on_rows(result: Result, drawn: Drawn | None) -> Result:
    """A result's part on drawn rows, as if these alone had been measured; as it is, if they are or `drawn` is None.

    A row's value does not depend on other rows. What no row has a share in is left out; the two counts stay those of
    the whole split.
    """
    if drawn is None or drawn.about in result.fingerprint.split:
        return result
    here = np.isin(result.rows, drawn.rows)
    return replace(
        result,
        fingerprint=drawn.mark(result.fingerprint),
        rows=result.rows[here],
        values={name: values[here] for name, values in result.values.items()},
        slices={name: mask[here] for name, mask in result.slices.items()},
        overall={},
        users=None if result.users is None else result.users[here],
    )


def columns(settings: CompareSettings) -> list[str]:
    """The metrics of the table, each once."""
    names = list(dict.fromkeys(settings.metrics.lower().replace(",", " ").split()))
    if not names:
        raise UserError("--metrics wants names with commas between them, such as recall@10,ndcg@10")
    return names


def main_metric(chosen: str, metrics: Sequence[str]) -> str:
    """The column that has interval, spread, test and cold part: the metric that chose, or the one most like it."""
    alike = [name for name in metrics if name.partition("@")[0] == chosen.partition("@")[0]]
    return chosen if chosen in metrics else (alike or metrics)[0]


def report_of(
    rows: Sequence[Row],
    settings: CompareSettings,
    dataset: Dataset,
    left_out: Mapping[str, str],
    answer_ms: Mapping[str, float],
) -> dict[str, Any]:
    """What `compare.json` holds.

    Raises:
        UserError: two rows were measured under different protocols.
    """
    done = [row for row in rows if row.jobs]
    drawn = {split: drawn_of(settings, dataset, split) for split in (Split.VAL, Split.TEST)}
    results = {
        row.member.name: [with_users(result, dataset) for result in row.tests(drawn[Split.TEST])]
        for row in done
    }
    validations = _validations(done, drawn[Split.VAL], settings.metric)
    baselines = {row.member.name: validations[row.member.name] for row in done if not row.member.is_product}
    reference = max(baselines, key=lambda name: baselines[name]) if baselines else None
    metrics = columns(settings)
    main = main_metric(settings.metric.lower(), metrics)
    figures = compared(results, metrics, main, reference)
    fingerprint = next(iter(results.values()))[0].fingerprint
    return {
        "task": fingerprint.task,
        "task_label": Task(fingerprint.task).label,
        "split": fingerprint.split,
        "data": settings.data,
        "data_hash": dataset.data_hash,
        "fingerprint": fingerprint.to_json(),
        "metric": settings.metric.lower(),
        "metrics": metrics,
        "main": main,
        "seeds": [settings.seed + place for place in range(settings.seeds)],
        "trials": settings.trials,
        "epochs": settings.epochs,
        "max_rows": settings.max_rows,
        "reference": reference,
        "statistics": statistics(reference, settings.metric.lower()),
        "rows": [_row(row, figures, validations, answer_ms) for row in rows],
        "left_out": dict(left_out),
    }


def statistics(reference: str | None, metric: str) -> list[str]:
    """In sentences, what the numbers of a comparison mean."""
    said = [
        f"Values are means over test rows and seeds. Intervals: {100 * CONFIDENCE:.0f} %, percentile bootstrap over "
        f"the users ({RESAMPLES:,} resamples), each with all test rows of that user, of each row's value averaged over "
        "the seeds. The spread is the standard deviation of the seeds' means, apart from that.",
    ]
    if reference is None:
        return [*said, "No baseline is in the table, so nothing was tested."]
    return [
        *said,
        f"Differences are against {reference}, the best baseline by {metric} on validation: paired t-tests over users "
        "of the row values averaged over seeds. Their p-values are corrected (Holm) for the comparisons of all rows "
        "with it in that metric, each metric and the cold part for itself: read the metric that was named beforehand. "
        "They say whether these trained models differ on other users; how much another training would differ, the "
        "spread says.",
        f"* = corrected p below {LEVEL:.2g}.",
    ]


def averaged(results: Sequence[Result]) -> Result:
    """One result whose row values are means over those of several seeds.

    Raises:
        UserError: they have different protocols or rows.
    """
    first = results[0]
    same_protocol({f"seed {number}": result for number, result in enumerate(results, start=1)})
    if any(not np.array_equal(result.rows, first.rows) for result in results):
        raise UserError("the seeds' results do not cover the same rows; train them again in an empty --out")
    values = {name: np.mean([result.values[name] for result in results], axis=0) for name in first.values}
    return replace(first, values=values)


def compared(
    results: Mapping[str, Sequence[Result]], metrics: Sequence[str], main: str, reference: str | None
) -> dict[str, dict[str, Any]]:
    """The figures of every row.

    Args:
        results: test results by row, one a seed.
        metrics: what is shown.
        main: the one of `metrics` whose cold part is shown, too.
        reference: the row that the others are tested against; None = no tests.

    Returns:
        By row `metrics` and `cold` (one metric; None where no or one user's rows are cold, or all): name -> `value`,
        `rows`, `users`, `interval`, `by_seed`, `spread` (None for one seed) and `versus` (None where there is no test).

    Raises:
        UserError: results of different protocols or rows.
    """
    means = {name: averaged(found) for name, found in results.items()}
    same_protocol(means)
    parts: dict[str, tuple[str | None, list[str]]] = {"metrics": (None, list(metrics))}
    if all(
        COLD in mean.slices and mean.count_users(COLD) > 1 and not mean.slices[COLD].all()
        for mean in means.values()
    ):
        parts[COLD] = (COLD, [main])
    found: dict[str, dict[str, Any]] = {}
    for name in results:
        found[name] = {part: _figures(results[name], means[name], *asked) for part, asked in parts.items()}
        found[name].setdefault(COLD, None)
    if reference is not None and means[reference].count_users() > 1:
        _test(found, means, parts, reference)
    return found


def _figures(
    results: Sequence[Result], mean: Result, part: str | None, metrics: Sequence[str]
) -> dict[str, dict[str, Any]]:
    """Figures of a row without tests, for all test rows or a part of them."""
    mask = np.ones(len(mean.rows), dtype=bool) if part is None else mean.slices[part]
    users = None if mean.users is None else mean.users[mask]
    low, high = bootstrap_interval(np.stack([mean.values[name][mask] for name in metrics], axis=1), users)
    found = {}
    for place, name in enumerate(metrics):
        by_seed = [float(result.values[name][mask].mean()) for result in results]
        found[name] = {
            "value": float(mean.values[name][mask].mean()),
            "rows": int(mask.sum()),
            "users": mean.count_users(part),
            "interval": [float(low[place]), float(high[place])],
            "by_seed": by_seed,
            "spread": float(np.std(by_seed, ddof=1)) if len(by_seed) > 1 else None,
            "versus": None,
        }
    return found


def _test(
    found: dict[str, dict[str, Any]],
    means: Mapping[str, Result],
    parts: Mapping[str, tuple[str | None, list[str]]],
    reference: str,
) -> None:
    """Put the tests against the reference into the figures.

    A family of tests, corrected together, is what a reader asks of one column: which rows differ from the reference?
    Metrics of the same lists rise and fall together, so that to count each of them as one more test would only hide
    what the column asked for shows.
    """
    families: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for name, mean in means.items():
        if name == reference:
            continue
        for part, (where, metrics) in parts.items():
            for c in paired_all(mean, means[reference], metrics, where):
                test = {
                    "difference": c.difference,
                    "interval": list(c.interval),
                    "t_p": c.t_p,
                    "bootstrap_p": c.bootstrap_p,
                }
                found[name][part][c.metric]["versus"] = test
                families.setdefault((part, c.metric), []).append(test)
    for tests in families.values():
        for test, p in zip(tests, holm([test["t_p"] for test in tests]), strict=True):
            test["holm_p"] = p


def _validations(done: Sequence[Row], drawn: Drawn | None, metric: str) -> dict[str, float]:
    """Mean of the validation metric over the models, by row; settings and baseline must be chosen by one measure."""
    found = {row.member.name: row.validations(drawn) for row in done}
    same_protocol(
        {
            f"{name} (validation, model {place})": result
            for name, results in found.items()
            for place, result in enumerate(results, start=1)
        }
    )
    return {
        name: float(np.mean([result.mean(metric) for result in results])) for name, results in found.items()
    }


def drawn_of(settings: CompareSettings, dataset: Dataset, split: Split) -> Drawn | None:
    """The rows that the table is about; None = all."""
    total = len(dataset.samples(Task.parse(settings.task), split))
    return draw(total, settings.max_rows, settings.seed, split)


def _row(
    row: Row,
    figures: Mapping[str, Mapping[str, Any]],
    validations: Mapping[str, float],
    answer_ms: Mapping[str, float],
) -> dict[str, Any]:
    member = row.member
    about = {
        "name": member.name,
        "summary": member.summary,
        "baseline": not member.is_product,
        "failed": row.why or None,
        "file": row.recipe.file,
        "searched": list(row.recipe.search) if row.trials else [],
        "fallback_search": row.recipe.fallback and bool(row.trials),
        "trials": row.trials,
    }
    if not row.jobs:
        return about
    outcomes = [job.outcome() for job in row.jobs]
    seconds = [outcome["seconds"] for outcome in outcomes]
    return {
        **about,
        **figures[member.name],
        "validation": validations[member.name],
        "chosen": dict(row.chosen) if row.trials else {},
        "details": [outcome["detail"] for outcome in outcomes if "detail" in outcome],
        "seconds": None if None in seconds else float(np.mean(seconds)),
        "epochs": [outcome["epoch"] for outcome in outcomes],
        "parameters": outcomes[0]["parameters"],
        "answer_ms": answer_ms.get(member.name, outcomes[0].get("answer_ms")),
        "asks_llm": member.asks_llm,
        "runs": [str(job.run) for job in row.jobs],
        "settings": dict(row.jobs[0].settings),
        "inputs": dict(row.jobs[0].inputs),
    }
