"""How soon a follower has applied what the registry acknowledged, and what a change costs.

Fills a registry with services, follows it as a gateway does, then registers and deregisters instances one after the
other and measures from the acknowledgement to the published snapshot. Runs on a real Consul and on `toska-registry`
(`--registry` chooses), prints one JSON object.

    python bench/freshness_follower.py --services 1000 --instances 2000 --changes 200
"""

import argparse
import asyncio
import json
import os
import statistics
import sys
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import uvloop
from tests.support.servers import ConsulServer, RegistryServer

from toska_mesh.aio import Latest
from toska_mesh.model import CatalogSnapshot, InstanceId, ServiceName
from toska_mesh.registry.api import RefreshReport, Registration
from toska_mesh.registry.consul import ConsulClient, ConsulFollower, ConsulOptions, ConsulRegistry

TARGETS_MS = {2_000: 50.0, 10_000: 150.0}


def instance(number: int, services: int) -> Registration:
    metadata = {"scheme": "http", "health_check_endpoint": "/health", "lb_strategy": "RoundRobin", "weight": "1"}
    service = ServiceName(f"service-{number % services}")
    # A long TTL: the bench measures changes, not expiry.
    return Registration(service, InstanceId(f"{service}-{number}"), "10.0.0.1", 8080, metadata, ttl_seconds=86400)


async def fill(registry: ConsulRegistry, services: int, instances: int) -> None:
    numbers = iter(range(instances))

    async def work() -> None:
        for number in numbers:
            await registry.register(instance(number, services), asyncio.get_running_loop().time() + 60)

    async with asyncio.TaskGroup() as tasks:
        for _ in range(16):
            tasks.create_task(work())


async def settled(catalog: Latest[CatalogSnapshot], services: int, instances: int) -> None:
    async for snapshot in catalog.updates():
        if len(snapshot.services) == services and sum(map(len, snapshot.services.values())) == instances:
            return


async def shows(catalog: Latest[CatalogSnapshot], wanted: Registration, is_there: bool) -> float:
    async for snapshot in catalog.updates():
        found = any(one.id == wanted.id for one in snapshot.services.get(wanted.service, ()))
        if found is is_there:
            break
    return time.perf_counter()


async def applied(catalog: Latest[CatalogSnapshot], wanted: Registration, is_there: bool, command: Any) -> float:
    """Milliseconds from the acknowledgement to the snapshot; 0 when the snapshot was first."""
    async with asyncio.TaskGroup() as tasks:
        watching = tasks.create_task(shows(catalog, wanted, is_there))
        await command
        acknowledged_at = time.perf_counter()
    return max(0.0, watching.result() - acknowledged_at) * 1000


def summary(values: list[float]) -> dict[str, float]:
    ordered = sorted(values)
    at = {name: ordered[min(len(ordered) - 1, int(len(ordered) * part))] for name, part in QUANTILES.items()}
    return {name: round(value, 2) for name, value in at.items()} | {"max": round(ordered[-1], 2)}


QUANTILES = {"p50": 0.5, "p90": 0.9, "p99": 0.99}


async def measure(url: str, options: argparse.Namespace) -> dict[str, object]:
    catalog = Latest[CatalogSnapshot]()
    reports: list[RefreshReport] = []
    async with (
        ConsulClient(ConsulOptions(url)) as commands,
        ConsulClient(ConsulOptions(url)) as client,
        asyncio.TaskGroup() as tasks,
    ):
        registry = ConsulRegistry(commands)
        await fill(registry, options.services, options.instances)
        await asyncio.sleep(2)  # the registry's own afterwork
        started_at, cpu_at = time.perf_counter(), time.process_time()
        follower = ConsulFollower(client, on_refresh=reports.append)
        following = tasks.create_task(follower.follow(catalog))
        await settled(catalog, options.services, options.instances)
        load = {
            "seconds": round(time.perf_counter() - started_at, 3),
            "cpu_seconds": round(time.process_time() - cpu_at, 3),
        }
        await asyncio.sleep(2)  # the first sweep
        took: dict[str, list[float]] = {"register": [], "reregister": [], "deregister": []}
        cpu_at = time.process_time()
        for number in range(options.changes):
            new = instance(options.instances + number, options.services)
            took["register"].append(await applied(catalog, new, True, registry.register(new)))
            await asyncio.sleep(options.pause)
            took["deregister"].append(await applied(catalog, new, False, registry.deregister(new.id)))
            await asyncio.sleep(options.pause)
        cpu = (time.process_time() - cpu_at) / (2 * options.changes)
        for number in range(min(30, options.changes)):
            took["reregister"].append(await change_port(catalog, registry, instance(number, options.services)))
            await asyncio.sleep(options.pause)
        following.cancel()
    worst = max(summary(took[name])["p99"] for name in ("register", "deregister"))
    target = TARGETS_MS.get(options.instances)
    return {
        "milliseconds": {name: summary(values) for name, values in took.items()},
        "wake_to_publish_ms": summary([report.duration_seconds * 1000 for report in reports[1:]]),
        "follower_cpu_ms_per_change": round(cpu * 1000, 2),
        "first_load": load,
        "target_p99_ms": target,
        "p99_to_target": round(worst / target, 3) if target else None,
        "median_services_read": statistics.median(report.read_services for report in reports[1:]),
    }


async def change_port(catalog: Latest[CatalogSnapshot], registry: ConsulRegistry, old: Registration) -> float:
    """A registration that touches no check: only a sweep finds it."""
    new = Registration(old.service, old.id, old.address, old.port + 1, old.metadata, old.ttl_seconds)

    async def shown() -> float:
        async for snapshot in catalog.updates():
            if any(one.endpoint.port == new.port for one in snapshot.services[new.service] if one.id == new.id):
                break
        return time.perf_counter()

    async with asyncio.TaskGroup() as tasks:
        watching = tasks.create_task(shown())
        await registry.register(new)
        acknowledged_at = time.perf_counter()
    return max(0.0, watching.result() - acknowledged_at) * 1000


def persistent_consul() -> ConsulServer:
    """As in production: a development agent indents its JSON and keeps nothing."""
    return ConsulServer(persistent=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--registry", choices=("consul", "toska-registry", "both"), default="both")
    parser.add_argument("--services", type=int, default=1000)
    parser.add_argument("--instances", type=int, default=2000)
    parser.add_argument("--changes", type=int, default=200)
    parser.add_argument("--pause", type=float, default=0.05, help="seconds between two changes")
    options = parser.parse_args()
    results: dict[str, object] = {"services": options.services, "instances": options.instances}
    for name, new_server in (("consul", persistent_consul), ("toska-registry", RegistryServer)):
        if options.registry in (name, "both"):
            with ExitStack() as stack:
                server = stack.enter_context(new_server())
                results[name] = uvloop.run(measure(server.url, options))
    results["cores"] = os.cpu_count()
    print(json.dumps(results, indent=2))


if __name__ == "__main__":
    main()
