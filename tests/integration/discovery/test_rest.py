"""The REST API of the C# generation, beside gRPC and with the same effects."""

from collections.abc import AsyncIterator
from typing import Any
from uuid import uuid4

import aiohttp
import pytest
from aiohttp import web
from tests.integration.discovery.conftest import Client, DiscoveryServer
from tests.support.ports import free_port


class Rest:
    def __init__(self, session: aiohttp.ClientSession, url: str) -> None:
        self.session = session
        self.url = url

    async def get(self, path: str) -> tuple[int, Any]:
        async with self.session.get(f"{self.url}/api/{path}") as response:
            return response.status, await response.json(content_type=None)

    async def post(self, path: str, body: Any = None, **options: Any) -> tuple[int, Any]:
        async with self.session.post(f"{self.url}/api/{path}", json=body, **options) as response:
            return response.status, await response.json(content_type=None)


@pytest.fixture
async def rest(discovery: DiscoveryServer) -> AsyncIterator[Rest]:
    async with aiohttp.ClientSession() as session:
        yield Rest(session, discovery.url)


def body(name: str, **fields: Any) -> dict[str, Any]:
    return {
        "serviceName": name,
        "serviceId": f"{name}-1",
        "address": "10.1.2.3",
        "port": 9001,
        "metadata": {"scheme": "http"},
        "healthCheck": {"endpoint": "/health", "interval": "00:00:20", "timeout": "00:00:05", "unhealthyThreshold": 3},
    } | fields


def unique(name: str) -> str:
    return f"{name}-{uuid4().hex[:8]}"


async def test_register_look_up_deregister(rest: Rest, client: Client) -> None:
    name = unique("rest")
    status, answer = await rest.post("ServiceRegistration/register", body(name))
    assert status == 200
    assert sorted(answer) == ["data", "errors", "message", "success", "timestamp", "traceId"]
    assert (answer["success"], answer["message"]) == (True, "Service registered successfully")
    assert (answer["errors"], answer["traceId"]) == (None, None)
    assert answer["data"] | {"registeredAt": ""} == {
        "serviceName": name,
        "serviceId": f"{name}-1",
        "address": "10.1.2.3",
        "port": 9001,
        "status": 1,
        "metadata": {"scheme": "http", "health_check_endpoint": "/health"},
        "registeredAt": "",
        "lastHealthCheck": "0001-01-01T00:00:00Z",
    }
    assert f"{name}-1" in await client.instances(name)
    assert name in (await rest.get("ServiceDiscovery/services"))[1]["data"]
    status, answer = await rest.get(f"ServiceDiscovery/services/{name}/instances")
    assert [item["serviceId"] for item in answer["data"]] == [f"{name}-1"]
    status, answer = await rest.get(f"ServiceDiscovery/instances/{name}-1")
    assert (status, answer["data"]["port"]) == (200, 9001)

    status, answer = await rest.post(f"ServiceRegistration/deregister/{name}-1")
    assert (status, answer["data"], answer["message"]) == (200, None, "Service deregistered successfully")
    status, answer = await rest.post(f"ServiceRegistration/deregister/{name}-1")
    assert (status, answer["success"], answer["message"]) == (404, False, "Service not found")
    status, answer = await rest.get(f"ServiceDiscovery/instances/{name}-1")
    assert (status, answer["message"]) == (404, "Service instance not found")
    assert (await rest.get(f"ServiceDiscovery/services/{name}/instances"))[1]["data"] == []


async def test_routes_match_in_any_case(rest: Rest) -> None:
    name = unique("rest")
    assert (await rest.post("serviceregistration/REGISTER", body(name)))[0] == 200
    status, answer = await rest.get(f"SERVICEDISCOVERY/services/{name}/Instances/Healthy")
    assert (status, len(answer["data"])) == (200, 1)


async def test_reported_health_and_tracking(rest: Rest) -> None:
    name = unique("rest")
    await rest.post("ServiceRegistration/register", body(name))
    status, answer = await rest.post(f"ServiceRegistration/health/{name}-1", {"status": 3, "output": "slow"})
    assert (status, answer["message"]) == (200, "Health status updated")
    assert (await rest.get(f"ServiceDiscovery/services/{name}/instances/healthy"))[1]["data"] == []
    tracking = (await rest.get(f"ServiceDiscovery/instances/{name}-1/tracking"))[1]["data"]
    assert (tracking["status"], tracking["deregisteredAt"]) == (3, None)
    assert tracking["lastUpdated"] == tracking["lastHealthCheck"]
    assert (await rest.get(f"ServiceDiscovery/services/{name}/instances/tracking"))[1]["data"] == [tracking]
    assert (await rest.post(f"ServiceRegistration/health/{unique('nobody')}", {"status": 1}))[0] == 404
    assert (await rest.post(f"ServiceRegistration/health/{name}-1", {"status": 0}))[0] == 400


async def test_replaced_metadata_lasts(rest: Rest, client: Client) -> None:
    name = unique("rest")
    await rest.post("ServiceRegistration/register", body(name))
    await rest.post(f"ServiceRegistration/health/{name}-1", {"status": 3, "output": "slow"})
    before = (await client.instances(name))[f"{name}-1"]
    status, answer = await rest.post(f"ServiceRegistration/metadata/{name}-1", {"metadata": {"zone": "b", "x": "Y"}})
    assert (status, answer["data"], answer["message"]) == (200, None, "Metadata updated")
    after = (await client.instances(name))[f"{name}-1"]
    assert (dict(after.metadata), after.status) == ({"zone": "b", "x": "Y"}, 3)
    assert after.registeredAt == before.registeredAt
    summary = (await rest.get(f"ServiceDiscovery/services/{name}/metadata"))[1]["data"]
    assert (summary["serviceName"], summary["instanceCount"]) == (name, 1)
    assert summary["keys"] == [
        {"key": "x", "instanceCount": 1, "values": ["Y"]},
        {"key": "zone", "instanceCount": 1, "values": ["b"]},
    ]
    status, answer = await rest.post(f"ServiceRegistration/metadata/{name}-1", {})
    assert (status, answer["message"]) == (400, "Metadata payload is required")
    assert (await rest.post(f"ServiceRegistration/metadata/{unique('no')}", {"metadata": {}}))[0] == 404


async def test_a_probe_on_demand_tells_and_changes_nothing(rest: Rest, client: Client) -> None:
    name, port = unique("rest"), free_port()

    async def unwell(request: web.Request) -> web.Response:
        return web.Response(status=500)

    app = web.Application()
    app.router.add_get("/health", unwell)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", port).start()
    try:
        await rest.post("ServiceRegistration/register", body(name, address="127.0.0.1", port=port))
        path = f"{rest.url}/api/ServiceRegistration/health/check/{name}-1"
        async with rest.session.post(path) as response:
            assert response.status == 200
            assert response.headers["X-Toska-Probe"] == "Unhealthy: HTTP 500"
            assert (await response.json())["message"] == "Health check triggered"
        assert (await client.instances(name))[f"{name}-1"].status == 1
    finally:
        await runner.cleanup()
    assert (await rest.post(f"ServiceRegistration/health/check/{unique('no')}"))[0] == 404


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        pytest.param({"port": 99999}, "port 99999", id="port"),
        pytest.param({"serviceName": ""}, "serviceName", id="name"),
        pytest.param({"metadata": {"a.b": "c"}}, "'a.b'", id="metadata"),
    ],
)
async def test_what_cannot_be_is_400_with_the_reason(rest: Rest, wrong: dict[str, Any], words: str) -> None:
    status, answer = await rest.post("ServiceRegistration/register", body(unique("rest"), **wrong))
    assert (status, answer["success"]) == (400, False)
    assert words in answer["message"]


@pytest.mark.parametrize(
    "wrong",
    [{"port": "nine"}, {"metadata": {"a": 1}}, {"healthCheck": {"interval": 30}}, {"serviceName": 5}],
    ids=["port", "metadata", "interval", "name"],
)
async def test_a_body_of_another_shape_is_a_problem_document(rest: Rest, wrong: dict[str, Any]) -> None:
    status, answer = await rest.post("ServiceRegistration/register", body(unique("rest"), **wrong))
    assert (status, answer["status"], answer["code"]) == (400, 400, "bad-request")


async def test_a_page_of_another_site_cannot_change_anything(rest: Rest) -> None:
    name = unique("rest")
    headers = {"Sec-Fetch-Site": "cross-site"}
    assert (await rest.post("ServiceRegistration/register", body(name), headers=headers))[0] == 403
    async with rest.session.post(f"{rest.url}/api/ServiceRegistration/register", data="{}") as response:
        assert response.status == 400
        assert "Access-Control-Allow-Origin" not in response.headers
