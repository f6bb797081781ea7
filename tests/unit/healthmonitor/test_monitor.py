"""The loop on the virtual clock: when probes start, what is handed on, what survives trouble."""

import asyncio
import random
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from itertools import pairwise

import pytest
from prometheus_client import CollectorRegistry
from tests.unit.healthmonitor.builders import (
    DOWN,
    OK,
    SILENT,
    ScriptedProber,
    a_snapshot,
    an_instance,
    utcnow,
)

from toska_mesh.aio import Latest
from toska_mesh.healthmonitor.history import Announcements
from toska_mesh.healthmonitor.ledger import Ledger, LedgerPolicy, Record
from toska_mesh.healthmonitor.metrics import MonitorMetrics
from toska_mesh.healthmonitor.monitor import Monitor, MonitorPolicy
from toska_mesh.healthmonitor.targets import ProbePlan
from toska_mesh.healthmonitor.verdict import ProbeResult
from toska_mesh.model import CatalogSnapshot, HealthStatus, Instance, InstanceId, ServiceName, Verdicts

ORDERS = ServiceName("orders")
INTERVAL = 10.0


@dataclass
class Running:
    ledger: Ledger
    catalog: Latest[CatalogSnapshot]
    verdicts: Latest[Verdicts]
    announcements: Announcements
    registry: CollectorRegistry

    def metric(self, name: str, **labels: str) -> float:
        return self.registry.get_sample_value(f"toska_healthmonitor_{name}", labels) or 0.0

    def record(self, instance_id: str, service: str = "orders") -> Record:
        record = self.ledger.find((ServiceName(service), InstanceId(instance_id)))
        assert record is not None
        return record

    def unhealthy(self) -> set[str]:
        newest = self.verdicts.peek() or Verdicts()
        return {instance_id for found in newest.services.values() for instance_id in found}


@asynccontextmanager
async def running(prober: object, *instances: Instance, concurrency: int = 256) -> AsyncIterator[Running]:
    registry = CollectorRegistry()
    ledger = Ledger(LedgerPolicy(interval_seconds=INTERVAL))
    announcements = Announcements()
    monitor = Monitor(
        MonitorPolicy(INTERVAL, concurrency),
        ledger,
        prober,
        MonitorMetrics(registry),
        announcements,
        utcnow,
        random.Random(7),
    )
    state = Running(ledger, Latest(), Latest(), announcements, registry)
    state.catalog.set(a_snapshot(*instances))
    async with asyncio.TaskGroup() as tasks:
        task = tasks.create_task(monitor.run(state.catalog, state.verdicts))
        yield state
        task.cancel()


def fleet(count: int, prefix: str = "10.0") -> list[Instance]:
    return [an_instance(f"orders-{n}", host=f"{prefix}.{n // 250}.{n % 250 + 1}") for n in range(count)]


async def test_a_new_instance_is_probed_at_once_and_then_once_per_interval():
    prober = ScriptedProber()
    async with running(prober, an_instance()) as state:
        await asyncio.sleep(0.5)
        assert len(prober.seen["10.0.0.1"]) == 1
        assert state.record("orders-1").status is HealthStatus.HEALTHY
        await asyncio.sleep(10 * INTERVAL)
    times = prober.seen["10.0.0.1"]
    gaps = [later - earlier for earlier, later in pairwise(times[1:])]
    assert len(times) in (10, 11, 12)
    assert gaps == pytest.approx([INTERVAL] * len(gaps), abs=0.02)


async def test_a_fleet_is_probed_as_an_even_stream_and_not_as_a_herd():
    prober = ScriptedProber(seconds=0.02)
    async with running(prober, *fleet(800)) as state:
        await asyncio.sleep(3 * INTERVAL)
        assert state.metric("missed_deadlines_total") == 0
        assert state.metric("schedule_lag_seconds_bucket", le="0.01") == state.metric("schedule_lag_seconds_count")
    # 80 probes start per second (500 at first) and each takes 0.02 s: a herd would show as hundreds in flight
    assert prober.most_in_flight < 40
    assert all(len(times) >= 2 for times in prober.seen.values())


async def test_an_instance_that_fails_three_times_is_a_verdict_and_news():
    prober = ScriptedProber({"10.0.0.1": lambda turn: DOWN if turn >= 1 else OK})
    async with running(prober, an_instance(), an_instance("orders-2", host="10.0.0.2")) as state:
        await asyncio.sleep(2.4 * INTERVAL)
        assert state.unhealthy() == set()
        await asyncio.sleep(2 * INTERVAL)
        assert state.verdicts.peek() == Verdicts(
            {ORDERS: {InstanceId("orders-1"): HealthStatus.UNHEALTHY}}, {ORDERS: 2}
        )
        news = state.announcements.next()
        assert news is not None
        assert (news.instance_id, news.previous, news.current) == (
            "orders-1",
            HealthStatus.HEALTHY,
            HealthStatus.UNHEALTHY,
        )
        assert len(state.announcements) == 1


async def test_a_flapping_instance_keeps_its_verdict():
    prober = ScriptedProber({"10.0.0.1": lambda turn: DOWN if turn % 3 else OK})
    async with running(prober, an_instance()) as state:
        await asyncio.sleep(40 * INTERVAL)
        assert state.unhealthy() == set()
        assert len(state.announcements) == 0


async def test_what_stays_dead_is_probed_half_as_often():
    prober = ScriptedProber({"10.0.0.1": lambda _: DOWN})
    async with running(prober, an_instance(), an_instance("orders-2", host="10.0.0.2")) as state:
        await asyncio.sleep(41 * INTERVAL)
        assert len(prober.seen["10.0.0.1"]) == pytest.approx(22, abs=2)
        assert len(prober.seen["10.0.0.2"]) == pytest.approx(42, abs=1)
        assert state.metric("probes_left_out_total") == pytest.approx(19, abs=2)


async def test_hanging_instances_do_not_delay_the_others():
    instances = fleet(400)
    hanging = {instance.endpoint.host for instance in instances[:100]}
    prober = ScriptedProber({host: lambda _: SILENT for host in hanging})
    prober.seconds = dict.fromkeys(hanging, 5.0)
    async with running(prober, *instances, concurrency=20) as state:
        await asyncio.sleep(30 * INTERVAL)
        healthy = [times for host, times in prober.seen.items() if host not in hanging]
        gaps = [b - a for times in healthy for a, b in pairwise(times[8:])]
        assert max(gaps) < 1.5 * INTERVAL
        assert state.unhealthy() == {instance.id for instance in instances[:100]}
        assert state.metric("missed_deadlines_total") > 0  # of the hanging ones: 20 slots are too few for them
    assert prober.most_in_flight <= 20


async def test_the_number_of_probes_in_flight_is_bounded():
    prober = ScriptedProber(seconds=3.0)
    async with running(prober, *fleet(300), concurrency=7):
        await asyncio.sleep(3 * INTERVAL)
    assert prober.most_in_flight == 7


async def test_a_departed_instance_is_probed_no_more_and_leaves_no_verdict():
    prober = ScriptedProber({"10.0.0.1": lambda _: DOWN})
    async with running(prober, an_instance(), an_instance("orders-2", host="10.0.0.2")) as state:
        await asyncio.sleep(5 * INTERVAL)
        assert state.unhealthy() == {"orders-1"}
        state.catalog.set(a_snapshot(an_instance("orders-2", host="10.0.0.2")))
        await asyncio.sleep(1)
        count = len(prober.seen["10.0.0.1"])
        assert state.verdicts.peek() == Verdicts({}, {ORDERS: 1})
        await asyncio.sleep(5 * INTERVAL)
        assert len(prober.seen["10.0.0.1"]) == count
        assert state.metric("instances", status="Unhealthy") == 0
        state.catalog.set(a_snapshot())
        await asyncio.sleep(1)
        assert len(state.ledger) == 0


async def test_a_result_that_arrives_after_the_instance_left_is_thrown_away():
    prober = ScriptedProber({"10.0.0.1": lambda _: DOWN}, seconds=4.0)
    async with running(prober, an_instance()) as state:
        await asyncio.sleep(1)
        state.catalog.set(a_snapshot())
        await asyncio.sleep(1)
        state.catalog.set(a_snapshot(an_instance(host="10.0.0.2")))
        await asyncio.sleep(3.5)
        assert state.record("orders-1").judgement.failures == 0


async def test_a_moved_instance_is_probed_at_its_new_place_at_once():
    prober = ScriptedProber({"10.0.0.1": lambda _: DOWN})
    async with running(prober, an_instance()) as state:
        await asyncio.sleep(5 * INTERVAL)
        state.catalog.set(a_snapshot(an_instance(host="10.0.0.9")))
        await asyncio.sleep(0.5)
        assert len(prober.seen["10.0.0.9"]) == 1
        assert state.unhealthy() == set()
        assert state.record("orders-1").status is HealthStatus.HEALTHY


async def test_a_stale_catalog_keeps_the_last_known_instances_probed():
    prober = ScriptedProber()
    snapshot = a_snapshot(an_instance())
    async with running(prober, an_instance()) as state:
        await asyncio.sleep(1)
        state.catalog.set(CatalogSnapshot(snapshot.services, 2, 1.0, "connection refused"))
        await asyncio.sleep(10 * INTERVAL)
    assert len(prober.seen["10.0.0.1"]) >= 10


async def test_instances_without_a_probe_are_listed_and_left_alone():
    prober = ScriptedProber()
    async with running(prober, an_instance(health_check_endpoint="")) as state:
        await asyncio.sleep(20 * INTERVAL)
        assert prober.seen == {}
        assert state.record("orders-1").status is HealthStatus.UNKNOWN
        assert state.verdicts.peek() == Verdicts({}, {})
        assert len(state.announcements) == 0


async def test_a_slow_prober_skips_slots_and_counts_them():
    prober = ScriptedProber(seconds=25.0)
    async with running(prober, an_instance()) as state:
        await asyncio.sleep(20 * INTERVAL)
        assert state.metric("missed_deadlines_total") >= 10
        gaps = [b - a for a, b in pairwise(prober.seen["10.0.0.1"][1:])]
        assert gaps == pytest.approx([30.0] * len(gaps), abs=0.02)


class BrokenProber:
    """Raises for one host, as a bug would."""

    def __init__(self, answer: Callable[[], ProbeResult]) -> None:
        self.answer = answer
        self.asked = 0

    async def probe(self, plan: ProbePlan) -> ProbeResult:
        self.asked += 1
        if plan.host == "10.0.0.1":
            raise RuntimeError("a bug")
        return self.answer()


async def test_a_bug_in_one_probe_neither_stops_the_others_nor_condemns_the_instance():
    prober = BrokenProber(lambda: OK)
    async with running(prober, an_instance(), an_instance("orders-2", host="10.0.0.2")) as state:
        await asyncio.sleep(10 * INTERVAL)
        assert state.record("orders-1").status is HealthStatus.UNKNOWN
        assert state.record("orders-2").status is HealthStatus.HEALTHY
        assert state.metric("probes_total", type="http", outcome="inconclusive") >= 9
    assert prober.asked >= 20


async def test_unchanged_services_are_not_looked_at_again():
    prober = ScriptedProber()
    first = a_snapshot(an_instance(), an_instance("carts-1", service="carts", host="10.0.0.2"))
    async with running(prober, *[i for found in first.services.values() for i in found]) as state:
        await asyncio.sleep(1)
        known = state.catalog.peek()
        assert known is not None
        adopted: list[str] = []
        adopt = state.ledger.adopt
        state.ledger.adopt = lambda service, *rest: (adopted.append(service), adopt(service, *rest))[1]  # type: ignore[method-assign]
        services = {**known.services, ServiceName("carts"): (an_instance("carts-2", service="carts", host="10.0.0.3"),)}
        state.catalog.set(CatalogSnapshot(services, 2))
        await asyncio.sleep(1)
        assert adopted == ["carts"]
        assert len(state.ledger) == 2
