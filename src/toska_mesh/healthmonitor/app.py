"""Builds the health monitor, wires it and runs it: the one module that knows every part."""

import asyncio
import gc
import os
import random
import socket
import ssl
from datetime import UTC, datetime
from typing import Never
from uuid import uuid4

from toska_mesh.admin import AdminServer, Health, HealthState, run_daemon
from toska_mesh.aio import Latest
from toska_mesh.errors import ConfigError
from toska_mesh.healthmonitor.announcer import Announcer
from toska_mesh.healthmonitor.api import StatusApi
from toska_mesh.healthmonitor.history import Announcements
from toska_mesh.healthmonitor.ledger import Ledger
from toska_mesh.healthmonitor.metrics import MonitorMetrics
from toska_mesh.healthmonitor.monitor import Monitor
from toska_mesh.healthmonitor.probes import NetworkProber, ProbePolicy, Resolver
from toska_mesh.healthmonitor.settings import HealthMonitorSettings
from toska_mesh.messaging import EventSink, open_event_sink
from toska_mesh.model import CatalogSnapshot, Verdicts
from toska_mesh.registry.api import VerdictBoard
from toska_mesh.registry.consul import (
    ConsulClient,
    ConsulFollower,
    ConsulOptions,
    ConsulVerdictBoard,
    FollowerOptions,
)
from toska_mesh.telemetry import event_log, new_metrics_registry

DESCRIPTION = "probes every instance of the mesh, shows what it found and tells gateways and consumers"
CHECK_SECONDS = 1.0
FOLLOWING = FollowerOptions(pause_seconds=0.2)
"""Probing is a matter of seconds, so the whole list need not be fetched at every single change."""
SETTLE_SECONDS = 5.0
"""Until the first catalog has surely been taken over."""

log = event_log("healthmonitor")


def utcnow() -> datetime:
    return datetime.now(UTC)


async def run(settings: HealthMonitorSettings, stop: asyncio.Event) -> None:
    """Probe and serve until `stop` is set. Raises ConfigError for what the settings promise and the machine lacks.

    Stopping gives the leader lock back and with it takes this monitor's verdicts away: fail open.
    """
    metrics_registry = new_metrics_registry("healthmonitor")
    metrics = MonitorMetrics(metrics_registry)
    health = Health(awaited=("catalog",))
    catalog = Latest[CatalogSnapshot]()
    verdicts = Latest[Verdicts]()
    ledger = Ledger(settings.ledger)
    announcements = Announcements()
    async with (
        open_event_sink(
            settings.rabbitmq_url,
            settings.data_path,
            "healthmonitor",
            metrics_registry,
            data_dir_variable="HEALTHMONITOR_DATA_DIR",
        ) as sink,
        ConsulClient(ConsulOptions.from_settings(settings)) as consul,
        Resolver() as resolver,
        AdminServer(
            settings.host,
            settings.port,
            variable="HEALTHMONITOR_PORT",
            health=health,
            metrics=metrics_registry,
            routes=StatusApi(ledger, catalog).routes(),
        ) as server,
        asyncio.TaskGroup() as tasks,
    ):
        prober = open_prober(settings.probes, resolver)
        board = ConsulVerdictBoard(consul, f"{socket.gethostname()}:{os.getpid()}")
        monitor = Monitor(settings.monitor, ledger, prober, metrics, announcements, utcnow, random.Random())
        announcer = Announcer(announcements, sink, board, catalog, uuid4)
        watch = SelfWatch(health, metrics, catalog, board, sink)
        running = [
            tasks.create_task(
                ConsulFollower(consul, FOLLOWING, on_trouble=watch.on_trouble).follow(catalog), name="follow catalog"
            ),
            tasks.create_task(monitor.run(catalog, verdicts), name="monitor"),
            tasks.create_task(board.run(verdicts), name="verdict board"),
            tasks.create_task(announcer.run(), name="announcer"),
            tasks.create_task(watch.run(), name="self watch"),
            tasks.create_task(spare_the_collector(catalog), name="spare the collector"),
        ]
        log.info("serving", host=settings.host, port=server.port)
        await stop.wait()
        health.start_draining()
        for task in running:
            task.cancel()


def open_prober(policy: ProbePolicy, resolver: Resolver) -> NetworkProber:
    """The prober, or ConfigError when the CA file is none."""
    try:
        return NetworkProber(policy, resolver)
    except (OSError, ssl.SSLError) as exc:
        raise ConfigError(f"HEALTHMONITOR_TLS_CA_FILE={policy.ca_file!r} cannot be used: {exc}") from exc


async def spare_the_collector(catalog: Latest[CatalogSnapshot]) -> None:
    """Keep Python's cycle collector from stopping the loop for the length of a walk through all records.

    With 20,000 instances a full collection takes over 100 ms, and thousands of short-lived probes per second call for
    one every few seconds. Records and probes hold no cycles, so what is alive after the start need not be walked
    again, and young objects may grow in number before they are.
    """
    await catalog.first()
    await asyncio.sleep(SETTLE_SECONDS)
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 20, 20)


class SelfWatch:
    """Keeps the monitor's own checks right: `catalog` and `events`. Trouble with either degrades, it does not stop."""

    def __init__(
        self,
        health: Health,
        metrics: MonitorMetrics,
        catalog: Latest[CatalogSnapshot],
        board: VerdictBoard,
        sink: EventSink,
    ) -> None:
        self._health = health
        self._metrics = metrics
        self._catalog = catalog
        self._board = board
        self._sink = sink
        self._was_stale = False
        self._was_leader = False

    def on_trouble(self, reason: str) -> None:
        """The registry does not answer: before the first catalog that is why we are not ready."""
        if self._catalog.peek() is None:
            self._health.set("catalog", HealthState.UNHEALTHY, f"no instances known yet: {reason}")

    async def run(self) -> Never:
        while True:
            self._look_at_catalog(asyncio.get_running_loop().time())
            self._look_at_events()
            self._look_at_leadership()
            await self._wait_for_next_look()

    async def _wait_for_next_look(self) -> None:
        """A tick; the first catalog ends it early, because being ready does not wait for ticks."""
        if self._catalog.peek() is not None:
            await asyncio.sleep(CHECK_SECONDS)
            return
        try:
            async with asyncio.timeout(CHECK_SECONDS):
                await self._catalog.first()
        except TimeoutError:
            pass

    def _look_at_catalog(self, now: float) -> None:
        snapshot = self._catalog.peek()
        if snapshot is None:
            return  # awaited: unhealthy until the registry has answered once
        age = 0.0 if snapshot.stale_since is None else now - snapshot.stale_since
        self._metrics.catalog_stale.set(age)
        if snapshot.is_stale:
            words = f"the registry has not answered for {age:.0f} s: {snapshot.stale_reason}; the last known instances"
            self._health.set("catalog", HealthState.DEGRADED, f"{words} are probed")
        else:
            self._health.set("catalog", HealthState.HEALTHY)
        if snapshot.is_stale is not self._was_stale:
            self._was_stale = snapshot.is_stale
            if snapshot.is_stale:
                log.warning("catalog_stale", reason=snapshot.stale_reason)
            else:
                log.info("catalog_fresh")

    def _look_at_events(self) -> None:
        state = self._sink.state
        if state.is_enabled and state.trouble:
            self._health.set("events", HealthState.DEGRADED, state.trouble, {"waiting": state.waiting})
        else:
            words = "" if state.is_enabled else "RABBITMQ_URL is empty: events are only logged"
            self._health.set("events", HealthState.HEALTHY, words, {"waiting": state.waiting})

    def _look_at_leadership(self) -> None:
        is_leader = self._board.is_leader
        self._metrics.is_leader.set(is_leader)
        words = "writes verdicts and events" if is_leader else "another monitor leads, or the registry is away"
        self._health.set("leadership", HealthState.HEALTHY, words, {"leader": is_leader})
        if is_leader is not self._was_leader:
            self._was_leader = is_leader
            log.info("leadership_changed", leader=is_leader)


def main() -> Never:
    run_daemon("toska-healthmonitor", HealthMonitorSettings, run, DESCRIPTION)
