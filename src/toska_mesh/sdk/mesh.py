"""`Mesh`: a service's view of the others. The one object that knows every part of the client side.

    async with Mesh() as mesh:
        answer = await mesh.client("orders").get("/items/1")

It follows the services that are asked for, keeps a table of each protocol, and sends with the router and the guard that
the gateway uses, so a call behaves as if the gateway had been on the way, without the way. Everything lives on the loop
that entered it.
"""

import asyncio
import random
import ssl
from collections.abc import Iterator, Mapping
from contextlib import AsyncExitStack
from dataclasses import replace
from typing import Any, Final, Never, Self

import grpc

from toska_mesh.aio import Latest, background_tasks
from toska_mesh.errors import CircuitOpenError, NoInstanceError
from toska_mesh.guard import ContainedTasks, Guard, Guarded, HttpProber, Prober
from toska_mesh.model import CatalogSnapshot, Instance, ServiceName, Verdicts
from toska_mesh.model.metadata import GRPC_PORT, SCHEME
from toska_mesh.resilience import RecentLatency, State, SuspicionPolicy
from toska_mesh.router import RoutingPolicy
from toska_mesh.sdk.calls import Sender
from toska_mesh.sdk.callstats import CallStats
from toska_mesh.sdk.client import DEFAULT, CallOptions, Client, Limits, changed
from toska_mesh.sdk.directory import Directory
from toska_mesh.sdk.environment import connect_options
from toska_mesh.sdk.grpc_channel import (
    GRPC_SCHEMES,
    GrpcProber,
    GrpcRemote,
    GrpcTransport,
    MeshChannel,
    RpcReply,
)
from toska_mesh.sdk.options import ConnectOptions
from toska_mesh.sdk.picks import Picked, TcpProber
from toska_mesh.sdk.sources import Source, open_source
from toska_mesh.sdk.tokens import ServiceToken
from toska_mesh.sdk.transport import AiohttpTransport, Answer, Remote, StreamDialler
from toska_mesh.telemetry import event_log

TICK_SECONDS: Final = 0.1
"""How often silence is looked for."""

log = event_log("sdk.mesh")


class Mesh:
    """A service's view of the others: it knows who is there, and calls them.

        async with Mesh(name="shop") as mesh:
            orders = mesh.client("orders", timeout_seconds=5)
            answer = await orders.get("/items/1")

    One for the life of the process, on the loop that entered it: it follows the services that are asked for. `client`
    gives calls over HTTP, `grpc_channel` a channel for generated stubs, `pick` an instance for anything else;
    `explain("orders")` says who may be asked and why the others may not.

    Calls without an answer raise an UpstreamError (`toska_mesh.errors`) in one of its kinds. The failure of one of the
    mesh's own tasks ends the block.
    """

    def __init__(
        self,
        options: ConnectOptions | None = None,
        *,
        name: str = "",
        calls: CallOptions | None = None,
        source: Source | None = None,
        channel: grpc.aio.Channel | None = None,
        tls: ssl.SSLContext | None = None,
        credentials: grpc.ChannelCredentials | None = None,
        rng: random.Random | None = None,
    ) -> None:
        """`options`: without them the environment says how to reach the mesh. `name`: of the calling service, for its
        token. `calls`: defaults of all calls. `source`: knowledge from elsewhere, for tests. `channel`: an open one to
        discovery, to be shared. `tls`: for instances with `scheme=https`; without it the system's authorities.
        `credentials`: the same for `grpcs`.
        """
        self._options = options if options is not None else connect_options()
        self._calls = calls or CallOptions()
        self._token = ServiceToken(self._options, name or "mesh-client")
        self._given_source = source
        self._channel = channel
        self._tls = tls
        self._credentials = credentials
        self._rng = rng or random.Random()
        self.stats = CallStats()
        """A collector of what is counted: `prometheus_client.REGISTRY.register(mesh.stats)`."""
        self._stack = AsyncExitStack()
        self._catalog = Latest[CatalogSnapshot]()
        self._verdicts = Latest[Verdicts]()
        self._sender: Sender[Answer]
        self._http: Directory[Remote]
        self._grpc: Directory[GrpcRemote]
        self._any: Directory[Guarded]
        self._guards: list[tuple[Guard[Any], Directory[Any]]] = []
        self._any_guard: Guard[Guarded]
        self._rpc_transport: GrpcTransport
        self._rpc_sender: Sender[RpcReply]
        self._source: Source
        self._is_open = False

    async def __aenter__(self) -> Self:
        async with AsyncExitStack() as stack:
            loop = asyncio.get_running_loop()
            source = self._given_source
            if source is None:
                source = await stack.enter_async_context(open_source(self._options, self._token, self._channel))
            self._source = source
            transport = await stack.enter_async_context(AiohttpTransport(self._tls))
            tasks = await stack.enter_async_context(background_tasks())
            self._compose(transport, ContainedTasks(tasks), loop)
            stack.push_async_callback(self._close_channels)
            tasks.create_task(source.follow(self._catalog, self._verdicts), name="follow services")
            tasks.create_task(self._keep_tables(self._catalog), name="keep tables")
            tasks.create_task(self._keep_tables(self._verdicts), name="keep verdicts in the tables")
            tasks.create_task(self._tick(loop), name="look for silence")
            self._is_open = True
            self._stack = stack.pop_all()
        return self

    async def __aexit__(self, *exc: Any) -> bool | None:
        self._is_open = False
        return await self._stack.__aexit__(*exc)

    def _compose(self, transport: AiohttpTransport, tasks: ContainedTasks, loop: asyncio.AbstractEventLoop) -> None:
        breaker = self._calls.breaker

        def remote(instance: Instance, latency: RecentLatency) -> Remote:
            return Remote(instance, breaker, latency, transport.tls if _speaks(instance) == "https" else None)

        def grpc_remote(instance: Instance, latency: RecentLatency) -> GrpcRemote:
            return GrpcRemote(instance, breaker, latency, self._credentials)

        def anybody(instance: Instance, latency: RecentLatency) -> Guarded:
            return Guarded(instance, breaker, latency)

        policy = RoutingPolicy(slow_start_seconds=self._calls.slow_start_seconds)
        self._http = self._directory(policy, remote, loop)
        guard = self._guard(Remote, HttpProber(StreamDialler(), "toska-mesh"), self._http, tasks, loop)
        self.stats.targets = self._targets_in_use
        self._sender = Sender(
            transport,
            guard,
            self._http,
            clock=loop.time,
            rng=self._rng,
            token=self._token.current,
            stats=self.stats,
        )
        rpc_transport = GrpcTransport(tasks)
        self._rpc_transport = rpc_transport
        self._grpc = self._directory(
            replace(policy, schemes=GRPC_SCHEMES, port_key=GRPC_PORT), grpc_remote, loop, rpc_transport.leave
        )
        grpc_guard = self._guard(GrpcRemote, GrpcProber(), self._grpc, tasks, loop)
        self._rpc_sender = Sender(
            rpc_transport,
            grpc_guard,
            self._grpc,
            clock=loop.time,
            rng=self._rng,
            token=self._token.current,
            budget=self._sender.budget,
            stats=self.stats,
        )
        self._any = self._directory(replace(policy, schemes=()), anybody, loop)
        self._any_guard = self._guard(Guarded, TcpProber(), self._any, tasks, loop)

    def _directory(
        self, policy: RoutingPolicy, make: Any, loop: asyncio.AbstractEventLoop, on_departed: Any = lambda target: None
    ) -> Directory[Any]:
        return Directory(
            self._source,
            self._catalog,
            self._verdicts,
            policy,
            make,
            clock=loop.time,
            rng=self._rng,
            on_departed=on_departed,
        )

    def _guard(
        self,
        kind: type[Any],
        prober: Prober,
        directory: Directory[Any],
        tasks: ContainedTasks,
        loop: asyncio.AbstractEventLoop,
    ) -> Guard[Any]:
        guard = Guard(kind, tasks, loop.time, SuspicionPolicy(), self._note_breaker, prober)
        self._guards.append((guard, directory))
        return guard

    # -- what services use

    def client(
        self,
        service: str,
        *,
        timeout_seconds: float | None = DEFAULT,
        try_timeout_seconds: float = DEFAULT,
        retries: int = DEFAULT,
        key: str | None = None,
        headers: Mapping[str, str] | None = None,
        raise_for_status: bool = False,
    ) -> Client:
        """Calls to `service` over HTTP, with these defaults. Costs nothing: make one where it is needed, or keep it."""
        self._must_be_open()
        name = self._wanted(service, self._http)
        options = changed(
            self._calls, timeout_seconds=timeout_seconds, try_timeout_seconds=try_timeout_seconds, retries=retries
        )
        return Client(self._sender, name, options, key=key, headers=headers or {}, raise_for_status=raise_for_status)

    def grpc_channel(
        self,
        service: str,
        *,
        timeout_seconds: float | None = DEFAULT,
        try_timeout_seconds: float = DEFAULT,
        retries: int = DEFAULT,
        key: str | None = None,
        idempotent: bool | frozenset[str] = False,
    ) -> MeshChannel:
        """A channel for generated stubs that sends each call to an instance of its own choice. See `MeshChannel`."""
        self._must_be_open()
        name = self._wanted(service, self._grpc)
        options = changed(
            self._calls, timeout_seconds=timeout_seconds, try_timeout_seconds=try_timeout_seconds, retries=retries
        )
        return MeshChannel(self._rpc_sender, name, options, key=key, idempotent=idempotent)

    async def pick(
        self, service: str, *, key: str | None = None, timeout_seconds: float = 5.0, idempotent: bool = True
    ) -> Picked:
        """An instance of `service`, whatever it speaks; see `picks`. Waits only for the first word about the service.

        Raises NoInstanceError or CircuitOpenError. `idempotent`: whether this use may fail as a breaker's trial.
        """
        self._must_be_open()
        name = self._wanted(service, self._any)
        loop = asyncio.get_running_loop()
        found = await self._any.find(name, loop.time() + timeout_seconds)
        now = loop.time()
        target = self._any_guard.choose(found, key, (), idempotent, now)
        if target is not None:
            return Picked(target, self._any_guard, loop.time)
        if not found.targets:
            raise NoInstanceError(f"{name}: no instance may be asked{self._any.stale_note}", service=name)
        seconds = self._any_guard.retry_after_seconds(found, now)
        raise CircuitOpenError(f"{name}: every breaker is open{self._any.stale_note}", seconds, service=name)

    def explain(self, service: str) -> dict[str, Any]:
        """Who may be asked and why the others may not, as plain data: instances with breaker, load and reason; how long
        calls wait, and which of that comes from metadata (by key, the instance that says it)."""
        self._must_be_open()
        name = self._wanted(service, self._http)
        snapshot = self._catalog.peek()
        explained = self._http.explain(name)
        found = self._http.get(ServiceName(explained["name"].lower()))
        patience = Limits(self._calls).of(found) if found is not None else self._calls.patience
        return {
            **explained,
            "stale_seconds": self.stale_seconds,
            "stale_reason": snapshot.stale_reason if snapshot is not None else self._source.trouble,
            "timeout_seconds": patience.total_timeout,
            "try_timeout_seconds": patience.response_timeout,
            "retries": patience.retry.count,
            "by_metadata": dict(patience.origins),
            "ignored": [f"{note.key}={note.value} of {note.instance}: {note.reason}" for note in patience.ignored],
            "warnings": [*explained.get("warnings", ()), *patience.warnings],
        }

    @property
    def stale_seconds(self) -> float:
        """For how long the tables have been only the last known state; 0 while the mesh answers."""
        snapshot = self._catalog.peek()
        if snapshot is None or snapshot.stale_since is None:
            return 0.0
        return asyncio.get_running_loop().time() - snapshot.stale_since

    async def known(self, service: str) -> None:
        """Wait for the first word about a service, so that no call has to. The deadline is the caller's."""
        self._must_be_open()
        await self._source.known(self._wanted(service, self._http))
        self._http.refresh()

    def _must_be_open(self) -> None:
        if not self._is_open:
            raise RuntimeError("the mesh is not open: use it with `async with Mesh() as mesh:`")

    def _wanted(self, service: str, directory: Directory[Any]) -> ServiceName:
        name = ServiceName(service)
        directory.want(name)
        return name

    async def _close_channels(self) -> None:
        for target in self._grpc.all_targets():
            await target.close()

    # -- in the background

    async def _keep_tables(self, news: Latest[Any]) -> Never:
        async for _ in news.updates():
            for _, directory in self._guards:
                if directory.is_used:
                    directory.refresh()
        raise AssertionError("updates never end")

    async def _tick(self, loop: asyncio.AbstractEventLoop) -> Never:
        while True:
            await asyncio.sleep(TICK_SECONDS)
            now = loop.time()
            for guard, directory in self._guards:
                guard.tick(directory.used_targets(), now)

    def _targets_in_use(self) -> Iterator[Guarded]:
        for _, directory in self._guards:
            yield from directory.used_targets()

    def _note_breaker(self, target: Guarded, previous: State, current: State) -> None:
        """The guard has said it in the log already."""

    def __repr__(self) -> str:
        return f"<Mesh by {self._options.provider}, {'open' if self._is_open else 'closed'}>"


def _speaks(instance: Instance) -> str:
    return instance.metadata.get(SCHEME, "").strip().lower() or "http"
