"""One raw format a file; each turns a folder of raw files into `logs.RawLogs`.

`official` alone has its samples cut already; its reader goes all the way to `assemble.Prepared`.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lsvcr.data.sources.logs import BadRows, RawLogs
    from lsvcr.data.sources.spill import Spill
    from lsvcr.settings import PrepareSettings

OFFICIAL = "official"
SOURCES = ("kuaicomt", "microlens", "amazon", "movielens", "tables", OFFICIAL)
"""The values of `--source`; each is a module here with a function `read`."""


WITH_IMPRESSIONS = ("kuaicomt", "tables")
"""Sources that may tell what a user was shown; their `read` takes a `Spill` as well."""


def read_logs(settings: "PrepareSettings", bad: "BadRows", spill: "Spill") -> "RawLogs":
    """Read the raw files of `settings.source`, one of `SOURCES` but `OFFICIAL`.

    Args:
        settings: those of `lsvcr prepare`.
        bad: where broken rows are reported.
        spill: receives the impressions, if the source has them and `settings` asks for them.
    """
    read = import_module(f"{__name__}.{settings.source}").read
    if settings.impressions and settings.source in WITH_IMPRESSIONS:
        return read(settings, bad, spill)
    return read(settings, bad)
