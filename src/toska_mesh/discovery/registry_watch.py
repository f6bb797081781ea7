"""Whether the registry can be asked, as health and metrics say it.

A short hiccup degrades, a long one makes discovery not ready: its writes would fail, and another replica beside
another agent may do better.
"""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Never

from toska_mesh.admin import Health, HealthState
from toska_mesh.discovery.metrics import DiscoveryMetrics
from toska_mesh.errors import RegistryError
from toska_mesh.registry.api import Registry
from toska_mesh.telemetry import event_log

EVERY_SECONDS = 2.0
ANSWER_SECONDS = 2.0
PATIENCE_SECONDS = 10.0
"""How long after its last answer the registry still counts as seen recently."""

log = event_log("discovery")


class RegistryWatch:
    """Asks for the registry's leader again and again; `set_serving` is told what gRPC health should say."""

    def __init__(
        self,
        registry: Registry,
        health: Health,
        metrics: DiscoveryMetrics,
        set_serving: Callable[[bool], Awaitable[None]],
    ) -> None:
        self._registry = registry
        self._health = health
        self._metrics = metrics
        self._set_serving = set_serving
        self._answered_at: float | None = None
        self._is_up: bool | None = None

    async def run(self) -> Never:
        while True:
            await self.look()
            await asyncio.sleep(EVERY_SECONDS)

    async def look(self) -> None:
        """Ask once and say what came of it."""
        loop = asyncio.get_running_loop()
        try:
            leader = await self._registry.leader(loop.time() + ANSWER_SECONDS)
        except RegistryError as exc:
            self._note(False, str(exc))
            recently = self._answered_at is not None and loop.time() - self._answered_at < PATIENCE_SECONDS
            self._health.set("registry", HealthState.DEGRADED if recently else HealthState.UNHEALTHY, str(exc))
            await self._set_serving(recently)
        else:
            self._note(True, "")
            self._answered_at = loop.time()
            self._health.set("registry", HealthState.HEALTHY, data={"leader": leader})
            await self._set_serving(True)

    def _note(self, is_up: bool, reason: str) -> None:
        self._metrics.registry_up.set(is_up)
        if is_up is not self._is_up:
            self._is_up = is_up
            if is_up:
                log.info("registry_answers")
            else:
                log.warning("registry_does_not_answer", reason=reason)
