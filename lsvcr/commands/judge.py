"""What measures, compares and shows."""

import sys
from collections.abc import Sequence

from lsvcr.baselines.generative_settings import GroundSettings
from lsvcr.commands.command import Command, print_report
from lsvcr.settings import (
    ClickReportSettings,
    CompareSettings,
    EvaluateLlmSettings,
    EvaluateSettings,
    ReportSettings,
    TableSettings,
)
from lsvcr.utils.arguments import parse_settings
from lsvcr.utils.errors import UserError

FAILED_CODE = 1
"""Exit code of a comparison in which a model failed: the others have their figures."""

_TABLE = 'lsvcr table --data demo/data "ids only=demo/ids" "both stages=demo/aligned"'
_CLICKS = 'lsvcr clicks-report "NT=demo/nt" "FT&SF=demo/clicks" --out demo/clicks.html'
_CLICKS_SUMMARY = "Draw AUC and loss of click models epoch by epoch, on one page."
_TABLE_SUMMARY = "Set finished stage-two runs side by side, with popularity, under one protocol."


def _ground(settings: GroundSettings) -> None:
    from lsvcr.experiments.ground import ground, print_ground

    print_report(ground(settings), settings.json, print_ground)


def _evaluate(settings: EvaluateSettings) -> None:
    metrics = _names(settings.metrics)
    if settings.against:
        from lsvcr.experiments import against

        question = against.Question(
            settings.data, settings.split, settings.protocol, metrics, settings.filter_seen
        )
        report = against.compare(settings.checkpoint, settings.against, question)
        print_report(report, settings.json, against.print_comparison)
        return
    if not settings.data:
        raise UserError(f"lsvcr evaluate needs --data, as in: {COMMANDS['evaluate'].example}")
    from lsvcr.training.rank_evaluate import evaluate_checkpoint, show

    report = evaluate_checkpoint(
        settings.checkpoint, settings.data, settings.split, settings.protocol, metrics, settings.filter_seen
    )
    print_report(report, settings.json, lambda measured: show(measured, metrics))


def _evaluate_llm(settings: EvaluateLlmSettings) -> None:
    from lsvcr.training.llm_rank import evaluate_llm
    from lsvcr.training.rank_evaluate import show

    report = evaluate_llm(settings)
    print_report(report, settings.json, show)
    if not settings.json:
        took = report["reading"]
        sys.stdout.write(
            f"{took['prompts']} prompts, {took['ms_a_row']:.1f} ms each; written: {report['folder']}\n"
        )


def _names(text: str) -> tuple[str, ...]:
    """The words of a list with commas or blanks between them, lower case, each once."""
    return tuple(dict.fromkeys(text.lower().replace(",", " ").split()))


def _table(words: Sequence[str]) -> None:
    named, flags = split_runs(words)
    settings = parse_settings(TableSettings, flags, "lsvcr table LABEL=FOLDER ...", _TABLE_SUMMARY, _TABLE)
    if not settings.data:
        raise UserError(f"lsvcr table needs --data, as in: {_TABLE}")
    runs = parse_runs(named)
    from lsvcr.experiments.table import compare_runs, print_table

    print_report(compare_runs(settings.data, runs, settings.protocol), settings.json, print_table)


def _clicks_report(words: Sequence[str]) -> None:
    named, flags = split_runs(words)
    settings = parse_settings(
        ClickReportSettings, flags, "lsvcr clicks-report LABEL=FOLDER ...", _CLICKS_SUMMARY, _CLICKS
    )
    runs = parse_runs(named, _CLICKS, taken=())
    from lsvcr.experiments.clicks_report import write_curves

    sys.stdout.write("".join(f"{path}\n" for path in write_curves(runs, settings.out)))


def split_runs(argv: Sequence[str]) -> tuple[list[str], list[str]]:
    """The words of `lsvcr table` that name runs, and the flags with their values, each in order."""
    runs: list[str] = []
    flags: list[str] = []
    words = list(argv)
    while words:
        word = words.pop(0)
        if not word.startswith("-"):
            runs.append(word)
            continue
        flags.append(word)
        # `--json` may stand bare in front of a run; every other flag has a value.
        if "=" not in word and words and (word != "--json" or words[0].lower() in ("true", "false")):
            flags.append(words.pop(0))
    return runs, flags


def parse_runs(
    words: Sequence[str], example: str = _TABLE, taken: Sequence[str] = ("popularity",)
) -> dict[str, str]:
    """Folder by label, in the order given.

    Args:
        words: each `LABEL=FOLDER`, where FOLDER holds the runs Rec/ and CommRank/ (one of them is enough) or is a run.
        example: a command that is right, for messages.
        taken: labels that are not free.

    Raises:
        UserError: no run, a word of another form, or a label that comes twice or is the table's own.
    """
    runs: dict[str, str] = {}
    for word in words:
        label, _, folder = (part.strip() for part in word.partition("="))
        if not label or not folder:
            raise UserError(f"{word!r} does not have the form LABEL=FOLDER, as in {example}")
        if label in runs or label in taken:
            raise UserError(f"there is a row {label!r} already: give {folder} another label")
        runs[label] = folder
    if not runs:
        raise UserError(
            f"`{' '.join(example.split()[:2])}` needs at least one LABEL=FOLDER, as in: {example}"
        )
    return runs


def _compare(settings: CompareSettings) -> None:
    if settings.models == "list":
        from lsvcr.experiments.compare_models import members

        sys.stdout.write("".join(f"  {m.name:<20} {m.summary}\n" for m in members().values()))
        return
    missing = [f"--{name}" for name in ("data", "out") if not getattr(settings, name)]
    if missing:
        raise UserError(f"lsvcr compare needs {' and '.join(missing)}, as in: {COMMANDS['compare'].example}")
    from lsvcr.experiments import compare_text
    from lsvcr.experiments.compare import compare, files

    report = compare(settings)
    print_report(report, settings.json, compare_text.print_report)
    if not settings.json:
        sys.stdout.write(f"written: {', '.join(map(str, files(settings.out)))}\n")
    if compare_text.failed(report):
        raise SystemExit(FAILED_CODE)


def _report(settings: ReportSettings) -> None:
    from lsvcr.experiments.report import write_report

    sys.stdout.write(f"{write_report(settings)}\n")


COMMANDS = {
    "ground": Command(
        "Rank the whole catalogue by what was generated, in every way, with curves.",
        "lsvcr ground ckpt/generative --decoding trie --collaborative ckpt/finetune",
        _ground,
        GroundSettings,
        places=("run",),
        needs=("run",),
    ),
    "evaluate": Command(
        "Measure a checkpoint of stage two or of `lsvcr train` under the named protocols, alone or against another.",
        "lsvcr evaluate ckpt/finetune --data demo/data --split test --json",
        _evaluate,
        EvaluateSettings,
        places=("checkpoint",),
        needs=("checkpoint",),
    ),
    "evaluate-llm": Command(
        "Measure stage one's LLM itself as a recommender, on the rows that all others are measured on.",
        "lsvcr evaluate-llm ckpt/LSVCR --data demo/data --task Rec --max_rows 500",
        _evaluate_llm,
        EvaluateLlmSettings,
        places=("run",),
        needs=("run", "data"),
    ),
    "table": Command(_TABLE_SUMMARY, _TABLE, _table),
    "clicks-report": Command(_CLICKS_SUMMARY, _CLICKS, _clicks_report),
    "compare": Command(
        "Train many models under one protocol and one budget, and set them side by side with intervals and tests.",
        "lsvcr compare --data demo/data --models popularity,sasrec,lsvcr-id --out demo/compare --trials 4",
        _compare,
        CompareSettings,
    ),
    "report": Command(
        "Write one HTML page about a run: curves, settings, data, timings, test figures.",
        "lsvcr report ckpt/LSVCR --out align.html",
        _report,
        ReportSettings,
        places=("run",),
        needs=("run",),
    ),
}
