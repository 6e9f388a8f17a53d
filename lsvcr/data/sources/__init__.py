"""One raw format a file; each turns a folder of raw files into `logs.RawLogs`.

`official` alone has its samples cut already; its reader goes all the way to `assemble.Prepared`.
"""

from importlib import import_module
from typing import TYPE_CHECKING

from lsvcr.schema import TIME
from lsvcr.utils.logging import get_logger

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

    A warning tells of times that no log has.
    """
    read = import_module(f"{__name__}.{settings.source}").read
    has_impressions = settings.impressions and settings.source in WITH_IMPRESSIONS
    logs = read(settings, bad, spill) if has_impressions else read(settings, bad)
    _warn_of_times(logs)
    return logs


def _warn_of_times(logs: "RawLogs") -> None:
    from lsvcr.data.calendar import outside

    for what, events in (("likes", logs.video_events), ("comment interactions", logs.comment_events)):
        found = outside(events[TIME].to_numpy())
        if found is not None:
            get_logger(__name__).warning("%s", found.says(what))
