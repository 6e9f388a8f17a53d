"""Is what lies in a folder the same work as what is asked for now?"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lsvcr.utils.errors import UserError

START_OVER = "start over in this one with --resume False"


def differences(here: Mapping[str, Any], there: Mapping[str, Any]) -> str:
    """In words, each entry of `here` that is another in `there`; empty where there is none."""
    return "; ".join(
        f"{name} is {value!r} here and {there.get(name)!r} there"
        for name, value in here.items()
        if there.get(name) != value
    )


def refuse_other_kind(path: Path, kind: str, manifest: Any) -> None:
    """Raise a UserError where the checkpoint in the run folder `path` is of another kind than `kind`.

    Args:
        path: for the message.
        kind: of the run asked for.
        manifest: of the checkpoint, as it was read.
    """
    there = manifest.get("kind") if isinstance(manifest, dict) else None
    if there != kind:
        raise UserError(
            f"{path} holds a run of another kind ({there} there, {kind} here): choose another --output_dir"
        )


def refuse_other_run(
    path: Path,
    here: Mapping[str, Any],
    there: Mapping[str, Any],
    anew: str = START_OVER,
) -> None:
    """Raise a UserError where the run in `path` has another identity (`there`) than the one asked for (`here`).

    Args:
        path: for the message.
        here, there: by name.
        anew: the way to have this run in this folder.
    """
    told = differences(here, there)
    if told:
        raise UserError(
            f"{path} holds a run with other settings or data: {told}. Choose another --output_dir, or {anew}"
        )
