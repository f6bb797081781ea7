"""Builds discovery, wires it and runs it: the one module that knows every part."""

import asyncio
import contextlib
import fcntl
import gc
import os
import socket
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Never
from uuid import uuid4

from toska_mesh.admin import AdminServer, Health, HealthState, run_daemon
from toska_mesh.aio import Latest
from toska_mesh.discovery.announcer import Announcer
from toska_mesh.discovery.auth import Gatekeeper
from toska_mesh.discovery.grpc_server import GrpcServer
from toska_mesh.discovery.mesh_servicer import MeshServicer
from toska_mesh.discovery.metrics import DiscoveryMetrics
from toska_mesh.discovery.notes import Notes
from toska_mesh.discovery.prober import Prober
from toska_mesh.discovery.reconciler import Reconciler
from toska_mesh.discovery.registrar import Registrar
from toska_mesh.discovery.registry_watch import RegistryWatch
from toska_mesh.discovery.rest import RestApi
from toska_mesh.discovery.servicer import DiscoveryServicer
from toska_mesh.discovery.settings import DiscoverySettings
from toska_mesh.discovery.store import Store
from toska_mesh.discovery.transitions import Stamp
from toska_mesh.discovery.watch import WatchHub
from toska_mesh.errors import ConfigError
from toska_mesh.messaging import EventSink, open_event_sink
from toska_mesh.model import CatalogSnapshot, Verdicts
from toska_mesh.registry.consul.beats import BeatingRegistry
from toska_mesh.registry.consul.client import ConsulClient
from toska_mesh.registry.consul.fence import ConsulGatewayBarrier
from toska_mesh.registry.consul.follower import ConsulFollower, FollowerOptions
from toska_mesh.registry.consul.keys import ConsulKeys
from toska_mesh.registry.consul.lock import ConsulLeaderLock
from toska_mesh.registry.consul.options import ConsulOptions
from toska_mesh.registry.consul.verdicts import ConsulVerdictFollower
from toska_mesh.telemetry import event_log, new_metrics_registry

DESCRIPTION = "the mesh's registry service: gRPC and REST over Consul or toska-registry, with events"
LOCK_NAME = "discovery.lock"
LEADER_KEY = "toska/discovery/leader"
EVENTS_CHECK_SECONDS = 2.0
FOLLOW_PAUSE_SECONDS = 0.2
"""Between two looks at the catalog while nobody watches: the reconciler waits longer before it believes it."""

log = event_log("discovery")


def utcnow() -> datetime:
    return datetime.now(UTC)


async def run(settings: DiscoverySettings, stop: asyncio.Event) -> None:
    """Serve until `stop` is set, then drain. Raises ConfigError for what the settings promise and the machine lacks."""
    if settings.auth == "off":
        log.warning("callers_are_not_checked", hint="set DISCOVERY_AUTH=required and MESH_SERVICE_AUTH_SECRET")
    metrics_registry = new_metrics_registry("discovery")
    metrics = DiscoveryMetrics(metrics_registry)
    health = Health(awaited=("registry",))
    catalog, verdicts = Latest[CatalogSnapshot](), Latest[Verdicts]()
    gatekeeper = Gatekeeper(
        settings.auth,
        settings.auth_secret.get_secret_value(),
        settings.auth_issuer,
        settings.auth_audience,
        utcnow,
    )
    with data_dir_lock(settings.data_path):
        async with (
            Store(settings.data_path) as store,
            open_event_sink(
                settings.rabbitmq_url,
                settings.data_path,
                "discovery",
                metrics_registry,
                data_dir_variable="DISCOVERY_DATA_DIR",
            ) as sink,
            ConsulClient(ConsulOptions.from_settings(settings)) as consul,
            BeatingRegistry(consul) as registry,
        ):
            announcer = Announcer(store, sink, metrics, Stamp(uuid4, utcnow))
            lock = ConsulLeaderLock(consul, LEADER_KEY, f"toska-discovery {socket.gethostname()} {os.getpid()}")
            metrics.is_leader.set_function(lambda: lock.is_leader)
            notes = Notes(ConsulKeys(consul), lambda: lock.is_leader, utcnow)
            registrar = Registrar(
                registry, announcer, gatekeeper, catalog, metrics, store.remembered.records, notes, uuid4, utcnow
            )
            servicer = DiscoveryServicer(registrar, gatekeeper, metrics)
            # A registration always finds room: calls that last may be half of all, streams and waits a quarter each.
            hub = WatchHub(max(1, settings.max_concurrent_calls // 4))
            barrier = ConsulGatewayBarrier(consul)
            mesh = MeshServicer(hub, barrier, gatekeeper, metrics, max(1, settings.max_concurrent_calls // 4))
            follower = ConsulFollower(
                consul,
                FollowerOptions(pause_seconds=FOLLOW_PAUSE_SECONDS),
                is_hurried=lambda: hub.watcher_count > 0,
            )
            rest = RestApi(registrar, gatekeeper, metrics, Prober(), utcnow)
            async with (
                AdminServer(
                    settings.host,
                    settings.http_port,
                    variable="DISCOVERY_HTTP_PORT",
                    health=health,
                    metrics=metrics_registry,
                    routes=rest.routes(),
                ),
                GrpcServer(
                    settings.host, settings.port, servicer, mesh, settings.max_concurrent_calls, settings.drain_seconds
                ) as server,
                asyncio.TaskGroup() as tasks,
            ):
                watch = RegistryWatch(registry, health, metrics, server.set_serving)
                reconciler = Reconciler(registry, announcer, registrar, catalog, notes, lambda: lock.is_leader, utcnow)
                running = [
                    tasks.create_task(watch.run(), name="watch registry"),
                    tasks.create_task(follower.follow(catalog), name="follow catalog"),
                    tasks.create_task(ConsulVerdictFollower(consul).follow(verdicts), name="follow verdicts"),
                    tasks.create_task(barrier.run(), name="follow gateways"),
                    tasks.create_task(hub.run(catalog, verdicts), name="tell streams"),
                    tasks.create_task(lock.run(), name="hold leader lock"),
                    tasks.create_task(reconciler.run(), name="reconcile"),
                    tasks.create_task(watch_events(sink, health), name="watch events"),
                ]
                # What is there by now stays: the collector need not look at it again while beats come and go.
                gc.collect()
                gc.freeze()
                log.info("serving", host=settings.host, grpc_port=settings.port, http_port=settings.http_port)
                await stop.wait()
                health.start_draining()
                await server.set_serving(False)
                mesh.drain()
                for task in running:
                    task.cancel()


async def watch_events(sink: EventSink, health: Health) -> Never:
    """Keep the `events` check right. An absent broker degrades: calls are served and events wait on the disk."""
    while True:
        state = sink.state
        if state.is_enabled and state.trouble:
            health.set("events", HealthState.DEGRADED, state.trouble, {"waiting": state.waiting})
        else:
            description = "" if state.is_enabled else "RABBITMQ_URL is empty: events are only logged"
            health.set("events", HealthState.HEALTHY, description, {"waiting": state.waiting})
        await asyncio.sleep(EVENTS_CHECK_SECONDS)


@contextlib.contextmanager
def data_dir_lock(folder: Path) -> Iterator[None]:
    """Keep a second discovery out of the folder; the kernel lets go with the process, however that ends."""
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        handle = os.open(folder / LOCK_NAME, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
    except OSError as exc:
        raise ConfigError(f"DISCOVERY_DATA_DIR={str(folder)!r} cannot be written: {exc.strerror}") from exc
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as exc:
            raise ConfigError(
                f"DISCOVERY_DATA_DIR={str(folder)!r} is in use by another discovery; give each one a folder of its own"
            ) from exc
        yield
    finally:
        os.close(handle)


def main() -> Never:
    run_daemon("toska-discovery", DiscoverySettings, run, DESCRIPTION)


if __name__ == "__main__":
    main()
