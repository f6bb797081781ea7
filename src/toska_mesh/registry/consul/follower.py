"""Follows Consul's whole catalog with two blocking queries and reads again only what changed.

Consul allows 200 connections per client and one long poll per service does not scale, so:

- `health/state/any` and `catalog/services` say *that* something changed, their differences say *which services*;
- those are read again (`health/service/<name>`), a few at once, coalesced for some milliseconds;
- a registration that touches no check (changed metadata or port, instances without checks) moves the index of
  `catalog/services` alone. Then a sweep over the nodes (`catalog/node/<node>`) tells whose ModifyIndex moved;
- a look at `status/leader` now and then notices a frozen registry long before a blocking query would end.

An outage is not an empty answer: the table stays, is marked stale, and the shrink guard watches the return.
"""

import asyncio
import random
from collections.abc import Awaitable, Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Never

from toska_mesh.aio import Latest
from toska_mesh.errors import RegistryError, RegistryUnavailableError
from toska_mesh.model import CatalogSnapshot, InstanceId, ServiceName
from toska_mesh.registry.api import RefreshReason, RefreshReport
from toska_mesh.registry.consul.client import ConsulApi, segment
from toska_mesh.registry.consul.codec import CONSUL_SERVICE, ServiceReading, service_names, service_reading
from toska_mesh.registry.consul.difference import PieceSet, changed_checks
from toska_mesh.registry.consul.guard import ShrinkGuard
from toska_mesh.registry.consul.polling import Backoff, BlockingQuery, Poll
from toska_mesh.registry.consul.registry import ConsulRegistry
from toska_mesh.registry.consul.rereads import Rereads
from toska_mesh.registry.consul.snapshot_file import SnapshotFile
from toska_mesh.registry.consul.sweep import Sweeper
from toska_mesh.registry.consul.table import CatalogTable
from toska_mesh.telemetry import event_log

_TOUCHED_SECONDS = 1.0
_RECEIVING_SECONDS_PER_BYTE = 4e-9
"""About twice what an answer costs before it is here: 3 ms for 2,000 checks, so that it takes a third of the time."""
_CONSISTENT: Mapping[str, str] = {"consistent": ""}
"""The leader makes sure that it still is one before it answers: the default may show an old state for a moment after an
election. https://developer.hashicorp.com/consul/api-docs/features/consistency"""
log = event_log("registry")


@dataclass(frozen=True, slots=True)
class FollowerOptions:
    """All durations in seconds."""

    wait_seconds: float = 120.0
    """Length of one blocking query. Consul's own default is 300; each end resends the whole list."""
    call_seconds: float = 5.0
    """Longest time for a read that does not block."""
    probe_seconds: float = 10.0
    """How often the registry is asked whether it can serve, so that a frozen one is noticed."""
    pause_seconds: float = 0.0
    """Least time from one answer of a watch to its next question. Who does not need milliseconds saves both sides the
    whole list at every single change."""
    coalesce_seconds: float = 0.003
    """How long changes are collected before the services are read again."""
    concurrent_reads: int = 8
    batch_services: int = 64
    """Services read between two published snapshots, so that a storm does not delay the first of its changes."""
    grace_seconds: float = 60.0
    """How long after an outage missing instances are kept, see `guard`."""
    verify_seconds: float = 300.0
    """How often everything is compared anew, whatever the watches said."""
    longest_pause_seconds: float = 3.0
    """Between two tries while the registry is away."""


class ConsulFollower:
    """`CatalogFollower` over one Consul agent. One `follow` per object.

    Owns the table. `on_refresh` is called after every published snapshot, `on_trouble` with the reason when the
    registry stops answering, also before the first snapshot, when nothing could be published about it.
    """

    def __init__(
        self,
        api: ConsulApi,
        options: FollowerOptions | None = None,
        *,
        rng: random.Random | None = None,
        on_refresh: Callable[[RefreshReport], None] | None = None,
        on_trouble: Callable[[str], None] | None = None,
        snapshot_file: SnapshotFile | None = None,
        is_hurried: Callable[[], bool] = lambda: False,
    ) -> None:
        """`is_hurried`: asked after every answer; while it says so, the options' pause does not apply."""
        self._options = options or FollowerOptions()
        self._is_hurried = is_hurried
        self._api = api
        self._registry = ConsulRegistry(api)
        self._rng = rng or random.Random()
        self._on_refresh = on_refresh
        self._on_trouble = on_trouble
        self._file = snapshot_file
        self._guard = ShrinkGuard(self._options.grace_seconds)
        self._table = CatalogTable(self._guard)
        self._sweeper = Sweeper(api, self._table, self._options.call_seconds, self._options.concurrent_reads)
        self._checks = self._query("/v1/health/state/any")
        self._services = self._query("/v1/catalog/services")
        self._known_checks = PieceSet()
        self._known_names: dict[ServiceName, tuple[str, ...]] | None = None
        self._services_body = b""
        self._checks_index = 0
        self._has_checks = False
        self._dirty: dict[ServiceName, float] = {}
        """Services to be read again, oldest first, with the moment of the wake-up that said so."""
        self._touched: dict[ServiceName, float] = {}
        """Services with a changed check since the last move of the catalog."""
        self._unreadable: set[ServiceName] = set()
        self._rereads = Rereads()
        self._wake = asyncio.Event()
        self._troubles: dict[str, str] = {}
        """What does not work now, by activity."""
        self._stale_since: float | None = None
        self._stale_reason = ""
        self._is_stale_published = False
        self._is_loaded = False
        self._has_preloaded = False
        self._complaints: dict[ServiceName, tuple[str, ...]] = {}
        self._version = 0

    def _query(self, path: str) -> BlockingQuery:
        return BlockingQuery(
            self._api, path, wait_seconds=self._options.wait_seconds, slack_seconds=self._options.call_seconds
        )

    @property
    def held(self) -> dict[ServiceName, frozenset[InstanceId]]:
        """Instances shown although the registry, just back from an outage, does not list them as usable."""
        return dict(self._guard.held)

    async def reread(self, service: ServiceName) -> int:
        """Read the service anew whatever the watches say; give a version of the catalog that shows what was read.

        For whoever must know that a change has arrived, and not merely that one did: the watches are silent about what
        changes nothing here. Waits for as long as the registry is away, or is not believed about this service
        (`guard`).
        """
        self._mark_dirty((service,), asyncio.get_running_loop().time())
        if service == CONSUL_SERVICE:
            return self._version  # not shown, so never out of date
        return await self._rereads.ask(service)

    async def follow(self, catalog: Latest[CatalogSnapshot]) -> Never:
        """See `CatalogFollower`."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._watch("checks", self._checks, self._take_checks), name="watch checks")
            tasks.create_task(self._watch("services", self._services, self._take_services), name="watch services")
            tasks.create_task(self._probe(), name="probe registry")
            tasks.create_task(self._sweep_forever(), name="sweep catalog")
            if self._file is not None:
                tasks.create_task(self._file.keep(catalog), name="keep catalog on disk")
            await self._refresh_forever(catalog)
        raise AssertionError("the refresh never ends by itself")

    # --- noticing -----------------------------------------------------------------------------------------------

    async def _watch(self, source: str, query: BlockingQuery, take: Callable[[Poll, float], Awaitable[None]]) -> Never:
        loop = asyncio.get_running_loop()
        backoff = self._backoff()
        while True:
            try:
                poll = await query.next()
                woken_at = loop.time()
                if poll.went_back:
                    self._index_went_back(source, woken_at)
                if poll.is_new:
                    await take(poll, woken_at)
            except RegistryError as error:
                query.forget_index()
                self._trouble(source, error)
                await asyncio.sleep(backoff.failed(error))
                continue
            backoff.succeeded()
            self._works(source)
            # A list so large that it takes long to receive and compare is asked for less often in a storm of changes.
            work_seconds = loop.time() - woken_at + len(poll.body) * _RECEIVING_SECONDS_PER_BYTE
            pause_seconds = 0.0 if self._is_hurried() else self._options.pause_seconds
            await asyncio.sleep(max(pause_seconds, min(1.0, work_seconds)))

    async def _take_checks(self, poll: Poll, woken_at: float) -> None:
        owners = await changed_checks(self._known_checks, poll.body)
        for owner in owners:
            if owner.service:
                self._mark_dirty((ServiceName(owner.service),), woken_at)
                self._touched[ServiceName(owner.service)] = woken_at
            else:
                self._mark_dirty(self._table.services_on(owner.node), woken_at)
        if owners:  # Consul moves the index of the checks with every registration, also when no check changes
            self._sweeper.checks_moved(self._checks_index, poll.index)
        self._checks_index = poll.index
        if not self._has_checks:
            self._has_checks = True
            self._wake.set()

    async def _take_services(self, poll: Poll, woken_at: float) -> None:
        before = self._known_names
        is_same = poll.body == self._services_body
        names = before if before is not None and is_same else service_names(poll.body)
        self._known_names, self._services_body = names, poll.body
        if before is None:
            # Also what an earlier life left in the table and the registry does not know.
            self._mark_dirty((*names, *(name for name in self._table.shown if name not in names)), woken_at)
            self._wake.set()
            return
        changed: list[ServiceName] = []
        if names is not before:
            changed += [name for name, tags in names.items() if before.get(name) != tags]
            changed += [name for name in before if name not in names]
        self._mark_dirty(changed, woken_at)
        self._mark_dirty(self._touched_before(poll.index, woken_at), woken_at)
        self._sweeper.catalog_moved(poll.index, woken_at, is_explained=bool(changed))

    def _touched_before(self, index: int, now: float) -> list[ServiceName]:
        """Services whose check has just changed and that may have been read a moment too early.

        An agent that re-registers an instance writes its check first and the instance after it.
        """
        touched, self._touched = self._touched, {}
        return [
            service
            for service, at in touched.items()
            if now - at < _TOUCHED_SECONDS and not self._table.has_reached(service, index)
        ]

    def _mark_dirty(self, services: Iterable[ServiceName], woken_at: float) -> None:
        for service in services:
            if service != CONSUL_SERVICE:
                self._dirty.setdefault(service, woken_at)
                self._wake.set()

    def _index_went_back(self, source: str, now: float) -> None:
        log.warning("registry_index_went_back", watch=source, grace_seconds=self._options.grace_seconds)
        self._guard.index_went_back(self._table.shown, now)
        self._sweeper.forget()
        self._mark_dirty(self._table.shown, now)

    async def _probe(self) -> Never:
        backoff = self._backoff()
        while True:
            await asyncio.sleep(self._options.probe_seconds * self._rng.uniform(0.8, 1.0))
            try:
                await self._registry.leader()
            except RegistryError as error:
                self._trouble("probe", error)
                await self._probe_until_it_answers(backoff)

    async def _probe_until_it_answers(self, backoff: Backoff) -> None:
        loop = asyncio.get_running_loop()
        failed_at = loop.time()
        while True:
            await asyncio.sleep(backoff.failed(RegistryUnavailableError()))
            try:
                await self._registry.leader()
            except RegistryError as error:
                failed_at = loop.time()
                self._trouble("probe", error)
                continue
            backoff.succeeded()
            # The long polls may hang on connections that died with the outage. Their next answers end the trouble.
            self._checks.cut_short(failed_at)
            self._services.cut_short(failed_at)
            return

    async def _sweep_forever(self) -> Never:
        backoff = self._backoff()
        while True:
            await self._sweeper.wait(self._options.verify_seconds)
            try:
                found = await self._sweeper.sweep()
            except RegistryError as error:
                self._trouble("sweep", error)
                self._sweeper.try_again(asyncio.get_running_loop().time())
                await asyncio.sleep(backoff.failed(error))
                continue
            backoff.succeeded()
            self._works("sweep")
            if found.is_complete:
                self._mark_dirty(self._unreadable, found.started_at)
            self._mark_dirty(found.services, found.started_at)

    def _backoff(self) -> Backoff:
        return Backoff(self._rng, longest_seconds=self._options.longest_pause_seconds)

    # --- reading and publishing -----------------------------------------------------------------------------------

    async def _refresh_forever(self, catalog: Latest[CatalogSnapshot]) -> Never:
        backoff = self._backoff()
        while True:
            await self._wait_for_work()
            await asyncio.sleep(self._options.coalesce_seconds)
            self._wake.clear()
            if not await self._refresh(catalog):
                await asyncio.sleep(backoff.failed(RegistryUnavailableError()))
            else:
                backoff.succeeded()
            if self._dirty:
                self._wake.set()

    async def _wait_for_work(self) -> None:
        try:
            async with asyncio.timeout_at(self._guard.ends_at):
                await self._wake.wait()
        except TimeoutError:
            pass

    async def _refresh(self, catalog: Latest[CatalogSnapshot]) -> bool:
        """One pass: read some dirty services, show them, publish. False when the registry failed."""
        now = asyncio.get_running_loop().time()
        released = self._release(now)
        if self._troubles and not self._is_loaded:
            await self._preload(now)
        batch = {service: self._dirty.pop(service) for service in list(self._dirty)[: self._options.batch_services]}
        asked = self._rereads.begin(batch)
        readings, failure = await self._read(batch, asked) if batch else ({}, None)
        changed = sum(self._table.apply(service, reading) for service, reading in readings.items())
        if failure is not None:
            # First in the queue again, with the moment at which they were noticed.
            self._dirty = {name: at for name, at in batch.items() if name not in readings} | self._dirty
            self._trouble("reads", failure)
        elif batch:
            self._works("reads")
        woken_at = min((batch[service] for service in readings), default=now)
        self._publish(catalog, changed + released, len(readings), woken_at, is_release=bool(released))
        self._rereads.end(asked, readings)
        if self._is_loaded:
            self._rereads.answer(self._version, self._guard.held)
        return failure is None

    def _release(self, now: float) -> int:
        if not self._guard.is_over(now):
            return 0
        held = sum(map(len, self._guard.held.values()))
        released = len(self._table.review(self._guard.close()))
        if held:
            log.warning("held_instances_given_up", instances=held, services=released)
        return released

    async def _preload(self, now: float) -> None:
        if self._file is None or self._has_preloaded:
            return
        self._has_preloaded = True
        saved = await asyncio.to_thread(self._file.load)
        if saved is None or self._table.shown:
            return
        log.warning("snapshot_loaded", services=len(saved.services), age_seconds=round(saved.age_seconds, 1))
        self._table.preload(saved.services)
        self._guard.outage_began(self._table.shown, float("-inf"))
        self._stale_since = now - saved.age_seconds
        # What the registry does not know of these has to be noticed, whichever answer came first.
        self._mark_dirty(self._table.shown if self._known_names is not None else (), now)

    async def _read(
        self, services: Collection[ServiceName], exactly: Collection[ServiceName]
    ) -> tuple[dict[ServiceName, ServiceReading], RegistryError | None]:
        """Read services again, a few at once; the rest is given up when the registry fails.

        `exactly`: those whose reading must hold every write that was acknowledged before.
        """
        readings: dict[ServiceName, ServiceReading] = {}
        failures: list[RegistryUnavailableError] = []
        queue = iter(services)

        async def work() -> None:
            for service in queue:  # shared: each worker takes the next one
                if failures:
                    return
                try:
                    readings[service] = await self._read_one(service, _CONSISTENT if service in exactly else {})
                except RegistryUnavailableError as error:
                    failures.append(error)
                except RegistryError as error:
                    self._refused(service, error)

        async with asyncio.TaskGroup() as tasks:
            for number in range(min(self._options.concurrent_reads, len(services))):
                tasks.create_task(work(), name=f"read services {number}")
        return readings, failures[0] if failures else None

    async def _read_one(self, service: ServiceName, mode: Mapping[str, str]) -> ServiceReading:
        path = f"/v1/health/service/{segment(service)}"
        answer = await self._api.call("GET", path, mode, limit_seconds=self._options.call_seconds)
        reading = service_reading(service, answer.body)
        if reading.dropped and reading.dropped != self._complaints.get(service):
            log.warning("instances_not_usable", service=service, reasons=reading.dropped)
        if reading.dropped:
            self._complaints[service] = reading.dropped
        else:
            self._complaints.pop(service, None)
        self._unreadable.discard(service)
        return reading

    def _refused(self, service: ServiceName, error: RegistryError) -> None:
        """The registry serves, but not this service to us. Its last reading stays; tried again at the next sweep."""
        if service not in self._unreadable:
            log.warning("service_not_readable", service=service, error=str(error))
            self._unreadable.add(service)

    def _publish(
        self, catalog: Latest[CatalogSnapshot], changed: int, read: int, woken_at: float, *, is_release: bool
    ) -> None:
        """Hand out a snapshot if it differs from the last one, staleness included."""
        now = asyncio.get_running_loop().time()
        is_settled = self._known_names is not None and self._has_checks and not self._dirty and not self._troubles
        reason = None
        if is_settled and not self._is_loaded:
            self._is_loaded = True
            reason = RefreshReason.FIRST
        if self._stale_since is not None and is_settled:
            log.info("catalog_fresh", stale_seconds=round(now - self._stale_since, 3))
            self._stale_since, self._stale_reason = None, ""
            reason = RefreshReason.FRESH
        elif self._stale_since is not None and not self._is_stale_published:
            reason = RefreshReason.STALE
        elif changed and reason is None:
            reason = RefreshReason.GRACE_OVER if is_release else RefreshReason.CHANGE
        if reason is None or not (self._is_loaded or (self._table.shown and self._has_preloaded)):
            return
        self._is_stale_published = self._stale_since is not None
        self._version += 1
        catalog.set(CatalogSnapshot(self._table.frozen(), self._version, self._stale_since, self._stale_reason))
        if self._on_refresh is not None:
            held = sum(map(len, self._guard.held.values()))
            self._on_refresh(RefreshReport(reason, self._version, now - woken_at, changed, read, held))

    # --- staleness --------------------------------------------------------------------------------------------------

    def _trouble(self, source: str, error: RegistryError) -> None:
        if not self._troubles:
            self._guard.outage_began(self._table.shown, asyncio.get_running_loop().time())
        self._troubles[source] = str(error)
        if self._stale_since is None:
            self._stale_since = asyncio.get_running_loop().time()
            self._stale_reason = str(error)
            log.warning("catalog_stale", activity=source, reason=str(error), services=len(self._table.shown))
            if self._on_trouble is not None:
                self._on_trouble(str(error))
        self._wake.set()

    def _works(self, source: str) -> None:
        if not self._troubles:
            return
        self._troubles.pop(source, None)
        if source in ("checks", "services"):
            self._troubles.pop("probe", None)  # a watch that was answered is the better proof
        if not self._troubles:
            self._guard.outage_ended(asyncio.get_running_loop().time())
            self._wake.set()
