"""Two discoveries over one registry: each change is told once, by whom it was asked of or by the leader."""

import asyncio
import json
from collections.abc import Callable
from typing import Any

from tests.integration.discovery.conftest import Client, DiscoveryServer
from tests.support.servers import http_get
from tests.support.wait import eventually

Make = Callable[..., Any]


def is_leader(server: DiscoveryServer) -> bool:
    return "toska_discovery_is_leader 1.0" in http_get(f"{server.url}/metrics")[1].decode()


def told(server: DiscoveryServer, instance_id: str) -> list[str]:
    found = []
    for line in server.log_lines():
        entry = json.loads(line) if line.startswith("{") else {}
        if entry.get("msg") == "event" and json.loads(entry["body"])["serviceId"] == instance_id:
            found.append(entry["type"].removeprefix("Service").removesuffix("Event"))
    return found


async def test_each_change_is_told_once(
    registry_factory: Make, discovery_factory: Make, connect: Callable[[DiscoveryServer], Client]
) -> None:
    registry = registry_factory()
    first, second = discovery_factory(registry.url), discovery_factory(registry.url)
    await eventually(lambda: is_leader(first) or is_leader(second), 20)
    leader, other = (first, second) if is_leader(first) else (second, first)
    client = connect(other)

    await client.register("orders", "orders-1", metadata={"scheme": "http"}, healthCheck={"intervalSeconds": 1})
    await asyncio.sleep(1.5)
    await client.beat("orders-1", 3, "slow")
    await eventually(lambda: told(leader, "orders-1") == ["HealthChanged"], 30, what="the expiry is told by the leader")
    await client.beat("orders-1", 1, "fine")
    await asyncio.sleep(1.5)
    await client.deregister("orders-1")
    await asyncio.sleep(2.5)

    assert told(other, "orders-1") == ["Registered", "HealthChanged", "HealthChanged", "Deregistered"]
    assert told(leader, "orders-1") == ["HealthChanged"]
