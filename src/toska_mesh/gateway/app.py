"""The gateway process: builds the parts, wires them, runs until told to stop, drains."""

import asyncio
import contextlib
import signal
import socket
import ssl
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Never

import aiohttp

from toska_mesh.admin import AdminServer, Health, run_daemon
from toska_mesh.aio import background_tasks
from toska_mesh.gateway.accesslog import AccessLog
from toska_mesh.gateway.adminapi import admin_routes
from toska_mesh.gateway.admission import raise_descriptor_limit
from toska_mesh.gateway.auth import Keys, KeySetFetcher, TokenChecker, static_keys
from toska_mesh.gateway.client import ClientConnection
from toska_mesh.gateway.dashboard import PREFIX, Dashboard
from toska_mesh.gateway.garbage import CalmCollector
from toska_mesh.gateway.listener import Listener, upstream_tls
from toska_mesh.gateway.local import health_handlers
from toska_mesh.gateway.proxy import Proxy
from toska_mesh.gateway.reloading import FileWatch, WatchedFiles, fingerprint
from toska_mesh.gateway.routing import CHECK, Routing
from toska_mesh.gateway.settings import GatewaySettings
from toska_mesh.gateway.sharedlimit import SharedRateLimiter
from toska_mesh.gateway.visible import AppliedIndex, follow_when_seen, presence
from toska_mesh.gateway.workers import refuse_to_replace, supervise
from toska_mesh.registry.consul import (
    ConsulClient,
    ConsulFollower,
    ConsulOptions,
    ConsulVerdictFollower,
    FollowerOptions,
    SnapshotFile,
)
from toska_mesh.router import RoutingPolicy
from toska_mesh.settings import mask_credentials
from toska_mesh.telemetry import event_log, new_metrics_registry
from toska_mesh.telemetry.logs import log_writer

MAX_NOTICE_SECONDS = 1.0
"""Between "not ready" and the closed port: time for balancers in front of us to notice."""

MAX_WAIT_FOR_TABLE_SECONDS = 5.0

log = event_log("gateway")


@dataclass(frozen=True, slots=True)
class Inherited:
    """What a worker gets from its supervisor."""

    listener: socket.socket
    limit_table: int
    """Descriptor of the shared rate limit (`sharedlimit`)."""
    admin_socket: str
    """Path of the Unix socket for its part of the admin API."""
    is_patient: bool
    """Others serve already: it need not take requests before it has a table."""


async def run(settings: GatewaySettings, stop: asyncio.Event) -> None:
    """The gateway as the settings want it: alone, or as several workers."""
    if settings.worker_count > 1 or settings.handover_path:
        await supervise(settings, stop)
    else:
        asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, refuse_to_replace)
        await serve(settings, stop)


async def serve(settings: GatewaySettings, stop: asyncio.Event, inherited: Inherited | None = None) -> None:
    """Serve in this process until `stop` is set, then drain. The one function that knows every part."""
    raise_descriptor_limit()
    health = Health(awaited=[CHECK])
    metrics = new_metrics_registry("gateway")
    before = {paths: fingerprint(paths) for paths in _paths(settings)}  # before anything is loaded from them
    tokens, key_set = _token_checker(settings)
    shared_limiter = _shared_limiter(settings, inherited)
    async with (
        ConsulClient(ConsulOptions.from_settings(settings)) as consul,
        aiohttp.ClientSession() as outgoing,
        background_tasks() as tasks,
    ):
        proxy = Proxy(
            settings,
            tasks,
            access_log=AccessLog(log_writer()) if settings.access_log else None,
            tokens=tokens,
            key_set=key_set,
            upstream_tls=upstream_tls(settings),
            limiter=shared_limiter if settings.rate_limit_enabled else None,
            route_limits=shared_limiter,
        )
        metrics.register(proxy.stats)
        proxy.local = health_handlers(health)
        proxy.guarded_prefix = PREFIX.encode()
        proxy.guarded_handler = Dashboard(settings, outgoing, lambda: proxy.table).handle
        routing = Routing(
            proxy,
            RoutingPolicy(expose_all=settings.expose == "all", slow_start_seconds=settings.slow_start_seconds),
            health,
            CalmCollector(),
        )
        follower = ConsulFollower(
            consul,
            FollowerOptions(wait_seconds=settings.route_refresh_seconds),
            on_refresh=routing.on_refresh,
            on_trouble=routing.on_trouble,
            snapshot_file=SnapshotFile(Path(settings.snapshot_path), registry=consul.origin)
            if settings.snapshot_path
            else None,
        )
        seen = presence(consul, proxy, follower, routing)
        metrics.register(AppliedIndex(seen))
        listener = Listener(settings, lambda: ClientConnection(proxy), inherited.listener if inherited else None)
        files = _watched_files(settings, before, listener, proxy, tokens)
        proxy.stats.tls_failures = listener.tls_failures
        if inherited is None:
            await listener.open()  # before anything else: a port that is taken is said at once
        async with AdminServer(
            settings.admin_host,
            settings.admin_port,
            variable="GATEWAY_ADMIN_PORT",
            health=health,
            metrics=metrics,
            routes=admin_routes(proxy, settings, lambda: seen.applied_index),
            unix_path=inherited.admin_socket if inherited else "",
        ) as admin:
            tasks.create_task(routing.run(), name="keep routes")
            tasks.create_task(seen.run(), name="be seen in the registry")
            tasks.create_task(follow_when_seen(seen, follower, routing), name="follow catalog")
            tasks.create_task(ConsulVerdictFollower(consul).follow(routing.verdicts), name="follow verdicts")
            tasks.create_task(proxy.run(), name="tick")
            if files:
                watch = FileWatch(files, health)
                metrics.register(watch)
                tasks.create_task(watch.run(), name="watch files")
            if key_set is not None:
                tasks.create_task(key_set.run(), name="fetch keys now and then")
            if inherited is not None:
                await _until_routable(routing, stop, inherited.is_patient)
                if not stop.is_set():
                    await listener.open()
            _say_hello(settings, listener.port, admin.port)
            if proxy.admission.places < settings.max_connections:
                log.warning(
                    "too_few_file_descriptors",
                    client_connections=proxy.admission.places,
                    wanted=settings.max_connections,
                    remedy="raise the hard limit of open files (ulimit -Hn, LimitNOFILE) to 2.1 per client connection",
                )
            await stop.wait()
            await _drain(settings, health, proxy, listener)


async def _until_routable(routing: Routing, stop: asyncio.Event, is_patient: bool) -> None:
    """A worker shares its port: while it has no table yet, others may, so it lets them take the first requests.

    Not for long, unless it knows of others: without a registry nobody has a table, and an answer that says so is
    better than none.
    """
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(None if is_patient else MAX_WAIT_FOR_TABLE_SECONDS), asyncio.TaskGroup() as tasks:
            waits = [
                tasks.create_task(routing.has_table.wait(), name="wait for a table"),
                tasks.create_task(stop.wait(), name="wait for the end"),
            ]
            await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
            for wait in waits:
                wait.cancel()


async def _drain(settings: GatewaySettings, health: Health, proxy: Proxy, listener: Listener) -> None:
    deadline = proxy.clock() + settings.drain_seconds
    health.start_draining()
    proxy.is_draining = True  # from now on every answer asks its client to connect anew, elsewhere
    log.info("draining", clients=len(proxy.clients), seconds=settings.drain_seconds)
    await asyncio.sleep(min(MAX_NOTICE_SECONDS, settings.drain_seconds / 4))
    await listener.close()
    await proxy.drain(deadline - proxy.clock())


def _token_checker(settings: GatewaySettings) -> tuple[TokenChecker | None, KeySetFetcher | None]:
    if not settings.is_auth_on:
        return None, None
    checker = TokenChecker(
        settings.jwt_issuer,
        settings.jwt_audience,
        static_keys(settings),
        wall_clock=time.time,  # noqa: TID251 - tokens are dated by the wall clock
    )
    fetcher = KeySetFetcher(settings.jwt_jwks_url, checker, time.monotonic) if settings.jwt_jwks_url else None
    return checker, fetcher


def _paths(settings: GatewaySettings) -> tuple[tuple[str, ...], ...]:
    """Files that are reloaded when they change: of the listener, of connections to instances, of tokens."""
    listener = (settings.tls_cert, settings.tls_key, settings.tls_client_ca)
    return tuple(
        tuple(path for path in group if path)
        for group in (listener, (settings.upstream_ca_file,), (settings.jwt_public_key_file,))
    )


def _watched_files(
    settings: GatewaySettings,
    before: Mapping[tuple[str, ...], bytes],
    listener: Listener,
    proxy: Proxy,
    tokens: TokenChecker | None,
) -> list[WatchedFiles[Any]]:
    """What `_paths` names, with what to do when it changes. `before`: fingerprints from before the first loading."""

    async def use_upstream_tls(context: ssl.SSLContext) -> None:
        proxy.use_upstream_tls(context)

    async def use_keys(keys: Keys) -> None:
        if tokens is not None:
            tokens.replace_keys(keys)

    of_listener, of_upstreams, of_tokens = _paths(settings)
    groups: list[WatchedFiles[Any]] = [
        WatchedFiles(
            "listener-certificate",
            of_listener,
            listener.load_tls,
            listener.use_tls,
            before[of_listener],
            lambda: listener.tls_expires_at,
        ),
        WatchedFiles(
            "upstream-ca", of_upstreams, lambda: upstream_tls(settings), use_upstream_tls, before[of_upstreams]
        ),
        WatchedFiles("jwt-key", of_tokens, lambda: static_keys(settings), use_keys, before[of_tokens]),
    ]
    return [group for group in groups if group.paths]


def _shared_limiter(settings: GatewaySettings, inherited: Inherited | None) -> SharedRateLimiter | None:
    if inherited is None:
        return None
    return SharedRateLimiter(inherited.limit_table, settings.rate_limit_permits, settings.rate_limit_window_seconds)


def _say_hello(settings: GatewaySettings, port: int, admin_port: int) -> None:
    log.info(
        "gateway_listening",
        host=settings.host,
        port=port,
        admin_port=admin_port,
        tls=bool(settings.tls_cert),
        prefix=settings.route_prefix,
        registry=mask_credentials(settings.consul_address),
    )
    if not settings.is_auth_on:
        log.warning(
            "authentication_off",
            consequence="every route is public, the dashboard's too",
            remedy="set JWT_SECRET_KEY, JWT_JWKS_URL or JWT_PUBLIC_KEY_FILE",
        )


def main() -> Never:
    run_daemon("toska-gateway", GatewaySettings, run, "reverse proxy: routes, balances, retries, limits, authenticates")


if __name__ == "__main__":
    main()
