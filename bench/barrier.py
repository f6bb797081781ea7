"""How long it takes until every gateway has applied a change, as who changed it sees it.

Fills a registry with services, starts gateways, and lets one instance after the other begin to drain and come back;
each time it waits with `ConsulGatewayBarrier`. Measured: the wait alone, from the registry's acknowledgement of the
change to the barrier's answer. On a real Consul and on `toska-registry`, with one gateway and with three; prints one
JSON object.

    python -m bench.barrier --services 1000 --instances 2000 --waits 200
"""

import argparse
import asyncio
import json
import os
import time
from contextlib import ExitStack

import uvloop
from tests.support.ports import free_port
from tests.support.servers import DaemonProcess, RegistryServer

from bench.freshness_follower import fill, instance, persistent_consul, summary
from toska_mesh.model import HealthStatus
from toska_mesh.registry.consul import ConsulClient, ConsulGatewayBarrier, ConsulOptions, ConsulRegistry

GATEWAYS = (1, 3)
LONGEST_SECONDS = 30.0


def gateway(url: str) -> DaemonProcess:
    port = free_port()
    env = {
        "CONSUL_ADDRESS": url,
        "GATEWAY_HOST": "127.0.0.1",
        "GATEWAY_PORT": str(port),
        "GATEWAY_ADMIN_PORT": str(free_port()),
    }
    return DaemonProcess("toska-gateway", env, f"http://127.0.0.1:{port}/health/ready")


async def measure(url: str, options: argparse.Namespace, gateways: int, is_followed: bool) -> dict[str, float]:
    """Milliseconds. `is_followed`: by a process that lives long, as discovery does; else as `toska wait` does."""
    took: list[float] = []
    loop = asyncio.get_running_loop()
    async with ConsulClient(ConsulOptions(url)) as client, asyncio.TaskGroup() as tasks:
        registry, barrier = ConsulRegistry(client), ConsulGatewayBarrier(client)
        following = tasks.create_task(barrier.run()) if is_followed else None
        for number in range(options.waits):
            one = instance(number % options.instances, options.services)
            for status, words in ((HealthStatus.DEGRADED, "draining"), (HealthStatus.HEALTHY, "")):
                await registry.report_health(one.id, status, words)
                began = time.perf_counter()
                report = await barrier.wait_applied(one.service, loop.time() + LONGEST_SECONDS)
                took.append((time.perf_counter() - began) * 1000)
                if not report.is_applied or len(report.gateways) != gateways:
                    raise SystemExit(f"{gateways} gateways should have applied it: {report}")
                await asyncio.sleep(options.pause)
        if following is not None:
            following.cancel()
    return summary(took)


async def prepare(url: str, options: argparse.Namespace) -> None:
    async with ConsulClient(ConsulOptions(url)) as client:
        await fill(ConsulRegistry(client), options.services, options.instances)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--registry", choices=("consul", "toska-registry", "both"), default="both")
    parser.add_argument("--services", type=int, default=1000)
    parser.add_argument("--instances", type=int, default=2000)
    parser.add_argument("--waits", type=int, default=200, help="instances that begin to drain and come back")
    parser.add_argument("--pause", type=float, default=0.02, help="seconds between two changes")
    options = parser.parse_args()
    results: dict[str, object] = {"services": options.services, "instances": options.instances}
    for name, new_server in (("consul", persistent_consul), ("toska-registry", RegistryServer)):
        if options.registry not in (name, "both"):
            continue
        with ExitStack() as stack:
            server = stack.enter_context(new_server())
            uvloop.run(prepare(server.url, options))
            found: dict[str, object] = {}
            started = 0
            for count in GATEWAYS:
                for _ in range(count - started):
                    stack.enter_context(gateway(server.url))
                started = count
                for is_followed in (False, True):
                    key = f"{count} gateway{'s' * (count > 1)}, {'followed' if is_followed else 'asked for'}"
                    found[key] = uvloop.run(measure(server.url, options, count, is_followed))
            results[name] = {"milliseconds": found}
    results["cores"] = os.cpu_count()
    print(json.dumps(results, indent=2))


if __name__ == "__main__":
    main()
