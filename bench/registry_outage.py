"""Requests while the registry is dead for 30 seconds, and what arrives afterwards.

Four instances register through discovery with the shortest TTL and beat as SDKs do; clients ask through the gateway
without a pause. The registry is killed with -9, started again after 30 s (longer than any TTL and any blocking query's
patience), and a service that registers afterwards has to arrive. Once on a Consul that keeps its data, once on
`toska-registry`.

    python -m bench.registry_outage
"""

import argparse
import asyncio
import time
from contextlib import ExitStack
from typing import Any

import grpc.aio
import uvloop
from aiohttp import web
from tests.support.load import Client, Load
from tests.support.servers import ConsulServer, RegistryServer

from bench.support.contract import generate
from bench.support.mesh import start_mesh
from bench.support.results import save

METADATA = {"scheme": "http", "health_check_endpoint": "/health", "lb_strategy": "RoundRobin"}
BEAT_SECONDS = 3.0
INSTANCES = 4


class Fleet:
    """Instances that register once and then only beat, as the SDKs of the family do."""

    def __init__(self, stub: Any, messages: Any) -> None:
        self._stub = stub
        self._messages = messages

    async def register(self, service: str, instance: str, port: int) -> None:
        request = self._messages.RegisterServiceRequest(
            serviceName=service,
            serviceId=instance,
            address="127.0.0.1",
            port=port,
            metadata=METADATA,
            healthCheck=self._messages.HealthCheckConfig(endpoint="/health", intervalSeconds=5),
        )
        while True:
            try:
                if (await self._stub.Register(request, timeout=5)).success:
                    return
            except grpc.aio.AioRpcError:
                pass
            await asyncio.sleep(0.2)

    async def beat(self, instance: str) -> None:
        report = self._messages.ReportHealthRequest(serviceId=instance, status=1, output="heartbeat")
        while True:
            try:
                await self._stub.ReportHealth(report, timeout=5)
            except grpc.aio.AioRpcError:
                pass
            await asyncio.sleep(BEAT_SECONDS)


async def measure(
    registry: ConsulServer | RegistryServer, grpc_port: int, port: int, dead_seconds: float
) -> dict[str, Any]:
    messages, stubs = generate()
    runners = []
    app = web.Application()
    app.router.add_get("/{path:.*}", _answer)
    for _ in range(INSTANCES):
        runner = web.AppRunner(app, access_log=None)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        runners.append(runner)
    async with grpc.aio.insecure_channel(f"127.0.0.1:{grpc_port}") as channel, asyncio.TaskGroup() as tasks:
        fleet = Fleet(stubs.DiscoveryRegistryStub(channel), messages)
        beats = []
        for number, runner in enumerate(runners):
            await fleet.register("steady", f"steady-{number}", runner.addresses[0][1])
            beats.append(tasks.create_task(fleet.beat(f"steady-{number}")))
        await asyncio.sleep(2)
        load = Load(port, "/api/steady/x", connections=16, pause_seconds=0.005, most_requests=10**6)
        running = tasks.create_task(load.run(dead_seconds + 20))
        await asyncio.sleep(3)
        await asyncio.to_thread(registry.kill)
        await asyncio.sleep(dead_seconds)
        await asyncio.to_thread(registry.start)
        back = time.perf_counter()
        await fleet.register("later", "later-1", runners[0].addresses[0][1])
        registered = time.perf_counter()
        client = Client(port)
        while (await client.request("GET", "/api/later/x")).status != 200:
            await asyncio.sleep(0.01)
        arrived = time.perf_counter()
        client.close()
        figures = await running
        for task in beats:
            task.cancel()
    for runner in runners:
        await runner.cleanup()
    return {
        "dead_seconds": dead_seconds,
        "requests": figures.sent,
        "failed": len(figures.failures),
        "statuses": {str(status): count for status, count in figures.statuses.items()},
        "instances_used": len(figures.instances) or INSTANCES,
        "registered_after_seconds": round(registered - back, 3),
        "arrived_after_registration_seconds": round(arrived - registered, 3),
    }


async def _answer(_: web.Request) -> web.Response:
    return web.Response(text="ok")


def one(kind: str, dead_seconds: float) -> dict[str, Any]:
    with ExitStack() as stack:
        registry: ConsulServer | RegistryServer = stack.enter_context(
            ConsulServer(persistent=True) if kind == "consul" else RegistryServer()
        )
        mesh = start_mesh(stack, registry)
        return uvloop.run(measure(registry, mesh.grpc_port, mesh.gateway_port, dead_seconds))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--dead-seconds", type=float, default=30.0)
    arguments = parser.parse_args()
    figures = {kind: one(kind, arguments.dead_seconds) for kind in ("consul", "toska-registry")}
    table: list[list[object]] = [
        ["registry", "requests", "failed", "accepts registrations after", "a new service is routed after"]
    ]
    for kind, result in figures.items():
        table.append(
            [
                kind,
                result["requests"],
                result["failed"],
                f"{result['registered_after_seconds']} s",
                f"{result['arrived_after_registration_seconds'] * 1000:.0f} ms",
            ]
        )
    save("registry_outage", f"The registry dead for {arguments.dead_seconds:g} s under load", figures, table)


if __name__ == "__main__":
    main()
