"""What every registry behind the seam does: commands and questions."""

import asyncio
import json
from collections.abc import Callable

import consul as pyconsul
import pytest
from tests.support.servers import ConsulServer, RegistryServer
from tests.support.wait import eventually

from toska_mesh.errors import InstanceNotFoundError, RegistryError, RegistryUnavailableError
from toska_mesh.model import Endpoint, HealthStatus, InstanceId, ServiceName
from toska_mesh.model.metadata import REGISTERED_AT
from toska_mesh.registry.api import Registration
from toska_mesh.registry.consul import ConsulClient, ConsulRegistry

NewId = Callable[[], InstanceId]


def registration(service: ServiceName, instance_id: InstanceId, **changes: object) -> Registration:
    values: dict[str, object] = {"address": "10.1.2.3", "port": 8080, "metadata": {"scheme": "http"}}
    return Registration(service, instance_id, **(values | changes))  # type: ignore[arg-type]


async def test_a_registered_instance_is_found_and_healthy_from_the_first_moment(
    registry: ConsulRegistry, service: ServiceName, new_id: NewId
) -> None:
    wanted = registration(service, new_id(), metadata={"scheme": "http", REGISTERED_AT: "2026-01-02T03:04:05Z"})
    await registry.register(wanted)
    (found,) = await eventually(lambda: registry.instances(service))
    assert (found.service, found.id) == (service, wanted.id)
    assert found.endpoint == Endpoint("10.1.2.3", 8080)
    assert found.status is HealthStatus.HEALTHY
    assert dict(found.metadata) == dict(wanted.metadata)
    assert found.registered_at is not None
    assert found.registered_at.isoformat() == "2026-01-02T03:04:05+00:00"
    assert found.create_index > 0


async def test_an_empty_address_means_the_nodes(registry: ConsulRegistry, service: ServiceName, new_id: NewId) -> None:
    await registry.register(registration(service, new_id(), address=""))
    (found,) = await eventually(lambda: registry.instances(service))
    assert found.endpoint.host == "127.0.0.1"


async def test_names_are_sorted_and_leave_out_the_registry_itself(
    registry: ConsulRegistry, service: ServiceName, new_id: NewId
) -> None:
    first, second = ServiceName(f"{service}-a"), ServiceName(f"{service}-b")
    for name in (second, first):
        await registry.register(registration(name, new_id()))

    async def names() -> list[ServiceName]:
        return [name for name in await registry.service_names() if name.startswith(f"{service}-")]

    await eventually(lambda: _equals(names, [first, second]))
    assert "consul" not in await registry.service_names()


async def _equals(ask: Callable[[], object], wanted: object) -> bool:
    return await ask() == wanted  # type: ignore[misc]


async def test_an_unknown_service_has_no_instances(registry: ConsulRegistry, service: ServiceName) -> None:
    assert await registry.instances(service) == ()


async def test_instances_come_sorted_by_id_whatever_their_health(
    registry: ConsulRegistry, service: ServiceName
) -> None:
    for letter, status in (("c", HealthStatus.HEALTHY), ("a", HealthStatus.UNHEALTHY), ("b", HealthStatus.DEGRADED)):
        await registry.register(registration(service, InstanceId(f"{service}-{letter}"), status=status))

    async def found() -> list[tuple[str, HealthStatus]]:
        return [(one.id[-1], one.status) for one in await registry.instances(service)]

    wanted = [("a", HealthStatus.UNHEALTHY), ("b", HealthStatus.DEGRADED), ("c", HealthStatus.HEALTHY)]
    await eventually(lambda: _equals(found, wanted))


@pytest.mark.parametrize("status", [HealthStatus.UNHEALTHY, HealthStatus.DEGRADED, HealthStatus.HEALTHY])
async def test_a_report_changes_the_status_and_its_words(
    registry: ConsulRegistry, service: ServiceName, new_id: NewId, status: HealthStatus
) -> None:
    instance_id = new_id()
    # From another status: of a change of words alone Consul tells the catalog only minutes later.
    before = HealthStatus.HEALTHY if status is not HealthStatus.HEALTHY else HealthStatus.UNHEALTHY
    await registry.register(registration(service, instance_id, status=before))
    await registry.report_health(instance_id, status, "disk 97 % full & counting: größer/kleiner?")

    async def found() -> tuple[HealthStatus, str]:
        (one,) = await registry.instances(service)
        return one.status, one.output

    words = "" if status is HealthStatus.HEALTHY else "disk 97 % full & counting: größer/kleiner?"
    await eventually(lambda: _equals(found, (status, words)))


async def test_unknown_is_no_report(registry: ConsulRegistry, service: ServiceName, new_id: NewId) -> None:
    instance_id = new_id()
    await registry.register(registration(service, instance_id))
    with pytest.raises(ValueError, match="Unknown"):
        await registry.report_health(instance_id, HealthStatus.UNKNOWN, "?")


async def test_a_report_for_a_stranger_says_so(registry: ConsulRegistry, new_id: NewId) -> None:
    with pytest.raises(InstanceNotFoundError):
        await registry.report_health(new_id(), HealthStatus.HEALTHY, "here I am")


async def test_a_deregistered_instance_is_gone_and_a_second_time_unknown(
    registry: ConsulRegistry, service: ServiceName, new_id: NewId
) -> None:
    instance_id = new_id()
    await registry.register(registration(service, instance_id))
    await eventually(lambda: registry.instances(service))
    await registry.deregister(instance_id)
    await eventually(lambda: _equals(lambda: registry.instances(service), ()))
    with pytest.raises(InstanceNotFoundError):
        await registry.deregister(instance_id)


async def test_registering_again_replaces_address_and_metadata(
    registry: ConsulRegistry, service: ServiceName, new_id: NewId
) -> None:
    instance_id = new_id()
    await registry.register(registration(service, instance_id))
    await registry.register(registration(service, instance_id, port=9090, metadata={"scheme": "https"}))

    async def found() -> tuple[int, dict[str, str]]:
        (one,) = await registry.instances(service)
        return one.endpoint.port, dict(one.metadata)

    await eventually(lambda: _equals(found, (9090, {"scheme": "https"})))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        pytest.param({"address": "0.0.0.0"}, "Invalid service address", id="unroutable address"),
        pytest.param({"metadata": {"a.b": "c"}}, "Key contains invalid characters", id="dot in a key"),
        pytest.param({"metadata": {"consul-x": "c"}}, "reserved", id="reserved prefix"),
        pytest.param({"metadata": {"k": "v" * 513}}, "too long", id="value too long"),
    ],
)
async def test_a_refusal_carries_the_registrys_words(
    registry: ConsulRegistry, service: ServiceName, new_id: NewId, changes: dict[str, object], words: str
) -> None:
    with pytest.raises(RegistryError, match=words) as refused:
        await registry.register(registration(service, new_id(), **changes))
    assert not isinstance(refused.value, RegistryUnavailableError)


@pytest.mark.parametrize("odd", ["a b", "ä", "50%", "what?", "x#y", "a+b", "a=b&c=d"])
async def test_odd_ids_survive_the_journey(registry: ConsulRegistry, service: ServiceName, odd: str) -> None:
    instance_id = InstanceId(f"{service} {odd}")
    await registry.register(registration(service, instance_id))
    await registry.report_health(instance_id, HealthStatus.DEGRADED, "odd")
    await eventually(lambda: _equals(lambda: _ids(registry, service), [instance_id]))
    await registry.deregister(instance_id)


async def _ids(registry: ConsulRegistry, service: ServiceName) -> list[InstanceId]:
    return [one.id for one in await registry.instances(service)]


async def test_the_leader_has_an_address(registry: ConsulRegistry) -> None:
    assert ":" in await registry.leader()


async def test_the_layout_is_the_one_that_other_control_planes_write(
    server: ConsulServer | RegistryServer, registry: ConsulRegistry, service: ServiceName, new_id: NewId
) -> None:
    instance_id = new_id()
    await registry.register(registration(service, instance_id))
    other = pyconsul.Consul(host="127.0.0.1", port=server.port)

    def listed() -> list[dict[str, object]]:
        return other.health.checks(service)[1]  # type: ignore[no-any-return]

    (check,) = await eventually(lambda: asyncio.to_thread(listed))
    assert check["CheckID"] == f"service:{instance_id}"
    assert check["Name"] == f"{service} TTL Health"
    assert check["Status"] == "passing"
    assert check["ServiceID"] == instance_id


async def test_what_another_client_registered_is_read_alike(
    server: ConsulServer | RegistryServer, registry: ConsulRegistry, service: ServiceName, new_id: NewId
) -> None:
    instance_id = new_id()
    other = pyconsul.Consul(host="127.0.0.1", port=server.port)
    check = {"CheckID": f"service:{instance_id}", "Name": "its own", "TTL": "35s"}

    def register() -> None:
        other.agent.service.register(service, instance_id, "10.9.9.9", 77, check=check, meta={"weight": "3"})
        other.agent.check.ttl_pass(f"service:{instance_id}")

    await asyncio.to_thread(register)

    async def found() -> list[tuple[str, HealthStatus, str]]:
        instances = await registry.instances(service)
        return [(one.endpoint.authority, one.status, json.dumps(dict(one.metadata))) for one in instances]

    await eventually(lambda: _equals(found, [("10.9.9.9:77", HealthStatus.HEALTHY, '{"weight": "3"}')]))


async def test_maintenance_is_unhealthy_and_says_why(
    client: ConsulClient, registry: ConsulRegistry, service: ServiceName, new_id: NewId
) -> None:
    instance_id = new_id()
    await registry.register(registration(service, instance_id))
    path = f"/v1/agent/service/maintenance/{instance_id}"
    await client.call("PUT", path, {"enable": "true", "reason": "new disk"})

    async def found() -> tuple[HealthStatus, str]:
        (one,) = await registry.instances(service)
        return one.status, one.output

    await eventually(lambda: _equals(found, (HealthStatus.UNHEALTHY, "maintenance: new disk")))


async def test_a_deadline_that_has_passed_is_an_unavailable_registry(registry: ConsulRegistry) -> None:
    with pytest.raises(RegistryUnavailableError):
        await registry.service_names(deadline=asyncio.get_running_loop().time() - 1)
