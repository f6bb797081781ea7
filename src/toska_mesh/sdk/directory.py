"""The newest table for one protocol, and who waits for a service's first state.

A client that speaks HTTP, one that speaks gRPC and one that only wants an address see different instances of the same
catalog; each has a directory, with targets and breakers of its own.
"""

import asyncio
import random
from collections.abc import Callable, Iterable
from typing import Any, Generic, TypeVar

from toska_mesh.aio import Latest
from toska_mesh.errors import NoInstanceError, RegistryError
from toska_mesh.guard import Guarded
from toska_mesh.model import NO_VERDICTS, CatalogSnapshot, Instance, ServiceName, Verdicts
from toska_mesh.resilience import RecentLatency
from toska_mesh.router import RouteTable, RoutingPolicy, Service, Target
from toska_mesh.sdk.sources import Source

G = TypeVar("G", bound=Guarded)


class Directory(Generic[G]):
    """Owns one table. `make` gives the object for a new instance, with the latency memory of its service."""

    def __init__(
        self,
        source: Source,
        catalog: Latest[CatalogSnapshot],
        verdicts: Latest[Verdicts],
        policy: RoutingPolicy,
        make: Callable[[Instance, RecentLatency], G],
        *,
        clock: Callable[[], float],
        rng: random.Random,
        on_departed: Callable[[Guarded], None] = lambda target: None,
    ) -> None:
        self._source = source
        self._catalog = catalog
        self._verdicts = verdicts
        self._policy = policy
        self._make = make
        self._clock = clock
        self._rng = rng
        self._on_departed = on_departed
        self._seen = (0, 0)
        self._latencies: dict[str, RecentLatency] = {}
        self._used: dict[str, None] = {}
        """Services that somebody has asked for, by name in lower case."""
        self._departed: list[Guarded] = []
        """Instances that left while they still owed answers: deadlines and suspicion hold for them too."""
        self.table: RouteTable | None = None

    @property
    def is_used(self) -> bool:
        """Whether somebody has asked for anything here: a table that nobody looks at need not follow each change."""
        return bool(self._used)

    @property
    def stale_note(self) -> str:
        """See `calls.Directory`."""
        snapshot = self._catalog.peek()
        if snapshot is None or snapshot.stale_since is None:
            return ""
        reason = f": {snapshot.stale_reason}" if snapshot.stale_reason else ""
        return f"; this is only the last known state, {self._clock() - snapshot.stale_since:.3g} s old{reason}"

    def refresh(self) -> None:
        """Build the table from the newest catalog and verdicts, if it is not."""
        seen = (self._catalog.version, self._verdicts.version)
        snapshot = self._catalog.peek()
        if seen == self._seen or snapshot is None:
            return
        self._seen = seen
        self.table = RouteTable.build(
            snapshot,
            self._verdicts.peek() or NO_VERDICTS,
            self._policy,
            self.table,
            self._make_target,
            self._clock(),
            self._rng,
        )
        for target in self.table.departed:
            if isinstance(target, Guarded):
                target.is_gone = True
                self._on_departed(target)
                if target.in_flight:
                    self._departed.append(target)

    def _make_target(self, instance: Instance) -> Target:
        latency = self._latencies.get(instance.service)
        if latency is None:
            latency = self._latencies[instance.service] = RecentLatency()
        return self._make(instance, latency)

    def want(self, name: ServiceName) -> None:
        """Somebody is going to ask for this service. Raises RegistryError or ValueError for a name that cannot be."""
        self._used[name.lower()] = None
        self._source.want(name)

    def get(self, name: ServiceName) -> Service | None:
        """See `calls.Directory`."""
        return self.table.services.get(name) if self.table is not None else None

    async def find(self, name: ServiceName, deadline: float) -> Service:
        """See `calls.Directory`: for the first time, and where the name is written with capitals or is nobody's."""
        began = self._clock()
        try:
            async with asyncio.timeout_at(deadline):
                await self._source.known(name)
        except TimeoutError:
            why = self._source.trouble or "it has not answered yet"
            raise NoInstanceError(
                f"{name}: nothing is known of it after {self._clock() - began:.3g} s: {why}", service=name
            ) from None
        except (ValueError, RegistryError) as error:
            raise NoInstanceError(f"{name}: cannot be followed: {error}", service=name) from error
        self.refresh()
        table = self.table
        service = table.service(name) if table is not None else None
        if service is not None:
            return service
        reason = table.unrouted.get(name) if table is not None else None
        why = reason or "there is no such service in the registry"
        raise NoInstanceError(f"{name}: {why}{self.stale_note}", service=name)

    def present(self, service: Service) -> Service | None:
        """See `calls.Directory`."""
        return self.table.service(service.name) if self.table is not None else None

    def used_targets(self) -> Iterable[Guarded]:
        """Everybody who may owe an answer."""
        self._departed = [target for target in self._departed if target.in_flight]
        yield from self._departed
        services = self.table.services if self.table is not None else {}
        for name in self._used:
            service = services.get(name)
            if service is not None:
                for target in service.all_targets():
                    if isinstance(target, Guarded):
                        yield target

    def all_targets(self) -> list[G]:
        """Of every service, used or not; and those that left and still owe something."""
        services = self.table.services.values() if self.table is not None else ()
        found: list[Any] = [target for service in services for target in service.all_targets()]
        return found + self._departed

    def explain(self, name: ServiceName) -> dict[str, Any]:
        """What is known of a service and what follows from it, as plain data."""
        self.refresh()
        now = self._clock()
        table = self.table
        service = table.service(name) if table is not None else None
        if table is None or service is None:
            reason = table.unrouted.get(name) if table is not None else None
            if reason is None:
                reason = "there is no such service in the registry" if table is not None else "nothing is known yet"
            return {"name": name, "known": False, "reason": self._source.trouble or reason, "instances": []}
        rows = table.explain_service(service, now)
        by_id = {standing.target.instance.id: standing.target for standing in service.everything}
        for row in rows["instances"]:
            target = by_id[row["id"]]
            if isinstance(target, Guarded):
                row["breaker"] = target.circuit.state.value
                row["breaker_failures"] = target.circuit.breaker.failures
                row["breaker_retry_seconds"] = round(max(0.0, target.circuit.retry_at - now), 3)
                row["suspect"] = target.is_suspect
                row["why"] = row["reason"] or _why_blocked(target, now)
        return {"known": True, **rows}


def _why_blocked(target: Guarded, now: float) -> str:
    if target.is_suspect:
        return "suspect: silent for too long; a probe decides when it is back"
    if not target.is_blocked:
        return ""
    left = target.circuit.retry_at - now
    return f"its breaker is {target.circuit.state.value}" + (f" for another {left:.3g} s" if left > 0 else "")
