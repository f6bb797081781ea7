"""From the waking of a suspended process to its first answer through the gateway, after the registry has removed it.

Instances of the SDK, some through discovery and some straight to the registry, are stopped with SIGSTOP until the
registry has reaped the last of them (TTL 10 s, a minute of grace, and Consul's reaper comes round every half minute).
Then all are woken at once. Once on a Consul, once on `toska-registry`.

    python -m bench.suspended
"""

import argparse
import asyncio
import time
from contextlib import ExitStack
from typing import Any

import uvloop
from tests.integration.sdk.processes import ServiceProcess
from tests.support.load import Client
from tests.support.servers import ConsulServer, RegistryServer

from bench.support.mesh import Mesh, start_mesh
from bench.support.results import percentiles, save
from toska_mesh.model import ServiceName
from toska_mesh.registry.consul import ConsulClient, ConsulOptions, ConsulRegistry

COMMAND = ("-m", "tests.integration.sdk.app_process", "aiohttp")
WAYS = ("discovery", "consul")
LONGEST_SECONDS = 240.0


def instance(way: str, number: int, mesh: Mesh, registry_url: str) -> ServiceProcess:
    """One service of its own, so that its route says whether it is back."""
    return ServiceProcess(
        COMMAND,
        f"{way}-{number}",
        MESH_SERVICE_NAME=f"{way}-{number}",
        MESH_SERVICE_HOST="127.0.0.1",
        MESH_SERVICE_HEALTH_INTERVAL_SECONDS="1",
        MESH_REGISTRY_PROVIDER=way,
        MESH_DISCOVERY_ADDRESS=f"127.0.0.1:{mesh.grpc_port}",
        CONSUL_ADDRESS=registry_url,
    )


async def until_routed(port: int, service: str) -> float:
    """When the gateway has passed the first answer on."""
    client = Client(port)
    while (await client.request("GET", f"/api/{service}/hello")).status != 200:
        await asyncio.sleep(0.005)
    client.close()
    return time.perf_counter()


async def until_reaped(registry: ConsulRegistry, services: list[str]) -> float:
    began = time.perf_counter()
    left = list(services)
    async with asyncio.timeout(LONGEST_SECONDS):
        while left:
            left = [name for name in left if await registry.instances(ServiceName(name))]
            await asyncio.sleep(0.5)
    return time.perf_counter() - began


async def measure(mesh: Mesh, registry_url: str, instances: dict[str, ServiceProcess]) -> dict[str, Any]:
    async with asyncio.timeout(60), asyncio.TaskGroup() as tasks:
        for service in instances:
            tasks.create_task(until_routed(mesh.gateway_port, service))
    for process in instances.values():
        process.pause()
    async with ConsulClient(ConsulOptions(registry_url)) as client:
        reaped_after = await until_reaped(ConsulRegistry(client), list(instances))
    woken: dict[str, float] = {}
    async with asyncio.timeout(60), asyncio.TaskGroup() as tasks:
        waits = {name: tasks.create_task(until_routed(mesh.gateway_port, name)) for name in instances}
        await asyncio.sleep(0.2)
        assert not any(wait.done() for wait in waits.values()), "something answers for a process that stands still"
        for name, process in instances.items():
            woken[name] = time.perf_counter()
            process.resume()
    back = {name: (wait.result() - woken[name]) * 1000 for name, wait in waits.items()}
    return {
        "reaped_after_seconds": round(reaped_after, 1),
        "back_ms": {way: percentiles([ms for name, ms in back.items() if name.startswith(way)]) for way in WAYS},
    }


def one(kind: str, count: int) -> dict[str, Any]:
    with ExitStack() as stack:
        registry: ConsulServer | RegistryServer = stack.enter_context(
            ConsulServer(persistent=True) if kind == "consul" else RegistryServer()
        )
        mesh = start_mesh(stack, registry)
        instances = {}
        for way in WAYS:
            for number in range(count):
                process = instance(way, number, mesh, registry.url)
                instances[process.name] = stack.enter_context(process)
        return uvloop.run(measure(mesh, registry.url, instances))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--instances", type=int, default=5, help="for each way into the mesh")
    arguments = parser.parse_args()
    figures = {kind: one(kind, arguments.instances) for kind in ("consul", "toska-registry")}
    table: list[list[object]] = [["registry", "joined through", "reaped after", "back after, median", "slowest"]]
    for kind, result in figures.items():
        for way in WAYS:
            back = result["back_ms"][way]
            reaped = f"{result['reaped_after_seconds']} s"
            table.append([kind, way, reaped, f"{back['median']:.0f} ms", f"{back['max']:.0f} ms"])
    save("suspended", "From SIGCONT to the first answer through the gateway", figures, table)


if __name__ == "__main__":
    main()
