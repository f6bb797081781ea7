"""From the registry to the route table in use: follows catalog and verdicts, builds, swaps, and says what changed.

Owner of the route table; the proxy only reads it.
"""

import asyncio
from datetime import UTC, datetime
from typing import Never

from toska_mesh.admin import Health, HealthState
from toska_mesh.aio import Latest
from toska_mesh.gateway.garbage import CalmCollector
from toska_mesh.gateway.proxy import Proxy
from toska_mesh.model import NO_VERDICTS, CatalogSnapshot, Verdicts
from toska_mesh.registry.api import RefreshReport
from toska_mesh.router import RouteTable, RoutingPolicy
from toska_mesh.telemetry import event_log

CHECK = "routes"
MAX_LOGGED_NAMES = 20

log = event_log("gateway.routes")


class Routing:
    """Keeps `proxy.table` at the newest catalog and verdicts."""

    def __init__(
        self, proxy: Proxy, policy: RoutingPolicy, health: Health, collector: CalmCollector | None = None
    ) -> None:
        self._proxy = proxy
        self._policy = policy
        self._health = health
        self._collector = collector
        self.catalog: Latest[CatalogSnapshot] = Latest()
        self.verdicts: Latest[Verdicts] = Latest()
        self.has_table = asyncio.Event()
        self._used: Latest[int] = Latest()
        """Version of the catalog that the table in use was built from."""
        self._table: RouteTable | None = None
        self._told: RouteTable | None = None
        """The last table that the log knows about."""
        self._refreshed: tuple[float, float] | None = None
        self._in_panic: frozenset[str] = frozenset()
        self._was_stale = False

    def on_refresh(self, report: RefreshReport) -> None:
        """The follower has published: remember when its news began, to measure freshness."""
        if report.changed_services:
            self._refreshed = (self._proxy.clock(), report.duration_seconds)

    def on_trouble(self, reason: str) -> None:
        """The registry does not answer: before the first table that is why we are not ready."""
        if self._table is None:
            self._health.set(CHECK, HealthState.UNHEALTHY, f"no routes yet: {reason}")

    async def in_use(self, version: int) -> None:
        """Wait until the table in use is built from this version of the catalog, or from a newer one."""
        used = self._used.version
        while (self._used.peek() or 0) < version:
            _, used = await self._used.newer_than(used)

    async def run(self) -> Never:
        """Until cancelled, rebuild at every change of either input."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._rebuild_with_verdicts(), name="rebuild with verdicts")
            async for snapshot in self.catalog.updates():
                self._rebuild(snapshot, self.verdicts.peek() or NO_VERDICTS)
        raise AssertionError("updates never end")

    async def _rebuild_with_verdicts(self) -> Never:
        async for verdicts in self.verdicts.updates():
            snapshot = self.catalog.peek()
            if snapshot is not None:
                self._rebuild(snapshot, verdicts)
        raise AssertionError("updates never end")

    def _rebuild(self, snapshot: CatalogSnapshot, verdicts: Verdicts) -> None:
        try:
            self._build_and_use(snapshot, verdicts)
        except Exception:
            # Whatever the registry holds, the table in use is better than none; the next change is another chance.
            log.exception("table_not_built", catalog_version=snapshot.version)
            if self._table is not None:
                self._health.set(CHECK, HealthState.DEGRADED, "the newest catalog could not be used: see the log")

    def _build_and_use(self, snapshot: CatalogSnapshot, verdicts: Verdicts) -> None:
        proxy = self._proxy
        began = proxy.clock()
        table = RouteTable.build(
            snapshot, verdicts, self._policy, self._table, proxy.make_upstream, proxy.clock(), proxy.rng
        )
        self._table = table
        proxy.use_table(table)
        self._used.set(snapshot.version)
        self.has_table.set()
        if self._refreshed is not None:
            published_at, duration = self._refreshed
            proxy.stats.observe_freshness(duration + proxy.clock() - published_at)
            self._refreshed = None
        self._say_health(snapshot)
        before, self._told = self._told, table
        self._log_difference(before, table)
        proxy.stats.observe_build(proxy.clock() - began)
        if self._collector is not None:
            self._collector.table_in_use(len(proxy.upstreams()))

    def _say_health(self, snapshot: CatalogSnapshot) -> None:
        if snapshot.is_stale:
            seconds = self._proxy.clock() - (snapshot.stale_since or 0.0)
            since = datetime.now(UTC).timestamp() - seconds
            moment = datetime.fromtimestamp(since, UTC).isoformat(timespec="seconds")
            # Ready all the same: the last table is better than none.
            self._health.set(CHECK, HealthState.DEGRADED, f"stale since {moment}: {snapshot.stale_reason}")
        else:
            self._health.set(CHECK, HealthState.HEALTHY, f"services in the registry: {len(snapshot.services)}")
        if snapshot.is_stale is not self._was_stale:
            self._was_stale = snapshot.is_stale
            log.warning("table_stale" if snapshot.is_stale else "table_fresh_again", reason=snapshot.stale_reason)
        self._proxy.stale_since = snapshot.stale_since

    def _log_difference(self, before: RouteTable | None, after: RouteTable) -> None:
        known = before.services if before is not None else {}
        changes = after.changes_since(before)
        added = sorted(name for name in changes if name not in known)
        removed = sorted(name for name in changes if name not in after.services)
        changed = [
            f"{service.name}: {len(service.targets)} of {len(service.everything)} eligible"
            for name in changes
            if name in known and (service := after.services.get(name)) is not None
        ]
        if added or removed or changed:
            log.info(
                "routes_changed",
                version=after.version,
                services=len(after.services),
                added=added[:MAX_LOGGED_NAMES],
                removed=removed[:MAX_LOGGED_NAMES],
                changed=changed[:MAX_LOGGED_NAMES],
            )
        in_panic = {name for name in changes if name in after.services and after.services[name].in_panic}
        for name in sorted(in_panic - self._in_panic):
            log.warning("verdicts_not_believed", service=name, reason="most instances judged unhealthy at once")
        self._in_panic = self._in_panic.difference(changes) | in_panic
