"""The edge of `toskamesh.mesh.Mesh` on a server of its own, with a barrier and a catalog that the test moves."""

import asyncio
import logging
import time
from collections.abc import AsyncIterator
from contextlib import suppress
from datetime import UTC, datetime
from typing import Any

import grpc
import pytest
from prometheus_client import CollectorRegistry
from tests.support.wait import eventually

from toska_mesh.discovery import mesh_servicer
from toska_mesh.discovery.auth import Gatekeeper
from toska_mesh.discovery.mesh_servicer import MeshServicer
from toska_mesh.discovery.metrics import DiscoveryMetrics
from toska_mesh.discovery.watch import WatchHub
from toska_mesh.errors import RegistryError
from toska_mesh.model import CatalogSnapshot, Endpoint, Instance, InstanceId, ServiceName
from toska_mesh.pb import mesh_pb2 as pb
from toska_mesh.pb import mesh_pb2_grpc
from toska_mesh.registry.api import BarrierReport, GatewayProgress, UnknownServiceError

ORDERS = ServiceName("orders")


class Barrier:
    """A `GatewayBarrier` that waits until the test lets it go."""

    def __init__(self) -> None:
        self.is_open = asyncio.Event()
        self.trouble: RegistryError | None = None
        self.is_late = False
        """Hold the whole loop up, so that nobody notices in time that the caller's time is over."""
        self.waiting = 0
        self.deadlines: list[float] = []

    async def wait_applied(self, service: ServiceName, deadline: float) -> BarrierReport:
        self.deadlines.append(deadline - asyncio.get_running_loop().time())
        self.waiting += 1
        try:
            if self.is_late:
                time.sleep(0.3)
            if self.trouble is not None:
                raise self.trouble
            async with asyncio.timeout_at(deadline):
                await self.is_open.wait()
        except TimeoutError:
            return BarrierReport(False, 7, (GatewayProgress("edge-1", 5),), "edge-1 is behind")
        finally:
            self.waiting -= 1
        return BarrierReport(True, 7, (GatewayProgress("edge-1", 9),), "all have applied it")


class Edge:
    """The servicer on a port, and what is behind it."""

    def __init__(self) -> None:
        self.hub = WatchHub(max_watchers=3)
        self.barrier = Barrier()
        self.metrics = DiscoveryMetrics(CollectorRegistry())
        gatekeeper = Gatekeeper("off", "", "", "", lambda: datetime.now(UTC))
        self.servicer = MeshServicer(self.hub, self.barrier, gatekeeper, self.metrics, max_waits=2)
        self.server = grpc.aio.server()
        self.server.add_generic_rpc_handlers((self.servicer.handlers(),))
        self.port = self.server.add_insecure_port("127.0.0.1:0")

    def show(self, count: int, output: str = "") -> None:
        instances = tuple(
            Instance(ORDERS, InstanceId(f"orders-{number}"), Endpoint("10.0.0.1", 80), output=output)
            for number in range(count)
        )
        self.hub.take_catalog(CatalogSnapshot({ORDERS: instances}))

    def sent(self) -> float:
        return next(iter(self.metrics.watch_updates.collect())).samples[0].value

    def outcomes(self, method: str) -> dict[str, float]:
        return {
            sample.labels["outcome"]: sample.value
            for family in self.metrics.calls.collect()
            for sample in family.samples
            if sample.name.endswith("_total") and sample.labels["method"] == method
        }


@pytest.fixture
async def edge() -> AsyncIterator[Edge]:
    edge = Edge()
    await edge.server.start()
    yield edge
    await edge.server.stop(0)


@pytest.fixture
async def stub(edge: Edge) -> AsyncIterator[Any]:
    # Without growing windows, so that an unread stream stands still early.
    options = [("grpc.use_local_subchannel_pool", 1), ("grpc.http2.bdp_probe", 0)]
    async with grpc.aio.insecure_channel(f"127.0.0.1:{edge.port}", options=options) as channel:
        yield mesh_pb2_grpc.MeshStub(channel)


async def read_to_the_end(call: Any) -> None:
    async with asyncio.timeout(10):
        while await call.read() is not grpc.aio.EOF:
            pass


async def status_of(call: Any) -> tuple[grpc.StatusCode, str]:
    """How a stream ended, read to its end."""
    with pytest.raises(grpc.aio.AioRpcError) as ended:
        await read_to_the_end(call)
    return ended.value.code(), ended.value.details() or ""


async def test_names_are_answered_and_added_to_and_go_on_after_the_last_name(edge: Edge, stub: Any) -> None:
    call = stub.Watch()
    await call.write(pb.WatchRequest(serviceNames=["orders"]))
    await eventually(lambda: edge.hub.name_count == 1)
    edge.show(1)
    (state,) = (await call.read()).services
    assert [one.serviceId for one in state.instances] == ["orders-0"]
    await call.write(pb.WatchRequest(serviceNames=["carts"]))
    assert [(state.serviceName, len(state.instances)) for state in (await call.read()).services] == [("carts", 0)]
    await call.done_writing()
    edge.show(2)
    assert [len(state.instances) for state in (await call.read()).services] == [2]
    call.cancel()
    await eventually(lambda: edge.hub.watcher_count == 0)
    await eventually(lambda: edge.outcomes("Watch") == {"cancelled": 1})


async def test_a_quiet_stream_shows_signs_of_life(edge: Edge, stub: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mesh_servicer, "BEAT_SECONDS", 0.05)
    call = stub.Watch()
    await call.write(pb.WatchRequest(serviceNames=["orders"]))
    assert (await call.read()).staleReason == "discovery has not heard from the registry yet"
    edge.show(0)
    await eventually(lambda: edge.hub.has_catalog)
    quiet = pb.WatchUpdate()
    while quiet != await call.read():
        pass
    assert await call.read() == quiet
    call.cancel()


async def test_a_stream_ends_as_planned_after_its_time(edge: Edge, stub: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mesh_servicer, "STREAM_SECONDS", 0.2)
    monkeypatch.setattr(mesh_servicer, "BEAT_SECONDS", 0.05)
    call = stub.Watch()
    await call.write(pb.WatchRequest(serviceNames=["orders"]))
    await read_to_the_end(call)
    assert await call.code() is grpc.StatusCode.OK
    assert edge.hub.watcher_count == 0


async def test_bad_names_and_too_many_streams_are_refused(edge: Edge, stub: Any) -> None:
    call = stub.Watch()
    await call.write(pb.WatchRequest(serviceNames=["orders", ""]))
    code, details = await status_of(call)
    assert (code, "1 to 255" in details) == (grpc.StatusCode.INVALID_ARGUMENT, True)
    call = stub.Watch()
    await call.write(pb.WatchRequest(serviceNames=[f"service-{number}" for number in range(1001)]))
    assert (await status_of(call))[0] is grpc.StatusCode.RESOURCE_EXHAUSTED
    await eventually(lambda: edge.hub.watcher_count == 0)
    calls = [stub.Watch() for _ in range(3)]
    await eventually(lambda: edge.hub.watcher_count == 3)
    code, details = await status_of(stub.Watch())
    assert (code, details) == (
        grpc.StatusCode.RESOURCE_EXHAUSTED,
        "3 streams are open, as many as this discovery keeps",
    )
    for call in calls:
        call.cancel()


async def test_a_client_that_does_not_read_holds_one_message_and_gets_the_newest_state_next(
    edge: Edge, stub: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mesh_servicer, "REST_SECONDS_PER_BYTE", 0.0)
    edge.show(0)
    call = stub.Watch()
    await call.write(pb.WatchRequest(serviceNames=["orders"]))
    await eventually(lambda: edge.sent() == 1)
    for count in range(2000, 2020):  # each far more than the windows of HTTP/2 hold
        edge.show(count, "x" * 500)
        await asyncio.sleep(0.01)
    assert edge.sent() <= 3
    seen: list[int] = []
    while not seen or seen[-1] < 2019:
        seen += [len(state.instances) for state in (await call.read()).services]
    assert len(seen) <= 4
    call.cancel()


async def test_a_drain_ends_streams_and_waits_with_unavailable(edge: Edge, stub: Any) -> None:
    edge.show(1)
    call = stub.Watch()
    await call.write(pb.WatchRequest(serviceNames=["orders"]))
    await call.read()
    waiting = stub.WaitApplied(pb.WaitAppliedRequest(serviceName="orders"), timeout=30)
    await eventually(lambda: edge.barrier.waiting == 1)
    edge.servicer.drain()
    assert (await status_of(call))[0] is grpc.StatusCode.UNAVAILABLE
    with pytest.raises(grpc.aio.AioRpcError, match="stopping") as refused:
        await waiting
    assert refused.value.code() is grpc.StatusCode.UNAVAILABLE
    for late in (stub.WaitApplied(pb.WaitAppliedRequest(serviceName="orders"), timeout=5), stub.Watch()):
        assert await late.code() is grpc.StatusCode.UNAVAILABLE


async def test_a_wait_answers_when_all_have_applied_it(edge: Edge, stub: Any) -> None:
    edge.barrier.is_open.set()
    answer = await stub.WaitApplied(pb.WaitAppliedRequest(serviceName="orders"), timeout=10)
    assert answer == pb.WaitAppliedResponse(
        applied=True, index=7, gateways=[pb.GatewayState(name="edge-1", appliedIndex=9)]
    )
    assert 9 < edge.barrier.deadlines[0] < 10
    await stub.WaitApplied(pb.WaitAppliedRequest(serviceName="orders"))
    assert 4 < edge.barrier.deadlines[1] <= 5


async def test_a_wait_may_be_as_long_as_a_drain_but_not_for_ever(edge: Edge, stub: Any) -> None:
    edge.barrier.is_open.set()
    for seconds in (120, 3600):
        await stub.WaitApplied(pb.WaitAppliedRequest(serviceName="orders"), timeout=seconds)
    drain, longest = edge.barrier.deadlines
    assert 100 < drain < 120, "gRPC rounds what it sends up, and the answer has to be in time all the same"
    assert 599 < longest < 600


async def test_the_more_wait_the_more_time_there_is_to_answer_them(
    edge: Edge, stub: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mesh_servicer, "ANSWER_SECONDS_PER_WAIT", 10)
    async with asyncio.TaskGroup() as tasks:
        for number in (1, 2):
            tasks.create_task(_swallow(stub.WaitApplied(pb.WaitAppliedRequest(serviceName="orders"), timeout=100)))
            await eventually(lambda number=number: edge.barrier.waiting == number)
        edge.barrier.is_open.set()
    first, second = edge.barrier.deadlines
    assert first - second > 5


@pytest.mark.parametrize("trouble", [None, RegistryError("permission denied")])
async def test_a_wait_whose_caller_has_given_up_is_not_answered(
    edge: Edge, stub: Any, trouble: RegistryError | None, caplog: pytest.LogCaptureFixture
) -> None:
    edge.barrier.is_late = True
    edge.barrier.is_open.set()
    edge.barrier.trouble = trouble
    for _ in range(3):
        with pytest.raises(grpc.aio.AioRpcError) as late:
            await stub.WaitApplied(pb.WaitAppliedRequest(serviceName="orders"), timeout=0.2)
        assert late.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    await eventually(lambda: edge.outcomes("WaitApplied") == {"cancelled": 3})
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]


async def test_a_wait_answers_shortly_before_the_callers_deadline(edge: Edge, stub: Any) -> None:
    answer = await stub.WaitApplied(pb.WaitAppliedRequest(serviceName="orders"), timeout=2)
    assert answer == pb.WaitAppliedResponse(
        applied=False,
        index=7,
        gateways=[pb.GatewayState(name="edge-1", appliedIndex=5)],
        reason="edge-1 is behind",
    )


async def test_a_wait_ends_with_its_caller(edge: Edge, stub: Any) -> None:
    call = stub.WaitApplied(pb.WaitAppliedRequest(serviceName="orders"), timeout=30)
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(_swallow(call))
        await eventually(lambda: edge.barrier.waiting == 1)
        call.cancel()
        await eventually(lambda: edge.barrier.waiting == 0)
        await eventually(lambda: edge.outcomes("WaitApplied") == {"cancelled": 1})


async def _swallow(call: Any) -> None:
    with suppress(grpc.aio.AioRpcError, asyncio.CancelledError):
        await call


async def test_waits_are_bounded_and_checked(edge: Edge, stub: Any) -> None:
    with pytest.raises(grpc.aio.AioRpcError, match="serviceName is empty"):
        await stub.WaitApplied(pb.WaitAppliedRequest(), timeout=5)
    edge.barrier.trouble = RegistryError("permission denied")
    with pytest.raises(grpc.aio.AioRpcError, match="permission denied") as refused:
        await stub.WaitApplied(pb.WaitAppliedRequest(serviceName="orders"), timeout=5)
    assert refused.value.code() is grpc.StatusCode.INTERNAL
    edge.barrier.trouble = UnknownServiceError("too many of those")
    with pytest.raises(grpc.aio.AioRpcError, match="too many of those") as refused:
        await stub.WaitApplied(pb.WaitAppliedRequest(serviceName="orders"), timeout=5)
    assert refused.value.code() is grpc.StatusCode.FAILED_PRECONDITION
    edge.barrier.trouble = None
    async with asyncio.TaskGroup() as tasks:
        for _ in range(2):
            tasks.create_task(_swallow(stub.WaitApplied(pb.WaitAppliedRequest(serviceName="orders"), timeout=10)))
        await eventually(lambda: edge.barrier.waiting == 2)
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await stub.WaitApplied(pb.WaitAppliedRequest(serviceName="orders"), timeout=5)
        assert refused.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        edge.barrier.is_open.set()
