"""The monitor's loop: follows the catalog, starts probes when they are due, hands verdicts on.

One heap and one task drive all instances; a task exists only for a probe under way. Decisions are made in `ledger`,
`schedule` and `lanes`; here are the clock, the tasks and the order of things.
"""

import asyncio
import random
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from typing import Never

from toska_mesh.aio import Latest
from toska_mesh.healthmonitor.history import Announcements, Transition
from toska_mesh.healthmonitor.lanes import Lanes
from toska_mesh.healthmonitor.ledger import Key, Ledger, Record
from toska_mesh.healthmonitor.metrics import MonitorMetrics
from toska_mesh.healthmonitor.probes import Prober
from toska_mesh.healthmonitor.schedule import Schedule, next_slot
from toska_mesh.healthmonitor.verdict import Outcome, ProbeResult
from toska_mesh.model import CatalogSnapshot, Instance, ServiceName, Verdicts
from toska_mesh.resilience.breaker import Permit
from toska_mesh.telemetry import event_log

log = event_log("healthmonitor")

TICK_SECONDS = 0.005
"""What is due within one tick is started together; waking up for each would cost more than the probes."""

FIRST_PROBES_PER_SECOND = 500
"""New instances are probed at once, but many of them at no more than this rate."""

COALESCE_SECONDS = 0.05
"""Changes of the catalog and of verdicts within this time are handled as one."""

START_AT_ONCE = 50
"""Probes started before the loop gets a breath: after a stall hundreds may be due, and other work is due as well."""

ADOPT_AT_ONCE = 500
"""Instances taken over from a new catalog before the loop gets a breath."""


@dataclass(frozen=True, slots=True)
class MonitorPolicy:
    interval_seconds: float = 30.0
    concurrency: int = 256


class Monitor:
    """Owns schedule and lanes; the ledger is shared with the API, which only reads. Lives on one event loop."""

    def __init__(
        self,
        policy: MonitorPolicy,
        ledger: Ledger,
        prober: Prober,
        metrics: MonitorMetrics,
        announcements: Announcements,
        utcnow: Callable[[], datetime],
        chance: random.Random,
    ) -> None:
        self._policy = policy
        self._ledger = ledger
        self._prober = prober
        self._metrics = metrics
        self._announcements = announcements
        self._utcnow = utcnow
        self._chance = chance
        self._schedule: Schedule[Key] = Schedule()
        self._lanes: Lanes[tuple[Record, int, Permit, float]] = Lanes(policy.concurrency)
        self._known: dict[ServiceName, tuple[Instance, ...]] = {}
        self._wake = asyncio.Event()
        self._verdicts_changed = asyncio.Event()
        metrics.follow(ledger.counts, lambda: self._lanes.in_flight, lambda: self._lanes.waiting)

    async def run(self, catalog: Latest[CatalogSnapshot], verdicts: Latest[Verdicts]) -> Never:
        """Probe what the catalog lists until cancelled. `verdicts` gets a new value whenever one changed."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._follow(catalog), name="follow the catalog")
            tasks.create_task(self._hand_on(verdicts), name="hand on verdicts")
            await self._drive(tasks)

    async def _follow(self, catalog: Latest[CatalogSnapshot]) -> Never:
        async for snapshot in catalog.updates():
            await self.adopt(snapshot)
            await asyncio.sleep(COALESCE_SECONDS)
        raise AssertionError("updates never end")

    async def adopt(self, snapshot: CatalogSnapshot) -> None:
        """Make the set of probed instances equal to the snapshot's. A stale snapshot is the last known set."""
        added: list[Record] = []
        budget = ADOPT_AT_ONCE
        gone = [name for name in self._known if name not in snapshot.services]
        for service in (*gone, *snapshot.services):
            instances = snapshot.services.get(service, ())
            if self._known.get(service) is instances:
                continue  # the follower reuses the tuples of services that did not change
            added += self._adopt_service(service, instances)
            budget -= len(instances)
            if budget <= 0:
                await asyncio.sleep(0)
                budget = ADOPT_AT_ONCE
        self._plan_first_probes(added)
        self._verdicts_changed.set()

    def _adopt_service(self, service: ServiceName, instances: tuple[Instance, ...]) -> tuple[Record, ...]:
        changes = self._ledger.adopt(service, instances, self._utcnow())
        if instances:
            self._known[service] = instances
        else:
            self._known.pop(service, None)
        for key in changes.to_forget:
            self._schedule.remove(key)
        for transition in changes.transitions:
            self._announce(transition)
        return changes.to_schedule

    def _plan_first_probes(self, records: list[Record]) -> None:
        now = asyncio.get_running_loop().time()
        spread = min(self._policy.interval_seconds, len(records) / FIRST_PROBES_PER_SECOND)
        for record in records:
            self._schedule.add(record.key, now + spread * self._chance.random())
        self._wake.set()

    async def _drive(self, tasks: asyncio.TaskGroup) -> Never:
        loop = asyncio.get_running_loop()
        while True:
            now = loop.time()
            for key, due in self._schedule.pop_due(now):
                self._take_up(key, due, now)
            if self._start_what_fits(tasks):
                await asyncio.sleep(0)
                continue
            next_due = self._schedule.next_due()
            self._wake.clear()
            try:
                async with asyncio.timeout_at(None if next_due is None else max(next_due, now + TICK_SECONDS)):
                    await self._wake.wait()
            except TimeoutError:
                pass

    def _take_up(self, key: Key, due: float, now: float) -> None:
        record = self._ledger.find(key)
        if record is None:
            return
        permit = self._ledger.admit(record, due)
        if permit is None:
            self._metrics.left_out.inc()
            self._plan_next(record, due, now)
        else:
            self._lanes.push((record, record.epoch, permit, due), is_suspect=record.is_suspect)

    def _start_what_fits(self, tasks: asyncio.TaskGroup, at_most: int = START_AT_ONCE) -> bool:
        """Start waiting probes; True when `at_most` were and more may fit."""
        now = asyncio.get_running_loop().time()
        for _ in range(at_most):
            popped = self._lanes.pop()
            if popped is None:
                return False
            (record, epoch, permit, due), is_suspect = popped
            if epoch != record.epoch or self._ledger.find(record.key) is not record:
                self._lanes.release(is_suspect=is_suspect)  # gone or planned anew while it waited
                continue
            self._metrics.lag.observe(max(0.0, now - due))
            tasks.create_task(self._probe(tasks, record, permit, due, is_suspect), name=f"probe {record.key[1]}")
        return True

    async def _probe(
        self, tasks: asyncio.TaskGroup, record: Record, permit: Permit, due: float, is_suspect: bool
    ) -> None:
        loop = asyncio.get_running_loop()
        epoch, plan, started = record.epoch, record.plan, loop.time()
        try:
            result = await self._prober.probe(plan)
        except Exception as exc:  # one probe's bug must not stop the others
            log.exception("probe_broken", service=record.key[0], instance=record.key[1], probe=plan.kind)
            result = ProbeResult(Outcome.INCONCLUSIVE, f"the monitor could not probe: {type(exc).__name__}")
        finally:
            self._lanes.release(is_suspect=is_suspect)
        now = loop.time()
        self._metrics.probes[plan.kind, result.outcome].inc()
        self._metrics.durations[plan.kind].observe(now - started)
        if record.epoch == epoch and self._ledger.find(record.key) is record:
            transition = self._ledger.settle(record, permit, result, due, self._utcnow())
            if transition is not None:
                self._announce(transition)
            self._plan_next(record, due, now)
        if self._lanes.waiting:
            self._start_what_fits(tasks, at_most=1)  # into the slot that this one leaves

    def _plan_next(self, record: Record, due: float, now: float) -> None:
        """Plan the slot after `due`; slots that already passed are lost and counted."""
        interval = self._policy.interval_seconds
        slot = next_slot(record.phase, interval, due + interval / 2)
        if slot <= now:
            current = next_slot(record.phase, interval, now)
            self._metrics.missed.inc(round((current - slot) / interval))
            slot = current
        self._schedule.add(record.key, slot)
        next_due = self._schedule.next_due()
        if next_due is not None and next_due >= slot:
            self._wake.set()  # the driver sleeps towards a later moment, or without end

    def _announce(self, transition: Transition) -> None:
        log.info(
            "health_changed",
            service=transition.service,
            instance=transition.instance_id,
            previous=transition.previous.label,
            current=transition.current.label,
            probe=transition.probe_type,
            reason=transition.message,
        )
        self._metrics.transitions.labels(transition.current.label).inc()
        if transition.is_news:
            dropped = self._announcements.dropped
            self._announcements.add(transition)
            self._metrics.events_dropped.inc(self._announcements.dropped - dropped)
        self._verdicts_changed.set()

    async def _hand_on(self, verdicts: Latest[Verdicts]) -> Never:
        while True:
            await self._verdicts_changed.wait()
            await asyncio.sleep(COALESCE_SECONDS)
            self._verdicts_changed.clear()
            newest = self._ledger.verdicts()
            if newest != verdicts.peek():
                verdicts.set(newest)
