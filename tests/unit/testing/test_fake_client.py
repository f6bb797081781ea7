"""The SDK's client, the gateway and real members in a fake mesh: what they do about each fault."""

import asyncio
from typing import Any

import pytest
from aiohttp import web

from toska_mesh.errors import CircuitOpenError, NoInstanceError, UpstreamConnectError, UpstreamTimeoutError
from toska_mesh.model import HealthStatus
from toska_mesh.sdk.client import CallOptions
from toska_mesh.testing import FakeMesh, FakeRequest

pytestmark = pytest.mark.virtual_clock


def hello(request: FakeRequest) -> str:
    return f"hello from {request.instance}"


async def test_calls_are_spread_over_the_instances(fake_mesh: FakeMesh) -> None:
    stock = fake_mesh.add_service("stock", hello, instances=3)
    async with fake_mesh.client() as mesh:
        for _ in range(9):
            answer = await mesh.client("stock").get("/items/1")
            assert (answer.status, (await answer.text())[:5]) == (200, "hello")
    assert [one.requests for one in stock] == [3, 3, 3]
    assert fake_mesh.clock.now < 0.2


async def test_a_dead_instance_costs_no_call(fake_mesh: FakeMesh) -> None:
    stock = fake_mesh.add_service("stock", hello, instances=2)
    stock[0].down()
    async with fake_mesh.client() as mesh:
        for _ in range(10):
            assert (await mesh.client("stock").get("/items/1")).status == 200
    assert (stock[0].requests, stock[1].requests) == (0, 10)


async def test_a_503_is_tried_elsewhere(fake_mesh: FakeMesh) -> None:
    stock = fake_mesh.add_service("stock", hello, instances=2)
    stock[0].answers(503)
    async with fake_mesh.client() as mesh:
        for _ in range(4):
            assert (await mesh.client("stock").get("/items/1")).status == 200
    assert stock[1].requests == 4


async def test_a_hung_instance_is_left_for_another(fake_mesh: FakeMesh) -> None:
    stock = fake_mesh.add_service("stock", hello, instances=2)
    async with fake_mesh.client() as mesh:
        orders = mesh.client("stock")
        for _ in range(100):
            await orders.get("/items/1")
        stock[0].hang()
        began = fake_mesh.clock.now
        for _ in range(20):
            assert (await orders.get("/items/1")).status == 200
        assert fake_mesh.clock.now - began < 3
    assert stock[0].requests <= 52


async def test_what_is_slow_takes_its_time(fake_mesh: FakeMesh) -> None:
    fake_mesh.add_service("stock", hello)[0].slow(3)
    async with fake_mesh.client() as mesh:
        began = fake_mesh.clock.now
        assert (await mesh.client("stock").get("/items/1")).status == 200
        assert 3 <= fake_mesh.clock.now - began < 4


@pytest.mark.parametrize(
    ("fault", "error"),
    [
        pytest.param("down", UpstreamConnectError, id="down"),
        pytest.param("vanish", UpstreamConnectError, id="vanished"),
        pytest.param("resets", UpstreamConnectError, id="resets"),
        pytest.param("hang", UpstreamTimeoutError, id="hangs"),
    ],
)
async def test_without_another_instance_the_caller_hears_why(
    fake_mesh: FakeMesh, fault: str, error: type[Exception]
) -> None:
    (stock,) = fake_mesh.add_service("stock", hello)
    async with fake_mesh.client(calls=CallOptions(timeout_seconds=12, try_timeout_seconds=8, retries=1)) as mesh:
        getattr(stock, fault)()
        with pytest.raises(error, match="stock"):
            await mesh.client("stock").post("/items", json={"n": 1})
        assert fake_mesh.clock.now < 13


async def test_a_breaker_opens_and_closes_again(fake_mesh: FakeMesh) -> None:
    (stock,) = fake_mesh.add_service("stock", hello)
    stock.down()
    async with fake_mesh.client() as mesh:
        client = mesh.client("stock", retries=0)
        for _ in range(3):
            with pytest.raises(UpstreamConnectError):
                await client.get("/items/1")
        with pytest.raises(CircuitOpenError):
            await client.get("/items/1")
        stock.revive()
        await fake_mesh.clock.advance(60)
        assert (await client.get("/items/1")).status == 200
    assert stock.requests == 1


async def test_nobody_of_that_name(fake_mesh: FakeMesh) -> None:
    async with fake_mesh.client() as mesh:
        with pytest.raises(NoInstanceError, match="no such service"):
            await mesh.client("stock").get("/items/1")


async def test_while_the_registry_is_away_calls_go_on(fake_mesh: FakeMesh) -> None:
    stock = fake_mesh.add_service("stock", hello, instances=2)
    async with fake_mesh.client() as mesh:
        await mesh.client("stock").get("/items/1")
        fake_mesh.registry.goes_away()
        stock[0].down()
        for _ in range(100):
            assert (await mesh.client("stock").get("/items/1")).status == 200
            await fake_mesh.clock.advance(1)
        assert mesh.stale_seconds > 90
        fake_mesh.registry.comes_back(wiped=True)
        await fake_mesh.clock.advance(30)
        assert (await mesh.client("stock").get("/items/1")).status == 200
        assert mesh.stale_seconds == 0


# The gateway


async def test_the_gateway_routes_by_the_path(fake_mesh: FakeMesh) -> None:
    seen: list[FakeRequest] = []

    def keep(request: FakeRequest) -> dict[str, str]:
        seen.append(request)
        return {"path": request.path}

    fake_mesh.add_service("stock", keep)
    answer = await fake_mesh.gateway.get("/api/stock/items/1?x=2")
    assert (answer.status, answer.json(), answer.instance) == (200, {"path": "/items/1"}, "stock-1")
    answer = await fake_mesh.gateway.post("/api/stock", json={"n": 1})
    assert answer.json() == {"path": "/"}
    assert [(one.method, one.query) for one in seen] == [("GET", {"x": "2"}), ("POST", {})]
    for path in ("/api/orders/1", "/stock/items", "/api/"):
        answer = await fake_mesh.gateway.get(path)
        assert (answer.status, answer.code) == (404, "no-such-route")


@pytest.mark.parametrize(
    ("fault", "status", "code"),
    [("down", 502, "upstream-failed"), ("hang", 504, "upstream-timeout"), ("unhealthy", 503, "no-instance")],
)
async def test_the_gateway_says_what_went_wrong(fake_mesh: FakeMesh, fault: str, status: int, code: str) -> None:
    (stock,) = fake_mesh.add_service("stock", hello)
    await fake_mesh.gateway.start()
    getattr(stock, fault)()
    await fake_mesh.clock.advance(0.1)
    answer = await fake_mesh.gateway.post("/api/stock/items")
    assert (answer.status, answer.code) == (status, code)


async def test_an_instance_that_leaves_waits_for_the_gateway(fake_mesh: FakeMesh) -> None:
    stock = fake_mesh.add_service("stock", hello, instances=2)
    await fake_mesh.gateway.start()
    stock[0].leaves()
    statuses = []
    for _ in range(200):
        statuses.append((await fake_mesh.gateway.post("/api/stock/items")).status)
        await fake_mesh.clock.advance(0.005)
    assert set(statuses) == {200}
    assert not stock[0].is_up


# Members


def asgi(answer: bytes = b"hello") -> Any:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "lifespan":
            raise ValueError("not supported")
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": answer})

    return app


async def test_a_member_registers_serves_and_leaves(fake_mesh: FakeMesh) -> None:
    async with fake_mesh.member(asgi(), name="orders") as member:
        await member.registered()
        (known,) = fake_mesh.registry.instances("orders")
        assert (known.id, known.status) == (member.instance_id, HealthStatus.HEALTHY)
        answer = await fake_mesh.gateway.get("/api/orders/1")
        assert (answer.status, answer.body, answer.instance) == (200, b"hello", member.instance_id)
        answer = await fake_mesh.gateway.get("/api/orders/health")
        assert answer.json()["status"] == "Healthy"
    assert fake_mesh.registry.instances("orders") == ()
    assert member.leave_report is not None
    assert member.leave_report.is_lossless
    assert member.requests == 2


async def test_an_aiohttp_application_is_a_member_too(fake_mesh: FakeMesh) -> None:
    async def one(request: web.Request) -> web.Response:
        return web.Response(text="one")

    app = web.Application()
    app.router.add_get("/1", one)
    async with fake_mesh.member(app, name="orders") as member:
        await member.registered()
        assert (await fake_mesh.gateway.get("/api/orders/1")).text == "one"


async def test_a_check_of_the_member_is_told_to_the_mesh(fake_mesh: FakeMesh) -> None:
    is_well = True

    async def database() -> bool:
        return is_well

    member = fake_mesh.member(asgi(), name="orders")
    member.add_check("database", database)
    member.add_check("disk", lambda: "Healthy")
    async with member:
        await member.registered()
        is_well = False
        await fake_mesh.clock.advance(5)
        (known,) = fake_mesh.registry.instances("orders")
        assert known.status is HealthStatus.UNHEALTHY
        assert "database" in known.output
        assert "disk" not in known.output


async def test_a_member_comes_back_to_a_wiped_registry(fake_mesh: FakeMesh) -> None:
    async with fake_mesh.member(asgi(), name="orders", health_interval_seconds=10) as member:
        await member.registered()
        fake_mesh.registry.goes_away()
        await fake_mesh.clock.advance(60)
        fake_mesh.registry.comes_back(wiped=True)
        await fake_mesh.clock.advance(15)
        assert [one.id for one in fake_mesh.registry.instances("orders")] == [member.instance_id]


async def test_a_member_that_is_cut_off_is_taken_for_dead(fake_mesh: FakeMesh) -> None:
    async with fake_mesh.member(asgi(), name="orders", health_interval_seconds=10) as member:
        await member.registered()
        member.cut_off()
        await fake_mesh.clock.advance(16)
        (known,) = fake_mesh.registry.instances("orders")
        assert known.status is HealthStatus.UNHEALTHY
        assert not member.is_registered
        member.reconnects()
        await fake_mesh.clock.advance(10)
        (known,) = fake_mesh.registry.instances("orders")
        assert known.status is HealthStatus.HEALTHY
        assert (await fake_mesh.gateway.get("/api/orders/1")).status == 200


async def test_a_member_finishes_what_it_has_before_it_goes(fake_mesh: FakeMesh) -> None:
    async def slow(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "http":
            await asyncio.sleep(7)
        await asgi()(scope, receive, send)

    await fake_mesh.gateway.start()
    async with asyncio.TaskGroup() as tasks:
        async with fake_mesh.member(slow, name="orders") as member:
            await member.registered()
            asking = tasks.create_task(fake_mesh.gateway.post("/api/orders/1"))
            await fake_mesh.clock.advance(1)
        assert (await asking).status == 200
    assert member.leave_report is not None
    assert member.leave_report.is_lossless


async def test_a_member_does_the_same_in_every_run_of_the_same_seed() -> None:
    async def run(seed: int) -> list[str]:
        async with FakeMesh(seed=seed) as mesh:
            began = mesh.clock.now
            async with mesh.member(asgi(), name="orders", health_interval_seconds=10) as member:
                await member.registered()
                mesh.registry.goes_away()
                await mesh.clock.advance(60)
                mesh.registry.comes_back(wiped=True)
                await mesh.clock.advance(30)
            return [f"{event.at - began:.6f} {event.kind} {event.subject}" for event in mesh.events]

    assert await run(1) == await run(1)
    assert await run(1) != await run(2)
