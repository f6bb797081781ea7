"""Nanoseconds per decision of the router and resilience cores: `python bench/micro/router.py`.

Each row is the best of several runs of a plain loop, less the empty loop, on one core. The loads of the targets
differ, nobody is blocked, and the answer is always used, as on the gateway's ordinary path. The last table is the cost
of following the catalog: a first table of 1,000 services and 10,000 instances, and one change of it.
"""

import timeit
from collections.abc import Callable
from random import Random

from toska_mesh.model import CatalogSnapshot, Endpoint, HealthStatus, Instance, InstanceId, ServiceName
from toska_mesh.resilience import Circuit, Outcome, RateLimiter, RecentLatency, RetryBudget
from toska_mesh.router import STRATEGIES, RouteTable, Service

SIZES = (1, 2, 10, 100, 1000)
RUNS, LOOPS = 7, 50_000
KEYS = tuple(f"192.0.{index // 256}.{index % 256}" for index in range(1024))


def instances(service: str, count: int, **metadata: str) -> tuple[Instance, ...]:
    return tuple(
        Instance(
            ServiceName(service),
            InstanceId(f"{service}-{index:05}"),
            Endpoint(f"10.0.{index // 250}.{index % 250}", 8080),
            HealthStatus.HEALTHY,
            {"scheme": "http", "weight": str(1 + index % 5), **metadata},
        )
        for index in range(count)
    )


def busy_service(strategy: str, count: int) -> Service:
    name = ServiceName("orders")
    table = RouteTable.build(
        CatalogSnapshot({name: instances(name, count, lb_strategy=strategy)}, 1), now=0.0, rng=Random(1)
    )
    service = table.services[name]
    for index, target in enumerate(service.targets):
        target.in_flight = 1 + index % 7
    for key in KEYS:
        service.pick(0.0, key)  # settle the slots of a hash: they are settled once in the life of a table
    return service


def nanoseconds(statement: str, **names: object) -> float:
    """One execution of the statement, best of several runs, without the cost of the loop around it."""
    loop = min(timeit.repeat("pass", repeat=RUNS, number=LOOPS))
    return max(0.0, min(timeit.repeat(statement, globals=names, repeat=RUNS, number=LOOPS)) - loop) / LOOPS * 1e9


def seconds(call: Callable[[], object]) -> float:
    return min(timeit.repeat(call, repeat=3, number=1))


def main() -> None:
    print(f"{'pick, ns':<34}" + "".join(f"{size:>8}" for size in SIZES))
    for strategy in STRATEGIES.values():
        costs = [
            nanoseconds("pick(1.0, key)", pick=busy_service(strategy.name, size).pick, key=KEYS[7]) for size in SIZES
        ]
        print(f"  {strategy.name:<32}" + "".join(f"{cost:>8.0f}" for cost in costs))
    for strategy in STRATEGIES.values():
        costs = []
        for size in SIZES:
            service = busy_service(strategy.name, size)
            service.targets[0].is_blocked = size > 1
            costs.append(nanoseconds("pick(1.0, key)", pick=service.pick, key=KEYS[7]))
        print(f"  {strategy.name + ', one blocked':<32}" + "".join(f"{cost:>8.0f}" for cost in costs))

    circuit, budget, latency = Circuit(), RetryBudget(), RecentLatency()
    limiter = RateLimiter(permits=10**9)
    print("resilience, ns")
    for label, statement in {
        "closed circuit: look": "circuit.is_clean",
        "closed circuit: admit and settle": "circuit.settle(circuit.admit(1.0), good, 1.0)",
        "retry budget: record a request": "budget.record_request(1.0)",
        "latency: observe": "latency.observe(0.004)",
        "latency: p99": "latency.p99()",
        "rate limiter: admit": "limiter.admit('192.0.2.1', 1.0)",
    }.items():
        cost = nanoseconds(
            statement, circuit=circuit, budget=budget, latency=latency, limiter=limiter, good=Outcome.SUCCESS
        )
        print(f"  {label:<32}{cost:>8.0f}")

    names = [ServiceName(f"service-{index:04}") for index in range(1000)]
    fleet = {name: instances(name, 10) for name in names}
    first = RouteTable.build(CatalogSnapshot(fleet, 1), now=0.0)
    changed = {**fleet, names[500]: fleet[names[500]][:-1]}
    print("route table, 1,000 services and 10,000 instances, ms")
    print(f"  {'first build':<32}{seconds(lambda: RouteTable.build(CatalogSnapshot(fleet, 1), now=0.0)) * 1e3:>8.1f}")
    one_change = seconds(lambda: RouteTable.build(CatalogSnapshot(changed, 2), previous=first, now=1.0))
    print(f"  {'one instance left':<32}{one_change * 1e3:>8.1f}")


if __name__ == "__main__":
    main()
