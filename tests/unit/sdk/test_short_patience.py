"""A call with a deadline of its own meets an instance that is dead or hung before anything is known of the service."""

import asyncio

import pytest

from toska_mesh.errors import UpstreamTimeoutError
from toska_mesh.sdk.client import CallOptions, Client
from toska_mesh.testing import FakeMesh, FakeRequest

pytestmark = pytest.mark.virtual_clock

CALLS = 6


def hello(request: FakeRequest) -> str:
    return f"hello from {request.instance}"


async def _seconds(client: Client, calls: int = CALLS) -> list[float]:
    """How long each of some calls took, one after the other."""
    loop = asyncio.get_running_loop()
    seconds = []
    for _ in range(calls):
        began = loop.time()
        assert (await client.get("/items/1")).status == 200
        seconds.append(loop.time() - began)
    return seconds


@pytest.mark.parametrize("timeout_seconds", [1.0, 2.0, 5.0, 90.0])
@pytest.mark.parametrize("dead", [1, 2])
async def test_of_a_dead_machine_the_first_call_learns_and_no_other_pays(
    fake_mesh: FakeMesh, timeout_seconds: float, dead: int
) -> None:
    orders = fake_mesh.add_service("orders", hello, instances=3)
    async with fake_mesh.client("shop", CallOptions(timeout_seconds=timeout_seconds)) as mesh:
        client = mesh.client("orders")
        for instance in orders[:dead]:
            instance.vanish()
        first, *others = await _seconds(client)
        assert first <= dead * min(1.2, timeout_seconds / 3 + 0.2)
        assert others == pytest.approx([0.0] * len(others), abs=0.1)


@pytest.mark.parametrize("timeout_seconds", [2.0, 5.0, 90.0])
async def test_of_a_hung_instance_the_first_call_learns_and_no_other_pays(
    fake_mesh: FakeMesh, timeout_seconds: float
) -> None:
    orders = fake_mesh.add_service("orders", hello, instances=3)
    async with fake_mesh.client("shop", CallOptions(timeout_seconds=timeout_seconds)) as mesh:
        orders[0].hang()
        first, *others = await _seconds(mesh.client("orders"))
        assert first < min(3.3, timeout_seconds)
        assert others == pytest.approx([0.0] * len(others), abs=0.1)


async def test_a_call_too_short_to_be_saved_warns_the_next_ones(fake_mesh: FakeMesh) -> None:
    orders = fake_mesh.add_service("orders", hello, instances=3)
    async with fake_mesh.client("shop", CallOptions(timeout_seconds=1.0)) as mesh:
        orders[0].hang()
        client = mesh.client("orders")
        with pytest.raises(UpstreamTimeoutError):
            await client.get("/items/1")
        assert max(await _seconds(client)) < 0.1


async def test_a_slow_service_that_answers_probes_is_waited_for_to_the_deadline(fake_mesh: FakeMesh) -> None:
    """It is not cut at a share of what is left: the next instance would take as long."""

    async def report(request: FakeRequest) -> str:
        await asyncio.sleep(4.0)
        return "a long one"

    fake_mesh.add_service("reports", report, instances=3)
    async with fake_mesh.client("shop", CallOptions(timeout_seconds=5.0)) as mesh:
        for _ in range(CALLS):
            assert (await mesh.client("reports").get("/today")).attempts == 1


async def test_the_dead_machine_gets_calls_again_when_it_is_back(fake_mesh: FakeMesh) -> None:
    orders = fake_mesh.add_service("orders", hello, instances=2)
    async with fake_mesh.client("shop", CallOptions(timeout_seconds=5.0)) as mesh:
        client = mesh.client("orders")
        orders[0].vanish()
        await client.get("/items/1")
        assert mesh.explain("orders")["instances"][0]["suspect"]
        orders[0].revive()
        await fake_mesh.clock.advance(10.0)
        before = orders[0].requests
        await _seconds(client, 4)
        assert orders[0].requests > before
