"""The five RPCs over a real Consul, called by a client that knows nothing but the contract."""

import json
import urllib.request
from datetime import UTC, datetime
from uuid import uuid4

import grpc
import pytest
from tests.integration.discovery.conftest import Client
from tests.support.servers import ConsulServer, http_get

YEAR_ONE_SECONDS = -62135596800


def unique(name: str) -> str:
    return f"{name}-{uuid4().hex[:8]}"


async def test_a_registered_instance_is_found_at_once(client: Client) -> None:
    name = unique("orders")
    metadata = {"scheme": "http", "health_check_endpoint": "/health", "lb_strategy": "RoundRobin", "weight": "1"}
    before = datetime.now(UTC)

    answer = await client.register(name, f"{name}-1", 9001, metadata=metadata)

    assert (answer.success, answer.serviceId, answer.errorMessage) == (True, f"{name}-1", "")
    found = (await client.instances(name))[f"{name}-1"]
    assert (found.serviceName, found.address, found.port, found.status) == (name, "10.1.2.3", 9001, 1)
    assert dict(found.metadata) == metadata
    assert found.HasField("registeredAt")
    assert abs(found.registeredAt.ToDatetime(UTC) - before).total_seconds() < 30
    assert found.HasField("lastHealthCheck")
    assert found.lastHealthCheck.seconds == YEAR_ONE_SECONDS
    assert name in await client.services()


async def test_an_id_is_made_when_none_is_given(client: Client) -> None:
    name = unique("orders")
    answer = await client.register(name)
    prefix, _, suffix = answer.serviceId.rpartition("-")
    assert prefix == name
    assert len(suffix) == 32
    assert int(suffix, 16) > 0


async def test_consul_shows_the_family_layout(client: Client, consul: ConsulServer) -> None:
    name = unique("orders")
    await client.register(name, f"{name}-1", 9001, healthCheck={"intervalSeconds": 20})
    checks = json.loads(http_get(f"{consul.url}/v1/agent/checks")[1])
    check = checks[f"service:{name}-1"]
    assert (check["Name"], check["ServiceID"], check["Status"]) == (f"{name} TTL Health", f"{name}-1", "passing")


async def test_deregistering_removes_once(client: Client) -> None:
    name = unique("orders")
    await client.register(name, f"{name}-1")
    assert await client.deregister(f"{name}-1")
    assert await client.instances(name) == {}
    assert not await client.deregister(f"{name}-1")


@pytest.mark.parametrize(("status", "word"), [(1, "passing"), (3, "warning"), (2, "critical")])
async def test_a_reported_status_reaches_the_registry(
    client: Client, consul: ConsulServer, status: int, word: str
) -> None:
    name = unique("orders")
    await client.register(name, f"{name}-1")
    assert await client.beat(f"{name}-1", status, f"I am {word}")
    found = (await client.instances(name))[f"{name}-1"]
    assert found.status == status
    assert abs((datetime.now(UTC) - found.lastHealthCheck.ToDatetime(UTC)).total_seconds()) < 30
    check = json.loads(http_get(f"{consul.url}/v1/agent/checks")[1])[f"service:{name}-1"]
    assert (check["Status"], check["Output"]) == (word, f"I am {word}")


async def test_a_beat_that_says_nothing_keeps_nothing_alive(client: Client) -> None:
    name = unique("orders")
    await client.register(name, f"{name}-1")
    assert not await client.beat(f"{name}-1", 0)
    assert not await client.beat(f"{name}-1", 7)


async def test_a_beat_of_a_stranger_is_refused(client: Client) -> None:
    assert not await client.beat(unique("nobody"))


async def test_a_beat_after_deregistering_is_refused(client: Client) -> None:
    name = unique("orders")
    await client.register(name, f"{name}-1")
    await client.deregister(f"{name}-1")
    assert not await client.beat(f"{name}-1")
    assert await client.instances(name) == {}


async def test_an_instance_the_registry_has_lost_is_back_with_its_next_beat(
    client: Client, consul: ConsulServer
) -> None:
    name = unique("orders")
    await client.register(name, f"{name}-1", 9001, metadata={"scheme": "https"})
    first = (await client.instances(name))[f"{name}-1"]
    lose = urllib.request.Request(f"{consul.url}/v1/agent/service/deregister/{name}-1", method="PUT")
    urllib.request.urlopen(lose, timeout=5).close()
    assert await client.instances(name) == {}

    assert await client.beat(f"{name}-1", 3, "still here")

    found = (await client.instances(name))[f"{name}-1"]
    assert (found.port, found.status, dict(found.metadata)) == (9001, 3, {"scheme": "https"})
    assert found.registeredAt == first.registeredAt


async def test_registering_again_keeps_the_registration_time(client: Client) -> None:
    name = unique("orders")
    await client.register(name, f"{name}-1", 9001)
    first = (await client.instances(name))[f"{name}-1"]
    await client.register(name, f"{name}-1", 9002)
    second = (await client.instances(name))[f"{name}-1"]
    assert second.port == 9002
    assert second.registeredAt == first.registeredAt


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        pytest.param({"name": ""}, "serviceName is empty", id="no name"),
        pytest.param({"name": "or ders"}, "'or ders'", id="blank in the name"),
        pytest.param({"name": "consul"}, "registry's own", id="the registry's name"),
        pytest.param({"name": "orders", "port": 0}, "port 0", id="port 0"),
        pytest.param({"name": "orders", "port": 99999}, "port 99999", id="port too large"),
        pytest.param({"name": "orders", "metadata": {"a.b": "1"}}, "'a.b'", id="dot in a key"),
        pytest.param({"name": "orders", "metadata": {"scheme": "file"}}, "'file'", id="scheme"),
        pytest.param({"name": "orders", "address": "user@host"}, "'user@host'", id="address"),
    ],
)
async def test_what_cannot_be_is_refused_in_band_with_a_reason(
    client: Client, fields: dict[str, object], words: str
) -> None:
    answer = await client.register(**fields)
    assert not answer.success
    assert words in answer.errorMessage


async def test_an_address_nobody_can_reach_becomes_the_callers(client: Client) -> None:
    name = unique("orders")
    for number, asked in enumerate(["0.0.0.0", "::", ""]):
        await client.register(name, f"{name}-{number}", address=asked)
    assert {found.address for found in (await client.instances(name)).values()} == {"127.0.0.1"}


async def test_an_unknown_service_has_no_instances(client: Client) -> None:
    assert await client.instances(unique("nobody")) == {}


async def test_no_name_is_an_invalid_question(client: Client) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await client.instances("")
    assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT
