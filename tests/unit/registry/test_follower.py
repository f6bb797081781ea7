"""The follower against a fake Consul on the virtual clock."""

import asyncio
import random
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import pytest
from tests.unit.registry.consul_fake import FakeConsul

from toska_mesh.aio import Latest
from toska_mesh.model import CatalogSnapshot, HealthStatus, Instance, ServiceName
from toska_mesh.registry.api import RefreshReason, RefreshReport
from toska_mesh.registry.consul import ConsulFollower, FollowerOptions, SnapshotFile

OPTIONS = FollowerOptions()
ORDERS = ServiceName("orders")


class Following:
    """A follower at work and everything it published."""

    def __init__(self, consul: FakeConsul, options: FollowerOptions, file: SnapshotFile | None) -> None:
        self.catalog = Latest[CatalogSnapshot]()
        self.reports: list[RefreshReport] = []
        self.follower = ConsulFollower(
            consul, options, rng=random.Random(1), on_refresh=self.reports.append, snapshot_file=file
        )

    @property
    def snapshot(self) -> CatalogSnapshot:
        snapshot = self.catalog.peek()
        assert snapshot is not None, "nothing was published"
        return snapshot

    def shown(self, service: str = "orders") -> dict[str, HealthStatus]:
        return {one.id: one.status for one in self.snapshot.services.get(ServiceName(service), ())}

    def instances(self, service: str = "orders") -> tuple[Instance, ...]:
        return self.snapshot.services.get(ServiceName(service), ())


@asynccontextmanager
async def following(
    consul: FakeConsul, options: FollowerOptions = OPTIONS, file: SnapshotFile | None = None
) -> AsyncIterator[Following]:
    it = Following(consul, options, file)
    async with asyncio.TaskGroup() as tasks:
        task = tasks.create_task(it.follower.follow(it.catalog), name="follow")
        yield it
        task.cancel()


def reads(consul: FakeConsul) -> list[str]:
    prefix = "/v1/health/service/"
    return [path.removeprefix(prefix) for _, _, path, _ in consul.calls if path.startswith(prefix)]


H, U, D = HealthStatus.HEALTHY, HealthStatus.UNHEALTHY, HealthStatus.DEGRADED


async def test_nothing_is_published_before_the_whole_table_is_known() -> None:
    consul = FakeConsul(latency=0.01)
    for number in range(200):
        consul.register(f"s{number}", f"i{number}")
    async with following(consul) as it:
        first = await it.catalog.first()
        assert len(first.services) == 200
        assert first.version == 1
        assert [report.reason for report in it.reports] == [RefreshReason.FIRST]


async def test_the_reason_why_nothing_is_published_is_said() -> None:
    consul = FakeConsul()
    consul.break_connections("down")
    reasons: list[str] = []
    follower = ConsulFollower(consul, on_trouble=reasons.append)
    catalog = Latest[CatalogSnapshot]()
    async with asyncio.TaskGroup() as tasks:
        task = tasks.create_task(follower.follow(catalog), name="follow")
        await asyncio.sleep(30)
        assert len(reasons) == 1
        assert reasons[0]
        assert catalog.peek() is None
        task.cancel()


async def test_an_empty_registry_is_an_answer() -> None:
    async with following(FakeConsul()) as it:
        assert (await it.catalog.first()).services == {}


async def test_a_pause_between_questions_bounds_what_a_storm_costs_and_loses_nothing() -> None:
    consul = FakeConsul()
    async with following(consul, FollowerOptions(pause_seconds=0.2)) as it:
        await it.catalog.first()
        consul.calls.clear()
        for number in range(100):
            consul.register("orders", f"o{number}")
            await asyncio.sleep(0.01)
        await asyncio.sleep(1)
        assert len(it.shown()) == 100
        assert sum(path == "/v1/health/state/any" for _, _, path, _ in consul.calls) <= 10


async def test_the_pause_does_not_apply_while_somebody_is_in_a_hurry() -> None:
    consul = FakeConsul()
    is_hurried = False
    catalog = Latest[CatalogSnapshot]()
    follower = ConsulFollower(consul, FollowerOptions(pause_seconds=5), is_hurried=lambda: is_hurried)

    async def seconds_until_shown(instance: str) -> float:
        """The second of two registrations: the first one ends a question, after which there may be a pause."""
        loop = asyncio.get_running_loop()
        consul.register("orders", f"{instance}-before")
        await catalog.newer_than(catalog.version)
        consul.register("orders", instance)
        registered_at = loop.time()
        await catalog.newer_than(catalog.version)
        return loop.time() - registered_at

    async with asyncio.TaskGroup() as tasks:
        task = tasks.create_task(follower.follow(catalog), name="follow")
        await catalog.first()
        await asyncio.sleep(20)
        assert await seconds_until_shown("at-leisure") > 1
        is_hurried = True
        await asyncio.sleep(20)
        assert await seconds_until_shown("in-a-hurry") < 0.01
        task.cancel()


async def test_a_registration_is_shown_within_milliseconds() -> None:
    consul = FakeConsul(latency=0.001)
    async with following(consul) as it:
        await it.catalog.first()
        await asyncio.sleep(1)
        registered_at = asyncio.get_running_loop().time()
        consul.register("orders", "o1")
        await it.catalog.newer_than(1)
        assert asyncio.get_running_loop().time() - registered_at < 0.01
        assert it.shown() == {"o1": H}
        assert it.reports[-1].duration_seconds < 0.01


async def test_only_what_changed_is_read_again() -> None:
    consul = FakeConsul()
    for number in range(50):
        consul.register(f"s{number}", f"i{number}")
    async with following(consul) as it:
        await it.catalog.first()
        await asyncio.sleep(5)
        consul.calls.clear()
        consul.report("i7", "critical", "no")
        await asyncio.sleep(5)
        assert reads(consul) == ["s7"]
        assert it.shown("s7") == {"i7": U}


async def test_changes_in_a_burst_are_read_once() -> None:
    consul = FakeConsul()
    consul.register("orders", "o0")
    async with following(consul) as it:
        await it.catalog.first()
        await asyncio.sleep(5)
        consul.calls.clear()
        for number in range(1, 20):
            consul.register("orders", f"o{number}")
        await asyncio.sleep(0.5)
        assert len(it.shown()) == 20
        assert len(reads(consul)) <= 2


async def test_at_most_eight_services_are_read_at_once() -> None:
    consul = FakeConsul(latency=0.1)
    for number in range(64):
        consul.register(f"s{number}", f"i{number}")
    async with following(consul) as it:
        await it.catalog.first()
        starts = [at for at, _, path, _ in consul.calls if path.startswith("/v1/health/service/")]
        assert max(starts.count(at) for at in starts) == OPTIONS.concurrent_reads


async def test_what_changed_while_it_was_being_read_is_read_again() -> None:
    consul = FakeConsul(latency=0.05)
    consul.register("orders", "o1")
    async with following(consul) as it:
        await it.catalog.first()
        for number in range(2, 30):  # a change every 20 ms against reads of 50 ms
            consul.register("orders", f"o{number}")
            consul.report("o1", "critical" if number % 2 else "warning", f"{number}")
            await asyncio.sleep(0.02)
        await asyncio.sleep(1)
        assert len(it.shown()) == 29
        assert it.shown()["o1"] is U


async def test_unchanged_services_and_instances_stay_identical() -> None:
    consul = FakeConsul()
    for name in ("quiet", "orders"):
        consul.register(name, f"{name}-1")
        consul.register(name, f"{name}-2")
    async with following(consul) as it:
        before = await it.catalog.first()
        consul.report("orders-1", "critical", "no")
        after, _ = await it.catalog.newer_than(1)
        assert after.services[ServiceName("quiet")] is before.services[ServiceName("quiet")]
        assert after.services[ORDERS][1] is before.services[ORDERS][1]
        assert after.services[ORDERS][0] is not before.services[ORDERS][0]


async def test_new_words_of_a_check_publish_nothing() -> None:
    consul = FakeConsul()
    consul.register("orders", "o1")
    async with following(consul) as it:
        await it.catalog.first()
        for beat in range(5):
            consul.report("o1", "passing", f"beat {beat}")
            await asyncio.sleep(1)
        assert it.catalog.version == 1


@pytest.mark.parametrize("has_check", [True, False])
async def test_a_changed_port_is_noticed_although_no_check_changed(has_check: bool) -> None:
    consul = FakeConsul()
    consul.register("orders", "o1", 80, check=has_check)
    async with following(consul) as it:
        await it.catalog.first()
        await asyncio.sleep(5)
        consul.register("orders", "o1", 81, check=has_check)
        await asyncio.sleep(0.1)
        assert [one.endpoint.port for one in it.instances()] == [81]


async def test_a_change_hidden_behind_an_explained_one_is_found_by_the_lazy_sweep() -> None:
    consul = FakeConsul()
    consul.register("orders", "o1", 80, check=False)
    async with following(consul) as it:
        await it.catalog.first()
        await asyncio.sleep(5)
        consul.register("orders", "o1", 81, check=False)
        consul.register("carts", "c1")
        await asyncio.sleep(0.1)
        assert "carts" in it.snapshot.services
        await asyncio.sleep(11)
        assert [one.endpoint.port for one in it.instances()] == [81]


@pytest.mark.parametrize("seconds_before", [1, 20], ids=["first sweep", "later sweep"])
async def test_an_instance_without_check_on_a_node_that_left_is_dropped(seconds_before: float) -> None:
    consul = FakeConsul()
    for node, instance_id in (("n1", "o1"), ("n2", "o2"), ("n2", "x2"), ("n1", "x1")):
        consul.register("orders" if instance_id[0] == "o" else "x", instance_id, node=node, check=False)
    async with following(consul) as it:
        await it.catalog.first()
        consul.register("carts", "c1")  # lets a first sweep happen after some time
        await asyncio.sleep(seconds_before)
        for instance_id in ("o2", "x2"):
            consul.deregister(instance_id, node="n2")
        await asyncio.sleep(5)
        assert set(it.shown()) == {"o1"}
        assert set(it.shown("x")) == {"x1"}


async def test_with_more_nodes_than_services_a_sweep_reads_the_services() -> None:
    consul = FakeConsul()
    for number in range(10):
        consul.register("orders", f"o{number}", 80, node=f"n{number}", check=False)
    async with following(consul) as it:
        await it.catalog.first()
        await asyncio.sleep(5)
        consul.register("orders", "o3", 81, node="n3", check=False)
        await asyncio.sleep(0.1)
        assert it.instances()[3].endpoint.port == 81
        assert not any(path.startswith("/v1/catalog/node/") for _, _, path, _ in consul.calls)


async def test_a_nodes_own_check_concerns_its_services() -> None:
    consul = FakeConsul()
    consul.register("orders", "o1", node="n1")
    consul.register("carts", "c1", node="n2")
    consul.node_check("passing", node="n1")
    async with following(consul) as it:
        await it.catalog.first()
        consul.node_check("critical", "Agent not live or unreachable", node="n1")
        await it.catalog.newer_than(1)
        assert it.shown() == {"o1": U}
        assert it.shown("carts") == {"c1": H}


async def test_a_service_that_may_not_be_read_does_not_hold_up_the_others() -> None:
    consul = FakeConsul()
    consul.register("orders", "o1")
    consul.register("secret", "s1")
    consul.refused_services.add("secret")
    async with following(consul) as it:
        assert set((await it.catalog.first()).services) == {"orders"}
        assert not it.snapshot.is_stale
        consul.refused_services.clear()
        await asyncio.sleep(OPTIONS.verify_seconds + 1)
        assert it.shown("secret") == {"s1": H}


async def test_answers_laid_out_otherwise_are_understood_too() -> None:
    for layout in ({"indent": 4}, {"sort_keys": True}):
        consul = FakeConsul(**layout)
        consul.register("orders", "o1", check=False)
        consul.register("carts", "c1")
        async with following(consul) as it:
            await it.catalog.first()
            consul.report("c1", "critical")
            await asyncio.sleep(1)
            assert it.shown("carts") == {"c1": U}
            consul.register("orders", "o1", 81, check=False)
            await asyncio.sleep(2)
            assert [one.endpoint.port for one in it.instances()] == [81]


# --- outages ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("state", ["down", "frozen"])
async def test_an_outage_keeps_the_table_and_says_so_once(state: str) -> None:
    consul = FakeConsul()
    consul.register("orders", "o1")
    async with following(consul) as it:
        await it.catalog.first()
        await asyncio.sleep(100)
        went_at = asyncio.get_running_loop().time()
        consul.break_connections(state)
        await asyncio.sleep(20)
        assert it.snapshot.is_stale
        assert it.snapshot.stale_reason
        assert it.snapshot.stale_since is not None
        assert went_at <= it.snapshot.stale_since <= went_at + OPTIONS.probe_seconds + OPTIONS.call_seconds
        assert it.shown() == {"o1": H}
        await asyncio.sleep(1000)
        assert it.catalog.version == 2
        consul.state = "up"
        await asyncio.sleep(15)
        assert not it.snapshot.is_stale
        assert it.catalog.version == 3
        assert [one.reason for one in it.reports] == [RefreshReason.FIRST, RefreshReason.STALE, RefreshReason.FRESH]


async def test_changes_made_during_an_outage_arrive_afterwards() -> None:
    consul = FakeConsul()
    for number in range(4):
        consul.register("orders", f"o{number}")
    async with following(consul) as it:
        await it.catalog.first()
        consul.break_connections("down")
        await asyncio.sleep(30)
        consul.register("carts", "c1")
        consul.report("o1", "critical", "the disk is full")
        consul.deregister("o2")
        consul.state = "up"
        await asyncio.sleep(10)
        assert it.shown("carts") == {"c1": H}
        assert it.shown() == {"o0": H, "o1": U, "o3": H}


async def test_after_an_outage_reads_carry_no_index() -> None:
    """A registry that came back with a lower index would let us wait for the old one."""
    consul = FakeConsul()
    consul.register("orders", "o1")
    async with following(consul) as it:
        await it.catalog.first()
        await asyncio.sleep(1)
        consul.break_connections("down")
        await asyncio.sleep(1)
        consul.calls.clear()
        await asyncio.sleep(10)
        polls = [params for _, _, path, params in consul.calls if path == "/v1/health/state/any"]
        assert polls
        assert all("index" not in params for params in polls)
        assert it.snapshot.is_stale


async def test_tries_during_an_outage_back_off() -> None:
    consul = FakeConsul()
    async with following(consul) as it:
        await it.catalog.first()
        consul.break_connections("down")
        await asyncio.sleep(10)
        consul.calls.clear()
        await asyncio.sleep(60)
        polls = [at for at, _, path, _ in consul.calls if path == "/v1/health/state/any"]
        assert 60 / OPTIONS.longest_pause_seconds - 1 <= len(polls) <= 2 * 60 / OPTIONS.longest_pause_seconds + 1


async def test_a_wiped_registry_is_not_believed_before_the_grace_period_ends() -> None:
    consul = FakeConsul()
    for number in range(3):
        consul.register("orders", f"o{number}")
    async with following(consul) as it:
        await it.catalog.first()
        consul.break_connections("down")
        await asyncio.sleep(5)
        consul.wipe()
        consul.state = "up"
        await asyncio.sleep(10)
        assert not it.snapshot.is_stale
        assert set(it.shown()) == {"o0", "o1", "o2"}
        assert it.follower.held == {"orders": {"o0", "o1", "o2"}}
        consul.register("orders", "o1")
        consul.register("orders", "o3")
        await asyncio.sleep(1)
        assert set(it.shown()) == {"o0", "o1", "o2", "o3"}
        consul.deregister("o1")  # seen since the wipe: believed
        await asyncio.sleep(1)
        assert set(it.shown()) == {"o0", "o2", "o3"}
        await asyncio.sleep(OPTIONS.grace_seconds)
        assert set(it.shown()) == {"o3"}
        assert it.reports[-1].reason is RefreshReason.GRACE_OVER
        assert it.follower.held == {}


async def test_an_index_that_goes_backwards_unnoticed_is_a_wipe_too() -> None:
    consul = FakeConsul()
    for number in range(20):
        consul.register("orders", f"o{number}")
    options = replace(OPTIONS, wait_seconds=10)
    async with following(consul, options) as it:
        await it.catalog.first()
        consul.wipe()  # behind a proxy that kept our connections
        consul.register("carts", "c1")
        await asyncio.sleep(25)
        assert len(it.shown()) == 20
        assert it.shown("carts") == {"c1": H}
        await asyncio.sleep(OPTIONS.grace_seconds)
        assert it.shown() == {}


async def test_silence_after_an_outage_is_no_death() -> None:
    """A registry that was down took no beats: TTLs ran out although everybody is alive."""
    consul = FakeConsul()
    for number in range(3):
        consul.register("orders", f"o{number}")
    async with following(consul) as it:
        await it.catalog.first()
        consul.break_connections("down")
        await asyncio.sleep(30)
        consul.state = "up"
        for number in range(3):
            consul.report(f"o{number}", "critical", "TTL expired")
        await asyncio.sleep(10)
        assert it.shown() == {"o0": H, "o1": H, "o2": H}
        consul.report("o0", "passing", "beat")
        consul.report("o1", "critical", "out of memory")  # its own words: believed
        await asyncio.sleep(1)
        assert it.shown() == {"o0": H, "o1": U, "o2": H}
        await asyncio.sleep(OPTIONS.grace_seconds)
        assert it.shown() == {"o0": H, "o1": U, "o2": U}


async def test_without_an_outage_removals_apply_at_once() -> None:
    consul = FakeConsul()
    consul.register("orders", "o1")
    async with following(consul) as it:
        await it.catalog.first()
        consul.deregister("o1")
        await it.catalog.newer_than(1)
        assert it.snapshot.services == {}


async def test_after_a_hiccup_a_removal_applies_at_once() -> None:
    consul = FakeConsul()
    consul.register("orders", "o1")
    async with following(consul) as it:
        await it.catalog.first()
        consul.break_connections("down")
        await asyncio.sleep(0.5)
        consul.state = "up"
        await asyncio.sleep(1)
        consul.deregister("o1")
        await asyncio.sleep(0.1)
        assert it.snapshot.services == {}


# --- the table on disk --------------------------------------------------------------------------------------------


async def test_a_start_during_an_outage_serves_the_saved_table(tmp_path: Path) -> None:
    consul = FakeConsul()
    consul.register("orders", "o1")
    path = tmp_path / "state" / "table.json"
    async with following(consul, file=SnapshotFile(path)) as it:
        await it.catalog.first()
        await asyncio.sleep(5)
    consul.state = "down"
    async with following(consul, file=SnapshotFile(path)) as it:
        first = await it.catalog.first()
        assert first.is_stale
        assert it.shown() == {"o1": H}
        consul.wipe()
        consul.state = "up"
        await asyncio.sleep(10)
        assert not it.snapshot.is_stale
        assert it.shown() == {"o1": H}
        await asyncio.sleep(OPTIONS.grace_seconds)
        assert it.shown() == {}


async def test_a_start_during_an_outage_without_a_saved_table_publishes_nothing(tmp_path: Path) -> None:
    consul = FakeConsul()
    consul.state = "down"
    async with following(consul, file=SnapshotFile(tmp_path / "none.json")) as it:
        await asyncio.sleep(60)
        assert it.catalog.peek() is None
        consul.state = "up"
        await asyncio.sleep(10)
        assert it.snapshot.services == {}
        assert not it.snapshot.is_stale


# --- endings ------------------------------------------------------------------------------------------------------


async def _register_and_break(consul: FakeConsul) -> None:
    consul.register("carts", "c1")
    await asyncio.sleep(0.005)
    consul.register("carts", "c1", 81)
    await asyncio.sleep(0.02)
    consul.break_connections("down")
    await asyncio.sleep(0.3)
    consul.state = "up"
    await asyncio.sleep(1)


async def test_reading_again_when_asked_gives_a_version_that_shows_what_is_there() -> None:
    consul = FakeConsul()
    consul.register("orders", "o1")
    async with following(consul) as it:
        await it.catalog.first()
        assert await it.follower.reread(ORDERS) == 1  # nothing has changed
        assert reads(consul) == ["orders", "orders"]
        assert [call[3] for call in consul.calls if call[2].endswith("service/orders")] == [{}, {"consistent": ""}]
        consul.report("o1", "warning", "draining")
        version = await it.follower.reread(ORDERS)
        assert version == it.snapshot.version
        assert it.shown() == {"o1": D}
        assert await it.follower.reread(ServiceName("nobody")) == version
        assert await it.follower.reread(ServiceName("consul")) == version


async def test_a_drain_note_of_an_instance_that_was_degraded_before_is_a_change() -> None:
    consul = FakeConsul()
    consul.register("orders", "o1", status="warning", output="slow")
    async with following(consul) as it:
        await it.catalog.first()
        consul.report("o1", "warning", "draining")
        await it.follower.reread(ORDERS)
        (instance,) = it.instances()
        assert instance.is_draining


async def test_a_reading_that_began_before_the_question_is_no_answer() -> None:
    consul = FakeConsul(latency=1)
    consul.register("orders", "o1")
    async with following(consul) as it:
        await it.catalog.first()
        async with asyncio.TaskGroup() as tasks:
            earlier = tasks.create_task(it.follower.reread(ORDERS))
            await asyncio.sleep(0.5)  # under way
            later = tasks.create_task(it.follower.reread(ORDERS))
            await earlier
            assert not later.done()
        assert reads(consul) == ["orders"] * 3


async def test_many_that_ask_for_one_service_share_a_reading() -> None:
    consul = FakeConsul()
    async with following(consul) as it:
        await it.catalog.first()
        async with asyncio.TaskGroup() as tasks:
            asking = [tasks.create_task(it.follower.reread(ORDERS)) for _ in range(100)]
            await asyncio.sleep(0)
            asking[0].cancel()
        assert reads(consul) == ["orders"]


@pytest.mark.parametrize("state", ["down", "frozen"])
async def test_who_asked_during_an_outage_is_answered_after_it(state: str) -> None:
    consul = FakeConsul()
    consul.register("orders", "o1")
    async with following(consul) as it:
        await it.catalog.first()
        consul.break_connections(state)
        async with asyncio.TaskGroup() as tasks:
            asking = tasks.create_task(it.follower.reread(ORDERS))
            await asyncio.sleep(30)
            assert not asking.done()
            consul.report("o1", "warning", "draining")
            consul.break_connections("up")
        assert it.shown() == {"o1": D}
        assert asking.result() <= it.snapshot.version


async def test_who_asked_before_the_first_table_is_answered_with_it(tmp_path: Path) -> None:
    consul = FakeConsul()
    consul.register("orders", "o1")
    async with following(consul, file=SnapshotFile(tmp_path / "t.json")) as it:
        await it.catalog.first()
        await asyncio.sleep(5)
    consul.break_connections("down")
    async with following(consul, file=SnapshotFile(tmp_path / "t.json")) as it:
        assert (await it.catalog.first()).is_stale  # the one from disk: not what was asked for
        async with asyncio.TaskGroup() as tasks:
            asking = tasks.create_task(it.follower.reread(ORDERS))
            await asyncio.sleep(10)
            assert not asking.done()
            consul.break_connections("up")
        assert not it.snapshot.is_stale


async def test_who_asked_is_not_answered_while_the_registry_is_not_believed_about_the_service() -> None:
    consul = FakeConsul()
    for number in range(3):
        consul.register("orders", f"o{number}")
    async with following(consul) as it:
        await it.catalog.first()
        consul.break_connections("down")
        await asyncio.sleep(5)
        consul.wipe()
        consul.state = "up"
        await asyncio.sleep(10)
        assert it.follower.held
        async with asyncio.TaskGroup() as tasks:
            asking = tasks.create_task(it.follower.reread(ORDERS))
            other = await it.follower.reread(ServiceName("carts"))
            assert other == it.snapshot.version
            await asyncio.sleep(OPTIONS.grace_seconds / 2)
            assert not asking.done()
        assert it.shown() == {}


async def test_who_asked_for_a_service_that_may_not_be_read_is_answered_when_it_may() -> None:
    consul = FakeConsul()
    consul.register("secret", "s1")
    consul.refused_services.add("secret")
    async with following(consul) as it:
        await it.catalog.first()
        async with asyncio.TaskGroup() as tasks:
            asking = tasks.create_task(it.follower.reread(ServiceName("secret")))
            await asyncio.sleep(OPTIONS.verify_seconds / 2)
            assert not asking.done()
            consul.refused_services.clear()
        assert it.shown("secret") == {"s1": H}


async def test_cancelled_at_any_await_it_ends_and_leaves_no_task(steps: Callable[[], range]) -> None:
    for step in steps():
        consul = FakeConsul()
        consul.register("orders", "o1")
        it = Following(consul, OPTIONS, None)
        async with asyncio.TaskGroup() as tasks:
            task = tasks.create_task(it.follower.follow(it.catalog), name="follow")
            trouble = tasks.create_task(_register_and_break(consul))
            for _ in range(step):
                await asyncio.sleep(0.0005)
            task.cancel()
            trouble.cancel()
        assert task.cancelled()


@pytest.fixture
def steps() -> Callable[[], range]:
    return lambda: range(0, 400, 3)
