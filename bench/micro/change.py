"""What one change of the catalog costs the gateway in our own code: no sockets, no kernel, a clock that jumps.

The real follower, routing and proxy are fed by a registry of ready-made answers, laid out as Consul writes them. In
turn an instance joins a service, another one's metadata changes, a further service comes, the instance leaves, the
service goes; every 100 ms of the loop's time there is one. Under `valgrind --tool=callgrind` the result repeats: run
it for N and for 2 N changes, and divide the difference by N.

    python -m bench.micro.change --services 1000 --instances 2000 --changes 200 [--profile | --pauses]
"""

import argparse
import asyncio
import cProfile
import gc
import os
import pstats
import time
from collections.abc import Mapping
from typing import Any
from urllib.parse import unquote

import orjson
from tests.support.virtual_loop import run_virtual

from toska_mesh.admin import Health
from toska_mesh.gateway.accesslog import AccessLog
from toska_mesh.gateway.garbage import CalmCollector
from toska_mesh.gateway.proxy import Proxy
from toska_mesh.gateway.routing import Routing
from toska_mesh.gateway.settings import GatewaySettings
from toska_mesh.model import NO_VERDICTS
from toska_mesh.registry.consul import ConsulFollower
from toska_mesh.registry.consul.client import Answer
from toska_mesh.router import RoutingPolicy
from toska_mesh.telemetry.lines import LineWriter

NODE = "node-1"
EVERY_SECONDS = 0.1
STEPS = 10
"""Changes after which the catalog is as it was: the answers of so many states are kept ready."""

_NO_PARAMS: Mapping[str, str] = {}


class ReadyRegistry:
    """`ConsulApi` over a catalog that goes through `STEPS` states, round and round."""

    def __init__(self, services: int, instances: int) -> None:
        self._services = services
        self._instances = instances
        self._loaded = f"svc-{services // 2:05d}"
        self._state = 0
        self._index = 100
        self._ready: dict[tuple[str, int], bytes] = {}
        self._changed = asyncio.Event()

    def change(self) -> None:
        """Go to the next state and wake who waits."""
        self._state = (self._state + 1) % STEPS
        self._index += 1
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()

    def _present(self, only: str = "") -> list[tuple[str, str, int, str]]:
        """Service, instance, number and version of everything that is registered in this state."""
        turn, step = divmod(self._state, 5)
        found = [
            (f"svc-{number % self._services:05d}", f"svc-{number % self._services:05d}-{number}", number, "0")
            for number in range(self._instances)
        ]
        altered = next(number for number, one in enumerate(found) if one[0] == self._loaded)
        found[altered] = (*found[altered][:3], str(turn if step >= 2 else 1 - turn))
        if step in (1, 2, 3):
            found.append((self._loaded, f"{self._loaded}-more", self._instances, "0"))
        if step in (3, 4):
            found.append(("stranger", "stranger-1", self._instances + 1, str(turn)))
        return [one for one in found if not only or one[0] == only]

    async def call(
        self,
        method: str,
        path: str,
        params: Mapping[str, str] = _NO_PARAMS,
        body: bytes | None = None,
        deadline: float | None = None,
        limit_seconds: float | None = None,
        missing_ok: bool = False,
    ) -> Answer:
        """See `ConsulApi.call`. A blocking query waits for the next state, however long."""
        while int(params.get("index", "0")) >= self._index:
            await self._changed.wait()
        key = (path, self._state)
        answer = self._ready.get(key)
        if answer is None:
            answer = self._ready[key] = orjson.dumps(self._answer(unquote(path)))
        return Answer(200, answer, self._index)

    def _answer(self, path: str) -> Any:
        match path.removeprefix("/v1/").split("/"):
            case ["status", "leader"]:
                return "127.0.0.1:8300"
            case ["health", "state", "any"]:
                return [_node_check(), *(_check(*one) for one in self._present())]
            case ["catalog", "services"]:
                return {"consul": [], **{one[0]: [] for one in self._present()}}
            case ["catalog", "nodes"]:
                return [{"Node": NODE, "Address": "127.0.0.1"}]
            case ["catalog", "node", _]:
                return {"Node": {"Node": NODE}, "Services": {one[1]: _registered(*one) for one in self._present()}}
            case ["health", "service", name]:
                return [
                    {
                        "Node": {"Node": NODE, "Address": "127.0.0.1"},
                        "Service": _registered(*one),
                        "Checks": [_node_check(), _check(*one)],
                    }
                    for one in self._present(name)
                ]
            case _:
                raise AssertionError(path)


def _node_check() -> dict[str, Any]:
    return _check_of("", "", "serfHealth", "Serf Health Status", "Agent alive and reachable", "")


def _check(service: str, instance: str, number: int, version: str) -> dict[str, Any]:
    notes = f"Registered by discovery (revision {number:06x}{version})"
    return _check_of(service, instance, f"service:{instance}", f"{service} TTL Health", "", notes)


def _check_of(service: str, instance: str, check: str, name: str, output: str, notes: str) -> dict[str, Any]:
    return {
        "Node": NODE,
        "CheckID": check,
        "Name": name,
        "Status": "passing",
        "Notes": notes,
        "Output": output,
        "ServiceID": instance,
        "ServiceName": service,
        "ServiceTags": [],
        "Type": "ttl" if service else "",
        "Definition": {},
        "CreateIndex": 50,
        "ModifyIndex": 50,
    }


def _registered(service: str, instance: str, number: int, version: str) -> dict[str, Any]:
    return {
        "ID": instance,
        "Service": service,
        "Tags": [],
        "Address": f"127.16.{number // 250}.{number % 250 + 1}",
        "Meta": {"scheme": "http", "health_check_endpoint": "/health", "weight": "1", "version": version},
        "Port": 8080,
        "Weights": {"Passing": 1, "Warning": 1},
        "EnableTagOverride": False,
        "CreateIndex": 50,
        "ModifyIndex": 50 + int(version),
    }


class Pauses:
    """How long the garbage collector held everything, by generation."""

    def __init__(self) -> None:
        self._began = 0.0
        self.seconds: dict[int, list[float]] = {0: [], 1: [], 2: []}

    def __call__(self, phase: str, info: dict[str, int]) -> None:
        if phase == "start":
            self._began = time.process_time()
        else:
            self.seconds[info["generation"]].append(time.process_time() - self._began)

    def __str__(self) -> str:
        return "; ".join(
            f"generation {generation}: {len(found)} pauses, longest {max(found, default=0.0) * 1e3:.2f} ms"
            for generation, found in self.seconds.items()
        )


async def run(arguments: argparse.Namespace) -> None:
    registry = ReadyRegistry(arguments.services, arguments.instances)
    sink = os.open(os.devnull, os.O_WRONLY)
    tasks = asyncio.TaskGroup()
    async with tasks:
        proxy = Proxy(GatewaySettings(), tasks, access_log=AccessLog(LineWriter(sink)))
        collector = None if arguments.busy_collector else CalmCollector()
        routing = Routing(proxy, RoutingPolicy(), Health(), collector)
        follower = ConsulFollower(registry, on_refresh=routing.on_refresh, on_trouble=routing.on_trouble)
        routing.verdicts.set(NO_VERDICTS)
        running = [
            tasks.create_task(routing.run(), name="keep routes"),
            tasks.create_task(follower.follow(routing.catalog), name="follow catalog"),
        ]
        await routing.has_table.wait()
        await asyncio.sleep(30)

        async def change(count: int) -> None:
            for _ in range(count):
                registry.change()
                await asyncio.sleep(EVERY_SECONDS)

        await change(2 * STEPS)
        assert proxy.table is not None
        before = proxy.table.version
        pauses = Pauses()
        if arguments.pauses:
            gc.callbacks.append(pauses)
        profiler = cProfile.Profile() if arguments.profile else None
        if profiler:
            profiler.enable()
        began = time.process_time()
        await change(arguments.changes)
        spent = time.process_time() - began
        if profiler:
            profiler.disable()
            pstats.Stats(profiler).sort_stats("tottime").print_stats(35)
        made = proxy.table.version - before
        if made < arguments.changes:
            raise SystemExit(f"{arguments.changes} changes gave {made} tables")
        print(
            f"{spent / arguments.changes * 1e3:.3f} ms of CPU per change, {made} tables of {arguments.changes} changes"
        )
        if arguments.pauses:
            gc.callbacks.remove(pauses)
            began = time.process_time()
            gc.collect()
            print(f"{pauses}; a full collection now: {(time.process_time() - began) * 1e3:.2f} ms")
        for task in running:
            task.cancel()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--services", type=int, default=1000)
    parser.add_argument("--instances", type=int, default=2000)
    parser.add_argument("--changes", type=int, default=200)
    parser.add_argument("--profile", action="store_true")
    parser.add_argument("--pauses", action="store_true", help="measure the garbage collector's pauses too")
    parser.add_argument("--busy-collector", action="store_true", help="leave the collector as Python sets it up")
    arguments = parser.parse_args()
    run_virtual(lambda: run(arguments))


if __name__ == "__main__":
    main()
