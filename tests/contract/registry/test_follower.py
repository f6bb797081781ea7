"""What a follower shows of every registry behind the seam."""

import asyncio
from collections.abc import AsyncIterator, Callable

import pytest
from tests.support.servers import ConsulServer, RegistryServer
from tests.support.wait import eventually

from toska_mesh.aio import Latest
from toska_mesh.model import CatalogSnapshot, HealthStatus, Instance, InstanceId, ServiceName
from toska_mesh.registry.api import RefreshReason, RefreshReport, Registration
from toska_mesh.registry.consul import ConsulClient, ConsulFollower, ConsulOptions, ConsulRegistry, FollowerOptions

NewId = Callable[[], InstanceId]
Catalog = Latest[CatalogSnapshot]


@pytest.fixture
def reports() -> list[RefreshReport]:
    return []


@pytest.fixture
async def catalog(server: ConsulServer | RegistryServer, reports: list[RefreshReport]) -> AsyncIterator[Catalog]:
    """A followed catalog."""
    catalog = Catalog()
    async with ConsulClient(ConsulOptions(server.url)) as client, asyncio.TaskGroup() as tasks:
        follower = ConsulFollower(client, FollowerOptions(wait_seconds=5), on_refresh=reports.append)
        following = tasks.create_task(follower.follow(catalog), name="follow")
        await asyncio.wait_for(catalog.first(), 10)
        yield catalog
        following.cancel()


def shown(catalog: Catalog, service: ServiceName) -> tuple[Instance, ...]:
    snapshot = catalog.peek()
    assert snapshot is not None
    return snapshot.services.get(service, ())


async def test_registration_report_and_deregistration_arrive(
    catalog: Catalog, registry: ConsulRegistry, service: ServiceName, new_id: NewId
) -> None:
    instance_id = new_id()
    await registry.register(Registration(service, instance_id, "10.0.0.1", 80, {"scheme": "http"}))
    (found,) = await eventually(lambda: shown(catalog, service))
    assert (found.id, found.status, found.endpoint.port) == (instance_id, HealthStatus.HEALTHY, 80)
    await registry.report_health(instance_id, HealthStatus.UNHEALTHY, "no")
    await eventually(lambda: shown(catalog, service)[0].status is HealthStatus.UNHEALTHY)
    await registry.report_health(instance_id, HealthStatus.HEALTHY, "yes")
    await eventually(lambda: shown(catalog, service)[0].status is HealthStatus.HEALTHY)
    await registry.deregister(instance_id)
    await eventually(lambda: not shown(catalog, service))


async def test_changed_metadata_and_port_arrive_although_no_check_changed(
    catalog: Catalog, registry: ConsulRegistry, service: ServiceName, new_id: NewId
) -> None:
    instance_id = new_id()
    for port, weight in ((80, "1"), (80, "2"), (81, "2"), (82, "3")):
        await registry.register(Registration(service, instance_id, "10.0.0.1", port, {"weight": weight}))
        wanted = (port, {"weight": weight})
        await eventually(
            lambda wanted=wanted: (
                [(one.endpoint.port, dict(one.metadata)) for one in shown(catalog, service)]  # type: ignore[misc]
                == [wanted]
            )
        )


async def test_an_instance_without_any_check_is_noticed(
    catalog: Catalog, client: ConsulClient, service: ServiceName
) -> None:
    path = "/v1/agent/service/register"
    for port in (80, 81):
        body = f'{{"ID":"{service}-bare","Name":"{service}","Address":"10.0.0.1","Port":{port}}}'
        await client.call("PUT", path, body=body.encode())
        await eventually(lambda port=port: [one.endpoint.port for one in shown(catalog, service)] == [port])  # type: ignore[misc]
    await client.call("PUT", f"/v1/agent/service/deregister/{service}-bare")
    await eventually(lambda: not shown(catalog, service))


async def test_of_many_changes_at_once_none_is_missed(
    catalog: Catalog, registry: ConsulRegistry, service: ServiceName
) -> None:
    names = [ServiceName(f"{service}-{number}") for number in range(60)]
    async with asyncio.TaskGroup() as tasks:
        for name in names:
            tasks.create_task(registry.register(Registration(name, InstanceId(f"{name}-1"), "10.0.0.1", 80)))
    await eventually(lambda: all(shown(catalog, name) for name in names))
    async with asyncio.TaskGroup() as tasks:
        for name in names:
            tasks.create_task(registry.deregister(InstanceId(f"{name}-1")))
    await eventually(lambda: not any(shown(catalog, name) for name in names))


async def test_beats_publish_nothing(
    catalog: Catalog, registry: ConsulRegistry, service: ServiceName, new_id: NewId, reports: list[RefreshReport]
) -> None:
    instance_id = new_id()
    await registry.register(Registration(service, instance_id, "10.0.0.1", 80))
    await eventually(lambda: shown(catalog, service))
    before = catalog.version
    for number in range(20):
        await registry.report_health(instance_id, HealthStatus.HEALTHY, f"beat {number}")
    mark = ServiceName(f"{service}-mark")
    await registry.register(Registration(mark, InstanceId(mark), "10.0.0.1", 80))
    await eventually(lambda: shown(catalog, mark))
    assert catalog.version == before + 1
    assert reports[-1].reason is RefreshReason.CHANGE


async def test_what_did_not_change_stays_the_identical_object(
    catalog: Catalog, registry: ConsulRegistry, service: ServiceName
) -> None:
    quiet, busy = ServiceName(f"{service}-quiet"), ServiceName(f"{service}-busy")
    await registry.register(Registration(quiet, InstanceId(f"{quiet}-1"), "10.0.0.1", 80))
    await registry.register(Registration(busy, InstanceId(f"{busy}-1"), "10.0.0.1", 80))
    await eventually(lambda: shown(catalog, quiet) and shown(catalog, busy))
    quiet_before, busy_before = shown(catalog, quiet), shown(catalog, busy)[0]
    await registry.register(Registration(busy, InstanceId(f"{busy}-2"), "10.0.0.1", 81))
    await eventually(lambda: len(shown(catalog, busy)) == 2)
    assert shown(catalog, quiet) is quiet_before
    assert shown(catalog, busy)[0] is busy_before
