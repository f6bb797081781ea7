"""Follows the services that a client calls, through discovery: the SDK's `CatalogFollower`.

One stream of `toskamesh.mesh.Mesh` carries them all; names may be added at any time. When it breaks, what is known
stays and is marked stale (`followed`), and the stream is opened anew after a jittered pause. A control plane that does
not offer the stream, as those of the family in other languages, is asked by polling instead, with the contract's own
lookups, and now and then whether it has learnt to stream.
"""

import asyncio
import random
from collections.abc import Callable, Collection, Sequence
from contextlib import suppress
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Never

import grpc.aio

from toska_mesh.aio import Latest
from toska_mesh.errors import RegistryError, RegistryUnavailableError
from toska_mesh.model import CatalogSnapshot, ServiceName, Verdicts
from toska_mesh.pb import discovery_pb2, discovery_pb2_grpc, mesh_pb2, mesh_pb2_grpc
from toska_mesh.registry.consul.polling import Backoff
from toska_mesh.sdk.follow_wire import ServiceNews, StateReader, looked_up
from toska_mesh.sdk.followed import Followed
from toska_mesh.telemetry import event_log

MAX_NAME_CHARS = 255
MAX_WANTED = 1000
"""What discovery lets one stream follow."""

STALE_KEY = "x-toska-stale"
"""Trailing metadata of a lookup that discovery answered from its last known state."""

Metadata = Callable[[], Sequence[tuple[str, str]]]

log = event_log("sdk.follow")


class FollowState(StrEnum):
    """How the follower learns what it says."""

    IDLE = "idle"
    """Nobody wants to know anything."""
    CONNECTING = "connecting"
    WATCHING = "watching"
    POLLING = "polling"


@dataclass(frozen=True, slots=True)
class FollowOptions:
    """All durations in seconds."""

    silence_seconds: float = 30.0
    """Longest time without a message on the stream: discovery sends one every 10 s, news or not."""
    call_seconds: float = 5.0
    """Longest time for one lookup."""
    longest_pause_seconds: float = 5.0
    """Between two tries while discovery is away."""
    grace_seconds: float = 30.0
    """How long after an outage missing instances are kept: services beat every 10 s or so, and come back by that."""
    keep_verdicts_seconds: float = 30.0
    """How long verdicts hold that nobody confirms."""
    watch_again_seconds: float = 60.0
    """How often a control plane that is polled is asked for the stream."""
    concurrent_lookups: int = 8


class _NotOfferedError(RegistryUnavailableError):
    """No stream is to be had here, now."""


class DiscoveryFollower:
    """`CatalogFollower` over a channel to discovery; one `follow` per object. Publishes only services that are wanted.

    The channel stays the caller's. Give it a short `grpc.max_reconnect_backoff_ms` (gRPC's own is two minutes), and a
    `grpc.max_receive_message_length` above 4 MiB where a service has ten thousand instances.
    """

    def __init__(
        self,
        channel: grpc.aio.Channel,
        metadata: Metadata = tuple,
        *,
        rng: random.Random | None = None,
        poll_seconds: float = 5.0,
        options: FollowOptions | None = None,
    ) -> None:
        """`metadata`: what goes with every call, asked anew each time, for tokens that run out."""
        self._mesh = mesh_pb2_grpc.MeshStub(channel)  # type: ignore[no-untyped-call]  # generated without types
        self._registry = discovery_pb2_grpc.DiscoveryRegistryStub(channel)  # type: ignore[no-untyped-call]
        self._metadata = metadata
        self._rng = rng or random.Random()
        self._poll_seconds = poll_seconds
        self._options = options or FollowOptions()
        self._backoff = Backoff(self._rng, longest_seconds=self._options.longest_pause_seconds)
        self._wanted: dict[ServiceName, asyncio.Event] = {}
        """In order of asking, with whether the first state has arrived."""
        self._wants = Latest[tuple[ServiceName, ...]]()
        self._timer: asyncio.TimerHandle | None = None
        self._state = FollowState.IDLE
        self._followed: Followed | None = None
        self._reader = StateReader()
        self._has_polled = False

    @property
    def state(self) -> FollowState:
        return self._state

    @property
    def trouble(self) -> str:
        """Why the newest state is not to be had, of discovery or of the registry behind it; empty while it is."""
        return self._followed.trouble if self._followed is not None else ""

    @property
    def wanted(self) -> tuple[ServiceName, ...]:
        return tuple(self._wanted)

    def want(self, service: ServiceName) -> None:
        """Follow this service too, from now on. Raises ValueError for what is no name, RegistryError for too many."""
        if service in self._wanted:
            return
        if not 0 < len(service) <= MAX_NAME_CHARS:
            raise ValueError(f"a service's name has 1 to {MAX_NAME_CHARS} characters, not {len(service)}")
        if len(self._wanted) >= MAX_WANTED:
            raise RegistryError(f"{MAX_WANTED} services are followed already, as many as one client may")
        self._wanted[service] = asyncio.Event()
        self._wants.set(tuple(self._wanted))

    async def known(self, service: ServiceName) -> None:
        """Want it, and wait until its first state has been published. The deadline is the caller's."""
        self.want(service)
        await self._wanted[service].wait()

    async def follow(self, catalog: Latest[CatalogSnapshot], verdicts: Latest[Verdicts] | None = None) -> Never:
        """See `CatalogFollower`. Begins to talk when something is wanted."""
        loop = asyncio.get_running_loop()
        followed = self._followed = Followed(
            catalog,
            verdicts,
            grace_seconds=self._options.grace_seconds,
            keep_verdicts_seconds=self._options.keep_verdicts_seconds,
        )
        try:
            await self._wants.first()
            while True:
                self._state = FollowState.CONNECTING
                failure = await self._watch(followed)
                if isinstance(failure, _NotOfferedError):
                    await self._poll(followed, loop.time() + self._options.watch_again_seconds)
                elif failure is not None:
                    self._lost(followed, failure)
                    await asyncio.sleep(self._backoff.failed(failure))
        finally:
            self._state = FollowState.IDLE
            if self._timer is not None:
                self._timer.cancel()

    # --- the stream ---------------------------------------------------------------------------------------------------

    async def _watch(self, followed: Followed) -> RegistryError | None:
        """One stream, until it ends: None when discovery ended it as planned."""
        call = self._mesh.Watch(metadata=tuple(self._metadata()))
        try:
            async with asyncio.TaskGroup() as tasks:
                naming = tasks.create_task(self._name_services(call), name="name followed services")
                try:
                    return await self._listen(call, followed)
                finally:
                    naming.cancel()
        finally:
            call.cancel()

    async def _name_services(self, call: Any) -> None:
        """Send every wanted name once. Of a broken stream the listening side hears."""
        sent = 0
        with suppress(grpc.aio.AioRpcError, asyncio.InvalidStateError):
            async for wanted in self._wants.updates():
                await call.write(mesh_pb2.WatchRequest(serviceNames=wanted[sent:]))
                sent = len(wanted)

    async def _listen(self, call: Any, followed: Followed) -> RegistryError | None:
        has_spoken = False
        while True:
            update = await self._read(call)
            if isinstance(update, RegistryError):
                return update
            if update is None:
                return None if has_spoken else RegistryUnavailableError("discovery ended the stream without a word")
            has_spoken = True
            self._backoff.succeeded()
            self._state = FollowState.WATCHING
            now = asyncio.get_running_loop().time()
            followed.told_stale(update.staleReason, update.staleSeconds, now)
            self._take(followed, [self._reader.read(state) for state in update.services])

    async def _read(self, call: Any) -> mesh_pb2.WatchUpdate | RegistryError | None:
        """The next message; None at the end, an error for a broken or silent stream."""
        try:
            async with asyncio.timeout(self._options.silence_seconds):
                update = await call.read()
        except TimeoutError:
            return RegistryUnavailableError(f"discovery has been silent for {self._options.silence_seconds:g} s")
        except grpc.aio.AioRpcError as error:
            return _failure(error)
        except asyncio.CancelledError:
            # gRPC raises this too when the other side has cancelled the stream; only the first kind is ours to obey.
            task = asyncio.current_task()
            if task is None or task.cancelling():
                raise
            return RegistryUnavailableError("discovery cancelled the stream")
        return None if update is grpc.aio.EOF else update  # type: ignore[attr-defined]  # the stubs do not know it

    # --- polling ------------------------------------------------------------------------------------------------------

    async def _poll(self, followed: Followed, until: float) -> None:
        """Look the wanted services up again and again, new ones at once."""
        loop = asyncio.get_running_loop()
        if not self._has_polled:
            self._has_polled = True
            log.info("discovery_polled", every_seconds=self._poll_seconds)
        self._state = FollowState.POLLING
        names: Collection[ServiceName] = self._wanted
        while True:
            seen = self._wants.version
            await self._look_up(followed, tuple(names))
            pause_seconds = self._poll_seconds * self._rng.uniform(0.8, 1.2)
            if loop.time() + pause_seconds >= until:
                await asyncio.sleep(pause_seconds)
                return
            try:
                async with asyncio.timeout(pause_seconds):
                    await self._wants.newer_than(seen)
                names = [name for name in self._wanted if name not in followed.known]
            except TimeoutError:
                names = self._wanted

    async def _look_up(self, followed: Followed, names: Collection[ServiceName]) -> None:
        queue = iter(names)
        failures: list[RegistryError] = []

        async def work() -> None:
            for name in queue:  # shared: each worker takes the next one
                if not failures and (failure := await self._look_up_one(followed, name)) is not None:
                    failures.append(failure)

        async with asyncio.TaskGroup() as tasks:
            for number in range(min(self._options.concurrent_lookups, len(names))):
                tasks.create_task(work(), name=f"look services up {number}")
        if failures:
            self._lost(followed, failures[0])

    async def _look_up_one(self, followed: Followed, name: ServiceName) -> RegistryError | None:
        request = discovery_pb2.GetInstancesRequest(serviceName=name)
        call = self._registry.GetInstances(
            request, metadata=tuple(self._metadata()), timeout=self._options.call_seconds
        )
        try:
            response = await call
            trailing = dict(await call.trailing_metadata() or ())
        except grpc.aio.AioRpcError as error:
            return _failure(error)
        followed.told_stale(str(trailing.get(STALE_KEY, "")), 0.0, asyncio.get_running_loop().time())
        self._take(followed, [looked_up(name, response)], is_lookup=True)
        return None

    # --- what came of it ----------------------------------------------------------------------------------------------

    def _take(self, followed: Followed, news: Sequence[ServiceNews], *, is_lookup: bool = False) -> None:
        if news:
            followed.take(news, asyncio.get_running_loop().time(), is_lookup=is_lookup)
        for one in news:
            if one.service in self._wanted:
                self._wanted[one.service].set()
        self._arm(followed)

    def _lost(self, followed: Followed, failure: RegistryError) -> None:
        followed.lost(str(failure), asyncio.get_running_loop().time())
        self._arm(followed)

    def _arm(self, followed: Followed) -> None:
        """Have `tick` called when it is due."""
        if self._timer is not None:
            self._timer.cancel()
        due_at = followed.due_at
        loop = asyncio.get_running_loop()
        self._timer = None if due_at is None else loop.call_at(due_at, self._tick, followed)

    def _tick(self, followed: Followed) -> None:
        followed.tick(asyncio.get_running_loop().time())
        self._arm(followed)


def _failure(error: grpc.aio.AioRpcError) -> RegistryError:
    """In our words; the text is for people."""
    text = f"discovery: {error.details() or 'no reason given'} ({error.code().name})"
    match error.code():
        case grpc.StatusCode.UNIMPLEMENTED | grpc.StatusCode.RESOURCE_EXHAUSTED:
            return _NotOfferedError(text)
        case grpc.StatusCode.UNAUTHENTICATED | grpc.StatusCode.PERMISSION_DENIED | grpc.StatusCode.INVALID_ARGUMENT:
            return RegistryError(text)
        case _:
            return RegistryUnavailableError(text)
