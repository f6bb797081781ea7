"""The sample service over real sockets: HTTP in front, a discovery of our own behind."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import aiohttp
import pytest
from tests.support.go_discovery import go_discovery
from tests.support.ports import free_port
from tests.support.wait import eventually

from toska_mesh.cli.sample import SampleSettings, make_app, run
from toska_mesh.errors import ConfigError
from toska_mesh.pb import discovery_pb2 as pb
from toska_mesh.sdk.service import MeshService
from toska_mesh.settings import load


def settings(discovery_port: int, **more: str) -> SampleSettings:
    environ = {
        "HELLO_INSTANCE_ID": "hello-1",
        "HELLO_DISCOVERY": f"127.0.0.1:{discovery_port}",
        "HELLO_DRAIN_SECONDS": "1.5",  # a discovery that cannot say what gateways have applied is waited for blindly
        **more,
    }
    return load(SampleSettings, environ).settings


def client() -> aiohttp.ClientSession:
    return aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=20))


@asynccontextmanager
async def serving(host: str = "127.0.0.1", port: int = 0) -> AsyncIterator[int]:
    """The app in its host, without a mesh."""
    async with MeshService(make_app("hello-1"), name="hello", host=host, port=port, register=False) as service:
        yield service.port


async def test_it_registers_its_real_port_serves_and_leaves() -> None:
    stop = asyncio.Event()
    async with go_discovery() as discovery, asyncio.timeout(20), asyncio.TaskGroup() as tasks:
        tasks.create_task(run(settings(discovery.port), stop))
        await eventually(lambda: "hello-1" in discovery.registered)
        request = discovery.registered["hello-1"]
        assert request.port > 0
        async with client() as http:
            base = f"http://{request.address}:{request.port}"
            async with http.get(f"{base}/hello") as answer:
                assert await answer.json() == {"message": "Hello from hello-1", "instance": "hello-1"}
            async with http.get(base + request.metadata["health_check_endpoint"]) as answer:
                assert answer.status == 200
                assert (await answer.json())["status"] == "Healthy"
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
        async with go_discovery(port) as discovery:
            await eventually(lambda: "hello-1" in discovery.registered)
            stop.set()
            await eventually(lambda: discovery.order[-1] == "Deregister")


async def test_it_registers_again_when_discovery_has_forgotten_it() -> None:
    stop = asyncio.Event()
    async with go_discovery() as discovery, asyncio.timeout(30), asyncio.TaskGroup() as tasks:
        tasks.create_task(run(settings(discovery.port, HELLO_INTERVAL_SECONDS="1"), stop))
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
    stop = asyncio.Event()

    async def slow_body(discovery_order: list[str]) -> AsyncIterator[bytes]:
        yield b"first "
        stop.set()
        await eventually(lambda: discovery_order[-1] == "Deregister")  # then the port closes
        await asyncio.sleep(0.3)
        yield b"last"

    async with go_discovery() as discovery, asyncio.timeout(30), asyncio.TaskGroup() as tasks:
        tasks.create_task(run(settings(discovery.port, HELLO_DRAIN_SECONDS="4"), stop))
        await eventually(lambda: "hello-1" in discovery.registered)
        own = discovery.registered["hello-1"].port
        body = slow_body(discovery.order)
        async with client() as http, http.post(f"http://127.0.0.1:{own}/echo", data=body) as answer:
            assert answer.status == 200
            assert await answer.read() == b"first last"


async def test_an_echo_is_passed_back_whole_and_while_it_arrives() -> None:
    async with serving() as port, client() as http:
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
    async with serving() as port, client() as http:
        async with http.get(f"http://127.0.0.1:{port}/nope") as answer:
            assert answer.status == 404
        async with http.get(f"http://127.0.0.1:{port}/echo") as answer:
            assert answer.status == 405


async def test_a_taken_port_names_its_variable() -> None:
    async with serving() as port:
        with pytest.raises(ConfigError, match=f"port {port} is in use.*HELLO_PORT"):
            await run(settings(1, HELLO_PORT=str(port)), asyncio.Event())


@pytest.mark.parametrize(
    ("variable", "text"),
    [
        ("HELLO_SERVICE", "he llo"),
        ("HELLO_INSTANCE_ID", "/1"),
        ("HELLO_ADVERTISE", "169.254.1.1"),
        ("HELLO_DISCOVERY", "localhost"),
        ("MESH_SERVICE_AUTH_SECRET", "short"),
    ],
)
def test_what_the_sdk_would_refuse_names_our_variable(variable: str, text: str) -> None:
    with pytest.raises(ConfigError, match=f"{variable}"):
        load(SampleSettings, {variable: text})
