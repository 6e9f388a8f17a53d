"""`lsvcr alpaca`, `tune`, `generate` and `ground`: parse, then call one function. Heavy imports wait until then."""

import json
import sys
from collections.abc import Callable, Sequence

from lsvcr.baselines.generative_settings import AlpacaSettings, GenerateSettings, GroundSettings, TuneSettings
from lsvcr.utils.arguments import parse_settings


def run_command(name: str, argv: Sequence[str], about: tuple[str, str], require: Callable[..., None]) -> None:
    """Run one of the four commands.

    Args:
        name: of the command.
        argv: its arguments.
        about: its summary and example.
        require: (name, field=value ...) raises a UserError where a value is empty.
    """
    prog = f"lsvcr {name}"
    if name == "alpaca":
        wanted = parse_settings(AlpacaSettings, argv, prog, *about)
        require(name, out=wanted.out)
        _alpaca(wanted)
    elif name == "tune":
        _tune(parse_settings(TuneSettings, argv, prog, *about))
    elif name == "generate":
        asked = parse_settings(GenerateSettings, argv, prog, *about, ("run",))
        require(name, run=asked.run)
        _generate(asked)
    else:
        settings = parse_settings(GroundSettings, argv, prog, *about, ("run",))
        require(name, run=settings.run)
        _ground(settings)


def _alpaca(settings: AlpacaSettings) -> None:
    from lsvcr.baselines.alpaca import write_alpaca
    from lsvcr.data.store import open_dataset

    write_alpaca(open_dataset(settings.data_path), settings)


def _tune(settings: TuneSettings) -> None:
    from lsvcr.baselines.generative import tune
    from lsvcr.training.schedule import learning_rate_factor

    tune(settings, learning_rate_factor)


def _generate(settings: GenerateSettings) -> None:
    from lsvcr.baselines.generations import generate

    generate(settings)


def _ground(settings: GroundSettings) -> None:
    from lsvcr.experiments.ground import ground, print_ground

    report = ground(settings)
    if settings.json:
        sys.stdout.write(json.dumps(report) + "\n")
    else:
        print_ground(report)
