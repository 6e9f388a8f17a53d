"""One raw format a file; each turns a folder of raw files into `logs.RawLogs`.

`official` alone has its samples cut already; its reader goes all the way to `assemble.Prepared`.
"""

from collections.abc import Callable
from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lsvcr.data.sources.logs import BadRows, RawLogs
    from lsvcr.settings import PrepareSettings

OFFICIAL = "official"
SOURCES = ("kuaicomt", "microlens", "amazon", "movielens", "tables", OFFICIAL)
"""The values of `--source`; each is a module here with a function `read`."""


def reader(source: str) -> "Callable[[PrepareSettings, BadRows], RawLogs]":
    """The function that reads the raw files of `source`, one of `SOURCES` but `OFFICIAL`."""
    return import_module(f"{__name__}.{source}").read
