"""What a mesh client counts of its calls, for `/metrics`: by service and by how they ended.

Counting runs for every call, so it is plain integers; the families are made when somebody scrapes. The labels hold what
the program itself says (names of services) and what the wire can say in a few ways (statuses, kinds of errors).
"""

from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Iterable, Iterator

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric

from toska_mesh.guard import Guarded
from toska_mesh.telemetry import LATENCY_BUCKETS

_OPEN_ENDED = (*map(str, LATENCY_BUCKETS), "+Inf")


class _OfService:
    """One service's counts."""

    __slots__ = ("buckets", "outcomes", "retries", "seconds")

    def __init__(self) -> None:
        self.outcomes: Counter[str] = Counter()
        self.buckets = [0] * len(_OPEN_ENDED)
        self.seconds = 0.0
        self.retries = 0


class CallStats:
    """See the module. A collector for a `prometheus_client` registry; `targets` gives the instances in use."""

    def __init__(self, targets: Callable[[], Iterable[Guarded]] = tuple) -> None:
        self._services: dict[str, _OfService] = {}
        self.targets = targets

    def called(self, service: str, outcome: str, seconds: float, attempts: int) -> None:
        """See `calls.Stats`."""
        found = self._services.get(service)
        if found is None:
            found = self._services[service] = _OfService()
        found.outcomes[outcome] += 1
        found.buckets[bisect_left(LATENCY_BUCKETS, seconds)] += 1
        found.seconds += seconds
        if attempts > 1:
            found.retries += attempts - 1

    def collect(self) -> Iterator[Metric]:
        """For the registry."""
        calls = CounterMetricFamily(
            "toska_client_calls", "Calls by how they ended: a status or an error.", labels=["service", "outcome"]
        )
        retries = CounterMetricFamily("toska_client_retries", "Tries after the first one.", labels=["service"])
        duration = HistogramMetricFamily(
            "toska_client_call_duration_seconds", "From a call to the head of its answer.", labels=["service"]
        )
        for service, found in self._services.items():
            for outcome, count in found.outcomes.items():
                calls.add_metric([service, outcome], count)
            retries.add_metric([service], found.retries)
            total, cumulative = 0, []
            for bound, count in zip(_OPEN_ENDED, found.buckets, strict=True):
                total += count
                cumulative.append((bound, float(total)))
            duration.add_metric([service], cumulative, found.seconds)
        in_flight: Counter[str] = Counter()
        breakers: Counter[tuple[str, str]] = Counter()
        for target in self.targets():
            in_flight[target.instance.service] += target.in_flight
            breakers[target.instance.service, target.circuit.state.value] += 1
        flying = GaugeMetricFamily("toska_client_calls_in_flight", "Sent and not yet over.", labels=["service"])
        for service, count in in_flight.items():
            flying.add_metric([service], count)
        circuits = GaugeMetricFamily(
            "toska_client_breakers", "Instances by the state of their breaker.", labels=["service", "state"]
        )
        for labels, count in breakers.items():
            circuits.add_metric(labels, count)
        return iter((calls, retries, duration, flying, circuits))
