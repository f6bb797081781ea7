"""The monitor's counters and histograms, on the daemon's one registry."""

from collections.abc import Callable, Mapping
from functools import partial

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from toska_mesh.healthmonitor.targets import ProbeKind
from toska_mesh.healthmonitor.verdict import Outcome
from toska_mesh.model import HealthStatus
from toska_mesh.telemetry import LATENCY_BUCKETS

_PROBED = (ProbeKind.HTTP, ProbeKind.TCP, ProbeKind.GRPC)


class MonitorMetrics:
    """Created once per registry. Labelled children are looked up once: there are thousands of probes per second."""

    def __init__(self, registry: CollectorRegistry) -> None:
        probes = Counter(
            "toska_healthmonitor_probes",
            "Probes by type and outcome; inconclusive ones failed for the monitor's own reasons.",
            ["type", "outcome"],
            registry=registry,
        )
        durations = Histogram(
            "toska_healthmonitor_probe_duration_seconds",
            "From the start of a probe to its end.",
            ["type"],
            buckets=LATENCY_BUCKETS,
            registry=registry,
        )
        self._instances = Gauge(
            "toska_healthmonitor_instances", "Instances in the catalog by verdict.", ["status"], registry=registry
        )
        self.probes = {
            (kind, outcome): probes.labels(kind.value, outcome.value) for kind in _PROBED for outcome in Outcome
        }
        self.durations = {kind: durations.labels(kind.value) for kind in _PROBED}
        self.left_out = Counter(
            "toska_healthmonitor_probes_left_out", "Probes that an open breaker left out.", registry=registry
        )
        self.lag = Histogram(
            "toska_healthmonitor_schedule_lag_seconds",
            "How much later than due a probe was started.",
            buckets=LATENCY_BUCKETS,
            registry=registry,
        )
        self.missed = Counter(
            "toska_healthmonitor_missed_deadlines",
            "Slots of the schedule that passed without a probe because the monitor was too late.",
            registry=registry,
        )
        self._in_flight = Gauge("toska_healthmonitor_probes_in_flight", "Probes under way.", registry=registry)
        self._waiting = Gauge(
            "toska_healthmonitor_probes_waiting", "Probes that are due and wait for a free slot.", registry=registry
        )
        self.transitions = Counter(
            "toska_healthmonitor_transitions", "Changes of a verdict, by the new one.", ["status"], registry=registry
        )
        self.events_dropped = Counter(
            "toska_healthmonitor_events_dropped",
            "Transitions that were pushed out unannounced because too many waited.",
            registry=registry,
        )
        self.catalog_stale = Gauge(
            "toska_healthmonitor_catalog_stale_seconds",
            "How long the registry has not answered; 0 while it does.",
            registry=registry,
        )
        self.is_leader = Gauge(
            "toska_healthmonitor_leader", "1 while this monitor writes verdicts and events.", registry=registry
        )

    def follow(
        self, counts: Mapping[HealthStatus, int], in_flight: Callable[[], int], waiting: Callable[[], int]
    ) -> None:
        """Let the gauges read these when they are scraped."""
        for status in HealthStatus:
            self._instances.labels(status.label).set_function(partial(counts.__getitem__, status))
        self._in_flight.set_function(in_flight)
        self._waiting.set_function(waiting)
