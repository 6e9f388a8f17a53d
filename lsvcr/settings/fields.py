"""How a setting is declared."""

from dataclasses import field
from typing import Any


def option(default: Any, help_text: str) -> Any:
    """A dataclass field with its `--help` line."""
    return field(default=default, metadata={"help": help_text})
