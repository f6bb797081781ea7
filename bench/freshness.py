"""From "register" to the first answer through the gateway, and from "deregister" to the first 404.

Runs the whole chain as processes: a registry with 1,000 other services, discovery, the gateway, one instance that
answers. A client generated from `proto/` alone registers and deregisters 200 services one after the other, while
requests through the gateway ask for the new one without a pause. Once on a real Consul, once on `toska-registry`.

    python -m bench.freshness
"""

import argparse
import asyncio
import time
from contextlib import ExitStack
from typing import Any

import aiohttp
import grpc.aio
import uvloop
from aiohttp import web
from tests.support.servers import ConsulServer, RegistryServer

from bench.support.contract import generate
from bench.support.mesh import start_mesh
from bench.support.results import percentiles, save
from toska_mesh.model import InstanceId, ServiceName
from toska_mesh.registry.api import Registration
from toska_mesh.registry.consul import ConsulClient, ConsulOptions, ConsulRegistry

METADATA = {"scheme": "http", "health_check_endpoint": "/health", "lb_strategy": "RoundRobin", "weight": "1"}
GIVE_UP_SECONDS = 20.0


async def fill(url: str, services: int, instances: int) -> None:
    """Other services, two instances each, that nobody asks."""
    async with ConsulClient(ConsulOptions(address=url)) as client:
        registry = ConsulRegistry(client)
        numbers = iter(range(instances))

        async def work() -> None:
            for number in numbers:
                name = ServiceName(f"other-{number % services}")
                registration = Registration(
                    name,
                    InstanceId(f"{name}-{number}"),
                    f"127.1.{number // 250}.{number % 250 + 1}",
                    9,
                    METADATA,
                    86400,
                )
                await registry.register(registration, asyncio.get_running_loop().time() + 60)

        async with asyncio.TaskGroup() as tasks:
            for _ in range(8):
                tasks.create_task(work())


async def until(session: aiohttp.ClientSession, url: str, wanted: int) -> float:
    """Ask without a pause until the status is the wanted one; gives the moment of that answer."""
    give_up = time.perf_counter() + GIVE_UP_SECONDS
    while time.perf_counter() < give_up:
        async with session.get(url) as answer:
            await answer.read()
            if answer.status == wanted:
                return time.perf_counter()
    raise SystemExit(f"{url} did not answer {wanted} within {GIVE_UP_SECONDS} s")


async def measure(grpc_port: int, gateway: str, count: int) -> dict[str, Any]:
    messages, stubs = generate()
    backend = web.Application()
    backend.router.add_get("/{path:.*}", lambda request: answer())

    async def answer() -> web.Response:
        return web.Response(text="ok")

    runner = web.AppRunner(backend, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    port = runner.addresses[0][1]
    figures: dict[str, list[float]] = {name: [] for name in ("call", "routable", "call_to_answer", "gone")}
    async with grpc.aio.insecure_channel(f"127.0.0.1:{grpc_port}") as channel, aiohttp.ClientSession() as session:
        stub = stubs.DiscoveryRegistryStub(channel)
        for number in range(count):
            name = f"fresh-{number}"
            route = f"{gateway}/api/{name}/"
            began = time.perf_counter()
            registered = await stub.Register(
                messages.RegisterServiceRequest(
                    serviceName=name, serviceId=f"{name}-1", address="127.0.0.1", port=port, metadata=METADATA
                ),
                timeout=10,
            )
            acknowledged = time.perf_counter()
            if not registered.success:
                raise SystemExit(f"not registered: {registered.errorMessage}")
            answered = await until(session, route, 200)
            figures["call"].append((acknowledged - began) * 1000)
            figures["routable"].append((answered - acknowledged) * 1000)
            figures["call_to_answer"].append((answered - began) * 1000)
            await stub.Deregister(messages.DeregisterServiceRequest(serviceId=f"{name}-1"), timeout=10)
            acknowledged = time.perf_counter()
            figures["gone"].append((await until(session, route, 404) - acknowledged) * 1000)
    await runner.cleanup()
    return {name: percentiles(values) for name, values in figures.items()}


def one_registry(kind: str, services: int, instances: int, count: int) -> dict[str, Any]:
    with ExitStack() as stack:
        registry: ConsulServer | RegistryServer = stack.enter_context(
            ConsulServer() if kind == "consul" else RegistryServer()
        )
        uvloop.run(fill(registry.url, services, instances))
        mesh = start_mesh(stack, registry)
        time.sleep(2)
        return uvloop.run(measure(mesh.grpc_port, f"http://127.0.0.1:{mesh.gateway_port}", count))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--count", type=int, default=200, help="registrations to measure")
    parser.add_argument("--services", type=int, default=1000, help="other services in the registry")
    parser.add_argument("--instances", type=int, default=2000, help="instances of the other services")
    arguments = parser.parse_args()
    figures = {
        kind: one_registry(kind, arguments.services, arguments.instances, arguments.count)
        for kind in ("consul", "toska-registry")
    }
    labels = {
        "call": "Register, call to acknowledgement",
        "routable": "acknowledgement to first 200 through the gateway",
        "call_to_answer": "call to first 200",
        "gone": "Deregister acknowledged to first 404",
    }
    table: list[list[object]] = [["milliseconds", "registry", "median", "p90", "p99", "max"]]
    for key, label in labels.items():
        for kind, result in figures.items():
            one = result[key]
            table.append([label, kind, one["median"], one["p90"], one["p99"], one["max"]])
    save(
        "freshness",
        "From registering to the first answer",
        figures,
        table,
        f"{arguments.count} registrations one after the other, with {arguments.services} other services and "
        f"{arguments.instances} instances in the registry; everything on one machine, requests without a pause.",
    )


if __name__ == "__main__":
    main()
