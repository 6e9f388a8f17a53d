"""What /metrics tells, in a registry of its own; of several processes that serve together, their sums."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    ProcessCollector,
    generate_latest,
    values,
)
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.multiprocess import MultiProcessCollector, mark_process_dead

from lsvcr.serving.http.starting import NUMBERS_VARIABLE
from lsvcr.utils.errors import UserError
from lsvcr.utils.io import take_room

CONTENT_TYPE = b"text/plain; version=0.0.4; charset=utf-8"
SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 256)
FILES = ("counter", "histogram", "gauge_livesum", "gauge_livemin")
"""Kinds of files that prometheus_client has for a process, by what their names begin with."""
FILE_BYTES = 1 << 20
"""Of each file; the series of all routes and statuses take a tenth."""


def share(place: int) -> None:
    """Keep the numbers of this process in the folder that the environment names; call it before the first `Metrics`.

    The files are named by the process's place among those that serve together, not by its id: who takes the place of
    one that died goes on from its numbers, so that no counter falls and no files pile up.

    Raises:
        UserError: the disk has no room for them.
    """
    mark_process_dead(place)
    set_aside(Path(os.environ[NUMBERS_VARIABLE]), place)
    values.ValueClass = values.MultiProcessValue(lambda: place)


def set_aside(folder: Path, place: int) -> None:
    """Take the disk's room for the files of a place now: they are mapped, and a write without room kills a process.

    Raises:
        UserError: there is none.
    """
    try:
        for kind in FILES:
            with (folder / f"{kind}_{place}.db").open("ab") as file:
                take_room(file, FILE_BYTES)
    except OSError as error:
        reason = error.strerror or error
        raise UserError(
            f"no room for the numbers of /metrics in {folder}: {reason}; free some, or set TMPDIR"
        ) from None


class Metrics:
    """Counters of one server.

    Args:
        catalogue: gives the numbers of the catalogue by name; called at each scrape.
        shared: `share` was called: tell the sums over all processes, but the catalogue of this one.
    """

    def __init__(self, catalogue: Callable[[], dict[str, Any]], shared: bool = False) -> None:
        self.registry = CollectorRegistry()
        self._catalogue = catalogue
        self._gauges: list[tuple[Gauge, Callable[[], float]]] = []
        self._requests = Counter(
            "lsvcr_requests_total", "Answers by route and status", ["route", "status"], registry=self.registry
        )
        self._seconds = Histogram(
            "lsvcr_request_seconds",
            "Time from a request's head to its answer",
            ["route"],
            buckets=SECONDS,
            registry=self.registry,
        )
        self._batch = Histogram(
            "lsvcr_batch_queries", "Queries scored in one run", buckets=SIZES, registry=self.registry
        )
        self._unknown = Counter(
            "lsvcr_unknown_ids_total", "Ids in requests that are not there", ["kind"], registry=self.registry
        )
        self.refused = Counter(
            "lsvcr_connections_refused_total", "Connections past --max_connections", registry=self.registry
        )
        self.late = Counter(
            "lsvcr_connections_late_total", "Connections cut off as too slow", registry=self.registry
        )
        self.swaps = Counter(
            "lsvcr_bundle_swaps_total",
            "Exchanges of the bundle by result",
            ["result"],
            registry=self.registry,
        )
        self._children: dict[tuple[str, int], tuple[Any, Any]] = {}
        self._unknown_videos = self._unknown.labels("video")
        self._unknown_comments = self._unknown.labels("comment")
        self._process = _ProcessFigures(self.registry) if shared else None
        if not shared:
            self.registry.register(self)
            ProcessCollector(registry=self.registry)

    def gauge(self, name: str, text: str, value: Callable[[], float]) -> None:
        """A number that is asked for at each scrape; where processes share, at each `refresh`."""
        made = Gauge(name, text, registry=self.registry, multiprocess_mode="livesum")
        if self._process is None:
            made.set_function(value)
        else:
            self._gauges.append((made, value))

    def refresh(self) -> None:
        """Write down what the other processes are to tell of this one; call it a few times a second."""
        for gauge, value in self._gauges:
            gauge.set(value())

    def refresh_process(self) -> None:
        """The same for memory, processor time and open files, which take longer to look up."""
        if self._process is not None:
            self._process.refresh()

    def request(self, route: str, status: int, seconds: float) -> None:
        """Count an answer. `route` is a path pattern, never what a client sent."""
        found = self._children.get((route, status))
        if found is None:
            found = self._requests.labels(route, str(status)), self._seconds.labels(route)
            self._children[route, status] = found
        found[0].inc()
        found[1].observe(seconds)

    def batch(self, size: int) -> None:
        """Count a run of the worker."""
        self._batch.observe(size)

    def unknown(self, videos: int, comments: int) -> None:
        """Count ids that were passed over."""
        if videos:
            self._unknown_videos.inc(videos)
        if comments:
            self._unknown_comments.inc(comments)

    def collect(self) -> Iterator[GaugeMetricFamily]:
        """The catalogue's numbers, for the registry."""
        family = GaugeMetricFamily("lsvcr_catalogue", "Numbers of the catalogue", labels=["what"])
        for name, value in self._catalogue().items():
            if isinstance(value, int | float) and not isinstance(value, bool):
                family.add_metric([name], value)
        yield family

    def describe(self) -> list[GaugeMetricFamily]:
        """What `collect` will give, so that registering asks for no numbers yet."""
        return [GaugeMetricFamily("lsvcr_catalogue", "Numbers of the catalogue", labels=["what"])]

    def text(self) -> bytes:
        """Everything, in Prometheus' text format."""
        if self._process is None:
            return bytes(generate_latest(self.registry))
        self.refresh()
        everyone = CollectorRegistry()
        MultiProcessCollector(everyone)
        everyone.register(self)
        return bytes(generate_latest(everyone))


class _ProcessFigures:
    """What `ProcessCollector` tells, in numbers that processes can share: sums, but the lowest limit and start."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._source = ProcessCollector(registry=None)
        self._seconds = 0.0
        self._cpu = Counter(
            "process_cpu_seconds_total", "Processor time of all serving processes", registry=registry
        )
        self._gauges = {
            name: Gauge(name, text, registry=registry, multiprocess_mode=mode)
            for name, text, mode in (
                ("process_resident_memory_bytes", "Resident memory, shared pages once a process", "livesum"),
                ("process_virtual_memory_bytes", "Virtual memory", "livesum"),
                ("process_open_fds", "Open file descriptors", "livesum"),
                ("process_max_fds", "Most file descriptors of a process", "livemin"),
                ("process_start_time_seconds", "Start of the oldest serving process", "livemin"),
            )
        }

    def refresh(self) -> None:
        for family in self._source.collect():
            for sample in family.samples:
                if sample.name == "process_cpu_seconds_total":
                    self._cpu.inc(max(0.0, sample.value - self._seconds))
                    self._seconds = sample.value
                elif sample.name in self._gauges:
                    self._gauges[sample.name].set(sample.value)
