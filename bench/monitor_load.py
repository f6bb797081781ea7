"""Load for the health monitor: thousands of instances on loopback, some of which hang, refuse or flap.

The instances are addresses in 127.0.0.0/8; one server process on another core plays them all. Checked are the verdicts
(against a plain replay of what the server answered), the schedule and the memory; measured are the monitor's CPU time
per probe and the longest stall of its event loop. The result is one JSON object on stdout.

    python bench/monitor_load.py                                        2,000 instances, 10 s interval
    python bench/monitor_load.py --instances 20000 --concurrency 2048   the scale target
"""

import argparse
import asyncio
import json
import math
import multiprocessing
import os
import random
import resource
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from ipaddress import IPv4Address
from multiprocessing.connection import Connection
from typing import Any

import uvloop
from prometheus_client import CollectorRegistry

from toska_mesh.aio import Latest
from toska_mesh.healthmonitor.app import spare_the_collector
from toska_mesh.healthmonitor.history import Announcements
from toska_mesh.healthmonitor.ledger import Ledger, LedgerPolicy
from toska_mesh.healthmonitor.metrics import MonitorMetrics
from toska_mesh.healthmonitor.monitor import Monitor, MonitorPolicy
from toska_mesh.healthmonitor.probes import NetworkProber, ProbePolicy, Resolver
from toska_mesh.healthmonitor.verdict import Thresholds
from toska_mesh.model import CatalogSnapshot, Endpoint, HealthStatus, Instance, InstanceId, ServiceName, Verdicts

FIRST_ADDRESS = int(IPv4Address("127.16.0.1"))
INSTANCES_PER_SERVICE = 20
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\nok"
DOWN = b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 4\r\nConnection: close\r\n\r\nbusy"

BLINK = "..x"
"""One lost probe in three: must never make a verdict."""
WAVE = "....xxxxx"
"""Long enough both ways for a verdict to follow."""


@dataclass(frozen=True)
class Load:
    instances: int = 2000
    hang: int = 200
    refuse: int = 200
    flap: int = 200
    interval_seconds: float = 10.0
    timeout_seconds: float = 5.0
    concurrency: int = 256
    seconds: float = 90.0
    warm_up_seconds: float = 45.0
    """The memory is compared from here on: until then every instance has been probed and judged."""
    own_process: bool = True
    """Whether core and garbage collector of this process may be set up for the load."""


class Role:
    """Which instance plays which part; the same arithmetic on both sides."""

    def __init__(self, load: Load) -> None:
        self._load = load

    def of(self, number: int) -> str:
        for name, count in (("hang", self._load.hang), ("refuse", self._load.refuse), ("flap", self._load.flap)):
            if number < count:
                return name if name != "flap" else ("blink" if number % 2 else "wave")
            number -= count
        return "healthy"


class Instances(asyncio.Protocol):
    """The server's side of one connection: who is asked is the address that the connection came to."""

    def __init__(self, roles: Role, answers: dict[int, list[str]]) -> None:
        self._roles = roles
        self._answers = answers
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport  # type: ignore[assignment]

    def data_received(self, data: bytes) -> None:
        transport = self._transport
        assert transport is not None
        number = int(IPv4Address(transport.get_extra_info("sockname")[0])) - FIRST_ADDRESS
        role = self._roles.of(number)
        if role == "hang":
            return
        if role in ("blink", "wave"):
            seen = self._answers.setdefault(number, [])
            pattern = BLINK if role == "blink" else WAVE
            seen.append(pattern[len(seen) % len(pattern)])
            transport.write(OK if seen[-1] == "." else DOWN)
        else:
            transport.write(OK)
        transport.close()


def serve(load: Load, pipe: Connection) -> None:
    """The server process: says its port, plays until told to stop, then tells what the flapping ones answered."""
    if load.own_process:
        _pin(-1)
    answers: dict[int, list[str]] = {}

    async def main() -> None:
        loop = asyncio.get_running_loop()
        roles = Role(load)
        server = await loop.create_server(lambda: Instances(roles, answers), "0.0.0.0", 0, backlog=4096)
        pipe.send(server.sockets[0].getsockname()[1])
        stop = asyncio.Event()
        loop.add_reader(pipe.fileno(), stop.set)
        await stop.wait()
        server.close()

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(main())
    pipe.recv()
    pipe.send(answers)


def replay(answers: list[str], fall: int = 3, rise: int = 2) -> list[str]:
    """The verdicts that follow from these answers, told without the monitor's own code."""
    verdicts: list[str] = []
    for end in range(1, len(answers) + 1):
        seen = "".join(answers[:end])
        now = verdicts[-1] if verdicts else "Unknown"
        if seen.endswith("x" * fall):
            now_is = "Unhealthy"
        elif seen.endswith("." * rise) or (now != "Unhealthy" and seen.endswith(".")):
            now_is = "Healthy"
        else:
            now_is = now
        if now_is != now:
            verdicts.append(now_is)
    return verdicts


class Recorder:
    """Keeps exact values beside the histogram that it stands for."""

    def __init__(self, histogram: Any) -> None:
        self._histogram = histogram
        self.values: list[float] = []

    def observe(self, value: float) -> None:
        self._histogram.observe(value)
        self.values.append(value)


@asynccontextmanager
async def the_server(load: Load) -> AsyncIterator[tuple[int, Connection]]:
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=serve, args=(load, theirs), daemon=True)
    process.start()
    try:
        yield await asyncio.to_thread(_receive, ours), ours
    finally:
        process.terminate()
        await asyncio.to_thread(process.join, 5)


def _receive(pipe: Connection) -> Any:
    if not pipe.poll(20):
        raise TimeoutError("the server process did not answer")
    return pipe.recv()


def fleet(load: Load, port: int, refused_port: int) -> dict[ServiceName, tuple[Instance, ...]]:
    roles = Role(load)
    services: dict[ServiceName, tuple[Instance, ...]] = {}
    for number in range(load.instances):
        service = ServiceName(f"service-{number % max(1, load.instances // INSTANCES_PER_SERVICE)}")
        instance = Instance(
            service,
            InstanceId(f"instance-{number}"),
            Endpoint(str(IPv4Address(FIRST_ADDRESS + number)), refused_port if roles.of(number) == "refuse" else port),
            metadata={"scheme": "http", "health_check_endpoint": "/health"},
        )
        services[service] = (*services.get(service, ()), instance)
    return services


async def run_load(load: Load) -> dict[str, Any]:
    """Run the whole thing; gives the result as a plain dict."""
    if load.own_process:
        _pin(0)
    async with the_server(load) as (port, pipe), Resolver() as resolver:
        registry = CollectorRegistry()
        metrics = MonitorMetrics(registry)
        lag = Recorder(metrics.lag)
        metrics.lag = lag  # type: ignore[assignment]
        ledger = Ledger(LedgerPolicy(load.interval_seconds, Thresholds(fall=3, rise=2)))
        prober = NetworkProber(ProbePolicy(http_timeout_seconds=load.timeout_seconds), resolver)
        monitor = Monitor(
            MonitorPolicy(load.interval_seconds, load.concurrency),
            ledger,
            prober,
            metrics,
            Announcements(),
            lambda: datetime.now(UTC),
            random.Random(1),
        )
        catalog, verdicts = Latest[CatalogSnapshot](), Latest[Verdicts]()
        catalog.set(CatalogSnapshot(fleet(load, port, _closed_port()), 1))
        stalls = [0.0]
        cpu_before, wall_before = time.process_time(), time.perf_counter()
        async with asyncio.TaskGroup() as tasks:
            running = tasks.create_task(monitor.run(catalog, verdicts))
            ticking = tasks.create_task(_watch_stalls(stalls))
            if load.own_process:
                tasks.create_task(spare_the_collector(catalog))
            await asyncio.sleep(load.warm_up_seconds)
            warm_rss, warm_values = _rss_bytes(), len(lag.values)
            await asyncio.sleep(load.seconds - load.warm_up_seconds)
            rss = _rss_bytes()
            cpu, wall = time.process_time() - cpu_before, time.perf_counter() - wall_before
            while verdicts.peek() != ledger.verdicts():  # a transition of this very moment is on its way
                await asyncio.sleep(0.01)
            running.cancel()
            ticking.cancel()
        pipe.send("stop")
        answers = await asyncio.to_thread(_receive, pipe)
        probes = sum(
            registry.get_sample_value("toska_healthmonitor_probes_total", {"type": "http", "outcome": outcome}) or 0
            for outcome in ("success", "failure", "timeout", "inconclusive")
        )
        missed = registry.get_sample_value("toska_healthmonitor_missed_deadlines_total") or 0
        wrong = wrong_verdicts(load, ledger, verdicts.peek() or Verdicts(), answers)
        values = sorted(lag.values)
        recorder_bytes = (len(lag.values) - warm_values) * 32
        return {
            "load": asdict(load),
            "probes": int(probes),
            "probes_per_second": round(probes / wall, 1),
            "cpu_share_of_one_core": round(cpu / wall, 3),
            "probes_per_cpu_second": round(probes / cpu, 1),
            "wrong_verdicts": wrong[:10],
            "wrong_verdict_count": len(wrong),
            "missed_deadlines": int(missed),
            "lag_p50_ms": round(1000 * _quantile(values, 0.5), 2),
            "lag_p99_ms": round(1000 * _quantile(values, 0.99), 2),
            "lag_max_ms": round(1000 * values[-1], 2),
            "longest_stall_ms": round(1000 * stalls[0], 1),
            "rss_mib": round(rss / 2**20, 1),
            "rss_growth_after_warm_up_mib": round((rss - warm_rss - recorder_bytes) / 2**20, 2),
        }


def wrong_verdicts(load: Load, ledger: Ledger, published: Verdicts, answers: dict[int, list[str]]) -> list[str]:
    """One line per instance whose verdict, history or published state is not what its part calls for."""
    roles = Role(load)
    wrong: list[str] = []
    seen = 0
    for service in ledger.service_names:
        for record in ledger.records(service):
            seen += 1
            number = int(record.key[1].removeprefix("instance-"))
            role = roles.of(number)
            history = [transition.current.label for transition in record.history]
            if role == "healthy":
                allowed = [["Healthy"]]
            elif role in ("hang", "refuse"):
                allowed = [["Unhealthy"]]
            else:  # the last answers may have been on their way when everything stopped
                told = answers.get(number, [])
                allowed = [replay(told), replay(told[:-1])]
            objection = published.services.get(service, {}).get(record.key[1])
            is_published = (objection is HealthStatus.UNHEALTHY) == (record.status is HealthStatus.UNHEALTHY)
            if history not in allowed or not is_published:
                wrong.append(f"{record!r} ({role}): {history}, expected {allowed[0]}, published {objection}")
    if seen != load.instances:
        wrong.append(f"{seen} instances known instead of {load.instances}")
    return wrong


async def _watch_stalls(longest: list[float]) -> None:
    loop = asyncio.get_running_loop()
    while True:
        before = loop.time()
        await asyncio.sleep(0.01)
        longest[0] = max(longest[0], loop.time() - before - 0.01)


def _closed_port() -> int:
    import socket

    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return int(taken.getsockname()[1])


def _quantile(ordered: list[float], share: float) -> float:
    return ordered[min(len(ordered) - 1, math.ceil(share * len(ordered)) - 1)]


def _rss_bytes() -> int:
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def _pin(index: int) -> None:
    cores = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, {cores[index]})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--instances", type=int, default=2000)
    parser.add_argument("--share", type=float, default=0.1, help="share of instances that hang, refuse and flap, each")
    parser.add_argument("--interval", type=float, default=10.0, help="seconds")
    parser.add_argument("--timeout", type=float, default=5.0, help="seconds")
    parser.add_argument("--concurrency", type=int, default=256)
    parser.add_argument("--seconds", type=float, default=90.0)
    parser.add_argument("--out", help="also write the result to this file")
    options = parser.parse_args()
    part = int(options.instances * options.share)
    load = Load(
        options.instances,
        part,
        part,
        part,
        options.interval,
        options.timeout,
        options.concurrency,
        options.seconds,
        min(options.seconds / 2, 4.5 * options.interval),
    )
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, min(hard, 16384)), hard))
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        result = runner.run(run_load(load))
    text = json.dumps(result, indent=2)
    print(text)
    if options.out:
        with open(options.out, "w") as file:
            file.write(text + "\n")
    sys.exit(1 if result["wrong_verdict_count"] else 0)


if __name__ == "__main__":
    main()
