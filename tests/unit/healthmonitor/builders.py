"""Instances, snapshots and a scripted prober for the monitor's tests."""

import asyncio
from collections.abc import Callable
from datetime import UTC, datetime, timedelta

from toska_mesh.healthmonitor.targets import ProbePlan
from toska_mesh.healthmonitor.verdict import Outcome, ProbeResult
from toska_mesh.model import CatalogSnapshot, Endpoint, Instance, InstanceId, ServiceName

START = datetime(2024, 5, 1, 12, 0, tzinfo=UTC)
OK = ProbeResult(Outcome.SUCCESS, "HTTP 200", is_connected=True)
DOWN = ProbeResult(Outcome.FAILURE, "connection refused")
SILENT = ProbeResult(Outcome.TIMEOUT, "connected, but no answer in time", is_connected=True)
OWN_TROUBLE = ProbeResult(Outcome.INCONCLUSIVE, "the monitor could not probe: Too many open files")


def utcnow() -> datetime:
    """Wall clock that follows the virtual one."""
    return START + timedelta(seconds=asyncio.get_running_loop().time())


def an_instance(
    name: str = "orders-1", service: str = "orders", host: str = "10.0.0.1", port: int = 8080, **metadata: str
) -> Instance:
    """Probed by HTTP unless the metadata says otherwise; a value of "" takes the key out."""
    merged = {"scheme": "http", "health_check_endpoint": "/health", **metadata}
    return Instance(
        ServiceName(service),
        InstanceId(name),
        Endpoint(host, port),
        metadata={key: value for key, value in merged.items() if value},
    )


def a_snapshot(*instances: Instance, version: int = 1, stale_since: float | None = None) -> CatalogSnapshot:
    services: dict[ServiceName, tuple[Instance, ...]] = {}
    for instance in instances:
        services[instance.service] = (*services.get(instance.service, ()), instance)
    return CatalogSnapshot(services, version, stale_since, "connection refused" if stale_since is not None else "")


class ScriptedProber:
    """Answers by host; a host without a script is healthy. `seen` keeps when each host was probed."""

    def __init__(self, answers: dict[str, Callable[[int], ProbeResult]] | None = None, seconds: float = 0.01) -> None:
        self.answers = answers or {}
        self.seconds: dict[str, float] = {}
        self.default_seconds = seconds
        self.seen: dict[str, list[float]] = {}
        self.in_flight = 0
        self.most_in_flight = 0

    async def probe(self, plan: ProbePlan) -> ProbeResult:
        times = self.seen.setdefault(plan.host, [])
        times.append(asyncio.get_running_loop().time())
        turn = len(times) - 1
        self.in_flight += 1
        self.most_in_flight = max(self.most_in_flight, self.in_flight)
        try:
            await asyncio.sleep(self.seconds.get(plan.host, self.default_seconds))
        finally:
            self.in_flight -= 1
        return self.answers.get(plan.host, lambda _: OK)(turn)
