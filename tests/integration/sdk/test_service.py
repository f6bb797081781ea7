"""A service from the open port to the closed one, under every server, over real sockets."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
import pytest
from aiohttp import web
from fastapi import FastAPI
from tests.integration.sdk.apps import KINDS, make_app
from tests.integration.sdk.scripted import Recorder
from tests.support.wait import eventually

from toska_mesh.errors import ConfigError
from toska_mesh.model import HealthStatus
from toska_mesh.sdk.enrolment import Member
from toska_mesh.sdk.lifespan import AppStartError
from toska_mesh.sdk.middleware import MeshMiddleware
from toska_mesh.sdk.options import ServiceOptions
from toska_mesh.sdk.service import MeshService

OPTIONS = ServiceOptions(name="orders", id="orders-1", host="127.0.0.1", port=0, drain_seconds=20)

every_kind = pytest.mark.parametrize("kind", KINDS)


def service(kind: str, mesh: Recorder, options: ServiceOptions = OPTIONS) -> MeshService:
    return MeshService(make_app(kind), options, server=KINDS[kind], metrics_registry=None, open_enrolment=mesh.open)


def client(**more: Any) -> aiohttp.ClientSession:
    return aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=20), **more)


@every_kind
async def test_it_accepts_connections_before_it_is_registered_and_registers_its_real_port(kind: str) -> None:
    mesh = Recorder()
    health: list[dict[str, Any]] = []

    async def ask(member: Member) -> None:
        async with client() as http, http.get(f"http://127.0.0.1:{member.port}/health") as answer:
            health.append(await answer.json())

    mesh.on_register = ask
    async with asyncio.timeout(30), service(kind, mesh) as running:
        await running.registered()
        assert running.is_registered
        assert mesh.members[0].port == running.port > 0
        assert running.url == f"http://127.0.0.1:{running.port}"
    assert health[0]["status"] == "Healthy"
    assert health[0]["id"] == "orders-1"


@pytest.mark.parametrize("is_made", [False, True], ids=["given", "by a factory"])
async def test_aiohttp_routes_alone_are_an_app(is_made: bool) -> None:
    async def hello(request: web.Request) -> web.Response:
        return web.Response(text="hello")

    routes = [web.get("/hello", hello)]
    made = MeshService((lambda: routes) if is_made else routes, OPTIONS, open_enrolment=Recorder().open)
    async with asyncio.timeout(30), made as running, client() as http, http.get(f"{running.url}/hello") as answer:
        assert await answer.text() == "hello"


@every_kind
async def test_it_leaves_the_mesh_before_it_closes_the_port(kind: str) -> None:
    mesh = Recorder()
    mesh.may_leave.clear()
    async with asyncio.timeout(30), asyncio.TaskGroup() as tasks, client() as http:
        running = service(kind, mesh)
        stop = asyncio.Event()

        async def serve() -> None:
            async with running:
                await running.run_until(stop)

        serving = tasks.create_task(serve())
        await eventually(lambda: running.is_registered)
        stop.set()
        await eventually(lambda: "wait_applied" in mesh.order)
        async with http.get(f"{running.url}/hello") as answer:  # gateways that have not heard may still come
            assert answer.status == 200
            assert answer.headers["Connection"].lower() == "close"
        async with http.get(f"{running.url}/health/ready") as answer:
            assert answer.status == 503
        async with http.get(f"{running.url}/health") as answer:
            assert (answer.status, (await answer.json())["status"]) == (200, "Degraded")
        mesh.may_leave.set()
        await serving
        with pytest.raises(aiohttp.ClientConnectorError):
            await http.get(f"{running.url}/hello")
    assert mesh.order[-3:] == ["wait_applied", "deregister", "wait_applied"]
    assert mesh.said[-1][0] is HealthStatus.DEGRADED
    assert mesh.said[-1][1].startswith("draining")
    assert running.leave_report is not None
    assert running.leave_report.is_lossless


@every_kind
async def test_what_is_in_flight_is_finished_also_an_upload_that_still_arrives(kind: str) -> None:
    mesh = Recorder()
    loop = asyncio.get_running_loop()
    async with asyncio.timeout(30), asyncio.TaskGroup() as tasks, client() as http:
        running = service(kind, mesh)
        is_leaving = asyncio.Event()

        async def body() -> AsyncIterator[bytes]:
            yield b"first "
            await is_leaving.wait()
            await asyncio.sleep(0.5)
            yield b"last"

        async def upload() -> bytes:
            async with http.post(f"{running.url}/echo", data=body()) as answer:
                return await answer.read()

        async def sleep() -> int:
            async with http.get(f"{running.url}/slow?seconds=0.7") as answer:
                return answer.status

        async with running:
            await running.registered()
            uploading, sleeping = tasks.create_task(upload()), tasks.create_task(sleep())
            await eventually(lambda: running._stay.edge.in_flight.count == 2)
            left_at = loop.time()
            is_leaving.set()
        assert loop.time() - left_at > 0.4
        assert await uploading == b"first last"
        assert await sleeping == 200


@pytest.mark.parametrize("kind", ["aiohttp", "fastapi"])
async def test_an_open_websocket_holds_the_leave_up_and_is_told_to_connect_anew_in_the_end(kind: str) -> None:
    mesh = Recorder()
    options = ServiceOptions(name="orders", host="127.0.0.1", port=0, drain_seconds=1.0)
    async with asyncio.timeout(30), asyncio.TaskGroup() as tasks, client() as http:
        running = service(kind, mesh, options)
        async with running:
            await running.registered()
            websocket = await http.ws_connect(f"{running.url}/talk")
            await websocket.send_str("hello")
            assert (await websocket.receive()).data == "hello"
            closing = tasks.create_task(websocket.receive())
        assert (await closing).data == 1012
    assert running.leave_report is not None
    assert running.leave_report.step("idle").words == "requests are still in flight"
    assert mesh.order[-1] == "wait_applied", "the mesh has heard of it before"


@every_kind
async def test_a_request_has_its_context(kind: str) -> None:
    headers = {"X-Request-ID": "r-1"}
    async with asyncio.timeout(30), service(kind, Recorder()) as running, client(headers=headers) as http:
        answer = await http.get(f"{running.url}/hello")
        assert await answer.json() == {"request_id": "r-1"}


@every_kind
async def test_the_metrics_count_requests_and_know_the_mesh(kind: str) -> None:
    async with asyncio.timeout(30), service(kind, Recorder()) as running, client() as http:
        await running.registered()
        for _ in range(3):
            async with http.get(f"{running.url}/hello") as answer:
                await answer.read()
        async with http.get(f"{running.url}/metrics") as answer:
            lines = (await answer.text()).splitlines()
    assert 'toska_service_registered{service_name="orders"} 1.0' in lines
    counted = [line for line in lines if line.startswith("http_server_request_duration_seconds_count")]
    assert len(counted) == 1
    assert counted[0].endswith(" 3.0")


@every_kind
async def test_a_port_in_use_is_an_error_that_names_the_variable(kind: str) -> None:
    async with asyncio.timeout(30), service(kind, Recorder()) as first:
        options = ServiceOptions(name="orders", host="127.0.0.1", port=first.port)
        with pytest.raises(ConfigError, match=f"port {first.port} is in use.*MESH_SERVICE_PORT"):
            async with service(kind, Recorder(), options):
                pass


async def test_a_host_of_another_machine_is_a_clear_error() -> None:
    with pytest.raises(ConfigError, match=r"192\.0\.2\.1.*not an address of this machine"):
        async with service("aiohttp", Recorder(), ServiceOptions(host="192.0.2.1", port=0)):
            pass


@every_kind
async def test_a_mesh_that_is_away_does_not_stop_the_service(kind: str) -> None:
    mesh = Recorder()
    mesh.is_away = True
    async with asyncio.timeout(30), service(kind, mesh) as running, client() as http:
        async with http.get(f"{running.url}/hello") as answer:
            assert answer.status == 200
        await eventually(lambda: running.why_not_registered == "away")
        assert not running.is_registered
        mesh.is_away = False
        await running.registered()


async def test_it_can_wait_until_the_mesh_knows_it() -> None:
    options = ServiceOptions(name="orders", host="127.0.0.1", port=0, wait_for_registration=True)
    async with asyncio.timeout(30), service("aiohttp", Recorder(), options) as running:
        assert running.is_registered


async def test_one_that_is_cancelled_while_it_waits_for_the_mesh_takes_its_registration_back() -> None:
    mesh = Recorder()
    is_sent = asyncio.Event()

    async def never_answer(member: Member) -> None:
        is_sent.set()
        await asyncio.sleep(3600)

    mesh.on_register = never_answer
    options = ServiceOptions(name="orders", host="127.0.0.1", port=0, wait_for_registration=True)

    async def serve() -> None:
        async with service("aiohttp", mesh, options):
            pytest.fail("it is not registered")

    async with asyncio.timeout(30), asyncio.TaskGroup() as tasks:
        serving = tasks.create_task(serve())
        await is_sent.wait()
        serving.cancel()
    assert "deregister" in mesh.order


async def test_an_app_joins_once() -> None:
    mesh = Recorder()
    app = make_app("aiohttp")
    async with MeshService(app, OPTIONS, open_enrolment=mesh.open):
        pass
    for again in (app, MeshMiddleware(make_app("fastapi"), ServiceOptions(name="orders"), metrics_registry=None)):
        with pytest.raises(ConfigError, match="has joined"):
            async with MeshService(again, OPTIONS, open_enrolment=mesh.open):
                pass


async def test_a_service_is_for_one_stay() -> None:
    running = service("aiohttp", Recorder())
    async with running:
        pass
    with pytest.raises(RuntimeError, match="one stay"):
        async with running:
            pass


async def test_one_that_is_not_to_be_registered_is_served_all_the_same() -> None:
    mesh = Recorder()
    options = ServiceOptions(name="orders", host="127.0.0.1", port=0, register=False)
    async with asyncio.timeout(30), service("aiohttp", mesh, options) as running, client() as http:
        await running.registered()
        async with http.get(f"{running.url}/hello") as answer:
            assert answer.status == 200
    assert mesh.order == []


async def test_a_failing_check_is_what_the_mesh_hears() -> None:
    mesh = Recorder()
    is_well = True

    async def database() -> bool:
        return is_well

    running = service("aiohttp", mesh)
    running.add_check("database", database)
    async with asyncio.timeout(30), running:
        await running.registered()
        is_well = False
        await eventually(lambda: (HealthStatus.UNHEALTHY, "database: Unhealthy") in mesh.said, 15)


@pytest.mark.parametrize("server", ["uvicorn", "granian"])
async def test_an_app_that_does_not_start_says_why_and_is_never_registered(server: str) -> None:
    mesh = Recorder()

    async def life(app: FastAPI) -> AsyncIterator[None]:
        raise ConnectionError("no database")
        yield

    app = FastAPI(lifespan=asynccontextmanager(life))
    with pytest.raises(AppStartError, match="no database"):
        async with MeshService(app, OPTIONS, server=server, metrics_registry=None, open_enrolment=mesh.open):
            pass
    assert mesh.order == []


async def test_a_factory_makes_the_app_and_its_failure_is_named() -> None:
    async def make() -> web.Application:
        return make_app("aiohttp")  # type: ignore[no-any-return]

    def broken() -> web.Application:
        raise ValueError("no settings")

    mesh = Recorder()
    async with asyncio.timeout(30), MeshService(make, OPTIONS, open_enrolment=mesh.open) as running, client() as http:
        assert (await http.get(f"{running.url}/hello")).status == 200
    with pytest.raises(AppStartError, match="broken failed: ValueError: no settings"):
        async with MeshService(broken, OPTIONS, open_enrolment=mesh.open):
            pass


@pytest.mark.parametrize(
    ("app", "words"),
    [
        pytest.param(lambda environ, start_response: [], "WSGI", id="wsgi"),
        pytest.param("module:app", "str is no aiohttp Application", id="a name"),
        pytest.param(lambda request: None, "no function that makes one", id="a handler"),
    ],
)
async def test_what_is_no_app_is_refused(app: object, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        async with MeshService(app, OPTIONS, open_enrolment=Recorder().open):
            pass


async def test_a_bug_in_the_stay_ends_the_service_loudly() -> None:
    mesh = Recorder()

    async def explode(member: Member) -> None:
        raise ZeroDivisionError("a bug")

    mesh.on_register = explode
    with pytest.raises(ZeroDivisionError, match="a bug"):
        async with asyncio.timeout(30), service("aiohttp", mesh) as running:
            await running.run_until(asyncio.Event())


@every_kind
async def test_a_cancelled_block_leaves_the_mesh_too(kind: str) -> None:
    mesh = Recorder()
    running = service(kind, mesh)

    async def serve() -> None:
        async with running:
            await asyncio.Event().wait()

    async with asyncio.timeout(30), asyncio.TaskGroup() as tasks:
        serving = tasks.create_task(serve())
        await eventually(lambda: running.is_registered)
        serving.cancel()
    assert "deregister" in mesh.order


@every_kind
async def test_in_a_hurry_nobody_is_waited_for(kind: str) -> None:
    mesh = Recorder()
    mesh.may_leave.clear()
    async with asyncio.timeout(15):
        async with service(kind, mesh) as running:
            await running.registered()
            running.hurry()
    assert mesh.order[-1] == "deregister"
