"""DISCOVERY_AUTH over both transports, with the tokens of the family's SDKs."""

import os
from collections.abc import Callable, Iterator
from datetime import UTC, datetime

import aiohttp
import grpc
import jwt
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from tests.integration.discovery.conftest import Client, DiscoveryServer
from tests.support.servers import ConsulServer

SECRET = "kJ8sLq2vXz0pRt6wYb4nMc7dFg9hUe3a"
ROLE = "http://schemas.microsoft.com/ws/2008/06/identity/claims/role"


def bearer(service_id: str = "orders", role: str = "Service") -> str:
    claims = {
        "iss": "ToskaMesh.Services",
        "aud": "ToskaMesh.Services",
        "exp": int(datetime.now(UTC).timestamp()) + 600,
        "iat": "1",
        "service_id": service_id,
        ROLE: role,
    }
    return f"Bearer {jwt.encode(claims, SECRET, algorithm='HS256')}"


@pytest.fixture(scope="module")
def guarded(consul: ConsulServer) -> Iterator[DiscoveryServer]:
    with DiscoveryServer(consul.url, DISCOVERY_AUTH="required", MESH_SERVICE_AUTH_SECRET=SECRET) as server:
        yield server


@pytest.fixture
def client(guarded: DiscoveryServer, connect: Callable[[DiscoveryServer], Client]) -> Client:
    return connect(guarded)


def with_token(*args: str) -> list[tuple[str, str]]:
    return [("authorization", bearer(*args))]


async def test_without_a_token_nothing_goes(client: Client) -> None:
    name = f"tokens-{os.getpid()}"
    for attempt in (
        client.register(name),
        client.beat("x"),
        client.deregister("x"),
        client.instances(name),
        client.services(),
    ):
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await attempt
        assert refused.value.code() is grpc.StatusCode.UNAUTHENTICATED


async def test_the_wrong_role_is_not_enough(client: Client) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await client.instances("tokens", metadata=with_token("orders", "User"))
    assert refused.value.code() is grpc.StatusCode.PERMISSION_DENIED


async def test_an_instance_obeys_its_owner_and_admins_only(client: Client) -> None:
    instance_id = f"owned-{os.getpid()}"
    answer = await client.register("owned", instance_id, call_metadata=with_token("orders"))
    assert answer.success
    assert await client.beat(instance_id, metadata=with_token("orders"))
    assert not await client.beat(instance_id, 2, metadata=with_token("carts"))
    answer = await client.register("owned", instance_id, 9999, call_metadata=with_token("carts"))
    assert not answer.success
    assert "another identity" in answer.errorMessage
    assert not await client.deregister(instance_id, metadata=with_token("carts"))
    found = await client.instances("owned", metadata=with_token("carts"))
    assert (found[instance_id].port, found[instance_id].status, dict(found[instance_id].metadata)) == (9000, 1, {})
    assert await client.deregister(instance_id, metadata=with_token("ops", "Admin"))


async def test_rest_asks_for_the_same_token(guarded: DiscoveryServer) -> None:
    url = f"{guarded.url}/api/ServiceDiscovery/services"
    async with aiohttp.ClientSession() as session:
        async with session.get(url) as response:
            assert (response.status, response.headers["WWW-Authenticate"]) == (401, "Bearer")
        async with session.get(url, headers={"Authorization": bearer("orders", "User")}) as response:
            assert response.status == 403
        async with session.get(url, headers={"Authorization": bearer()}) as response:
            assert response.status == 200


async def test_health_needs_no_token(client: Client, guarded: DiscoveryServer) -> None:
    health = health_pb2_grpc.HealthStub(client.channel)
    assert (await health.Check(health_pb2.HealthCheckRequest())).status == 1
    async with aiohttp.ClientSession() as session, session.get(f"{guarded.url}/health") as response:
        assert response.status == 200
