"""What the registry shows on `/metrics`. Figures are read from the state when asked, so that beats cost nothing."""

from collections.abc import Iterable

from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.metrics_core import Metric

from toska_mesh.registryd.server import ApiServer
from toska_mesh.registryd.state import Expired, State
from toska_mesh.registryd.values import Status
from toska_mesh.registryd.watches import Watches


class RegistryMetrics:
    """A Prometheus collector. `count_*` are called by those who do the work."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._sources: tuple[State, Watches, ApiServer] | None = None
        self._commits = self._rows = 0
        self._expired = {"check": 0, "service": 0, "session": 0}
        registry.register(self)

    def watch(self, state: State, watches: Watches, server: ApiServer) -> None:
        self._sources = (state, watches, server)

    def count_commit(self, rows: int) -> None:
        self._commits += 1
        self._rows += rows

    def count_expired(self, expired: Expired) -> None:
        self._expired["check"] += len(expired.checks)
        self._expired["service"] += len(expired.reaped_services)
        self._expired["session"] += len(expired.sessions)

    def collect(self) -> Iterable[Metric]:
        if self._sources is None:
            return
        state, watches, server = self._sources
        checks = GaugeMetricFamily("toska_registry_checks", "Checks by status.", labels=["status"])
        statuses = [check.status for check in state.catalog.checks()]
        for status in Status:
            checks.add_metric([status], statuses.count(status))
        yield checks
        yield GaugeMetricFamily("toska_registry_services", "Registered instances.", state.catalog.service_count)
        yield GaugeMetricFamily("toska_registry_keys", "Keys in the key-value store.", state.kv.count)
        yield GaugeMetricFamily("toska_registry_sessions", "Sessions.", state.sessions.count)
        yield GaugeMetricFamily("toska_registry_blocked_queries", "Reads that wait for a change.", watches.count)
        yield GaugeMetricFamily("toska_registry_index", "The newest index.", state.index)
        yield CounterMetricFamily("toska_registry_commits", "Transactions written to disk.", self._commits)
        yield CounterMetricFamily("toska_registry_rows", "Rows written to disk.", self._rows)
        expired = CounterMetricFamily(
            "toska_registry_expired", "What ran out: checks, services removed for it, sessions.", labels=["kind"]
        )
        for kind, count in self._expired.items():
            expired.add_metric([kind], count)
        yield expired
        answers = CounterMetricFamily("toska_registry_requests", "Answers by HTTP status.", labels=["status"])
        for code, count in sorted(server.answers.items()):
            answers.add_metric([str(code)], count)
        yield answers
