"""The `lsvcr` command."""

import sys
from collections.abc import Sequence
from typing import Any

from lsvcr.commands import data, deploy, judge, learn
from lsvcr.commands.command import Command
from lsvcr.utils.arguments import nearest, parse_settings
from lsvcr.utils.errors import UserError, exit_code
from lsvcr.utils.logging import quiet_third_party

COMMANDS: dict[str, Command] = data.COMMANDS | learn.COMMANDS | judge.COMMANDS | deploy.COMMANDS


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
    name, words = argv[0], argv[1:]
    if name not in COMMANDS:
        raise UserError(f"unknown command {name!r}; {nearest(name, COMMANDS) or '`lsvcr` lists them'}")
    quiet_third_party()
    _run(name, COMMANDS[name], words)


def _run(name: str, command: Command, words: Sequence[str]) -> None:
    if command.settings is None:
        command.run(words)
        return
    settings: Any = parse_settings(
        command.settings, words, f"lsvcr {name}", command.summary, command.example, command.places
    )
    missing = [f"--{field}" for field in command.needs if not getattr(settings, field)]
    if missing:
        raise UserError(f"lsvcr {name} needs {' and '.join(missing)}, as in: {command.example}")
    command.run(settings)


def _overview() -> str:
    lines = [
        "usage: lsvcr COMMAND [--flag value ...]   (lsvcr COMMAND --help tells the flags)",
        "",
        "commands:",
    ]
    lines += [f"  {name:<16} {command.summary}" for name, command in COMMANDS.items()]
    lines += ["", "training: bash scripts/run_lora.sh (stage one), bash scripts/finetune.sh (stage two)"]
    return "\n".join(lines) + "\n"
