"""One raw format a file; each turns a folder of raw files into `logs.RawLogs`."""

from collections.abc import Callable

from lsvcr.data.sources import kuaicomt, movielens
from lsvcr.data.sources.logs import BadRows, RawLogs
from lsvcr.settings import PrepareSettings

READERS: dict[str, Callable[[PrepareSettings, BadRows], RawLogs]] = {
    "kuaicomt": kuaicomt.read,
    "movielens": movielens.read,
}
"""The reader of each `--source`."""
