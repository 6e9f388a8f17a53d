"""The report of `lsvcr doctor` for a person."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from lsvcr.data.audit_facts import QUANTILES
from lsvcr.experiments.doctor_texts import SAMPLES, TEXTS
from lsvcr.schema import Split, Task

_LABELS = {task.value: task.label for task in Task}
_COLUMNS = ("min", *QUANTILES, "max")
_NARROWEST = 110


def print_report(report: Mapping[str, Any]) -> None:
    """Print what `diagnose` gives."""
    console = Console()
    # A narrow terminal breaks lines; rich would shorten names and figures to fit it.
    console = Console(width=max(console.width, _NARROWEST), highlight=False)
    console.print(
        f"[bold]{escape(report['data'])}[/bold]  {report['split']} split, hash {report['data_hash'][:12]}"
    )
    if report["sound"]:
        for table in _tables(report):
            console.print(table)
        for line in (
            *_about_shares(report),
            *_about_texts(report),
            *_about_vectors(report),
            *_about_cost(report),
        ):
            console.print(escape(line))
    for line in _about_checks(report):
        console.print(line)
    if report["sanity"]:
        console.print(_sanity_table(report["sanity"]))
    if report["warnings"]:
        console.print("\n[bold]Warnings[/bold]")
    for warning in report["warnings"]:
        console.print(f"- {escape(warning['says'])}")
    if report["written"]:
        console.print(f"\nSettings fitted to the data are in {escape(' and '.join(report['written']))}.")
    if report["next"]:
        console.print("\n[bold]Next[/bold]")
    for command in report["next"]:
        # As it is to be typed: not broken into lines.
        console.print(f"  {escape(command)}", soft_wrap=True)


def _tables(report: Mapping[str, Any]) -> Iterator[Table]:
    counts, lengths = report["counts"], report["lengths"]
    kinds = ["users", "videos", "comments", "video_events", "comment_events", "impressions"]
    kinds = [kind for kind in kinds if counts[kind] is not None]
    named_kinds = ["likes" if kind == "video_events" else kind.replace("_", " ") for kind in kinds]
    yield _table("", named_kinds, [["", *(_number(counts[kind]) for kind in kinds)]])
    yield _table(
        "samples",
        [split.value for split in Split] + ["candidates, test"],
        [
            [
                _LABELS[task],
                *(_number(counts["samples"][task][split.value]) for split in Split),
                _number(counts["candidates"][task][Split.TEST.value]),
            ]
            for task in counts["samples"]
        ],
    )
    named = {
        f"{side.replace('_', ' ')}, {_LABELS[task]} {split}": found
        for side in ("video_history", "comment_history")
        for task, splits in lengths[side].items()
        for split, found in splits.items()
    }
    named |= {
        name.replace("_", " "): found
        for name, found in lengths.items()
        if name not in ("video_history", "comment_history")
    }
    for name, part in report["texts"].items():
        named[f"{name}, characters"] = part["characters"]
    for name, part in (report["tokens"] or {}).items():
        named[f"{name}, tokens"] = part["tokens"]
    for task, part in (report["prompts"] or {}).items():
        named[f"prompts, {_LABELS[task]}, tokens"] = part["prompt"]
    rows = [[name, *(_number(found[key]) for key in _COLUMNS)] for name, found in named.items() if found]
    yield _table(
        "quantiles", [name.replace("p", "") + " %" if name in QUANTILES else name for name in _COLUMNS], rows
    )


def _sanity_table(sanity: Sequence[Mapping[str, Any]]) -> Table:
    """What is known of two scorers beside what evaluation gives them."""
    rows = []
    for row in sanity:
        figures = [
            f"{_figure(row[name]['got'])} / {_figure(row[name]['expected'])}"
            for name in ("ndcg@10", "mrr@10")
        ]
        task = f"{_LABELS[row['task']]}, {row['protocol']}, {row['scorer']}"
        rows.append([task, _number(row["rows"]), *figures, "holds" if row["ok"] else "[red]FAILS[/red]"])
    return _table(
        "scorer of a known result", ["rows", "NDCG@10, got / expected", "MRR@10, got / expected", ""], rows
    )


def _table(title: str, columns: list[str], rows: list[list[str]]) -> Table:
    table = Table(box=box.SIMPLE_HEAD)
    table.add_column(title)
    for column in columns:
        table.add_column(column, justify="right")
    for row in rows:
        table.add_row(*row)
    return table


def _about_shares(report: Mapping[str, Any]) -> Iterator[str]:
    shares, span = report["shares"], report["time"]
    if span["first"] and span["last"]:
        yield f"Events from {span['first']} to {span['last']} (UTC)."
    told = {
        "likes at the time of the one before": shares["likes_at_the_time_of_the_one_before"],
        "comment events likewise": shares["comment_events_at_the_time_of_the_one_before"],
        "test targets tied with the event before, Rec": shares["test_targets_tied_with_the_event_before"][
            "rec"
        ],
        "raw likes that repeat an earlier one": shares["repeated_likes_of_raw"],
        "cold videos (fewer than 5 training interactions)": shares["cold_videos"],
        "cold test targets, Rec": shares["cold_test_targets"]["rec"],
        "unseen test targets, Rec": shares["unseen_test_targets"]["rec"],
        "videos without comments": shares["videos_without_comments"],
        "CommRank test rows with one candidate": shares["comm_rank_rows_with_one_candidate"]["test"],
        "likes on the top 1 % of the videos": shares["likes_on_the_top_videos"],
    }
    if shares["clicked_impressions"] is not None:
        told |= {
            "impressions clicked": shares["clicked_impressions"],
            "of them told by a like instead of a click": shares["clicks_taken_from_likes"],
            "raw impressions left out": shares["impressions_left_out"],
        }
    yield "Shares: " + "; ".join(f"{name} {_share(value)}" for name, value in told.items()) + "."


def _about_texts(report: Mapping[str, Any]) -> Iterator[str]:
    for name, part in report["texts"].items():
        line = (
            f"{name.capitalize()}: {_share(part['empty'])} empty, {_share(part['shared_with_another'])} shared with "
            "another"
        )
        top = ", ".join(f"{entry['text']!r} {entry['times']:,} times" for entry in part["most_repeated"])
        yield f"{line} ({top})." if top else f"{line}."
    if report["tokens"] is None:
        yield "No tokens were counted: name an LLM with --llm for them and for estimates of stage one."
        return
    longer = ", ".join(
        f"{_share(part['longer_than_max_text_length'])} of {part['texts']:,} {name}"
        for name, part in report["tokens"].items()
    )
    yield (
        f"Tokens of {report['llm']}, of at most {TEXTS:,} texts of each kind and {SAMPLES} training samples a task, "
        f"drawn with a fixed seed. Longer than 64 tokens: {longer}."
    )


def _about_vectors(report: Mapping[str, Any]) -> Iterator[str]:
    for part in report["embeddings"]:
        where = f"{part['folder']}/{part['file']}"
        if part["problem"] is not None:
            yield f"{where}: {part['problem']}"
            continue
        known = {
            None: "not described beside it",
            True: "made for this dataset",
            False: "made for ANOTHER dataset",
        }
        yield (
            f"{where}: {part['rows']:,} x {part['width']}, {known[part['made_for_this_data']]}, "
            f"{part['not_finite_rows']:,} rows with NaN or infinity, {part['zero_rows']:,} zero rows with text, "
            f"{_share(part['shared_by_different_texts'])} of the texts without a vector of their own, "
            f"mean norm {_figure(part['mean_norm'])}, mean cosine to the mean {_figure(part['mean_cosine'])}."
        )


def _about_cost(report: Mapping[str, Any]) -> Iterator[str]:
    one, two = report["estimates"]["stage_one"], report["estimates"]["stage_two"]
    yield ""
    if one is not None:
        each = ", ".join(
            f"{_LABELS[task]} {part['samples']:,} samples of {part['tokens_a_sample']:,} tokens"
            for task, part in one["tasks"].items()
        )
        yield (
            f"Stage one, estimated at an assumed {one['tokens_per_second']:g} tokens a second: {each}; "
            f"{_duration(one['hours_an_epoch'])} an epoch, {one['epochs']:g} epochs; "
            f"all text vectors {_duration(one['embed_hours'])}. A process takes about "
            f"{_bytes(one['memory']['process_bytes'])} of memory: weights {_bytes(one['memory']['weights_bytes'])}, "
            f"activations {_bytes(one['memory']['activation_bytes'])}, training state "
            f"{_bytes(one['memory']['training_state_bytes'])}, and the libraries."
        )
    each = ", ".join(
        f"{_LABELS[task]} {_duration(minutes / 60)} an epoch"
        for task, minutes in two["minutes_an_epoch"].items()
    )
    yield (
        f"Stage two, estimated at an assumed {two['gflops']:g} GFLOP a second: {each or 'no training samples'}; "
        f"{two['id_parameters']:,} id parameters, {_bytes(two['training_state_bytes'])} of weights, gradients and "
        f"moments, {_bytes(two['text_table_bytes'])} of text vectors on disk, {_bytes(two['scores_bytes'])} of scores "
        f"a batch of {two['batch']}."
    )


def _about_checks(report: Mapping[str, Any]) -> Iterator[str]:
    checks = report["checks"]
    failed = [check for check in checks if not check["ok"]]
    yield ""
    yield f"[bold]Checks[/bold]  {len(checks) - len(failed)} of {len(checks)} hold, each over all rows"
    for check in failed:
        yield (
            f"[red]FAILS[/red] {check['where']}: {check['says']}: not so in {check['failed']:,} of "
            f"{check['rows']:,} rows, first {escape(str(check['first']))}"
        )
    if not report["sound"]:
        yield "The arrays cannot be followed, so nothing more was looked at."


def _number(value: float) -> str:
    return f"{value:,.0f}"


def _figure(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"


def _share(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:.1%}" if not 0 < value < 0.001 else "below 0.1%"


def _duration(hours: float) -> str:
    """Two digits at most, as befits an estimate."""
    for limit, unit, size in ((1 / 60, "s", 3600), (1, "min", 60), (48, "h", 1)):
        if hours < limit:
            return f"{float(f'{hours * size:.2g}'):g} {unit}"
    return f"{float(f'{hours / 24:.2g}'):,.0f} days"


def _bytes(value: float) -> str:
    for size, unit in ((2**30, "GB"), (2**20, "MB")):
        if value >= size:
            return f"{value / size:.1f} {unit}"
    return f"{value / 2**10:.1f} KB"
