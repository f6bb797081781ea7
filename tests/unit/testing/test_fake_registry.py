"""What the registry of a fake mesh believes of the instances, and what it does when it is away."""

import asyncio
from collections.abc import AsyncIterator

import pytest

from toska_mesh.aio import Latest
from toska_mesh.errors import RegistryUnavailableError
from toska_mesh.model import CatalogSnapshot, HealthStatus, InstanceId, ServiceName
from toska_mesh.registry.consul import ConsulFollower, ConsulRegistry
from toska_mesh.testing import FakeMesh, FakeRequest

pytestmark = pytest.mark.virtual_clock

HEALTHY, DEGRADED, UNHEALTHY = HealthStatus.HEALTHY, HealthStatus.DEGRADED, HealthStatus.UNHEALTHY


def hello(request: FakeRequest) -> str:
    return "hello"


def status(mesh: FakeMesh, instance_id: str = "stock-1") -> HealthStatus | None:
    instance = mesh.registry.instance(instance_id)
    return None if instance is None else instance.status


@pytest.fixture
async def catalog(fake_mesh: FakeMesh) -> AsyncIterator[Latest[CatalogSnapshot]]:
    """A followed catalog."""
    catalog = Latest[CatalogSnapshot]()
    async with asyncio.TaskGroup() as tasks:
        following = tasks.create_task(ConsulFollower(fake_mesh.registry.client()).follow(catalog))
        yield catalog
        following.cancel()


def shown(catalog: Latest[CatalogSnapshot], service: str = "stock") -> list[tuple[str, HealthStatus]]:
    snapshot = catalog.peek()
    assert snapshot is not None
    return [(one.id, one.status) for one in snapshot.services.get(ServiceName(service), ())]


async def test_an_instance_is_registered_as_a_service_of_the_sdk_would_be(fake_mesh: FakeMesh) -> None:
    fake_mesh.add_service("stock", hello, instances=2, strategy="Random", weights=[1, 5], metadata={"zone": "a"})
    first, second = fake_mesh.registry.instances("stock")
    assert (first.id, first.status, first.endpoint.authority) == ("stock-1", HEALTHY, "10.1.1.1:8080")
    assert first.is_mesh_member
    assert second.metadata["lb_strategy"] == "Random"
    assert (second.metadata["weight"], second.metadata["zone"]) == ("5", "a")


@pytest.mark.virtual_clock(limit_seconds=None)
async def test_the_living_stay_for_ever(fake_mesh: FakeMesh) -> None:
    fake_mesh.add_service("stock", hello)
    await fake_mesh.clock.advance(1_000_000)
    assert status(fake_mesh) is HEALTHY


@pytest.mark.parametrize("fault", ["down", "hang", "vanish"])
async def test_the_dead_are_listed_until_their_ttl_runs_out_and_removed_later(fake_mesh: FakeMesh, fault: str) -> None:
    (stock,) = fake_mesh.add_service("stock", hello, interval_seconds=10)
    await fake_mesh.clock.advance(100)
    getattr(stock, fault)()
    await fake_mesh.clock.advance(14.9)
    assert status(fake_mesh) is HEALTHY
    await fake_mesh.clock.advance(0.2)
    assert status(fake_mesh) is UNHEALTHY
    await fake_mesh.clock.advance(60)
    assert status(fake_mesh) is None
    assert [one.at for one in fake_mesh.events.of("expired")] == [115]
    assert [one.at for one in fake_mesh.events.of("reaped")] == [175]
    stock.revive()
    assert status(fake_mesh) is HEALTHY


async def test_the_slow_beat_on(fake_mesh: FakeMesh) -> None:
    (stock,) = fake_mesh.add_service("stock", hello)
    for fault in (lambda: stock.slow(30), lambda: stock.answers(500), stock.resets):
        fault()
        await fake_mesh.clock.advance(500)
        assert status(fake_mesh) is HEALTHY


async def test_what_an_instance_says_of_itself_is_known(fake_mesh: FakeMesh) -> None:
    (stock,) = fake_mesh.add_service("stock", hello)
    stock.unhealthy("no disk")
    known = fake_mesh.registry.instance("stock-1")
    assert known is not None
    assert (known.status, known.output) == (UNHEALTHY, "no disk")
    stock.drains()
    known = fake_mesh.registry.instance("stock-1")
    assert known is not None
    assert known.is_draining
    stock.revive()
    assert status(fake_mesh) is HEALTHY


async def test_leaving_drains_finishes_and_deregisters(fake_mesh: FakeMesh) -> None:
    async def work(request: FakeRequest) -> str:
        await asyncio.sleep(5)
        return "done"

    (stock,) = fake_mesh.add_service("stock", work)
    async with fake_mesh.session() as session, asyncio.TaskGroup() as tasks:
        asking = tasks.create_task(session.post(stock.url))
        await fake_mesh.clock.advance(1)
        stock.leaves()
        assert status(fake_mesh) is DEGRADED
        await stock.left()
        assert fake_mesh.clock.now == 5
        assert (await asking).status == 200
    assert (status(fake_mesh), stock.is_up) == (None, False)


async def test_followers_see_it_all(fake_mesh: FakeMesh, catalog: Latest[CatalogSnapshot]) -> None:
    stock = fake_mesh.add_service("stock", hello, instances=2)
    await fake_mesh.clock.advance(1)
    assert shown(catalog) == [("stock-1", HEALTHY), ("stock-2", HEALTHY)]
    stock[0].unhealthy()
    stock[1].leaves()
    await fake_mesh.clock.advance(1)
    assert shown(catalog) == [("stock-1", UNHEALTHY)]


async def test_while_the_registry_is_away_the_last_state_holds_and_is_stale(
    fake_mesh: FakeMesh, catalog: Latest[CatalogSnapshot]
) -> None:
    stock = fake_mesh.add_service("stock", hello, instances=2)
    await fake_mesh.clock.advance(1)
    fake_mesh.registry.goes_away()
    stock[0].down()
    await fake_mesh.clock.advance(100)
    snapshot = catalog.peek()
    assert snapshot is not None
    assert snapshot.is_stale
    assert shown(catalog) == [("stock-1", HEALTHY), ("stock-2", HEALTHY)]
    with pytest.raises(RegistryUnavailableError, match="refused"):
        await ConsulRegistry(fake_mesh.registry.client()).leader()
    fake_mesh.registry.comes_back()
    await fake_mesh.clock.advance(10)
    snapshot = catalog.peek()
    assert snapshot is not None
    assert not snapshot.is_stale
    assert status(fake_mesh, "stock-1") is HEALTHY  # a registry that starts gives everybody a full TTL
    await fake_mesh.clock.advance(30)
    assert (status(fake_mesh, "stock-1"), status(fake_mesh, "stock-2")) == (UNHEALTHY, HEALTHY)


async def test_a_wiped_registry_hears_of_the_living_with_their_next_beats(
    fake_mesh: FakeMesh, catalog: Latest[CatalogSnapshot]
) -> None:
    stock = fake_mesh.add_service("stock", hello, instances=3, interval_seconds=30)
    await fake_mesh.clock.advance(1)
    fake_mesh.registry.goes_away()
    stock[2].down()
    await fake_mesh.clock.advance(5)
    fake_mesh.registry.comes_back(wiped=True)
    assert fake_mesh.registry.instances("stock") == ()
    await fake_mesh.clock.advance(35 / 3)
    assert [one.id for one in fake_mesh.registry.instances("stock")] == ["stock-1", "stock-2"]
    assert len(shown(catalog)) == 3  # nobody believes a registry that has just been away
    await fake_mesh.clock.advance(60)
    assert shown(catalog) == [("stock-1", HEALTHY), ("stock-2", HEALTHY)]


async def test_what_happened_while_it_was_away_is_told_when_it_is_back(fake_mesh: FakeMesh) -> None:
    stock = fake_mesh.add_service("stock", hello, instances=3)
    fake_mesh.registry.goes_away()
    stock[0].drains()
    stock[1].leaves()
    await fake_mesh.clock.advance(100)
    assert not stock[1].is_up
    stock[2].down()
    stock[2].revive()
    fake_mesh.registry.comes_back()
    await fake_mesh.clock.advance(100)
    assert [(one.id, one.status) for one in fake_mesh.registry.instances("stock")] == [
        ("stock-1", DEGRADED),
        ("stock-3", HEALTHY),
    ]
    with pytest.raises(RuntimeError, match="not away"):
        fake_mesh.registry.comes_back()


async def test_a_frozen_registry_lets_callers_wait_until_their_deadline(fake_mesh: FakeMesh) -> None:
    fake_mesh.add_service("stock", hello)
    fake_mesh.registry.freezes()
    registry = ConsulRegistry(fake_mesh.registry.client())
    with pytest.raises(RegistryUnavailableError, match="did not answer"):
        await registry.report_health(InstanceId("stock-1"), DEGRADED, "")
    assert fake_mesh.clock.now == 5
    fake_mesh.schedule(7, fake_mesh.registry.thaws)
    await registry.report_health(InstanceId("stock-1"), DEGRADED, "")
    assert fake_mesh.clock.now == 7


async def test_answers_may_take_time(fake_mesh: FakeMesh) -> None:
    fake_mesh.registry.delay_seconds = 0.5
    assert await ConsulRegistry(fake_mesh.registry.client()).leader() == "127.0.0.1:8500"
    assert fake_mesh.clock.now == 0.5


async def test_the_same_seed_is_the_same_run() -> None:
    async def run(seed: int) -> list[str]:
        async with FakeMesh(seed=seed) as mesh:
            mesh.add_service("stock", hello, instances=3)
            mesh.registry.goes_away()
            mesh.registry.comes_back(wiped=True)
            await mesh.clock.advance(20)
            return [f"{event.at - mesh.events[0].at:.6f} {event.kind} {event.subject}" for event in mesh.events]

    assert await run(1) == await run(1)
    assert await run(1) != await run(2)
