"""Discovery's figures. One object, made in `app.py`, handed to whoever counts."""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from toska_mesh.telemetry import LATENCY_BUCKETS


class DiscoveryMetrics:
    """`outcome` is `ok`, `refused` (in-band), `denied` (token), `unavailable` (registry), `cancelled` or `error`."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.calls = Counter(
            "toska_discovery_calls_total",
            "Calls by transport, method and outcome.",
            ["transport", "method", "outcome"],
            registry=registry,
        )
        self.call_seconds = Histogram(
            "toska_discovery_call_seconds",
            "Time from a call's arrival to its answer.",
            ["transport", "method"],
            buckets=LATENCY_BUCKETS,
            registry=registry,
        )
        self.registrations = Counter(
            "toska_discovery_registrations_total",
            "Registrations made: `new`, `changed`, `same` (again with the same content), `restored` (by a beat).",
            ["kind"],
            registry=registry,
        )
        self.events = Counter(
            "toska_discovery_events_total", "Events made safe for delivery.", ["event"], registry=registry
        )
        self.store_errors = Counter(
            "toska_discovery_store_errors_total", "Writes to discovery's own memory that failed.", registry=registry
        )
        self.known_instances = Gauge(
            "toska_discovery_known_instances", "Instances that discovery could register again.", registry=registry
        )
        self.registry_up = Gauge("toska_discovery_registry_up", "1 while the registry answers.", registry=registry)
        self.is_leader = Gauge(
            "toska_discovery_is_leader",
            "1 while this replica announces what the registry does by itself.",
            registry=registry,
        )
        self.watch_streams = Gauge("toska_discovery_watch_streams", "Streams that follow services.", registry=registry)
        self.watch_names = Gauge(
            "toska_discovery_watch_names", "Services followed, counted once per stream.", registry=registry
        )
        self.watch_updates = Counter(
            "toska_discovery_watch_updates_total", "Messages sent on such streams.", registry=registry
        )
        self.watch_bytes = Counter(
            "toska_discovery_watch_bytes_total", "Bytes of messages sent on such streams.", registry=registry
        )
        self._children: dict[tuple[str, str, str], tuple[Counter, Histogram]] = {}

    def count_call(self, transport: str, method: str, outcome: str, seconds: float) -> None:
        """One call and how long it took. Looking the labels up anew would cost more than counting."""
        key = (transport, method, outcome)
        found = self._children.get(key)
        if found is None:
            found = self.calls.labels(*key), self.call_seconds.labels(transport, method)
            self._children[key] = found
        found[0].inc()
        found[1].observe(seconds)
