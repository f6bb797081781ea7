"""Ten thousand instances in one registry: filled through the API in parallel, read whole, watched."""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator

import aiohttp
import orjson
import pytest
from tests.support.servers import RegistryServer

INSTANCES = 10_000
SERVICES = 100
AT_ONCE = 32
FILL_SECONDS = 60
"""Some five times what a busy machine with two cores takes."""


@pytest.fixture
async def client(registry_factory: Callable[..., RegistryServer]) -> AsyncIterator[aiohttp.ClientSession]:
    server = await asyncio.to_thread(registry_factory)
    connector = aiohttp.TCPConnector(limit=AT_ONCE + 4)
    timeout = aiohttp.ClientTimeout(total=30)
    async with aiohttp.ClientSession(server.url, connector=connector, timeout=timeout) as session:
        yield session


def registration(number: int) -> bytes:
    return orjson.dumps(
        {
            "ID": f"i{number}",
            "Name": f"s{number % SERVICES}",
            "Address": f"10.{number >> 16}.{number >> 8 & 255}.{number & 255}",
            "Port": 8080,
            "Meta": {"scheme": "http"},
            "Check": {"CheckID": f"service:i{number}", "TTL": "600s", "Status": "passing"},
        }
    )


async def fill(client: aiohttp.ClientSession) -> None:
    numbers: Iterator[int] = iter(range(INSTANCES))

    async def register_some() -> None:
        for number in numbers:  # one iterator for all: each takes the next
            async with client.put("/v1/agent/service/register", data=registration(number)) as answer:
                assert answer.status == 200, await answer.text()

    async with asyncio.timeout(FILL_SECONDS), asyncio.TaskGroup() as tasks:
        for _ in range(AT_ONCE):
            tasks.create_task(register_some())


async def read(client: aiohttp.ClientSession, path: str) -> tuple[int, list[dict[str, object]]]:
    async with client.get(path) as answer:
        assert answer.status == 200
        return int(answer.headers["X-Consul-Index"]), orjson.loads(await answer.read())


async def test_ten_thousand_instances_are_kept_listed_and_watched(client: aiohttp.ClientSession) -> None:
    await fill(client)
    index, checks = await read(client, "/v1/health/state/any")
    everyone = {f"service:i{number}" for number in range(INSTANCES)}
    assert {check["CheckID"] for check in checks} - {"serfHealth"} == everyone
    assert {check["Status"] for check in checks} == {"passing"}
    assert len((await read(client, "/v1/health/service/s7"))[1]) == INSTANCES // SERVICES
    async with client.get("/v1/catalog/services") as answer:
        assert len(set(orjson.loads(await answer.read())) - {"consul"}) == SERVICES

    async with asyncio.TaskGroup() as tasks:
        every = tasks.create_task(read(client, f"/v1/health/state/any?index={index}&wait=25s"))
        service_index, _ = await read(client, "/v1/health/service/s7")
        one = tasks.create_task(read(client, f"/v1/health/service/s7?index={service_index}&wait=25s"))
        other_index, _ = await read(client, "/v1/health/service/s8")
        other = tasks.create_task(read(client, f"/v1/health/service/s8?index={other_index}&wait=2s"))
        await asyncio.sleep(0.3)
        assert not every.done()
        assert not one.done()
        async with client.put("/v1/agent/check/fail/service:i4207?note=down") as answer:
            assert answer.status == 200
    woken_at, checks = every.result()
    assert woken_at > index
    assert len(checks) >= INSTANCES
    assert [check["ServiceID"] for check in checks if check["Status"] == "critical"] == ["i4207"]
    assert one.result()[0] > service_index
    assert other.result()[0] == other_index, "another service is no business of this watch"

    async with client.put("/v1/agent/service/deregister/i4207") as answer:
        assert answer.status == 200
    _, checks = await read(client, "/v1/health/state/any")
    assert {check["CheckID"] for check in checks} - {"serfHealth"} == everyone - {"service:i4207"}
