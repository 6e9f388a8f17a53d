"""What a sub-command is, and what most of them share."""

import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Command:
    """A sub-command.

    Attributes:
        summary, example: what its help says; the example is run by nobody but must be true.
        run: gets the settings, or the words of the command line where it reads them itself.
        settings: dataclass of its flags; None: `run` reads the words.
        places: fields that may stand without a flag in front, in this order.
        needs: fields that must be given.
    """

    summary: str
    example: str
    run: Callable[[Any], None]
    settings: type | None = None
    places: tuple[str, ...] = ()
    needs: tuple[str, ...] = ()


def print_report(report: Any, as_json: bool, show: Callable[[Any], object]) -> None:
    """A report as one line of JSON, or as `show` prints it for a person."""
    if as_json:
        sys.stdout.write(json.dumps(report) + "\n")
    else:
        show(report)
