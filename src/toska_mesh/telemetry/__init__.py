"""Logs, metrics and their field names; no daemon's own metrics live here."""

from toska_mesh.telemetry.logs import EventLog, event_log
from toska_mesh.telemetry.metrics import LATENCY_BUCKETS, new_metrics_registry

__all__ = ["LATENCY_BUCKETS", "EventLog", "event_log", "new_metrics_registry"]
