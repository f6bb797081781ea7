"""Services of every kind in a real mesh: replaced under load, they lose no request."""

import asyncio
import itertools
import json
import signal
from collections.abc import Iterator
from contextlib import ExitStack

import pytest
from tests.integration.sdk.apps import KINDS, make_app
from tests.integration.sdk.processes import ROOT, ServiceProcess, SmallMesh
from tests.support.load import Client, Load
from tests.support.wait import eventually

from toska_mesh.sdk.options import ConnectOptions, ServiceOptions
from toska_mesh.sdk.service import MeshService

BODY = b"x" * 20_000


@pytest.fixture(scope="module")
def mesh() -> Iterator[SmallMesh]:
    with SmallMesh() as small:
        yield small


UVICORN = ("-m", "uvicorn", "--host", "127.0.0.1", "--port", "0", "--log-level", "warning")

COMMANDS = {kind: ("-m", "tests.integration.sdk.app_process", kind) for kind in KINDS} | {
    "uvicorn, wrapped": (*UVICORN, "tests.integration.sdk.joined_apps:wrapped"),
    "uvicorn, middleware": (*UVICORN, "tests.integration.sdk.joined_apps:inside"),
    "run_app": ("-m", "tests.integration.sdk.joined_apps", "0"),
}


def instance(mesh: SmallMesh, service: str, command: tuple[str, ...]) -> ServiceProcess:
    return ServiceProcess(
        command,
        service,
        MESH_SERVICE_NAME=service,
        MESH_SERVICE_HOST="127.0.0.1",
        MESH_DISCOVERY_ADDRESS=f"127.0.0.1:{mesh.grpc_port}",
    )


@pytest.mark.parametrize("kind", COMMANDS)
async def test_an_instance_that_is_told_to_stop_under_load_loses_no_request(mesh: SmallMesh, kind: str) -> None:
    service = f"shop-{list(COMMANDS).index(kind)}"
    with ExitStack() as stack:
        pair = [instance(mesh, service, COMMANDS[kind]) for _ in range(2)]
        for process in pair:
            stack.callback(process.close)
            process.start(wait=False)
        for process in pair:
            process.wait_ready()
        ids = {process.instance_id for process in pair}
        await eventually(lambda: mesh.eligible(service) == ids, 20)
        gets = Load(mesh.port, f"/api/{service}/hello", connections=3)
        slow = Load(mesh.port, f"/api/{service}/slow?seconds=0.2", connections=3)
        posts = Load(
            mesh.port,
            f"/api/{service}/echo",
            "POST",
            connections=3,
            bodies=itertools.repeat((BODY, {"Content-Type": "application/octet-stream"})),
            is_fine=lambda answer: answer.status == 200 and answer.body == BODY,
        )
        async with gets.running(), slow.running(), posts.running():
            await asyncio.sleep(0.5)
            code = await asyncio.to_thread(pair[0].stop)
            await asyncio.sleep(0.3)
        for load in (gets, slow, posts):
            load.figures.assert_no_failure()
        assert code == (-signal.SIGTERM if UVICORN[1] in COMMANDS[kind] else 0), pair[0].tail()  # uvicorn's own way
        assert "Traceback" not in pair[0].log_text(), pair[0].log_text()
        (left,) = pair[0].events("left")
        assert left["level"] == "info", left
        assert mesh.eligible(service) == {pair[1].instance_id}


EXAMPLES = {
    "hello": ("hello", "/hello", {"message": "Hello from the mesh"}),
    "adder": ("adder", "/add?a=1&b=2.5", {"a": 1.0, "b": 2.5, "sum": 3.5}),
    "fastapi_app": ("orders", "/orders/1", {"number": 1, "item": "bread"}),
    "starlette_app": ("counter", "/count/1", 0),
}


async def test_every_example_is_one_command_and_answers_through_the_gateway(mesh: SmallMesh) -> None:
    with ExitStack() as stack:
        running = {}
        for file, (service, _, _) in EXAMPLES.items():
            command = (str(ROOT / "examples" / f"{file}.py"),)
            process = ServiceProcess(command, service, MESH_DISCOVERY_ADDRESS=f"127.0.0.1:{mesh.grpc_port}")
            running[file] = process
            stack.callback(process.close)
            process.start(wait=False)
        for file, (service, path, expected) in EXAMPLES.items():
            running[file].wait_ready()
            await eventually(lambda service=service: mesh.eligible(service), 20)
            client = Client(mesh.port)
            try:
                answer = await client.request("GET", f"/api/{service}{path}")
            finally:
                client.close()
            assert (answer.status, json.loads(answer.body)) == (200, expected)
        for process in running.values():
            process.terminate()
        for process in running.values():
            assert process.wait() == 0, process.tail()
            assert "Traceback" not in process.log_text()


async def test_a_service_may_join_straight_through_the_registry(mesh: SmallMesh) -> None:
    connect = ConnectOptions(provider="consul", consul_address=mesh.registry.url)
    options = ServiceOptions(name="direct", host="127.0.0.1", port=0, drain_seconds=20, connect=connect)
    async with asyncio.timeout(40):
        async with MeshService(make_app("aiohttp"), options, metrics_registry=None) as running:
            await running.registered()
            await eventually(lambda: mesh.eligible("direct") == {running.instance_id}, 20)
        assert running.leave_report is not None
        assert running.leave_report.is_lossless
        await eventually(lambda: not mesh.eligible("direct"))
