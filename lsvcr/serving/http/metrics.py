"""What /metrics tells, in a registry of its own."""

from collections.abc import Callable, Iterator
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, generate_latest
from prometheus_client.core import GaugeMetricFamily

CONTENT_TYPE = b"text/plain; version=0.0.4; charset=utf-8"
SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 256)


class Metrics:
    """Counters of one server.

    Args:
        catalogue: gives the numbers of the catalogue by name; called at each scrape.
    """

    def __init__(self, catalogue: Callable[[], dict[str, Any]]) -> None:
        self.registry = CollectorRegistry()
        self._catalogue = catalogue
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
        self.registry.register(self)
        ProcessCollector(registry=self.registry)

    def gauge(self, name: str, text: str, value: Callable[[], float]) -> None:
        """A number that is asked for at each scrape."""
        Gauge(name, text, registry=self.registry).set_function(value)

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
        return bytes(generate_latest(self.registry))
