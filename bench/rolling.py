"""Rolling restarts of a service under a constant load of GETs and POSTs through the gateway: how many requests fail?

Four instances, processes that join through the SDK (aiohttp and ASGI on uvicorn), two of them replaced at a time: one
restart replaces all four. Once undisturbed, once with discovery and once with the registry killed and started again
halfway, on both registries.

    python -m bench.rolling [--restarts 100] [--registry consul|toska-registry] [--disturb nothing|discovery|registry]
"""

import argparse
import asyncio
import time
from contextlib import ExitStack
from typing import Any

import uvloop
from tests.support.rolling import AT_A_TIME, INSTANCES, Fleet, failures, mixed_load
from tests.support.servers import ConsulServer, RegistryServer, ServerProcess

from bench.support.mesh import Mesh, start_mesh
from bench.support.results import save

REGISTRIES = ("consul", "toska-registry")
DISTURBANCES = ("nothing", "discovery", "registry")


def kill_and_start(server: ServerProcess) -> None:
    server.kill()
    server.start()


async def measure(mesh: Mesh, restarts: int, disturbed: ServerProcess | None) -> dict[str, Any]:
    fleet = Fleet(mesh)
    steps = restarts * INSTANCES // AT_A_TIME
    try:
        await fleet.grow(INSTANCES)
        await fleet.until_routed()
        async with mixed_load(mesh.gateway_port) as figures:
            began = time.monotonic()
            for step in range(steps):
                is_halfway = disturbed is not None and step == steps // 2
                await fleet.replace((lambda: kill_and_start(disturbed)) if is_halfway and disturbed else None)
            took = time.monotonic() - began
            await asyncio.sleep(1)
        return {
            "restarts": restarts,
            "processes_replaced": steps * AT_A_TIME,
            "seconds": round(took, 1),
            "requests": sum(one.sent for one in figures),
            "failed": len(failures(figures)),
            "failures": failures(figures)[:10],
        }
    finally:
        await asyncio.to_thread(fleet.close)


def one(kind: str, disturbance: str, restarts: int) -> dict[str, Any]:
    with ExitStack() as stack:
        registry: ConsulServer | RegistryServer = stack.enter_context(
            ConsulServer(persistent=True) if kind == "consul" else RegistryServer()
        )
        mesh = start_mesh(stack, registry)
        disturbed = {"discovery": mesh.discovery, "registry": registry}.get(disturbance)
        return uvloop.run(measure(mesh, restarts, disturbed))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--restarts", type=int, default=100)
    parser.add_argument("--registry", choices=REGISTRIES, action="append")
    parser.add_argument("--disturb", choices=DISTURBANCES, action="append")
    arguments = parser.parse_args()
    figures = {}
    for kind in arguments.registry or REGISTRIES:
        for disturbance in arguments.disturb or DISTURBANCES:
            figures[f"{kind}, {disturbance}"] = result = one(kind, disturbance, arguments.restarts)
            print(kind, disturbance, result, flush=True)
    table: list[list[object]] = [
        ["registry", "restarted halfway", "rolling restarts", "processes replaced", "requests", "failed", "took"]
    ]
    for name, result in figures.items():
        kind, _, disturbance = name.partition(", ")
        table.append(
            [
                kind,
                disturbance,
                result["restarts"],
                result["processes_replaced"],
                f"{result['requests']:,}",
                result["failed"],
                f"{result['seconds']} s",
            ]
        )
    save("rolling", "Rolling restarts under load, two of four instances at a time", figures, table)


if __name__ == "__main__":
    main()
