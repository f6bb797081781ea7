"""The follower's life on a scripted discovery: streams that break, stay silent, are not offered; polling instead."""

import asyncio
import random
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from itertools import pairwise
from typing import Any

import grpc
import pytest
from tests.support.wait import eventually

from toska_mesh.aio import Latest
from toska_mesh.errors import RegistryError
from toska_mesh.model import CatalogSnapshot, ServiceName, Verdicts
from toska_mesh.pb import discovery_pb2, mesh_pb2
from toska_mesh.sdk.follow import DiscoveryFollower, FollowState

ORDERS, CARTS = ServiceName("orders"), ServiceName("carts")


def error(code: grpc.StatusCode, details: str = "because") -> grpc.aio.AioRpcError:
    return grpc.aio.AioRpcError(code, grpc.aio.Metadata(), grpc.aio.Metadata(), details)


class Stream:
    """The client's end of one stream."""

    def __init__(self, discovery: "Discovery", metadata: Sequence[tuple[str, str]]) -> None:
        self._discovery = discovery
        self._out: asyncio.Queue[Any] = asyncio.Queue()
        self.metadata = metadata
        self.names: list[str] = []
        self.is_cancelled = False

    async def write(self, request: mesh_pb2.WatchRequest) -> None:
        self.names += request.serviceNames
        if not self._discovery.is_mute:
            self.say(*request.serviceNames)

    async def read(self) -> Any:
        said = await self._out.get()
        if isinstance(said, BaseException):
            raise said
        return said

    def say(self, *names: str, **fields: Any) -> None:
        states = [self._discovery.state(name) for name in names]
        self._out.put_nowait(mesh_pb2.WatchUpdate(services=states, **fields))

    def end(self, how: Any = None) -> None:
        self._out.put_nowait(grpc.aio.EOF if how is None else how)

    def cancel(self) -> None:
        self.is_cancelled = True


class Lookup:
    """One unary call."""

    def __init__(self, answer: Any) -> None:
        self._answer = answer

    def __await__(self) -> Any:
        if isinstance(self._answer, BaseException):
            raise self._answer
        yield from ()
        return self._answer

    async def trailing_metadata(self) -> tuple[tuple[str, str], ...]:
        return ()


class Discovery:
    """A channel whose other end is this object."""

    def __init__(self) -> None:
        self.instances: dict[str, list[str]] = {}
        self.streams: list[Stream] = []
        self.tried_at: list[float] = []
        self.lookups: list[tuple[float, str]] = []
        self.trouble: BaseException | None = None
        """How every new stream ends at once."""
        self.lookup_trouble: BaseException | None = None
        self.is_mute = False

    def state(self, name: str) -> mesh_pb2.ServiceState:
        instances = [
            mesh_pb2.InstanceState(serviceId=one, address="10.0.0.1", port=80) for one in self.instances.get(name, ())
        ]
        return mesh_pb2.ServiceState(serviceName=name, instances=instances, probed=-1)

    def stream_stream(self, path: str, **_: Any) -> Callable[..., Stream]:
        def watch(metadata: Sequence[tuple[str, str]]) -> Stream:
            self.tried_at.append(asyncio.get_running_loop().time())
            stream = Stream(self, metadata)
            self.streams.append(stream)
            if self.trouble is not None:
                stream.end(self.trouble)
            return stream

        return watch

    def unary_unary(self, path: str, **_: Any) -> Callable[..., Lookup]:
        def look_up(
            request: discovery_pb2.GetInstancesRequest, metadata: Sequence[tuple[str, str]], timeout: float
        ) -> Lookup:
            self.lookups.append((asyncio.get_running_loop().time(), request.serviceName))
            if self.lookup_trouble is not None:
                return Lookup(self.lookup_trouble)
            return Lookup(
                discovery_pb2.GetInstancesResponse(
                    instances=[
                        discovery_pb2.ServiceInstance(serviceId=one, address="10.0.0.1", port=80)
                        for one in self.instances.get(request.serviceName, ())
                    ]
                )
            )

        return look_up


class Client:
    """A follower and what it has published."""

    def __init__(self, discovery: Discovery) -> None:
        self.catalog, self.verdicts = Latest[CatalogSnapshot](), Latest[Verdicts]()
        self.follower = DiscoveryFollower(
            discovery,  # type: ignore[arg-type]
            lambda: [("authorization", "Bearer x")],
            rng=random.Random(1),
        )

    @property
    def snapshot(self) -> CatalogSnapshot:
        found = self.catalog.peek()
        assert found is not None
        return found

    def ids(self, service: ServiceName = ORDERS) -> list[str]:
        return [one.id for one in self.snapshot.services.get(service, ())]


@asynccontextmanager
async def following(discovery: Discovery) -> AsyncIterator[Client]:
    client = Client(discovery)
    async with asyncio.TaskGroup() as tasks:
        task = tasks.create_task(client.follower.follow(client.catalog, client.verdicts))
        yield client
        task.cancel()


@pytest.fixture
def discovery() -> Discovery:
    found = Discovery()
    found.instances = {ORDERS: ["a", "b"]}
    return found


def now() -> float:
    return asyncio.get_running_loop().time()


async def test_nothing_is_asked_before_something_is_wanted(discovery: Discovery) -> None:
    async with following(discovery) as client:
        await asyncio.sleep(100)
        assert (discovery.streams, client.follower.state) == ([], FollowState.IDLE)


async def test_a_first_caller_waits_for_the_first_state_and_no_longer(discovery: Discovery) -> None:
    async with following(discovery) as client:
        await client.follower.known(ORDERS)
        assert (client.ids(), client.follower.state, now()) == (["a", "b"], FollowState.WATCHING, 0.0)
        await client.follower.known(CARTS)  # on the open stream, and there is none of it
        assert client.ids(CARTS) == []
        assert [stream.names for stream in discovery.streams] == [[ORDERS, CARTS]]
        assert list(discovery.streams[0].metadata) == [("authorization", "Bearer x")]


async def test_a_state_that_does_not_come_is_waited_for_until_the_callers_deadline(discovery: Discovery) -> None:
    discovery.is_mute = True
    async with following(discovery) as client:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(3):
                await client.follower.known(ORDERS)
        assert client.catalog.version == 0


async def test_news_is_published(discovery: Discovery) -> None:
    async with following(discovery) as client:
        await client.follower.known(ORDERS)
        discovery.instances[ORDERS] = ["c"]
        discovery.streams[0].say(ORDERS)
        await eventually(lambda: client.ids() == ["c"])


async def test_a_broken_stream_is_opened_again_after_growing_pauses_with_all_names(discovery: Discovery) -> None:
    async with following(discovery) as client:
        await client.follower.known(ORDERS)
        client.follower.want(CARTS)
        await asyncio.sleep(1)
        discovery.trouble = error(grpc.StatusCode.UNAVAILABLE, "connection refused")
        discovery.streams[0].end(error(grpc.StatusCode.UNAVAILABLE))
        await asyncio.sleep(60)
        assert (client.ids(), client.snapshot.stale_since) == (["a", "b"], 1.0)
        assert "connection refused" in client.snapshot.stale_reason
        assert "connection refused" in client.follower.trouble
        pauses = [after - before for before, after in pairwise(discovery.tried_at[1:])]
        assert all(0.1 <= pause <= 5.0 for pause in pauses)
        assert pauses[0] < 0.5 < 2.5 <= pauses[-1]
        assert len(set(pauses)) == len(pauses)

        discovery.trouble = None
        await eventually(lambda: not client.snapshot.is_stale)
        assert discovery.streams[-1].names == [ORDERS, CARTS]
        assert (client.ids(), client.follower.trouble) == (["a", "b"], "")
        assert all(stream.is_cancelled for stream in discovery.streams[:-1])


async def test_a_stream_that_ends_as_planned_is_no_outage(discovery: Discovery) -> None:
    async with following(discovery) as client:
        await client.follower.known(ORDERS)
        discovery.streams[0].end()
        await eventually(lambda: len(discovery.streams) == 2)
        await eventually(lambda: discovery.streams[1].names == [ORDERS])
        assert (client.snapshot.version, client.snapshot.is_stale, discovery.tried_at) == (1, False, [0.0, 0.0])


async def test_a_discovery_that_ends_streams_without_a_word_is_not_asked_in_a_tight_loop(discovery: Discovery) -> None:
    discovery.trouble = grpc.aio.EOF  # not raised, but the end
    async with following(discovery) as client:
        client.follower.want(ORDERS)
        await asyncio.sleep(60)
        assert len(discovery.streams) < 40
        assert "without a word" in client.follower.trouble


async def test_silence_is_an_outage(discovery: Discovery) -> None:
    async with following(discovery) as client:
        await client.follower.known(ORDERS)
        for _ in range(10):
            await asyncio.sleep(10)
            discovery.streams[0].say()
        assert (len(discovery.streams), client.snapshot.is_stale) == (1, False)
        await eventually(lambda: len(discovery.streams) == 2, 60)
        assert discovery.streams[0].is_cancelled
        assert discovery.tried_at[1] > 130
        assert client.ids() == ["a", "b"]


async def test_a_stream_that_discovery_cancels_is_an_outage_and_not_our_end(discovery: Discovery) -> None:
    async with following(discovery) as client:
        await client.follower.known(ORDERS)
        discovery.streams[0].end(asyncio.CancelledError())
        await eventually(lambda: len(discovery.streams) == 2)
        assert client.ids() == ["a", "b"]


async def test_a_refused_token_is_no_reason_to_hurry(discovery: Discovery) -> None:
    discovery.trouble = error(grpc.StatusCode.UNAUTHENTICATED, "a service token is required")
    async with following(discovery) as client:
        client.follower.want(ORDERS)
        await asyncio.sleep(60)
        assert len(discovery.streams) <= 60 / 2.5 + 1
        assert "a service token is required" in client.follower.trouble


@pytest.mark.parametrize("code", [grpc.StatusCode.UNIMPLEMENTED, grpc.StatusCode.RESOURCE_EXHAUSTED])
async def test_without_a_stream_the_wanted_names_are_polled(discovery: Discovery, code: grpc.StatusCode) -> None:
    discovery.trouble = error(code)
    async with following(discovery) as client:
        await client.follower.known(ORDERS)
        assert (client.ids(), now(), client.follower.state) == (["a", "b"], 0.0, FollowState.POLLING)
        await client.follower.known(CARTS)  # at once, and alone
        assert [name for _, name in discovery.lookups] == [ORDERS, CARTS]
        discovery.instances[ORDERS] = ["b", "c"]
        await eventually(lambda: client.ids() == ["b", "c"], 7)
        await asyncio.sleep(40)
        polled = [at for at, name in discovery.lookups if name == ORDERS]
        assert all(4.0 <= after - before <= 6.0 for before, after in pairwise(polled))


async def test_a_control_plane_that_learns_to_stream_is_streamed_from(discovery: Discovery) -> None:
    discovery.trouble = error(grpc.StatusCode.UNIMPLEMENTED)
    async with following(discovery) as client:
        await client.follower.known(ORDERS)
        await asyncio.sleep(200)
        assert 3 <= len(discovery.streams) <= 5
        discovery.trouble = None
        await eventually(lambda: client.follower.state is FollowState.WATCHING, 70)
        assert not client.snapshot.is_stale


async def test_polling_keeps_the_last_state_through_an_outage(discovery: Discovery) -> None:
    discovery.trouble = error(grpc.StatusCode.UNIMPLEMENTED)
    async with following(discovery) as client:
        await client.follower.known(ORDERS)
        discovery.lookup_trouble = error(grpc.StatusCode.UNKNOWN, "consul is down")
        await eventually(lambda: client.snapshot.is_stale, 7)
        assert (client.ids(), "consul is down" in client.snapshot.stale_reason) == (["a", "b"], True)
        discovery.lookup_trouble = None
        await eventually(lambda: not client.snapshot.is_stale, 7)


async def test_names_are_checked_and_bounded(discovery: Discovery) -> None:
    client = Client(discovery)
    for bad in ("", "x" * 256):
        with pytest.raises(ValueError, match="1 to 255 characters"):
            client.follower.want(ServiceName(bad))
    for number in range(1000):
        client.follower.want(ServiceName(f"service-{number}"))
    with pytest.raises(RegistryError, match="1000 services"):
        client.follower.want(ORDERS)
    client.follower.want(ServiceName("service-7"))


async def test_cancelled_anywhere_it_ends_its_stream(discovery: Discovery) -> None:
    for seconds in (0.0, 0.05, 5.0, 31.0, 31.1):
        discovery.streams.clear()
        async with following(discovery) as client:
            client.follower.want(ORDERS)
            await asyncio.sleep(seconds)
        assert all(stream.is_cancelled for stream in discovery.streams)
        assert client.follower.state is FollowState.IDLE
