"""How many beats a second discovery takes on one core, and how long one waits.

Starts the registry and discovery, registers instances and beats for them from client processes of their own, over
connections and calls like those of SDKs. Discovery is pinned to one core, everything else to the others. Printed are
the rate, the latencies, and the CPU time that one beat costs discovery, which holds on a busy machine too.

    python bench/discovery_beats.py [--registry embedded|consul] [--seconds 10] [--instances 1000] [--rate N]
"""

import argparse
import asyncio
import multiprocessing
import os
import statistics
import sys
import time
from contextlib import ExitStack
from multiprocessing.synchronize import Event
from pathlib import Path

import grpc
import uvloop

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "src")]

from tests.integration.discovery.conftest import DiscoveryServer  # noqa: E402
from tests.support.servers import ConsulServer, RegistryServer, ServerProcess  # noqa: E402

from toska_mesh.pb import discovery_pb2, discovery_pb2_grpc  # noqa: E402

BAR_BEATS_PER_SECOND = 3000
BAR_P99_SECONDS = 0.020
TICKS_PER_SECOND = os.sysconf("SC_CLK_TCK")


def cpu_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / TICKS_PER_SECOND


async def register(target: str, count: int) -> None:
    async with grpc.aio.insecure_channel(target) as channel:
        stub = discovery_pb2_grpc.DiscoveryRegistryStub(channel)

        async def register_one(request: discovery_pb2.RegisterServiceRequest) -> None:
            answer = await stub.Register(request, timeout=30)
            assert answer.success, answer.errorMessage

        for start in range(0, count, 50):
            async with asyncio.TaskGroup() as tasks:
                for number in range(start, min(start + 50, count)):
                    request = discovery_pb2.RegisterServiceRequest(
                        serviceName=f"svc-{number % 100}",
                        serviceId=f"svc-{number}",
                        address="10.0.0.1",
                        port=9000,
                        metadata={"scheme": "http", "health_check_endpoint": "/health"},
                    )
                    tasks.create_task(register_one(request))


async def beat(target: str, ids: list[str], workers: int, rate: float, seconds: float) -> tuple[list[float], int]:
    """Beat for `seconds`: closed loop, or at `rate` a second when it is above 0."""
    loop = asyncio.get_running_loop()
    latencies: list[float] = []
    refused = 0
    ends = loop.time() + seconds

    async def work(number: int, beats: grpc.aio.UnaryUnaryMultiCallable) -> None:
        nonlocal refused
        mine = ids[number::workers] or ids
        turn, due = 0, loop.time()
        while loop.time() < ends:
            if rate:
                due += workers / rate
                await asyncio.sleep(max(0.0, due - loop.time()))
            started = due if rate else loop.time()
            request = discovery_pb2.ReportHealthRequest(serviceId=mine[turn % len(mine)], status=1, output="heartbeat")
            answer = await beats(request, timeout=5)
            refused += not answer.success
            latencies.append(loop.time() - started)
            turn += 1

    async with grpc.aio.insecure_channel(target, options=[("grpc.use_local_subchannel_pool", 1)]) as channel:
        stub = discovery_pb2_grpc.DiscoveryRegistryStub(channel)
        async with asyncio.TaskGroup() as tasks:
            for number in range(workers):
                tasks.create_task(work(number, stub.ReportHealth))
    return latencies, refused


def client(
    target: str,
    ids: list[str],
    workers: int,
    rate: float,
    seconds: float,
    go: Event,
    results: "multiprocessing.Queue[tuple[list[float], int]]",
) -> None:
    go.wait()
    results.put(uvloop.run(beat(target, ids, workers, rate, seconds)))


def measure(discovery: DiscoveryServer, options: argparse.Namespace) -> None:
    context = multiprocessing.get_context("spawn")
    go, results = context.Event(), context.Queue()
    ids = [f"svc-{number}" for number in range(options.instances)]
    share = options.rate / options.clients
    processes = [
        context.Process(
            target=client,
            args=(discovery.target, ids[n :: options.clients], options.workers, share, options.seconds, go, results),
        )
        for n in range(options.clients)
    ]
    for process in processes:
        process.start()
    time.sleep(options.settle)  # imports; and the registrations have gone round
    before = cpu_seconds(discovery.pid)
    go.set()
    answers = [results.get(timeout=options.seconds + 60) for _ in processes]
    used = cpu_seconds(discovery.pid) - before
    for process in processes:
        process.join()
    latencies = sorted(latency for answer in answers for latency in answer[0])
    refused = sum(answer[1] for answer in answers)
    count = len(latencies)
    rate, p99 = count / options.seconds, latencies[int(count * 0.99)]
    print(f"beats            {count} ({refused} refused), {rate:.0f}/s  (bar {BAR_BEATS_PER_SECOND}/s)")
    print(f"latency          median {statistics.median(latencies) * 1e3:.2f} ms, p99 {p99 * 1e3:.2f} ms", end="")
    print(f"  (bar {BAR_P99_SECONDS * 1e3:.0f} ms)")
    print(f"discovery's CPU  {used / count * 1e6:.0f} µs per beat: {count / used:.0f} beats per core and second")
    print(f"discovery's memory {discovery.memory_bytes() / 2**20:.0f} MiB")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--registry", choices=("embedded", "consul"), default="embedded")
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--instances", type=int, default=1000)
    parser.add_argument("--clients", type=int, default=2, help="client processes")
    parser.add_argument("--workers", type=int, default=16, help="calls at once per client")
    parser.add_argument("--rate", type=float, default=0.0, help="beats per second in all; 0 = as many as possible")
    parser.add_argument("--settle", type=float, default=5.0, help="seconds between registering and beating")
    options = parser.parse_args()
    cores = sorted(os.sched_getaffinity(0))
    with ExitStack() as stack:
        registry: ServerProcess = ConsulServer() if options.registry == "consul" else RegistryServer()
        stack.enter_context(registry)
        discovery = stack.enter_context(DiscoveryServer(registry.url))  # type: ignore[attr-defined]
        if len(cores) > 1:
            pin(discovery.pid, {cores[0]})
            pin(registry.pid, set(cores[1:]))
            os.sched_setaffinity(0, set(cores[1:]))
        uvloop.run(register(discovery.target, options.instances))
        measure(discovery, options)


def pin(pid: int, cores: set[int]) -> None:
    for task in Path(f"/proc/{pid}/task").iterdir():
        os.sched_setaffinity(int(task.name), cores)


if __name__ == "__main__":
    main()
