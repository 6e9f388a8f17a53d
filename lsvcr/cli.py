"""The `lsvcr` command. Each sub-command imports what it needs when it runs, so that help is instant."""

import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from lsvcr.settings import EmbedSettings, PrepareSettings, SimulateSettings, option
from lsvcr.utils.arguments import nearest, parse_settings
from lsvcr.utils.errors import UserError, exit_code
from lsvcr.utils.logging import quiet_third_party


@dataclass
class EvaluateSettings:
    """Settings of `lsvcr evaluate`."""

    checkpoint: str = option("", "stage-two run folder, or its best/ or last/")
    data: str = option("", "prepared dataset")
    split: Literal["test", "val"] = option("test", "which samples to rank")
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


def _embed(argv: Sequence[str]) -> None:
    settings = parse_settings(EmbedSettings, argv, "lsvcr embed", *_about("embed"))
    from lsvcr.training.embed import embed

    embed(settings)


def _evaluate(argv: Sequence[str]) -> None:
    settings = parse_settings(EvaluateSettings, argv, "lsvcr evaluate", *_about("evaluate"), ("checkpoint",))
    _require("evaluate", checkpoint=settings.checkpoint, data=settings.data)
    from lsvcr.training.rank_evaluate import evaluate_checkpoint

    metrics = evaluate_checkpoint(settings.checkpoint, settings.data, settings.split)
    if settings.json:
        sys.stdout.write(json.dumps(metrics) + "\n")
    else:
        _show(metrics)


def _show(metrics: dict[str, object], indent: str = "") -> None:
    """Name and value a line; nested parts (one protocol each) indented under their name."""
    for name, value in metrics.items():
        if isinstance(value, dict):
            sys.stdout.write(f"{indent}{name}\n")
            _show(value, indent + "  ")
        else:
            shown = f"{value:.4f}" if isinstance(value, float) else value
            sys.stdout.write(f"{indent}{name:<24} {shown}\n")


def _require(name: str, **values: str) -> None:
    missing = [f"--{field}" for field, value in values.items() if not value]
    if missing:
        raise UserError(f"lsvcr {name} needs {' and '.join(missing)}, as in: {COMMANDS[name].example}")


def _about(name: str) -> tuple[str, str]:
    return COMMANDS[name].summary, COMMANDS[name].example


def _overview() -> str:
    lines = ["usage: lsvcr COMMAND [--flag value ...]   (lsvcr COMMAND --help tells the flags)", "", "commands:"]
    lines += [f"  {name:<10} {command.summary}" for name, command in COMMANDS.items()]
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
    "embed": Command(
        "Turn all titles and comments of a dataset into text vectors.",
        "lsvcr embed --checkpoint ckpt/LSVCR --data_path demo/data",
        _embed,
    ),
    "evaluate": Command(
        "Measure a stage-two checkpoint under the named protocols.",
        "lsvcr evaluate ckpt/finetune --data demo/data --split test --json",
        _evaluate,
    ),
}
