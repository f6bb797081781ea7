"""The registry as a process: killed, stopped, frozen, started twice. Nothing acknowledged is lost."""

import asyncio
import re
from collections.abc import Callable

import pytest
from aiohttp import ClientError, ClientSession, ClientTimeout
from tests.support.servers import DaemonProcess, RegistryServer, http_get
from tests.support.wait import eventually

Factory = Callable[..., RegistryServer]


def session(server: RegistryServer) -> ClientSession:
    return ClientSession(server.url, timeout=ClientTimeout(total=15))


async def register(client: ClientSession, name: str, **check: object) -> None:
    body = {"Name": name, "ID": name, "Check": {"TTL": "300s", "Status": "passing", **check}}
    async with client.put("/v1/agent/service/register", json=body) as answer:
        assert answer.status == 200, await answer.text()


async def test_what_was_acknowledged_before_a_kill_is_there_afterwards(registry_factory: Factory) -> None:
    server = registry_factory()
    acknowledged: list[str] = []
    seen_index = 0

    async def keep_registering(client: ClientSession, worker: int) -> None:
        nonlocal seen_index
        for number in range(100_000):
            name = f"w{worker}-{number}"
            try:
                await register(client, name)
                async with client.put(f"/v1/kv/{name}", data=name) as answer:
                    assert await answer.json() is True
                acknowledged.append(name)
                async with client.get("/v1/catalog/services") as answer:
                    seen_index = max(seen_index, int(answer.headers["X-Consul-Index"]))
            except (ClientError, OSError):
                return  # the server is dead

    async with session(server) as client, asyncio.TaskGroup() as tasks:
        for worker in range(8):
            tasks.create_task(keep_registering(client, worker))
        await eventually(lambda: len(acknowledged) >= 300, seconds=30)
        server.kill()
    server.start()
    async with session(server) as client:
        async with client.get("/v1/agent/services") as answer:
            services = await answer.json()
        async with client.get("/v1/health/state/passing") as answer:
            passing = {check["ServiceID"] for check in await answer.json()}
            assert int(answer.headers["X-Consul-Index"]) > seen_index
        async with client.get("/v1/kv/?keys") as answer:
            keys = set(await answer.json())
    assert set(acknowledged) <= set(services)
    assert set(acknowledged) <= passing
    assert set(acknowledged) <= keys


async def test_locks_and_sessions_survive_a_kill(registry_factory: Factory) -> None:
    server = registry_factory()
    async with session(server) as client:
        async with client.put("/v1/session/create", json={"TTL": "60s", "Name": "n"}) as answer:
            holder = (await answer.json())["ID"]
        async with client.put(f"/v1/kv/lock?acquire={holder}", data="me") as answer:
            assert await answer.json() is True
    server.kill()
    server.start()
    async with session(server) as client:
        async with client.get("/v1/kv/lock") as answer:
            assert (await answer.json())[0]["Session"] == holder
        async with client.put("/v1/session/create", json={}) as answer:
            other = (await answer.json())["ID"]
        async with client.put(f"/v1/kv/lock?acquire={other}", data="you") as answer:
            assert await answer.json() is False
        async with client.put(f"/v1/session/renew/{holder}") as answer:
            assert (await answer.json())[0]["Name"] == "n"


async def test_a_watcher_with_an_index_from_before_the_kill_is_answered_at_once(registry_factory: Factory) -> None:
    server = registry_factory()
    async with session(server) as client:
        await register(client, "web")
        async with client.get("/v1/health/service/web") as answer:
            index = int(answer.headers["X-Consul-Index"])
    server.kill()
    server.start()
    async with (
        session(server) as client,
        asyncio.timeout(5),
        client.get(f"/v1/health/service/web?index={index}&wait=60s") as answer,
    ):
        assert int(answer.headers["X-Consul-Index"]) > index
        assert [item["Service"]["ID"] for item in await answer.json()] == ["web"]


async def test_sigterm_answers_blocked_queries_and_exits_cleanly(registry_factory: Factory) -> None:
    server = registry_factory()
    async with session(server) as client:
        await register(client, "web")
        async with client.get("/v1/health/service/web") as answer:
            index = answer.headers["X-Consul-Index"]

        async def blocked() -> int:
            async with client.get(f"/v1/health/service/web?index={index}&wait=600s") as answer:
                return answer.status

        async with asyncio.TaskGroup() as tasks:
            waiting = [tasks.create_task(blocked()) for _ in range(20)]
            await eventually(lambda: metric(server, "toska_registry_blocked_queries") == 20)
            await asyncio.to_thread(server.assert_clean_exit)
        assert [task.result() for task in waiting] == [200] * 20


def metric(server: RegistryServer, name: str) -> float:
    found = re.search(rf"^{name} (\S+)$", http_get(f"{server.url}/metrics")[1].decode(), re.MULTILINE)
    return float(found[1]) if found else -1.0


async def test_queries_of_clients_that_left_do_not_pile_up(registry_factory: Factory) -> None:
    server = registry_factory()
    async with session(server) as client:
        await register(client, "web")
        async with client.get("/v1/health/service/web") as answer:
            index = answer.headers["X-Consul-Index"]
        for _ in range(5):
            with pytest.raises(TimeoutError):
                async with client.get(
                    f"/v1/health/service/web?index={index}&wait=600s", timeout=ClientTimeout(total=0.1)
                ) as answer:
                    await answer.read()
    await eventually(lambda: metric(server, "toska_registry_blocked_queries") == 0)


async def test_a_frozen_registry_expires_nobody_when_it_goes_on(registry_factory: Factory) -> None:
    server = registry_factory()
    async with session(server) as client:
        await register(client, "web", TTL="3s")
        server.pause()
        await asyncio.sleep(4)
        server.resume()
        async with client.get("/v1/health/service/web?passing") as answer:
            assert len(await answer.json()) == 1
        await asyncio.sleep(0.5)
        async with client.get("/v1/health/service/web?passing") as answer:
            assert len(await answer.json()) == 1
        await eventually(lambda: http_get(f"{server.url}/v1/health/service/web?passing")[1] == b"[]", seconds=8)


async def test_a_port_in_use_is_named_with_its_variable(
    registry_factory: Factory, daemon_factory: Callable[..., DaemonProcess], tmp_path: object
) -> None:
    server = registry_factory()
    second = daemon_factory("toska-registry", {"REGISTRY_PORT": str(server.port), "REGISTRY_DATA_DIR": str(tmp_path)})
    assert await asyncio.to_thread(second.wait) == 2
    assert f"port {server.port} is in use" in second.log_text()
    assert "REGISTRY_PORT" in second.log_text()


async def test_a_data_folder_in_use_is_named_with_its_variable(
    registry_factory: Factory, daemon_factory: Callable[..., DaemonProcess]
) -> None:
    server = registry_factory()
    second = daemon_factory("toska-registry", {**server.env, "REGISTRY_PORT": "1"})
    assert await asyncio.to_thread(second.wait) == 2
    assert "REGISTRY_DATA_DIR" in second.log_text()
    assert "in use by another registry" in second.log_text()


async def test_a_token_guards_the_api_but_not_health_and_metrics(registry_factory: Factory) -> None:
    server = registry_factory(REGISTRY_TOKEN="secret")
    async with session(server) as client:
        for headers, status in (
            ({}, 403),
            ({"X-Consul-Token": "wrong"}, 403),
            ({"X-Consul-Token": "secret"}, 200),
            ({"Authorization": "Bearer secret"}, 200),
        ):
            async with client.get("/v1/catalog/services", headers=headers) as answer:
                assert answer.status == status
    for path in ("/health", "/health/live", "/health/ready", "/metrics"):
        assert http_get(server.url + path)[0] == 200


async def test_an_upload_that_is_too_large_is_refused_without_reading_it(registry_factory: Factory) -> None:
    server = registry_factory()

    async def endless() -> object:
        while True:
            yield b"x" * 65536

    async with session(server) as client:
        async with client.put("/v1/kv/big", data=b"x" * 600_000) as answer:
            assert answer.status == 413
        try:
            async with client.put("/v1/kv/big", data=endless()) as answer:
                assert answer.status == 413
        except ClientError:
            pass  # it may close the connection before we have read its answer
        async with client.get("/v1/kv/big") as answer:
            assert answer.status == 404
