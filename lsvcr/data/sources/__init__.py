"""One raw format a file; each turns a folder of raw files into `logs.RawLogs`.

`official` alone has its samples cut already, so its reader goes all the way to `assemble.Prepared`.
"""

from collections.abc import Callable
from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lsvcr.data.assemble import Prepared
    from lsvcr.data.sources.logs import BadRows, RawLogs
    from lsvcr.settings import PrepareSettings

    Reader = Callable[[PrepareSettings, BadRows], RawLogs | Prepared]

SOURCES = ("kuaicomt", "microlens", "amazon", "movielens", "tables", "official")
"""The values of `--source`; each is a module here with a function `read`."""


def reader(source: str) -> "Reader":
    """The function that reads the raw files of `source`, one of `SOURCES`."""
    return import_module(f"{__name__}.{source}").read
