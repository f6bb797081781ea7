"""What the gateway counts, by service, and how Prometheus gets it.

The data path adds to plain integers on one slotted object per service; a collector turns them into metrics only when
somebody asks. Labels are bounded: services of the table, status codes, words of our own.
"""

from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.registry import Collector

from toska_mesh.telemetry import LATENCY_BUCKETS

NO_SERVICE = ""
"""Label value for what was refused before a service was found."""


class ServiceStats:
    """Figures of one service; outlives tables."""

    __slots__ = (
        "buckets",
        "bytes_in",
        "bytes_out",
        "in_flight",
        "outcomes",
        "retries",
        "seconds",
        "statuses",
        "tries_failed",
    )

    def __init__(self) -> None:
        self.statuses: Counter[int] = Counter()
        self.outcomes: Counter[str] = Counter()
        """How exchanges ended when it was not well."""
        self.buckets = [0] * (len(LATENCY_BUCKETS) + 1)
        self.seconds = 0.0
        self.bytes_in = 0
        self.bytes_out = 0
        self.retries = 0
        self.tries_failed: Counter[str] = Counter()

    def observe(self, status: int, seconds: float, outcome: str, bytes_in: int, bytes_out: int) -> None:
        self.statuses[status] += 1
        self.buckets[bisect_left(LATENCY_BUCKETS, seconds)] += 1
        self.seconds += seconds
        self.bytes_in += bytes_in
        self.bytes_out += bytes_out
        if outcome != "ok" and outcome != "preflight":  # the common case is one comparison
            self.outcomes[outcome] += 1


class GatewayStats(Collector):
    """All services' figures, plus gauges that are read when asked for."""

    def __init__(
        self,
        gauges: Callable[[], dict[str, tuple[str, float]]],
        breakers: Callable[[], Mapping[tuple[str, str], int]] = dict,
    ) -> None:
        """`gauges` gives name → (help text, present value); `breakers`, service and state → how many instances."""
        self._gauges = gauges
        self._breakers = breakers
        self.services: dict[str, ServiceStats] = {}
        self.breaker_changes: Counter[tuple[str, str]] = Counter()
        """By service and new state."""
        self.tls_failures: Counter[str] | None = None
        """Handshakes that failed, by whose fault it was; None without TLS of our own."""
        self.dropped_log_lines: Callable[[], int] | None = None
        """Of the access log, when there is one."""
        self.freshness_buckets = [0] * (len(LATENCY_BUCKETS) + 1)
        self.freshness_seconds = 0.0
        self.build_buckets = [0] * (len(LATENCY_BUCKETS) + 1)
        self.build_seconds = 0.0

    def of(self, service: str) -> ServiceStats:
        stats = self.services.get(service)
        if stats is None:
            stats = self.services[service] = ServiceStats()
        return stats

    def keep_only(self, services: Collection[str]) -> None:
        """Other services are gone: their series end, those too that a late request of theirs has begun anew."""
        for service in self.services.keys() - {*services, NO_SERVICE}:
            del self.services[service]
        for key in [key for key in self.breaker_changes if key[0] not in services]:
            del self.breaker_changes[key]

    def observe_freshness(self, seconds: float) -> None:
        """From the registry's wake-up to a table that is in use."""
        self.freshness_buckets[bisect_left(LATENCY_BUCKETS, seconds)] += 1
        self.freshness_seconds += seconds

    def observe_build(self, seconds: float) -> None:
        """Of one change, all of it on the event loop: so long no request went on."""
        self.build_buckets[bisect_left(LATENCY_BUCKETS, seconds)] += 1
        self.build_seconds += seconds

    def collect(self) -> Iterator[CounterMetricFamily | GaugeMetricFamily | HistogramMetricFamily]:
        requests = CounterMetricFamily(
            "toska_gateway_requests", "Requests answered, by service and status.", labels=["service", "status"]
        )
        failed = CounterMetricFamily(
            "toska_gateway_requests_failed", "Requests that did not end well, by reason.", labels=["service", "reason"]
        )
        seconds = HistogramMetricFamily(
            "toska_gateway_request_duration_seconds", "From the head of a request to its end.", labels=["service"]
        )
        tries = CounterMetricFamily(
            "toska_gateway_tries_failed", "Tries at an instance that failed, by kind.", labels=["service", "kind"]
        )
        retries = CounterMetricFamily("toska_gateway_retries", "Tries after the first one.", labels=["service"])
        received = CounterMetricFamily("toska_gateway_request_bytes", "Bytes of request bodies.", labels=["service"])
        sent = CounterMetricFamily("toska_gateway_response_bytes", "Bytes of answers.", labels=["service"])
        for name, stats in self.services.items():
            for status, count in stats.statuses.items():
                requests.add_metric([name, str(status)], count)
            for reason, count in stats.outcomes.items():
                failed.add_metric([name, reason], count)
            for kind, count in stats.tries_failed.items():
                tries.add_metric([name, kind], count)
            retries.add_metric([name], stats.retries)
            received.add_metric([name], stats.bytes_in)
            sent.add_metric([name], stats.bytes_out)
            seconds.add_metric([name], cumulative(stats.buckets), stats.seconds)
        yield from (requests, failed, seconds, tries, retries, received, sent)

        changes = CounterMetricFamily(
            "toska_gateway_breaker_changes", "Breakers that changed, by new state.", labels=["service", "state"]
        )
        for (name, state), count in self.breaker_changes.items():
            changes.add_metric([name, state], count)
        yield changes
        breakers = GaugeMetricFamily(
            "toska_gateway_breakers", "Instances by the state of their breaker.", labels=["service", "state"]
        )
        for (name, state), count in self._breakers().items():
            breakers.add_metric([name, state], count)
        yield breakers
        handshakes = CounterMetricFamily(
            "toska_gateway_tls_handshakes_failed", "TLS handshakes of clients that failed, by fault.", labels=["fault"]
        )
        for fault, count in (self.tls_failures or {}).items():
            handshakes.add_metric([fault], count)
        yield handshakes
        if self.dropped_log_lines is not None:
            yield CounterMetricFamily(
                "toska_gateway_access_log_dropped_lines", "Log lines that nobody took.", value=self.dropped_log_lines()
            )
        freshness = HistogramMetricFamily(
            "toska_gateway_table_freshness_seconds", "From the registry's wake-up to the table in use."
        )
        freshness.add_metric([], cumulative(self.freshness_buckets), self.freshness_seconds)
        yield freshness
        builds = HistogramMetricFamily(
            "toska_gateway_table_build_seconds", "How long making a table and taking it into use held the event loop."
        )
        builds.add_metric([], cumulative(self.build_buckets), self.build_seconds)
        yield builds
        for gauge, (text, value) in self._gauges().items():
            yield GaugeMetricFamily(gauge, text, value=value)


def cumulative(buckets: list[int]) -> list[tuple[str, float]]:
    """Prometheus' form of a histogram: each bucket with all below it."""
    total = 0
    result: list[tuple[str, float]] = []
    for bound, count in zip((*map(str, LATENCY_BUCKETS), "+Inf"), buckets, strict=True):
        total += count
        result.append((bound, total))
    return result
