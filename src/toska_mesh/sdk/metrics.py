"""What `/metrics` of a service tells: requests, by the names that the family's dashboards read, and the mesh's view.

`http_server_request_duration_seconds` (its `_count` is the number of requests) and `http_server_active_requests` are
OpenTelemetry's names, with the labels that the recording rules group by. The app's own metrics stand beside them.
"""

from collections.abc import Callable, Iterable, Iterator

from prometheus_client import CollectorRegistry, Histogram
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.exposition import choose_encoder

from toska_mesh.telemetry.metrics import LATENCY_BUCKETS

_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "CONNECT", "TRACE"})
_OTHER_METHOD = "_OTHER"
"""OpenTelemetry's word for a method nobody knows: clients must not be able to make label values."""

Gauges = Callable[[], Iterable[tuple[str, str, float]]]
"""Name, meaning and value of each gauge, asked at every scrape."""


class ServiceMetrics:
    """Owned by the edge. `also`: the app's own registry, shown in the same answer."""

    def __init__(self, service: str, gauges: Gauges, also: CollectorRegistry | None) -> None:
        self._service = service
        self._gauges = gauges
        self._also = also
        self._registry = CollectorRegistry(auto_describe=True)
        self._registry.register(self)
        self._seconds = Histogram(
            "http_server_request_duration_seconds",
            "Answered requests: from the head to the last byte of the answer.",
            ["service_name", "http_request_method", "http_response_status_code"],
            buckets=LATENCY_BUCKETS,
            registry=self._registry,
        )
        self._children: dict[tuple[str, int], Histogram] = {}

    def observe(self, method: str, status: int, seconds: float) -> None:
        key = (method if method in _METHODS else _OTHER_METHOD, status)
        child = self._children.get(key)
        if child is None:
            child = self._children[key] = self._seconds.labels(self._service, key[0], str(status))
        child.observe(seconds)

    def render(self, accept: str) -> tuple[str, bytes]:
        """Content type and body. A family of the app's own that has one of our names stands in for ours."""
        encode, content_type = choose_encoder(accept)
        return content_type, encode(_Together(self._registry, self._also))

    def collect(self) -> Iterator[Metric]:
        for name, meaning, value in self._gauges():
            family = GaugeMetricFamily(name, meaning, labels=["service_name"])
            family.add_metric([self._service], value)
            yield family


class _Together(CollectorRegistry):
    """Both registries as one, for the encoder."""

    def __init__(self, ours: CollectorRegistry, also: CollectorRegistry | None) -> None:
        super().__init__()
        self._ours = ours
        self._also = also

    def collect(self) -> Iterator[Metric]:
        theirs = set()
        if self._also is not None:
            for family in self._also.collect():
                theirs.add(family.name)
                yield family
        for family in self._ours.collect():
            if family.name not in theirs:
                yield family
