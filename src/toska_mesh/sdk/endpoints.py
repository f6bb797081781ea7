"""What every HTTP edge of a service shares, whichever server carries it: the mesh's own paths, counting, draining.

`/health` (its path follows the options) asks every check and is what probes of the mesh read; `/health/ready` asks
those tagged `ready` and says 503 from the first moment of a drain; `/health/live` asks those tagged `live`; `/metrics`.
A route of the app for exactly one of these paths wins over ours, a catch-all route does not: see each edge. Our own
answers are neither counted as requests nor waited for.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final

import orjson
from prometheus_client import REGISTRY, CollectorRegistry

from toska_mesh.model import HealthStatus
from toska_mesh.sdk.checks import LIVE, READY, Checks, HealthReport
from toska_mesh.sdk.inflight import InFlight
from toska_mesh.sdk.metrics import ServiceMetrics
from toska_mesh.telemetry.healthbody import CheckEntry, health_body

METRICS_PATH: Final = "/metrics"
_DRAIN_CHECK: Final = "drain"
_DRAIN_WORDS: Final = "draining: finishing what is in flight, taking nothing new"


@dataclass(frozen=True, slots=True)
class OwnAnswer:
    """An answer of ours, for the edge to write."""

    status: int
    content_type: str
    body: bytes


class Edge:
    """Owned by the service, used by its HTTP edge. One event loop.

    `is_draining` is set by the service; `is_registered` is asked.
    """

    def __init__(
        self,
        service: str,
        instance_id: str,
        health_endpoint: str,
        checks: Checks,
        metrics_registry: CollectorRegistry | None = REGISTRY,
    ) -> None:
        self.checks = checks
        self.in_flight = InFlight()
        self.is_draining = False
        self.is_registered: Callable[[], bool] = lambda: False
        self.metrics = ServiceMetrics(service, self._gauges, metrics_registry)
        self._identity = {"service": service, "id": instance_id}
        base = health_endpoint.partition("?")[0].rstrip("/")
        self._health_paths = {base or "/": "", f"{base}/ready": READY, f"{base}/live": LIVE}

    def owns(self, method: str, path: str) -> bool:
        """Whether the mesh has an answer for this, if the app has none."""
        return method in ("GET", "HEAD") and (path in self._health_paths or path == METRICS_PATH)

    async def answer(self, path: str, accept: str) -> OwnAnswer:
        """The answer on one of the paths that are owned."""
        if path == METRICS_PATH:
            return OwnAnswer(200, *self.metrics.render(accept))
        tag = self._health_paths[path]
        report = await self.checks.report(tag)
        return self._health(report, tag)

    def _health(self, report: HealthReport, tag: str) -> OwnAnswer:
        status, checks = report.status, report.checks
        if self.is_draining and tag != LIVE:
            # Whoever asks for readiness must hear no; a probe of the mesh hears what the registry hears.
            drain = HealthStatus.UNHEALTHY if tag == READY else HealthStatus.DEGRADED
            checks = (*checks, CheckEntry(_DRAIN_CHECK, drain.label, _DRAIN_WORDS))
            status = drain if status is not HealthStatus.UNHEALTHY else status
        body = health_body(status.label, report.seconds, checks) | self._identity
        code = 503 if status is HealthStatus.UNHEALTHY else 200
        return OwnAnswer(code, "application/json", orjson.dumps(body, default=str, option=orjson.OPT_NON_STR_KEYS))

    def _gauges(self) -> Iterator[tuple[str, str, float]]:
        yield "http_server_active_requests", "Requests that are being answered.", self.in_flight.count
        yield "toska_service_registered", "1 while the mesh knows this instance.", self.is_registered()
        yield "toska_service_draining", "1 from the signal to the end.", self.is_draining
