"""Does discovery's latency move when RabbitMQ is stopped or frozen?

One discovery on the embedded registry, one broker. Rounds with the broker up, frozen (SIGSTOP) and stopped follow each
other in one run, several times over, in another order each time, so that whatever else the machine does hits all alike.
A round registers new instances and reports health in turns, one call after the other. Printed are the latencies in each
state, and their ratio to those with the broker up.

    python -m bench.discovery_outage
"""

import argparse
import asyncio
import random
import time
from collections.abc import Iterator
from contextlib import ExitStack
from types import ModuleType
from typing import Any

import grpc.aio
import uvloop
from tests.support.ports import free_port
from tests.support.process import http_get
from tests.support.servers import ConsulServer, DaemonProcess, RabbitMQServer, RegistryServer

from bench.support.contract import generate
from bench.support.results import percentiles, save

STATES = ("up", "frozen", "stopped")
CALLS = ("Register", "ReportHealth")
METADATA = {"scheme": "http", "health_check_endpoint": "/health", "lb_strategy": "RoundRobin", "weight": "1"}
SETTLE_SECONDS = 1.0
"""After a change of the broker's state, until discovery has noticed it as far as it can."""

Figures = dict[str, dict[str, list[float]]]


class Bench:
    """The calls and their latencies in milliseconds, by call and state of the broker."""

    def __init__(self, stub: Any, messages: ModuleType) -> None:
        self._stub = stub
        self._pb = messages
        self._number = 0
        self.figures: Figures = {call: {state: [] for state in STATES} for call in CALLS}

    async def round(self, state: str, count: int) -> None:
        for _ in range(count):
            self._number += 1
            name = f"outage-{self._number % 20}"
            instance = f"{name}-{self._number}"
            request = self._pb.RegisterServiceRequest(
                serviceName=name, serviceId=instance, address="127.0.0.1", port=9, metadata=METADATA
            )
            await self._measure("Register", state, self._stub.Register, request)
            # Every second report is news, and news is an event too.
            for status in (1, 3, 3, 1):
                beat = self._pb.ReportHealthRequest(serviceId=instance, status=status, output="heartbeat")
                await self._measure("ReportHealth", state, self._stub.ReportHealth, beat)

    async def _measure(self, call: str, state: str, method: Any, request: Any) -> None:
        began = time.perf_counter()
        answer = await method(request, timeout=30)
        took = time.perf_counter() - began
        if not answer.success:
            raise SystemExit(f"{call} was refused with the broker {state}")
        self.figures[call][state].append(took * 1000)


class Broker:
    """RabbitMQ in the state that is asked for."""

    def __init__(self, server: RabbitMQServer) -> None:
        self._server = server
        self._state = "up"

    def become(self, state: str) -> None:
        if self._state == "frozen":
            self._server.resume()
        elif self._state == "stopped" and state != "stopped":
            self._server.start()
        if state == "frozen":
            self._server.pause()
        elif state == "stopped" and self._state != "stopped":
            self._server.stop()
        self._state = state


def orders(rounds: int) -> Iterator[tuple[str, ...]]:
    """Another order of the three states for each round."""
    rng = random.Random(1)
    for _ in range(rounds):
        yield tuple(rng.sample(STATES, len(STATES)))


async def measure(grpc_port: int, broker: Broker, rounds: int, count: int) -> Figures:
    messages, stubs = generate()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{grpc_port}") as channel:
        bench = Bench(stubs.DiscoveryRegistryStub(channel), messages)
        await bench.round("up", count)  # everybody has warmed up
        for latencies in bench.figures.values():
            latencies["up"].clear()
        for order in orders(rounds):
            for state in order:
                await asyncio.to_thread(broker.become, state)
                await asyncio.sleep(SETTLE_SECONDS)
                await bench.round(state, count)
        return bench.figures


def run(kind: str, rounds: int, count: int) -> Figures:
    with ExitStack() as stack:
        registry = stack.enter_context(ConsulServer() if kind == "consul" else RegistryServer())
        broker = stack.enter_context(RabbitMQServer())
        grpc_port, http_port = free_port(), free_port()
        ready_url = f"http://127.0.0.1:{http_port}/health/ready"
        stack.enter_context(
            DaemonProcess(
                "toska-discovery",
                {
                    "CONSUL_ADDRESS": registry.url,
                    "RABBITMQ_URL": broker.url,
                    "DISCOVERY_PORT": str(grpc_port),
                    "DISCOVERY_HTTP_PORT": str(http_port),
                },
                ready_url,
            )
        )
        while b'"name":"events","status":"Healthy"' not in http_get(ready_url)[1]:
            time.sleep(0.2)
        return uvloop.run(measure(grpc_port, Broker(broker), rounds, count))


def summary(figures: Figures) -> tuple[dict[str, Any], list[list[object]]]:
    """By call and state: percentiles, and how many times those with the broker up."""
    report: dict[str, Any] = {}
    table: list[list[object]] = [["milliseconds", "RabbitMQ", "median", "p99", "max", "median, × up", "p99, × up"]]
    for call, by_state in figures.items():
        up = percentiles(by_state["up"])
        report[call] = {}
        for state, values in by_state.items():
            one = percentiles(values)
            ratios = {key: round(one[key] / up[key], 2) for key in ("median", "p99")}
            report[call][state] = one | {"ratio": ratios}
            table.append([call, state, one["median"], one["p99"], one["max"], ratios["median"], ratios["p99"]])
    return report, table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5, help="rounds of each state")
    parser.add_argument("--count", type=int, default=100, help="registrations in a round; four reports follow each")
    parser.add_argument("--registry", choices=("toska-registry", "consul"), default="toska-registry")
    arguments = parser.parse_args()
    report, table = summary(run(arguments.registry, arguments.rounds, arguments.count))
    save(
        "discovery_outage",
        "Discovery's latency while RabbitMQ is away",
        report,
        table,
        f"{arguments.rounds} interleaved rounds of {arguments.count} registrations and {4 * arguments.count} health"
        f" reports in each state, one call after the other, on {arguments.registry}. Half of the reports change the"
        " status and are events, as each registration is.",
    )


if __name__ == "__main__":
    main()
