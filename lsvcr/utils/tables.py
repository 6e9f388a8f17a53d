"""Tables for people."""

from rich.console import Console
from rich.table import Table

WIDEST = 1000
"""Characters: as wide as any table of a few columns gets."""


def print_whole(table: Table) -> Console:
    """Print a table with no name or figure shortened; returns the console that was wide enough for it."""
    console = Console()
    # A terminal that is too narrow breaks lines; rich would shorten names and figures to fit it.
    needed = console.measure(table, options=console.options.update(max_width=WIDEST)).maximum
    console = Console(width=max(console.width, needed))
    console.print(table)
    return console
