"""From an acknowledged change to the snapshot of a client that follows through discovery, and what it costs discovery.

A registry with 1,000 services of two instances, discovery over it, and 0, 1 and 200 clients, each with a stream of its
own that follows the service that changes and twenty others. One client measures with the SDK's follower; the others are
in a process of their own and only read. Instances are registered and deregistered straight in the registry, one after
the other. With 0 clients only discovery's CPU per change is measured: then it looks at the registry at leisure.

    python -m bench.watch
"""

import argparse
import asyncio
import multiprocessing
import time
from collections.abc import Awaitable, Iterator
from contextlib import ExitStack, contextmanager
from multiprocessing.synchronize import Event
from typing import Any

import grpc
import uvloop
from tests.integration.discovery.conftest import DiscoveryServer
from tests.support.servers import ConsulServer, RegistryServer

from bench.freshness import fill
from bench.support.accounting import cpu_seconds
from bench.support.results import percentiles, save
from toska_mesh.aio import Latest
from toska_mesh.model import CatalogSnapshot, InstanceId, ServiceName
from toska_mesh.pb import mesh_pb2, mesh_pb2_grpc
from toska_mesh.registry.api import Registration
from toska_mesh.registry.consul import ConsulClient, ConsulOptions, ConsulRegistry
from toska_mesh.sdk.follow import DiscoveryFollower

CHANGED = ServiceName("changed")
FOLLOWED = [CHANGED, *(ServiceName(f"other-{number}") for number in range(20))]
OWN_CONNECTION = [("grpc.use_local_subchannel_pool", 1)]
GIVE_UP_SECONDS = 20.0


def listen(target: str, count: int, is_ready: Event, is_over: Event) -> None:
    """Clients that only read, in a process of their own."""

    async def one(answered: asyncio.Semaphore) -> None:
        async with grpc.aio.insecure_channel(target, options=OWN_CONNECTION) as channel:
            call = mesh_pb2_grpc.MeshStub(channel).Watch()
            await call.write(mesh_pb2.WatchRequest(serviceNames=FOLLOWED))
            await call.read()
            answered.release()
            while await call.read() is not grpc.aio.EOF:
                pass

    async def run() -> None:
        answered = asyncio.Semaphore(0)
        async with asyncio.TaskGroup() as tasks:
            streams = [tasks.create_task(one(answered)) for _ in range(count)]
            for _ in streams:
                await answered.acquire()
            is_ready.set()
            while not is_over.is_set():
                await asyncio.sleep(0.1)
            for stream in streams:
                stream.cancel()

    uvloop.run(run())


@contextmanager
def listeners(target: str, count: int) -> Iterator[None]:
    """So many clients while the block runs."""
    if count <= 0:
        yield
        return
    context = multiprocessing.get_context("spawn")
    is_ready, is_over = context.Event(), context.Event()
    process = context.Process(target=listen, args=(target, count, is_ready, is_over), daemon=True)
    process.start()
    try:
        if not is_ready.wait(60):
            raise SystemExit(f"{count} streams were not answered within 60 s")
        yield
    finally:
        is_over.set()
        process.join(10)
        process.kill()


async def seen(catalog: Latest[CatalogSnapshot], instance_id: InstanceId, is_there: bool) -> float:
    async with asyncio.timeout(GIVE_UP_SECONDS):
        async for snapshot in catalog.updates():
            if any(one.id == instance_id for one in snapshot.services.get(CHANGED, ())) is is_there:
                break
    return time.perf_counter()


async def change(catalog: Latest[CatalogSnapshot] | None, command: Awaitable[None], *what: Any) -> float:
    """Milliseconds from the acknowledgement to the snapshot; 0 when the snapshot was first or nobody looks."""
    if catalog is None:
        await command
        return 0.0
    async with asyncio.TaskGroup() as tasks:
        looking = tasks.create_task(seen(catalog, *what))
        await command
        acknowledged_at = time.perf_counter()
    return max(0.0, looking.result() - acknowledged_at) * 1000


async def measure(url: str, discovery: DiscoveryServer, streams: int, changes: int, pause: float) -> dict[str, Any]:
    catalog = Latest[CatalogSnapshot]() if streams else None
    took: list[float] = []
    async with (
        ConsulClient(ConsulOptions(url)) as api,
        grpc.aio.insecure_channel(discovery.target, options=OWN_CONNECTION) as channel,
        asyncio.TaskGroup() as tasks,
    ):
        registry, follower = ConsulRegistry(api), DiscoveryFollower(channel)
        following = None
        if catalog is not None:
            following = tasks.create_task(follower.follow(catalog))
            for name in FOLLOWED:
                await asyncio.wait_for(follower.known(name), GIVE_UP_SECONDS)
        await asyncio.sleep(2)
        cpu_before = cpu_seconds(discovery.pid)
        for number in range(changes):
            new = InstanceId(f"changed-{number}")
            registration = Registration(CHANGED, new, "127.0.0.1", 9, {"scheme": "http"}, 86400)
            took.append(await change(catalog, registry.register(registration), new, True))
            await asyncio.sleep(pause)
            took.append(await change(catalog, registry.deregister(new), new, False))
            await asyncio.sleep(pause)
        cpu = cpu_seconds(discovery.pid) - cpu_before
        if following is not None:
            following.cancel()
    return {"seen_ms": percentiles(took) if streams else None, "cpu_ms_per_change": round(cpu / len(took) * 1000, 2)}


def one_registry(kind: str, options: argparse.Namespace) -> dict[str, Any]:
    with ExitStack() as stack:
        registry: ConsulServer | RegistryServer = stack.enter_context(
            ConsulServer(persistent=True) if kind == "consul" else RegistryServer()
        )
        uvloop.run(fill(registry.url, options.services, options.instances))
        discovery = stack.enter_context(DiscoveryServer(registry.url))
        found = {}
        for streams in options.streams:
            with listeners(discovery.target, streams - 1):
                found[str(streams)] = uvloop.run(
                    measure(registry.url, discovery, streams, options.changes, options.pause)
                )
        return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--changes", type=int, default=200, help="registrations, each followed by a deregistration")
    parser.add_argument("--services", type=int, default=1000, help="other services in the registry")
    parser.add_argument("--instances", type=int, default=2000, help="instances of the other services")
    parser.add_argument("--streams", type=int, nargs="+", default=[0, 1, 200])
    parser.add_argument("--pause", type=float, default=0.05, help="seconds between two changes")
    parser.add_argument("--registry", choices=("consul", "toska-registry"), nargs="+")
    options = parser.parse_args()
    kinds = options.registry or ["consul", "toska-registry"]
    figures = {kind: one_registry(kind, options) for kind in kinds}
    table: list[list[object]] = [
        ["registry", "streams", "median ms", "p90 ms", "p99 ms", "max ms", "discovery's CPU ms per change"]
    ]
    for kind, found in figures.items():
        for streams, one in found.items():
            times = one["seen_ms"] or {}
            quantiles = (times.get(name, "—") for name in ("median", "p90", "p99", "max"))
            table.append([kind, streams, *quantiles, one["cpu_ms_per_change"]])
    save(
        "watch",
        "From an acknowledged change to a client's snapshot",
        figures,
        table,
        f"{options.changes} registrations and as many deregistrations, {options.pause} s apart, with "
        f"{options.services} other services and {options.instances} instances in the registry; all on one machine.",
    )


if __name__ == "__main__":
    main()
