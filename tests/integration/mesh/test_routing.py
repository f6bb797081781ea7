"""From a service's first word to requests that reach it, through all daemons, on both registries."""

import itertools
from datetime import datetime
from typing import Any

import aiohttp
import pytest
from tests.integration.mesh.mesh import DEGRADED, HEALTHY, METADATA, UNHEALTHY, Mesh, Sdk, serving
from tests.support.wait import eventually


async def test_a_registered_instance_is_routed_and_a_deregistered_one_is_not(
    mesh: Mesh, sdk: Sdk, service: str
) -> None:
    async with serving(f"{service}-1") as instances:
        assert (await mesh.get(service)).status == 404
        answer = await sdk.register(service, f"{service}-1", instances[f"{service}-1"].port)
        assert answer.serviceId == f"{service}-1"
        await mesh.until_status(service, 200)
        answer = await mesh.get(service, "/some/path")
        assert (answer.status, answer.instance) == (200, f"{service}-1")
        assert b'"/some/path"' in answer.body

        assert await sdk.deregister(f"{service}-1")
        await mesh.until_status(service, 404, 503)
        assert not await sdk.deregister(f"{service}-1")
        assert not await sdk.beat(f"{service}-1")


async def test_two_instances_answer_in_turn(mesh: Mesh, sdk: Sdk, service: str) -> None:
    names = (f"{service}-a", f"{service}-b")
    async with serving(*names) as instances:
        for name in names:
            await sdk.register(service, name, instances[name].port)
        await mesh.until_eligible(service, names)
        order = [answer.instance for answer in await mesh.ask(f"/api/{service}/", 10)]
        assert set(order) == set(names)
        assert all(one != next_one for one, next_one in itertools.pairwise(order)), order
        for name in names:
            assert await sdk.deregister(name)


async def test_degraded_instances_serve_only_when_no_healthy_one_is_left(mesh: Mesh, sdk: Sdk, service: str) -> None:
    well, ill = f"{service}-well", f"{service}-ill"
    async with serving(well, ill) as instances:
        for name in (well, ill):
            await sdk.register(service, name, instances[name].port)
        assert await sdk.beat(ill, DEGRADED)
        await mesh.until_eligible(service, {well})
        assert {answer.instance for answer in await mesh.ask(f"/api/{service}/", 6)} == {well}

        assert await sdk.beat(well, UNHEALTHY)
        await mesh.until_eligible(service, {ill})
        assert {answer.instance for answer in await mesh.ask(f"/api/{service}/", 6)} == {ill}

        assert await sdk.beat(ill, UNHEALTHY)
        await mesh.until_status(service, 503)

        assert await sdk.beat(well, HEALTHY)
        await mesh.until_eligible(service, {well})
        assert (await mesh.get(service)).instance == well
        for name in (well, ill):
            assert await sdk.deregister(name)


@pytest.mark.parametrize("address", ["0.0.0.0", "::", ""])
async def test_an_sdk_that_advertises_no_address_is_reached_at_the_callers(
    mesh: Mesh, sdk: Sdk, service: str, address: str
) -> None:
    """The unmodified Go SDK advertises `0.0.0.0`, which Consul refuses; here caller and gateway share the machine."""
    name = f"{service}-1"
    async with serving(name) as instances:
        await sdk.register(service, name, instances[name].port, address=address)
        await mesh.until_status(service, 200)
        assert (await mesh.get(service)).instance == name
        assert (await sdk.instances(service))[name].address == "127.0.0.1"
        assert await sdk.deregister(name)


async def test_what_is_registered_by_rest_is_routed(mesh: Mesh, sdk: Sdk, service: str) -> None:
    name = f"{service}-1"
    async with serving(name) as instances, aiohttp.ClientSession(f"http://127.0.0.1:{mesh.rest_port}") as rest:
        body = {
            "serviceName": service,
            "serviceId": name,
            "address": "127.0.0.1",
            "port": instances[name].port,
            "metadata": METADATA,
            "healthCheck": {"endpoint": "/health", "interval": "00:00:20", "timeout": "00:00:05"},
        }
        async with rest.post("/api/ServiceRegistration/register", json=body) as answer:
            assert (answer.status, (await answer.json())["success"]) == (200, True)
        await mesh.until_status(service, 200)
        assert (await mesh.get(service)).instance == name
        assert name in await sdk.instances(service)

        status = {"status": UNHEALTHY, "output": "on fire"}
        async with rest.post(f"/api/ServiceRegistration/health/{name}", json=status) as answer:
            assert answer.status == 200
        await mesh.until_status(service, 503)

        async with rest.post(f"/api/ServiceRegistration/deregister/{name}") as answer:
            assert answer.status == 200
        await mesh.until_status(service, 404)


async def test_what_another_control_plane_registers_is_routed(mesh: Mesh, sdk: Sdk, service: str) -> None:
    """The family's layout, written into the registry by somebody else; beats may then come through our discovery."""
    name = f"{service}-1"
    async with serving(name) as instances:
        mesh.call_registry(
            "PUT",
            "/agent/service/register",
            {
                "ID": name,
                "Name": service,
                "Address": "127.0.0.1",
                "Port": instances[name].port,
                "Meta": METADATA,
                "Check": {
                    "CheckID": f"service:{name}",
                    "Name": f"{service} TTL Health",
                    "TTL": "35s",
                    "DeregisterCriticalServiceAfter": "1m0s",
                },
            },
        )
        await mesh.until_status(service, 503)  # a TTL check begins as critical
        mesh.call_registry("PUT", f"/agent/check/pass/service:{name}?note=Service%20registered")
        await mesh.until_status(service, 200)
        assert (await mesh.get(service)).instance == name
        found = (await sdk.instances(service))[name]
        assert (found.status, dict(found.metadata)) == (HEALTHY, METADATA)
        assert found.HasField("registeredAt")
        assert found.HasField("lastHealthCheck")
        assert await sdk.beat(name, DEGRADED)
        await eventually(lambda: mesh.routed(service)[name]["status"] == "Degraded")
        assert await sdk.deregister(name)
        await mesh.until_status(service, 404)


async def test_the_dashboard_joins_registration_and_probes(mesh: Mesh, sdk: Sdk, service: str) -> None:
    name = f"{service}-1"
    async with serving(name) as instances, aiohttp.ClientSession(f"http://127.0.0.1:{mesh.port}") as session:
        await sdk.register(service, name, instances[name].port)
        registered_at = (await sdk.instances(service))[name].registeredAt.ToMicroseconds()

        async def shown() -> Any:
            async with session.get("/api/dashboard/services") as answer:
                assert answer.status == 200
                services = {item["serviceName"]: item for item in await answer.json()}
            mine = services.get(service)
            return mine and mine["health"] and mine["health"][0]["status"] == "Healthy" and mine

        mine = await eventually(shown, 15, 0.2, "the dashboard shows the probed instance")
        (instance,) = mine["instances"]
        (health,) = mine["health"]
        assert (instance["serviceId"], instance["port"], instance["status"]) == (name, instances[name].port, "Healthy")
        moment = datetime.fromisoformat(instance["registeredAt"])
        assert round(moment.timestamp() * 1_000_000) == registered_at
        assert datetime.fromisoformat(instance["lastHealthCheck"])
        assert instance["metadata"].items() >= METADATA.items()
        assert (health["serviceId"], health["lastProbeType"]) == (name, "http")
        assert mine["metadata"]["instanceCount"] == 1
        assert {"key": "scheme", "instanceCount": 1, "values": ["http"]} in mine["metadata"]["keys"]
        assert await sdk.deregister(name)
