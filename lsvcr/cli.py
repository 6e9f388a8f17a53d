"""The `lsvcr` command. Each sub-command imports what it needs when it runs, so that help is instant."""

import json
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from lsvcr.settings import (
    CompareSettings,
    ConvertSettings,
    DoctorSettings,
    EmbedSettings,
    ExportOfficialSettings,
    PrepareSettings,
    ReportSettings,
    SimulateSettings,
    option,
)
from lsvcr.utils.arguments import nearest, parse_settings
from lsvcr.utils.errors import UserError, exit_code
from lsvcr.utils.logging import quiet_third_party

if TYPE_CHECKING:
    from lsvcr.baselines.registry import Entry


FAILED_CODE = 1
"""Exit code of a comparison in which a model failed: the others have their figures."""


@dataclass
class EvaluateSettings:
    """Settings of `lsvcr evaluate`."""

    checkpoint: str = option("", "run folder of stage two or of `lsvcr train`, or its best/ or last/")
    data: str = option("", "prepared dataset")
    split: Literal["test", "val"] = option("test", "which samples to rank")
    protocol: Literal["all", "full", "sampled"] = option(
        "all",
        "candidates: the full catalogue (CommRank: the video's comments), those stored with the dataset, or all = one "
        "after the other",
    )
    metrics: str = option(
        "",
        "such as ndcg@10,map@20: recall, hr, precision, ndcg, mrr and map at any K; for Rec on the full catalogue also "
        "coverage, gini, novelty, arp and popularity_bias; empty = those of metrics.json",
    )
    filter_seen: bool = option(False, "Rec: videos of a user's history do not rank, unless one is the target")
    against: str = option(
        "",
        "another run folder: tell the difference, with paired tests; --data is needed where rows are not stored",
    )
    json: bool = option(False, "print one JSON object instead of a table")


@dataclass
class TableSettings:
    """Settings of `lsvcr table`, apart from its LABEL=FOLDER words."""

    data: str = option("", "prepared dataset that all runs were trained on")
    protocol: Literal["full", "sampled"] = option(
        "full",
        "candidates: the full catalogue (CommRank: the video's comments), or those stored with the dataset",
    )
    json: bool = option(False, "print one JSON object instead of a table")


@dataclass(frozen=True)
class Command:
    """A sub-command: what `lsvcr` alone says of it, and what runs it."""

    summary: str
    example: str
    run: Callable[[Sequence[str]], None]


def main(argv: Sequence[str] | None = None) -> int:
    """Run `lsvcr NAME ...`; exit code 0, 2 for what the user can mend, 130 after Ctrl-C."""
    return exit_code(_dispatch, list(sys.argv[1:] if argv is None else argv))


def _dispatch(argv: Sequence[str]) -> None:
    if not argv or argv[0] in ("--help", "-h", "help"):
        sys.stdout.write(_overview())
        return
    if argv[0] == "--version":
        from lsvcr import __version__

        sys.stdout.write(f"lsvcr {__version__}\n")
        return
    name, rest = argv[0], argv[1:]
    if name not in COMMANDS:
        raise UserError(f"unknown command {name!r}; {nearest(name, COMMANDS) or '`lsvcr` lists them'}")
    quiet_third_party()
    COMMANDS[name].run(rest)


def _simulate(argv: Sequence[str]) -> None:
    settings = parse_settings(SimulateSettings, argv, "lsvcr simulate", *_about("simulate"))
    _require("simulate", out=settings.out)
    from lsvcr.data.simulation import simulate

    simulate(settings)


def _prepare(argv: Sequence[str]) -> None:
    settings = parse_settings(PrepareSettings, argv, "lsvcr prepare", *_about("prepare"), ("source",))
    _require("prepare", raw=settings.raw, out=settings.out)
    from lsvcr.data.prepare import prepare

    prepare(settings)


def _doctor(argv: Sequence[str]) -> None:
    settings = parse_settings(DoctorSettings, argv, "lsvcr doctor", *_about("doctor"), ("data",))
    _require("doctor", data=settings.data)
    from lsvcr.experiments.doctor import diagnose, failure, print_report

    report = diagnose(settings)
    if settings.json:
        sys.stdout.write(json.dumps(report) + "\n")
    else:
        print_report(report)
    sentence = failure(report)
    if sentence:
        raise UserError(sentence)


def _export_official(argv: Sequence[str]) -> None:
    settings = parse_settings(
        ExportOfficialSettings, argv, "lsvcr export-official", *_about("export-official"), ("data",)
    )
    _require("export-official", data=settings.data, out=settings.out)
    from lsvcr.data.export_official import export_official

    export_official(settings.data, settings.out, settings.max_history, settings.embeddings)


def _embed(argv: Sequence[str]) -> None:
    settings = parse_settings(EmbedSettings, argv, "lsvcr embed", *_about("embed"))
    from lsvcr.training.embed import embed

    embed(settings)


def _convert(argv: Sequence[str]) -> None:
    settings = parse_settings(ConvertSettings, argv, "lsvcr convert", *_about("convert"), ("checkpoint",))
    _require(
        "convert",
        checkpoint=settings.checkpoint,
        model_name_or_path=settings.model_name_or_path,
        out=settings.out,
    )
    from lsvcr.training.convert import convert

    convert(settings)


def _evaluate(argv: Sequence[str]) -> None:
    settings = parse_settings(EvaluateSettings, argv, "lsvcr evaluate", *_about("evaluate"), ("checkpoint",))
    if settings.against:
        _evaluate_against(settings)
        return
    _require("evaluate", checkpoint=settings.checkpoint, data=settings.data)
    from lsvcr.training.rank_evaluate import evaluate_checkpoint, show

    metrics = _names(settings.metrics)
    report = evaluate_checkpoint(
        settings.checkpoint, settings.data, settings.split, settings.protocol, metrics, settings.filter_seen
    )
    if settings.json:
        sys.stdout.write(json.dumps(report) + "\n")
    else:
        show(report, metrics)


def _evaluate_against(settings: EvaluateSettings) -> None:
    _require("evaluate", checkpoint=settings.checkpoint)
    from lsvcr.experiments.against import Question, compare, print_comparison

    question = Question(
        settings.data, settings.split, settings.protocol, _names(settings.metrics), settings.filter_seen
    )
    report = compare(settings.checkpoint, settings.against, question)
    if settings.json:
        sys.stdout.write(json.dumps(report) + "\n")
    else:
        print_comparison(report)


def _names(text: str) -> tuple[str, ...]:
    """The words of a list with commas or blanks between them, lower case, each once."""
    return tuple(dict.fromkeys(text.lower().replace(",", " ").split()))


def _train(argv: Sequence[str]) -> None:
    from lsvcr.baselines.registry import entries, find

    if not argv or argv[0] in ("--help", "-h"):
        sys.stdout.write(_recommenders(entries()))
        raise SystemExit(0)
    name, example = argv[0], COMMANDS["train"].example
    if name.startswith("-"):
        raise UserError(f"lsvcr train needs the name of a recommender first, as in: {example}")
    entry = find(name)
    example = example.replace("sasrec", name)
    settings = parse_settings(entry.settings, argv[1:], f"lsvcr train {name}", entry.summary, example)
    from lsvcr.training.baseline import run

    run(name, settings)


def _recommenders(known: "Mapping[str, Entry]") -> str:
    summary, example = _about("train")
    lines = [
        "usage: lsvcr train NAME [--flag value ...]   (lsvcr train NAME --help tells the flags)",
        "",
        summary,
        "",
        "example:",
        f"  {example}",
        "",
        "recommenders:",
    ]
    lines += [f"  {name:<20} {entry.summary}" for name, entry in known.items()]
    return "\n".join(lines) + "\n"


def _table(argv: Sequence[str]) -> None:
    words, flags = split_runs(argv)
    settings = parse_settings(TableSettings, flags, "lsvcr table LABEL=FOLDER ...", *_about("table"))
    _require("table", data=settings.data)
    runs = parse_runs(words)
    from lsvcr.experiments.table import compare_runs, print_table

    report = compare_runs(settings.data, runs, settings.protocol)
    if settings.json:
        sys.stdout.write(json.dumps(report) + "\n")
    else:
        print_table(report)


def _compare(argv: Sequence[str]) -> None:
    settings = parse_settings(CompareSettings, argv, "lsvcr compare", *_about("compare"))
    if settings.models == "list":
        from lsvcr.experiments.compare_models import members

        sys.stdout.write("".join(f"  {m.name:<20} {m.summary}\n" for m in members().values()))
        return
    _require("compare", data=settings.data, out=settings.out)
    from lsvcr.experiments.compare import compare, files
    from lsvcr.experiments.compare_text import failed, print_report

    report = compare(settings)
    if settings.json:
        sys.stdout.write(json.dumps(report) + "\n")
    else:
        print_report(report)
        sys.stdout.write(f"written: {', '.join(map(str, files(settings.out)))}\n")
    if failed(report):
        raise SystemExit(FAILED_CODE)


def _report(argv: Sequence[str]) -> None:
    settings = parse_settings(ReportSettings, argv, "lsvcr report", *_about("report"), ("run",))
    _require("report", run=settings.run)
    from lsvcr.experiments.report import write_report

    sys.stdout.write(f"{write_report(settings)}\n")


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


def parse_runs(words: Sequence[str]) -> dict[str, str]:
    """Folder by label, in the order given.

    Args:
        words: each `LABEL=FOLDER`, where FOLDER holds the runs Rec/ and CommRank/ (one of them is enough) or is a run.

    Raises:
        UserError: no run, a word of another form, or a label that comes twice or is the table's own.
    """
    runs: dict[str, str] = {}
    for word in words:
        label, _, folder = (part.strip() for part in word.partition("="))
        if not label or not folder:
            raise UserError(
                f"{word!r} does not have the form LABEL=FOLDER, as in {COMMANDS['table'].example}"
            )
        if label in runs or label == "popularity":
            raise UserError(f"there is a row {label!r} already: give {folder} another label")
        runs[label] = folder
    if not runs:
        raise UserError(f"lsvcr table needs at least one LABEL=FOLDER, as in: {COMMANDS['table'].example}")
    return runs


def _require(name: str, **values: str) -> None:
    missing = [f"--{field}" for field, value in values.items() if not value]
    if missing:
        raise UserError(f"lsvcr {name} needs {' and '.join(missing)}, as in: {COMMANDS[name].example}")


def _about(name: str) -> tuple[str, str]:
    return COMMANDS[name].summary, COMMANDS[name].example


def _overview() -> str:
    lines = [
        "usage: lsvcr COMMAND [--flag value ...]   (lsvcr COMMAND --help tells the flags)",
        "",
        "commands:",
    ]
    lines += [f"  {name:<16} {command.summary}" for name, command in COMMANDS.items()]
    lines += ["", "training: bash scripts/run_lora.sh (stage one), bash scripts/finetune.sh (stage two)"]
    return "\n".join(lines) + "\n"


COMMANDS = {
    "simulate": Command(
        "Write the raw logs of a small video world whose truth is known.",
        "lsvcr simulate --preset tiny --out demo/raw",
        _simulate,
    ),
    "prepare": Command(
        "Turn raw logs into a prepared dataset.",
        "lsvcr prepare kuaicomt --raw demo/raw --out demo/data",
        _prepare,
    ),
    "doctor": Command(
        "Audit a prepared dataset: leaks, lengths, costs, and settings that fit it.",
        "lsvcr doctor demo/data --write_config ckpt/data-settings",
        _doctor,
    ),
    "export-official": Command(
        "Write a prepared dataset in the reference implementation's format.",
        "lsvcr export-official demo/data --out demo/official",
        _export_official,
    ),
    "embed": Command(
        "Turn all titles and comments of a dataset into text vectors.",
        "lsvcr embed --checkpoint ckpt/LSVCR --data_path demo/data",
        _embed,
    ),
    "convert": Command(
        "Turn an official checkpoint, or a legacy ChatGLM's adapter, into ours.",
        "lsvcr convert official/adapter_model.bin --model_name_or_path models/chatglm3-6b --out ckpt/official",
        _convert,
    ),
    "train": Command(
        "Train or fit another recommender, for comparison; without a name it lists them.",
        "lsvcr train sasrec --data_path demo/data --output_dir demo/sasrec",
        _train,
    ),
    "evaluate": Command(
        "Measure a checkpoint of stage two or of `lsvcr train` under the named protocols, alone or against another.",
        "lsvcr evaluate ckpt/finetune --data demo/data --split test --json",
        _evaluate,
    ),
    "table": Command(
        "Set finished stage-two runs side by side, with popularity, under one protocol.",
        'lsvcr table --data demo/data "ids only=demo/ids" "both stages=demo/aligned"',
        _table,
    ),
    "compare": Command(
        "Train many models under one protocol and one budget, and set them side by side with intervals and tests.",
        "lsvcr compare --data demo/data --models popularity,sasrec,lsvcr-id --out demo/compare --trials 4",
        _compare,
    ),
    "report": Command(
        "Write one HTML page about a run: curves, settings, data, timings, test figures.",
        "lsvcr report ckpt/LSVCR --out align.html",
        _report,
    ),
}
