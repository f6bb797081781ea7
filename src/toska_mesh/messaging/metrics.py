"""Counters and gauges of messaging, on the daemon's one registry."""

from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge

from toska_mesh.messaging.api import SinkState


class MessagingMetrics:
    """Created once per registry, by `open_event_sink`."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.published = Counter(
            "toska_events_published",
            "Events made safe on disk (or logged, without a broker).",
            ["type"],
            registry=registry,
        )
        self.delivered = Counter(
            "toska_events_delivered", "Events confirmed by the broker.", ["type"], registry=registry
        )
        self.refused = Counter(
            "toska_events_refused",
            "Events that could not be made safe: full (bound reached), disk, invalid, closing.",
            ["reason"],
            registry=registry,
        )
        self.lost = Counter(
            "toska_events_lost", "Events that were on disk and can no longer be read.", registry=registry
        )
        self.delivery_failures = Counter(
            "toska_events_delivery_failures",
            "Deliveries to be repeated: refused (by the broker), connection (lost or not to be had).",
            ["reason"],
            registry=registry,
        )
        self._waiting = Gauge("toska_events_waiting", "Events on disk not yet confirmed.", registry=registry)
        self._bytes = Gauge("toska_events_waiting_bytes", "Their size.", registry=registry)
        self._age = Gauge("toska_events_oldest_age_seconds", "Age of the oldest of them.", registry=registry)
        self._connected = Gauge("toska_broker_connected", "1 while a broker is connected.", registry=registry)
        self._blocked = Gauge("toska_broker_blocked", "1 while the broker refuses input (alarm).", registry=registry)

    def follow(self, state: Callable[[], SinkState]) -> None:
        """Let the gauges read the sink's state when they are scraped."""
        self._waiting.set_function(lambda: state().waiting)
        self._bytes.set_function(lambda: state().waiting_bytes)
        self._age.set_function(lambda: state().oldest_age_seconds)
        self._connected.set_function(lambda: state().is_connected)
        self._blocked.set_function(lambda: state().is_blocked)
