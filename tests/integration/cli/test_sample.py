"""The sample service over real sockets: HTTP in front, a discovery of our own behind."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import aiohttp
import grpc
import pytest
from aiohttp import web
from tests.support.ports import free_port
from tests.support.wait import eventually

from toska_mesh.cli.sample import SampleSettings, make_app, run, serving
from toska_mesh.errors import ConfigError
from toska_mesh.pb import discovery_pb2 as pb
from toska_mesh.pb.discovery_pb2_grpc import DiscoveryRegistryServicer, add_DiscoveryRegistryServicer_to_server
from toska_mesh.settings import load


class Discovery(DiscoveryRegistryServicer):
    """Remembers what it is told."""

    def __init__(self) -> None:
        self.registered: dict[str, pb.RegisterServiceRequest] = {}
        self.reports: list[pb.ReportHealthRequest] = []
        self.order: list[str] = []

    async def Register(self, request: pb.RegisterServiceRequest, context: object) -> pb.RegisterServiceResponse:
        self.order.append("Register")
        self.registered[request.serviceId] = request
        return pb.RegisterServiceResponse(success=True, serviceId=request.serviceId)

    async def ReportHealth(self, request: pb.ReportHealthRequest, context: object) -> pb.ReportHealthResponse:
        self.order.append("ReportHealth")
        self.reports.append(request)
        return pb.ReportHealthResponse(success=request.serviceId in self.registered)

    async def Deregister(self, request: pb.DeregisterServiceRequest, context: object) -> pb.DeregisterServiceResponse:
        self.order.append("Deregister")
        return pb.DeregisterServiceResponse(removed=self.registered.pop(request.serviceId, None) is not None)


@asynccontextmanager
async def discovery_at(port: int) -> AsyncIterator[Discovery]:
    server = grpc.aio.server()
    servicer = Discovery()
    add_DiscoveryRegistryServicer_to_server(servicer, server)  # type: ignore[no-untyped-call]
    assert server.add_insecure_port(f"127.0.0.1:{port}") == port
    await server.start()
    try:
        yield servicer
    finally:
        await server.stop(None)


def settings(discovery_port: int, **more: str) -> SampleSettings:
    environ = {"HELLO_INSTANCE_ID": "hello-1", "HELLO_DISCOVERY": f"127.0.0.1:{discovery_port}", **more}
    return load(SampleSettings, environ).settings


def client() -> aiohttp.ClientSession:
    return aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=20))


async def test_it_registers_its_real_port_serves_and_leaves() -> None:
    port = free_port()
    stop = asyncio.Event()
    async with discovery_at(port) as discovery, asyncio.timeout(20), asyncio.TaskGroup() as tasks:
        tasks.create_task(run(settings(port), stop))
        await eventually(lambda: "hello-1" in discovery.registered)
        request = discovery.registered["hello-1"]
        assert request.port > 0
        async with client() as http:
            base = f"http://{request.address}:{request.port}"
            async with http.get(f"{base}/hello") as answer:
                assert await answer.json() == {"message": "Hello from hello-1", "instance": "hello-1"}
            async with http.get(base + request.metadata["health_check_endpoint"]) as answer:
                assert answer.status == 200
        stop.set()
        await eventually(lambda: discovery.order[-1] == "Deregister")
    assert [report.status for report in discovery.reports][-1] == pb.HEALTH_STATUS_DEGRADED
    assert discovery.registered == {}


async def test_it_waits_for_a_discovery_that_comes_late() -> None:
    port = free_port()
    stop = asyncio.Event()
    async with asyncio.timeout(30), asyncio.TaskGroup() as tasks:
        tasks.create_task(run(settings(port), stop))
        await asyncio.sleep(0.3)
        async with discovery_at(port) as discovery:
            await eventually(lambda: "hello-1" in discovery.registered)
            stop.set()
            await eventually(lambda: discovery.order[-1] == "Deregister")


async def test_it_registers_again_when_discovery_has_forgotten_it() -> None:
    port = free_port()
    stop = asyncio.Event()
    async with discovery_at(port) as discovery, asyncio.timeout(30), asyncio.TaskGroup() as tasks:
        tasks.create_task(run(settings(port, HELLO_INTERVAL_SECONDS="1"), stop))
        await eventually(lambda: "hello-1" in discovery.registered)
        discovery.registered.clear()
        await eventually(lambda: "hello-1" in discovery.registered, 15)  # a beat, a third of a TTL of 10 s, is refused
        stop.set()
    assert discovery.order.count("Register") == 2


async def test_a_stop_without_discovery_does_not_hang() -> None:
    stop = asyncio.Event()
    async with asyncio.timeout(20), asyncio.TaskGroup() as tasks:
        tasks.create_task(run(settings(free_port()), stop))
        await asyncio.sleep(0.2)
        stop.set()


async def test_an_upload_in_flight_is_finished_after_the_stop() -> None:
    port = free_port()
    stop = asyncio.Event()

    async def slow_body() -> AsyncIterator[bytes]:
        yield b"first "
        stop.set()
        await asyncio.sleep(1.0)  # longer than the notice: the port closes meanwhile
        yield b"last"

    async with discovery_at(port) as discovery, asyncio.timeout(30), asyncio.TaskGroup() as tasks:
        tasks.create_task(run(settings(port), stop))
        await eventually(lambda: "hello-1" in discovery.registered)
        own = discovery.registered["hello-1"].port
        async with client() as http, http.post(f"http://127.0.0.1:{own}/echo", data=slow_body()) as answer:
            assert answer.status == 200
            assert await answer.read() == b"first last"


async def test_an_echo_is_passed_back_whole_and_while_it_arrives() -> None:
    async with serving(make_app("hello-1"), "127.0.0.1", 0) as port, client() as http:
        first_is_back = asyncio.Event()

        async def body() -> AsyncIterator[bytes]:
            yield b"a" * 1000
            await first_is_back.wait()
            yield b"b" * 5_000_000

        async with http.post(f"http://127.0.0.1:{port}/echo", data=body()) as answer:
            received = await answer.content.readany()
            first_is_back.set()
            received += await answer.read()
        assert received == b"a" * 1000 + b"b" * 5_000_000
        assert answer.headers["X-Instance"] == "hello-1"


async def test_other_paths_and_methods_are_refused() -> None:
    async with serving(make_app("hello-1"), "127.0.0.1", 0) as port, client() as http:
        async with http.get(f"http://127.0.0.1:{port}/nope") as answer:
            assert answer.status == 404
        async with http.get(f"http://127.0.0.1:{port}/echo") as answer:
            assert answer.status == 405


async def test_a_taken_port_names_its_variable() -> None:
    async with serving(web.Application(), "127.0.0.1", 0) as port:
        with pytest.raises(ConfigError, match=f"port {port} is in use.*HELLO_PORT"):
            async with serving(web.Application(), "127.0.0.1", port):
                pass
