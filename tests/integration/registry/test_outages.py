"""A follower while its registry is frozen, killed, wiped or restarted: the table stays, and later changes arrive."""

import asyncio
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest
from tests.support.servers import ConsulServer, RegistryServer
from tests.support.wait import eventually

from toska_mesh.aio import Latest
from toska_mesh.errors import RegistryError, RegistryUnavailableError
from toska_mesh.model import CatalogSnapshot, Instance, InstanceId, ServiceName
from toska_mesh.registry.api import Registration
from toska_mesh.registry.consul import (
    ConsulClient,
    ConsulFollower,
    ConsulOptions,
    ConsulRegistry,
    FollowerOptions,
    SnapshotFile,
)

QUICK = FollowerOptions(wait_seconds=10, call_seconds=1, probe_seconds=0.5, grace_seconds=4, longest_pause_seconds=0.5)
ORDERS, CARTS = ServiceName("orders"), ServiceName("carts")


class Mesh:
    """A registry of the test's own, a registry client and a followed catalog."""

    def __init__(self, server: ConsulServer | RegistryServer, tasks: asyncio.TaskGroup, client: ConsulClient) -> None:
        self.server = server
        self.tasks = tasks
        self.client = client
        self.registry = ConsulRegistry(client)
        self.catalog = Latest[CatalogSnapshot]()
        self.follower = ConsulFollower(client, QUICK)

    def shown(self, service: ServiceName) -> list[str]:
        snapshot = self.catalog.peek()
        return [one.id for one in snapshot.services.get(service, ())] if snapshot else []

    @property
    def is_stale(self) -> bool:
        snapshot = self.catalog.peek()
        return snapshot is not None and snapshot.is_stale

    async def register(self, service: ServiceName, *ids: str) -> None:
        async def once(instance_id: str) -> bool:
            try:
                await self.registry.register(Registration(service, InstanceId(instance_id), "10.0.0.1", 80))
            except RegistryError as error:
                raise AssertionError("not yet") from error
            return True

        for instance_id in ids:
            await eventually(lambda instance_id=instance_id: once(instance_id))  # type: ignore[misc]


@pytest.fixture
async def mesh(
    consul_factory: Callable[..., ConsulServer],
    registry_factory: Callable[..., RegistryServer],
    request: pytest.FixtureRequest,
) -> AsyncIterator[Mesh]:
    """On a development agent of Consul; parameters: `persistent` Consul, `embedded` registry."""
    kind = getattr(request, "param", "")
    server = registry_factory() if kind == "embedded" else consul_factory(persistent=kind == "persistent")
    options = ConsulOptions(server.url, call_seconds=1)
    async with ConsulClient(options) as client, asyncio.TaskGroup() as tasks:
        mesh = Mesh(server, tasks, client)
        following = tasks.create_task(mesh.follower.follow(mesh.catalog), name="follow")
        await mesh.register(ORDERS, "o1", "o2", "o3")
        await mesh.register(CARTS, "c1")
        await eventually(lambda: mesh.shown(ORDERS) == ["o1", "o2", "o3"] and mesh.shown(CARTS) == ["c1"])
        yield mesh
        following.cancel()


@pytest.mark.parametrize("mesh", ["", "embedded"], indirect=True, ids=["consul", "embedded"])
async def test_a_frozen_registry_is_noticed_and_holds_no_call(mesh: Mesh) -> None:
    mesh.server.pause()
    loop = asyncio.get_running_loop()
    asked_at = loop.time()
    with pytest.raises(RegistryUnavailableError):
        await mesh.registry.service_names()
    assert loop.time() - asked_at < 5
    await eventually(lambda: mesh.is_stale)
    assert mesh.shown(ORDERS) == ["o1", "o2", "o3"]
    mesh.server.resume()
    await eventually(lambda: not mesh.is_stale)
    await mesh.registry.deregister(InstanceId("o2"))
    await mesh.register(CARTS, "c2")
    await eventually(lambda: mesh.shown(CARTS) == ["c1", "c2"])
    await eventually(lambda: mesh.shown(ORDERS) == ["o1", "o3"])


async def test_a_wiped_consul_does_not_empty_the_table_and_who_is_back_stays(mesh: Mesh) -> None:
    await asyncio.to_thread(mesh.server.wipe_and_restart)
    await eventually(lambda: mesh.follower.held.get(ORDERS) == {"o1", "o2", "o3"})
    await eventually(lambda: not mesh.is_stale)
    assert mesh.shown(ORDERS) == ["o1", "o2", "o3"]
    assert mesh.shown(CARTS) == ["c1"]
    await mesh.register(ORDERS, "o1", "o3", "o4")
    await eventually(lambda: mesh.shown(ORDERS) == ["o1", "o2", "o3", "o4"])
    await eventually(lambda: mesh.follower.held.get(ORDERS) == {"o2"})
    # Who was seen again after the wipe may leave at once; who was not is dropped when the grace period ends.
    await mesh.registry.deregister(InstanceId("o3"))
    await eventually(lambda: mesh.shown(ORDERS) == ["o1", "o2", "o4"])
    await eventually(lambda: mesh.shown(ORDERS) == ["o1", "o4"])
    await eventually(lambda: mesh.shown(CARTS) == [])
    assert not mesh.follower.held


@pytest.mark.parametrize("mesh", ["persistent", "embedded"], indirect=True)
async def test_a_killed_registry_keeps_the_table_and_later_changes_arrive(mesh: Mesh) -> None:
    before: tuple[Instance, ...] = mesh.catalog.peek().services[ORDERS]  # type: ignore[union-attr]
    mesh.server.kill()
    await eventually(lambda: mesh.is_stale)
    await asyncio.sleep(2)
    assert mesh.shown(ORDERS) == ["o1", "o2", "o3"]
    await asyncio.to_thread(mesh.server.start)
    await eventually(lambda: not mesh.is_stale)
    # A Consul that has just started reports a check as critical until it has read that check's last state from disk.
    await eventually(lambda: mesh.catalog.peek().services[ORDERS] == before)  # type: ignore[union-attr]
    await mesh.register(CARTS, "c2")
    await eventually(lambda: mesh.shown(CARTS) == ["c1", "c2"])
    await mesh.registry.deregister(InstanceId("o1"))
    await eventually(lambda: mesh.shown(ORDERS) == ["o2", "o3"])


async def test_a_follower_that_starts_during_an_outage_serves_the_table_from_disk(mesh: Mesh, tmp_path: Path) -> None:
    path = tmp_path / "table.json"
    async with asyncio.TaskGroup() as tasks:
        keeper = ConsulFollower(mesh.client, QUICK, snapshot_file=SnapshotFile(path, debounce_seconds=0.05))
        keeping = tasks.create_task(keeper.follow(Latest()), name="keeper")
        await eventually(path.exists)
        keeping.cancel()
    mesh.server.kill()
    late = Latest[CatalogSnapshot]()
    async with asyncio.TaskGroup() as tasks:
        follower = ConsulFollower(mesh.client, QUICK, snapshot_file=SnapshotFile(path))
        following = tasks.create_task(follower.follow(late), name="late")
        snapshot = await asyncio.wait_for(late.first(), 10)
        assert snapshot.is_stale
        assert [one.id for one in snapshot.services[ORDERS]] == ["o1", "o2", "o3"]
        await asyncio.to_thread(mesh.server.start)  # a development agent: it comes back empty
        await eventually(lambda: not late.peek().is_stale)  # type: ignore[union-attr]
        assert set(late.peek().services) == {ORDERS, CARTS}  # type: ignore[union-attr]
        await mesh.register(ServiceName("new"), "n1")
        await eventually(lambda: "new" in late.peek().services)  # type: ignore[union-attr]
        await eventually(lambda: set(late.peek().services) == {"new"})  # type: ignore[union-attr]
        following.cancel()
