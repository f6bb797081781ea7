"""What a call through the SDK's client costs beside a bare aiohttp call to the same backend.

The caller is this process, alone on its core; backend and registry are on the other one. The bare session has the same
settings as the client's (no limit of connections, no cookies), aiohttp's own timeout, and one address. The client
follows the registry and balances over 1, 4 and 100 instances, which are the same backend under as many addresses. All
take turns in short rounds; a ratio is one of medians of the same run.

    python -m bench.client --rounds 15 --calls 1500
"""

import argparse
import asyncio
import os
import time
import urllib.request
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import AsyncExitStack, ExitStack

import aiohttp
import orjson
import uvloop
from tests.support.process import http_get

from bench.support.contestants import PROXY_CORE, Backend, PinnedRegistry
from bench.support.results import percentile, save
from bench.support.rounds import medians, prepare, ratio, rotated
from toska_mesh.sdk import Client, ConnectOptions, Mesh

BARE = "bare aiohttp"
PATH = "/small"
INSTANCES = (1, 4, 100)
CONCURRENCIES = (1, 64)
LOOPS = {"asyncio": asyncio.new_event_loop, "uvloop": uvloop.new_event_loop}

Call = Callable[[], Awaitable[None]]


def register(registry: PinnedRegistry, backend: Backend, service: str, count: int) -> None:
    """The backend, `count` times, under addresses of its own."""
    for number in range(count):
        instance = f"{service}-{number}"
        body = orjson.dumps(
            {
                "ID": instance,
                "Name": service,
                "Address": f"127.0.1.{1 + number}",
                "Port": backend.wide_port,
                "Meta": {"scheme": "http"},
                "Check": {"CheckID": f"service:{instance}", "TTL": "3600s", "Status": "passing"},
            }
        )
        request = urllib.request.Request(f"{registry.url}/v1/agent/service/register", data=body, method="PUT")
        with urllib.request.urlopen(request, timeout=5):
            pass


async def measure(call: Call, concurrency: int, calls: int) -> dict[str, float]:
    """So many calls by so many tasks: calls per second, CPU of this process for each, and their durations."""
    seconds: list[float] = []

    async def work(count: int) -> None:
        for _ in range(count):
            began = time.perf_counter()
            await call()
            seconds.append(time.perf_counter() - began)

    began, cpu_began = time.perf_counter(), time.process_time()
    async with asyncio.TaskGroup() as tasks:
        for _ in range(concurrency):
            tasks.create_task(work(calls // concurrency))
    took, cpu = time.perf_counter() - began, time.process_time() - cpu_began
    seconds.sort()
    return {
        "calls_per_second": len(seconds) / took,
        "cpu_microseconds": cpu / len(seconds) * 1e6,
        "p50_microseconds": percentile(seconds, 0.5) * 1e6,
        "p99_microseconds": percentile(seconds, 0.99) * 1e6,
    }


def bare(session: aiohttp.ClientSession, url: str) -> Call:
    async def call() -> None:
        async with session.get(url) as answer:
            await answer.read()

    return call


def through(client: Client) -> Call:
    async def call() -> None:
        async with client.get(PATH) as answer:
            await answer.read()

    return call


async def compare(registry_url: str, backend_url: str, rounds: int, calls: int) -> dict[str, dict[str, float]]:
    """Medians by contestant and concurrency."""
    async with AsyncExitStack() as stack:
        session = await stack.enter_async_context(
            aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=30), cookie_jar=aiohttp.DummyCookieJar()
            )
        )
        mesh = await stack.enter_async_context(Mesh(ConnectOptions(provider="consul", consul_address=registry_url)))
        contestants: dict[str, Call] = {BARE: bare(session, f"{backend_url}{PATH}")}
        for count in INSTANCES:
            client = mesh.client(f"s{count}", timeout_seconds=30)
            contestants[_name(count)] = through(client)
        for call in contestants.values():
            await measure(call, max(CONCURRENCIES), 2000)
        found: dict[str, list[Mapping[str, float]]] = {}
        for turn in range(rounds):
            for concurrency in CONCURRENCIES:
                for name in rotated(list(contestants), turn):
                    figures = await measure(contestants[name], concurrency, calls)
                    found.setdefault(f"{name}, {concurrency} at once", []).append(figures)
        return {name: medians(all_) for name, all_ in found.items()}


def _name(count: int) -> str:
    return f"client, {count} instance{'s' if count > 1 else ''}"


def rows(by_loop: Mapping[str, Mapping[str, Mapping[str, float]]]) -> Iterator[list[object]]:
    yield ["loop", "who", "at once", "calls/s", "÷ bare", "p50 µs", "÷ bare", "p99 µs", "CPU µs/call", "÷ bare",
           "more µs"]  # fmt: skip
    for loop, figures in by_loop.items():
        for concurrency in CONCURRENCIES:
            theirs = figures[f"{BARE}, {concurrency} at once"]
            for name in (BARE, *map(_name, INSTANCES)):
                ours = figures[f"{name}, {concurrency} at once"]
                yield [
                    loop,
                    name,
                    concurrency,
                    f"{ours['calls_per_second']:,.0f}",
                    f"{ratio(ours, theirs, 'calls_per_second'):.2f}",
                    f"{ours['p50_microseconds']:,.0f}",
                    f"{ratio(ours, theirs, 'p50_microseconds'):.2f}",
                    f"{ours['p99_microseconds']:,.0f}",
                    f"{ours['cpu_microseconds']:,.1f}",
                    f"{ratio(ours, theirs, 'cpu_microseconds'):.2f}",
                    f"{ours['cpu_microseconds'] - theirs['cpu_microseconds']:,.1f}",
                ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--calls", type=int, default=1500, help="per contestant and round")
    arguments = parser.parse_args()
    prepare()
    with ExitStack() as stack:
        backend = stack.enter_context(Backend())
        registry = stack.enter_context(PinnedRegistry())
        for count in INSTANCES:
            register(registry, backend, f"s{count}", count)
        assert http_get(f"{backend.base}{PATH}")[0] == 200
        os.sched_setaffinity(0, {PROXY_CORE})
        figures: dict[str, dict[str, dict[str, float]]] = {}
        for loop, factory in LOOPS.items():
            with asyncio.Runner(loop_factory=factory) as runner:
                figures[loop] = runner.run(
                    compare(registry.url, f"http://127.0.0.1:{backend.wide_port}", arguments.rounds, arguments.calls)
                )
    save(
        "client",
        "A call through the SDK's client beside a bare one",
        figures,
        list(rows(figures)),
        "Medians over the rounds. Every answer is read whole. `more µs` is what the client's part of a call costs: "
        "finding the service, picking and admitting an instance, headers, a timeout. aiohttp's own work is in both.",
    )


if __name__ == "__main__":
    main()
