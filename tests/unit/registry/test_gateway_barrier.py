"""Waiting for gateways, and gateways that can be waited for, against a fake Consul on the virtual clock."""

import asyncio
import base64
import json
import random
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from itertools import count
from typing import Any

import pytest
from tests.unit.registry.consul_fake import FakeConsul

from toska_mesh.errors import RegistryError
from toska_mesh.model import ServiceName
from toska_mesh.registry.api import BarrierReport, UnknownServiceError
from toska_mesh.registry.consul import ConsulGatewayBarrier, ConsulGatewayPresence
from toska_mesh.registry.consul.client import Answer
from toska_mesh.registry.consul.ledger import FenceLedger
from toska_mesh.registry.consul.leftovers import MAX_UNKNOWN

ORDERS, CARTS = ServiceName("orders"), ServiceName("carts")
FENCE = "toska/fences/orders"
_seeds = count(1)


def now() -> float:
    return asyncio.get_running_loop().time()


class Gateway:
    """A presence, and a routing part that can be held up."""

    def __init__(self, consul: FakeConsul, name: str) -> None:
        self.consul = consul
        self.applied: list[tuple[float, str]] = []
        """When which service began to be read."""
        self.may_apply = asyncio.Event()
        self.may_apply.set()
        self.stuck: set[ServiceName] = set()
        self.presence = ConsulGatewayPresence(consul, name, self._apply, rng=random.Random(1))

    async def _apply(self, service: ServiceName) -> None:
        self.applied.append((now(), service))
        if service in self.stuck:
            await asyncio.Event().wait()
        await self.may_apply.wait()


@asynccontextmanager
async def gateways(consul: FakeConsul, *names: str) -> AsyncIterator[tuple[list[Gateway], list[asyncio.Task[None]]]]:
    started = [Gateway(consul, name) for name in names]
    async with asyncio.TaskGroup() as tasks:
        running = [tasks.create_task(one.presence.run(), name=one.presence.name) for one in started]
        await asyncio.sleep(1)
        yield started, running
        for task in running:
            task.cancel()


def barrier(consul: FakeConsul) -> ConsulGatewayBarrier:
    return ConsulGatewayBarrier(consul, rng=random.Random(next(_seeds)))


async def wait(consul: FakeConsul, seconds: float = 10, service: ServiceName = ORDERS) -> BarrierReport:
    return await barrier(consul).wait_applied(service, now() + seconds)


async def until(consul: FakeConsul, method: str, part: str) -> None:
    """Until the fake has been asked for it from now on."""
    known = len(consul.calls)
    while not any(call[1] == method and part in call[2] for call in consul.calls[known:]):
        await asyncio.sleep(0.0001)


# --- the waiter ---------------------------------------------------------------------------------------------------


async def test_it_ends_when_every_gateway_has_read_the_service_after_the_fence() -> None:
    consul = FakeConsul()
    async with gateways(consul, "gw-1", "gw-2") as ((first, second), _):
        second.may_apply.clear()
        began = now()
        async with asyncio.TaskGroup() as tasks:
            waiting = tasks.create_task(wait(consul))
            await asyncio.sleep(1)
            assert not waiting.done()
            assert FENCE in consul.kv
            second.may_apply.set()
        report = waiting.result()
        assert report.is_applied
        assert report.reason == "applied by all 2 gateways"
        assert [(one.name, one.applied_index >= report.index) for one in report.gateways] == [
            ("gw-1", True),
            ("gw-2", True),
        ]
        assert all(at > began and service == "orders" for one in (first, second) for at, service in one.applied)
        assert FENCE not in consul.kv


async def test_it_costs_milliseconds_when_gateways_are_quick() -> None:
    consul = FakeConsul(latency=0.001)
    async with gateways(consul, "gw-1", "gw-2", "gw-3"):
        began = now()
        assert (await wait(consul)).is_applied
        assert now() - began < 0.02


async def test_a_gateway_that_hangs_is_named_at_the_deadline() -> None:
    consul = FakeConsul()
    async with gateways(consul, "gw-1", "gw-2") as ((_, second), _):
        second.may_apply.clear()
        began = now()
        report = await wait(consul, 5)
        assert now() - began == pytest.approx(5, abs=0.1)
        assert not report.is_applied
        assert report.reason == "1 of 2 gateways have not applied it: gw-2"
        assert {one.name: one.applied_index >= report.index for one in report.gateways} == {
            "gw-1": True,
            "gw-2": False,
        }


async def test_a_gateway_that_leaves_or_dies_is_waited_for_no_longer() -> None:
    consul = FakeConsul()
    async with gateways(consul, "gw-1", "gw-2") as (both, (task, _)):
        for one in both:
            one.may_apply.clear()
        async with asyncio.TaskGroup() as tasks:
            waiting = tasks.create_task(wait(consul))
            await asyncio.sleep(1)
            task.cancel()  # destroys its session
            await asyncio.sleep(1)
            assert not waiting.done()
            # What Consul does when the session of a dead one runs out; nobody is there to make another.
            both[1].presence._session.ensure = asyncio.Event().wait  # type: ignore[method-assign,assignment]
            consul.end_session(next(iter(consul.sessions)))
        assert waiting.result().is_applied
        assert waiting.result().reason == "every gateway that was there has left meanwhile"
        assert waiting.result().gateways == ()


async def test_without_any_gateway_it_says_that_there_was_nobody_to_wait_for() -> None:
    report = await wait(FakeConsul())
    assert report.is_applied
    assert report.gateways == ()
    assert "no gateway" in report.reason


async def test_a_gateway_that_appears_during_the_wait_has_to_apply_it_too() -> None:
    consul = FakeConsul()
    async with gateways(consul, "gw-1") as ((first,), _):
        first.may_apply.clear()
        async with asyncio.TaskGroup() as tasks:
            waiting = tasks.create_task(wait(consul))
            await asyncio.sleep(1)
            async with gateways(consul, "gw-2") as ((second,), _):
                assert [service for _, service in second.applied] == ["orders"]
                second.may_apply.clear()
                first.may_apply.set()
                await asyncio.sleep(1)
        assert len(waiting.result().gateways) == 2


@pytest.mark.parametrize("state", ["down", "frozen"])
async def test_an_outage_in_the_middle_is_waited_out(state: str) -> None:
    consul = FakeConsul()
    async with gateways(consul, "gw-1") as ((first,), _):
        first.may_apply.clear()
        async with asyncio.TaskGroup() as tasks:
            waiting = tasks.create_task(wait(consul, 200))
            await asyncio.sleep(1)
            consul.break_connections(state)
            first.may_apply.set()
            await asyncio.sleep(8)
            assert not waiting.done()
            consul.break_connections("up")
        assert waiting.result().is_applied
        assert [one.name for one in waiting.result().gateways] == ["gw-1"]


@pytest.mark.parametrize("state", ["down", "frozen"])
async def test_an_outage_until_the_deadline_is_the_reason(state: str) -> None:
    consul = FakeConsul()
    consul.break_connections(state)
    began = now()
    report = await wait(consul, 12)
    assert now() - began == pytest.approx(12, abs=0.1)
    assert not report.is_applied
    assert report.index == 0
    assert ("no answer in time" if state == "frozen" else "connection refused") in report.reason


async def test_gateways_that_a_wiped_registry_forgot_are_waited_for() -> None:
    consul = FakeConsul()
    async with gateways(consul, "gw-1") as ((first,), _):
        first.may_apply.clear()
        async with asyncio.TaskGroup() as tasks:
            waiting = tasks.create_task(wait(consul, 100))
            await asyncio.sleep(1)
            consul.break_connections("down")
            await asyncio.sleep(1)
            consul.wipe()
            first.presence._session.ensure = asyncio.Event().wait  # type: ignore[method-assign,assignment]
            consul.break_connections("up")
            back_at = now()
        report = waiting.result()
    # It never came back: believed to be gone when its session would have ended.
    assert report.is_applied
    assert now() - back_at == pytest.approx(10, abs=2)


async def test_a_gateway_that_comes_back_to_a_wiped_registry_applies_the_new_fence() -> None:
    consul = FakeConsul()
    async with gateways(consul, "gw-1") as ((first,), _):
        first.may_apply.clear()
        async with asyncio.TaskGroup() as tasks:
            waiting = tasks.create_task(wait(consul, 100))
            await asyncio.sleep(1)
            consul.index = 1000  # its old word would be ahead of every new fence
            consul.break_connections("down")
            await asyncio.sleep(1)
            consul.wipe()
            consul.break_connections("up")
            await asyncio.sleep(14)
            assert not waiting.done()
            first.may_apply.set()
        report = waiting.result()
        assert report.is_applied
        assert [one.name for one in report.gateways] == ["gw-1"]
        assert report.index < 1000


async def test_a_process_that_lives_long_remembers_who_was_there_before_an_outage() -> None:
    consul = FakeConsul()
    it = barrier(consul)
    async with asyncio.TaskGroup() as tasks:
        following = tasks.create_task(it.run())
        async with gateways(consul, "gw-1"):
            pass
        async with gateways(consul, "gw-2") as ((gateway,), _):
            consul.break_connections("down")
            await asyncio.sleep(3)
            consul.wipe()
            gateway.presence._session.ensure = asyncio.Event().wait  # type: ignore[method-assign,assignment]
            consul.break_connections("up")
            await asyncio.sleep(1)
            report = await it.wait_applied(ORDERS, now() + 3)
            assert not report.is_applied
            assert report.reason.endswith("perhaps still routing: gw-2")
            await asyncio.sleep(10)
            assert (await it.wait_applied(ORDERS, now() + 3)).is_applied
        following.cancel()


async def test_who_met_an_outage_first_gives_gateways_the_time_to_come_back() -> None:
    consul = FakeConsul()
    consul.break_connections("down")
    async with asyncio.TaskGroup() as tasks:
        waiting = tasks.create_task(wait(consul, 100))
        await asyncio.sleep(2)
        consul.break_connections("up")
        back_at = now()
        await asyncio.sleep(3)
        async with gateways(consul, "gw-1"):
            report = await waiting
    assert [one.name for one in report.gateways] == ["gw-1"]
    assert now() - back_at < 10


async def test_a_refusal_is_raised_because_no_patience_helps() -> None:
    class Refusing(FakeConsul):
        async def call(self, method: str, path: str, *args: Any, **kwargs: Any) -> Answer:
            if method == "PUT" and "fences" in path:
                raise RegistryError("registry answered 403: Permission denied")
            return await super().call(method, path, *args, **kwargs)

    with pytest.raises(RegistryError, match="Permission denied"):
        await wait(Refusing())


async def test_it_waits_for_an_agent_to_hand_its_word_on_before_it_leaves_the_fence() -> None:
    consul = FakeConsul()
    consul.register("orders", "o1")
    key = ("n1", "service:o1")
    stale = consul.checks[key] | {"Status": "warning", "Output": "draining"}
    consul.agent_checks = lambda: {key: stale}  # type: ignore[method-assign]
    async with gateways(consul, "gw-1") as ((gateway,), _):
        report = await wait(consul, 3)
        assert not report.is_applied
        assert "service:o1" in report.reason
        assert gateway.applied == []
        async with asyncio.TaskGroup() as tasks:
            waiting = tasks.create_task(wait(consul, 10))
            await asyncio.sleep(1)
            consul.report("o1", "warning", "draining for a deploy")
        assert waiting.result().is_applied


@pytest.mark.parametrize(
    ("told", "words"),
    [
        pytest.param({}, "'o1' is gone", id="deregistered"),
        pytest.param({"Port": 81}, "registration of 'o1'", id="registered with another port"),
        pytest.param({"Meta": {"toska-draining": "true"}}, "registration of 'o1'", id="registered with other metadata"),
    ],
)
async def test_it_tells_what_the_agent_has_not_handed_on(told: Mapping[str, Any], words: str) -> None:
    consul = FakeConsul()
    consul.register("orders", "o1", check=False)
    key = ("n1", "o1")
    agents = {key: consul.services[key] | told} if told else {}
    consul.agent_services = lambda: agents  # type: ignore[method-assign]
    report = await wait(consul, 2)
    assert not report.is_applied
    assert words in report.reason


async def test_other_words_of_a_check_may_stay_behind() -> None:
    consul = FakeConsul()
    consul.register("orders", "o1", output="a")
    key = ("n1", "service:o1")
    newer = consul.checks[key] | {"Output": "b"}
    consul.agent_checks = lambda: {key: newer}  # type: ignore[method-assign]
    assert (await wait(consul)).is_applied


async def test_an_agent_that_does_not_let_us_ask_is_believed() -> None:
    class Closed(FakeConsul):
        async def call(self, method: str, path: str, *args: Any, **kwargs: Any) -> Answer:
            if path.startswith("/v1/agent/"):
                raise RegistryError("registry answered 403: Permission denied")
            return await super().call(method, path, *args, **kwargs)

    assert (await wait(Closed())).is_applied


async def test_several_agents_behind_one_address_are_believed() -> None:
    class Balanced(FakeConsul):
        names = 0

        async def call(self, method: str, path: str, *args: Any, **kwargs: Any) -> Answer:
            answer = await super().call(method, path, *args, **kwargs)
            if path == "/v1/agent/self":
                self.names += 1
                answer = Answer(200, b'{"Config": {"NodeName": "n%d"}}' % (1 if self.names < 4 else 2), 1)
            return answer

    consul = Balanced()
    consul.register("orders", "o1")
    consul.agent_services = dict  # type: ignore[method-assign]  # another agent's
    assert (await wait(consul)).is_applied


async def test_any_number_of_waits_share_one_long_poll() -> None:
    consul = FakeConsul()
    async with gateways(consul, "gw-1") as ((gateway,), _):
        gateway.may_apply.clear()
        it = barrier(consul)
        async with asyncio.TaskGroup() as tasks:
            waits = [
                tasks.create_task(it.wait_applied(service, now() + 30))
                for service in (ORDERS, CARTS)
                for _ in range(50)
            ]
            await asyncio.sleep(1)
            consul.calls.clear()
            gateway.may_apply.set()
            await asyncio.gather(*waits)  # noqa: TID251 - they are owned by the group
        polls = [call for call in consul.calls if call[2] == "/v1/kv/toska/gateways/" and "index" in call[3]]
        assert len(polls) < 10
        assert all(one.result().is_applied for one in waits)
        assert not [key for key in consul.kv if key.startswith("toska/fences/")]


async def test_when_the_one_that_asks_for_all_is_cancelled_another_goes_on() -> None:
    consul = FakeConsul()
    async with gateways(consul, "gw-1") as ((gateway,), _):
        gateway.may_apply.clear()
        it = barrier(consul)
        async with asyncio.TaskGroup() as tasks:
            asking, other = (tasks.create_task(it.wait_applied(ORDERS, now() + 30)) for _ in range(2))
            await asyncio.sleep(1)
            asking.cancel()
            await asyncio.sleep(1)
            gateway.may_apply.set()
            began = now()
            assert (await other).is_applied
            assert now() - began < 1


async def test_a_wait_that_was_given_up_leaves_a_fence_that_the_next_one_writes_over() -> None:
    consul = FakeConsul()
    async with gateways(consul, "gw-1") as ((gateway,), _):
        gateway.may_apply.clear()
        given_up = await wait(consul, 1)
        assert FENCE in consul.kv
        gateway.may_apply.set()
        later = await wait(consul)
        assert later.is_applied
        assert later.index > given_up.index
        assert FENCE not in consul.kv


async def test_who_finishes_first_leaves_the_fence_of_a_later_wait_alone() -> None:
    consul = FakeConsul()
    async with gateways(consul, "gw-1") as ((gateway,), _):
        gateway.may_apply.clear()
        async with asyncio.TaskGroup() as tasks:
            first = tasks.create_task(wait(consul))
            await asyncio.sleep(1)
            later = tasks.create_task(wait(consul))
            await until(consul, "PUT", FENCE)
            gateway.may_apply.set()
        assert first.result().is_applied
        assert later.result().is_applied
        assert first.result().index < later.result().index


@pytest.mark.parametrize("step", range(1, 16))
async def test_cancelled_at_any_await_a_wait_ends_and_others_go_on(step: int) -> None:
    consul = FakeConsul()
    async with gateways(consul, "gw-1"):
        it = barrier(consul)
        known = len(consul.calls)
        async with asyncio.TaskGroup() as tasks:
            cancelled = tasks.create_task(it.wait_applied(ORDERS, now() + 30))
            other = tasks.create_task(it.wait_applied(ORDERS, now() + 30))
            while len(consul.calls) < known + step and not cancelled.done():
                await asyncio.sleep(0.0001)
            cancelled.cancel()
        assert other.result().is_applied


# --- what is left behind ------------------------------------------------------------------------------------------


def fences(consul: FakeConsul) -> set[str]:
    return {key.removeprefix("toska/fences/") for key in consul.kv if key.startswith("toska/fences/")}


@asynccontextmanager
async def long_lived(consul: FakeConsul) -> AsyncIterator[ConsulGatewayBarrier]:
    it = barrier(consul)
    async with asyncio.TaskGroup() as tasks:
        running = tasks.create_task(it.run())
        yield it
        running.cancel()


async def test_fences_that_were_given_up_are_deleted_by_a_process_that_lives_long() -> None:
    consul = FakeConsul()
    async with gateways(consul, "gw-1") as ((gateway,), _), long_lived(consul) as it:
        gateway.may_apply.clear()
        await wait(consul, 1, CARTS)  # another process's
        assert not (await it.wait_applied(ORDERS, now() + 1)).is_applied
        async with asyncio.TaskGroup() as tasks:
            cancelled = tasks.create_task(it.wait_applied(ServiceName("cancelled"), now() + 30))
            await asyncio.sleep(1)
            cancelled.cancel()
        await asyncio.sleep(500)
        assert fences(consul) == {"orders", "carts", "cancelled"}
        await wait(consul, 1, CARTS)  # written again: it begins to be old anew
        await asyncio.sleep(240)
        assert fences(consul) == {"carts"}
        await asyncio.sleep(500)
        assert fences(consul) == set()


async def test_fences_that_were_given_up_go_soon_when_all_gateways_are_past_them() -> None:
    consul = FakeConsul()
    async with gateways(consul, "gw-1") as ((gateway,), _), long_lived(consul) as it:
        gateway.stuck.add(CARTS)
        gateway.may_apply.clear()
        await it.wait_applied(ORDERS, now() + 1)
        await it.wait_applied(CARTS, now() + 1)
        gateway.may_apply.set()
        await asyncio.sleep(50)
        assert fences(consul) == {"orders", "carts"}
        await asyncio.sleep(80)
        assert fences(consul) == {"carts"}


async def test_a_registry_that_is_away_or_refuses_does_not_end_the_tidying() -> None:
    class Grumpy(FakeConsul):
        is_grumpy = False

        async def call(self, method: str, path: str, *args: Any, **kwargs: Any) -> Answer:
            if self.is_grumpy and "fences" in path:
                raise RegistryError("registry answered 403: Permission denied")
            return await super().call(method, path, *args, **kwargs)

    consul = Grumpy()
    async with long_lived(consul):
        async with gateways(consul, "gw-1") as ((gateway,), _):
            gateway.may_apply.clear()
            await wait(consul, 1)
        consul.break_connections("frozen")
        await asyncio.sleep(100)
        consul.break_connections("up")
        consul.is_grumpy = True
        await asyncio.sleep(1000)
        assert fences(consul) == {"orders"}
        consul.is_grumpy = False
        await asyncio.sleep(1000)
        assert fences(consul) == set()


@pytest.mark.parametrize("is_same_process", [True, False])
async def test_a_fence_that_is_still_waited_for_is_not_taken_for_given_up(is_same_process: bool) -> None:
    consul = FakeConsul()
    async with gateways(consul, "gw-1") as ((gateway,), _), long_lived(consul) as it:
        gateway.may_apply.clear()
        async with asyncio.TaskGroup() as tasks:
            waiter = it if is_same_process else barrier(consul)
            waiting = tasks.create_task(waiter.wait_applied(ORDERS, now() + 3600))
            await asyncio.sleep(1)
            first = consul.kv[FENCE]["ModifyIndex"]
            await asyncio.sleep(3000)
            assert FENCE in consul.kv
            gateway.may_apply.set()
        assert waiting.result().is_applied
        assert waiting.result().index == first
        assert not fences(consul)


async def test_names_that_nobody_knows_leave_so_many_fences_and_no_more() -> None:
    consul = FakeConsul()
    consul.register("carts", "c1")
    async with gateways(consul, "gw-1") as ((gateway,), _), long_lived(consul) as it:
        gateway.may_apply.clear()
        refusals = 0
        for number in range(300):
            try:
                assert not (await it.wait_applied(ServiceName(f"junk-{number}"), now() + 0.1)).is_applied
            except UnknownServiceError:
                refusals += 1
        assert (len(fences(consul)), refusals) == (MAX_UNKNOWN, 300 - MAX_UNKNOWN)
        # What is there already, and what is registered, adds nothing that has no bound.
        assert not (await it.wait_applied(ServiceName("junk-7"), now() + 0.1)).is_applied
        assert not (await it.wait_applied(CARTS, now() + 0.1)).is_applied
        gateway.may_apply.set()
        # The last instance leaves, and waits once more.
        consul.deregister("c1")
        assert (await it.wait_applied(CARTS, now() + 1)).is_applied
        await asyncio.sleep(130)
        assert fences(consul) == set()
        for number in range(300):  # they end well now: none is left behind
            assert (await it.wait_applied(ServiceName(f"junk-{number}"), now() + 1)).is_applied


async def test_tidying_up_ends_by_the_deadline() -> None:
    class Slow(FakeConsul):
        async def call(self, method: str, path: str, *args: Any, **kwargs: Any) -> Answer:
            if method == "DELETE":
                self.break_connections("frozen")
            return await super().call(method, path, *args, **kwargs)

    consul = Slow()
    deadline = now() + 1
    report = await barrier(consul).wait_applied(ORDERS, deadline)
    assert report.is_applied
    assert now() == deadline


# --- the gateway --------------------------------------------------------------------------------------------------


def published(consul: FakeConsul, name: str = "gw-1") -> dict[str, Any]:
    entry = consul.kv[f"toska/gateways/{name}"]
    value = json.loads(base64.b64decode(entry["Value"]))
    assert isinstance(value, dict)
    return value


async def test_a_gateway_is_announced_before_it_has_applied_anything() -> None:
    consul = FakeConsul()
    async with gateways(consul, "gw-1") as ((gateway,), _):
        assert gateway.presence.announced.is_set()
        assert published(consul) == {"gateway": "gw-1", "applied": 0, "behind": {}}
        assert gateway.applied == []


async def test_a_gateway_takes_its_word_back_when_it_leaves() -> None:
    consul = FakeConsul()
    async with gateways(consul, "gw-1"):
        pass
    assert not consul.kv
    assert not consul.sessions


async def test_an_idle_gateway_writes_nothing_and_stays() -> None:
    consul = FakeConsul()
    async with gateways(consul, "gw-1"):
        consul.calls.clear()
        await asyncio.sleep(600)
        assert "toska/gateways/gw-1" in consul.kv
        assert not [call for call in consul.calls if call[1] == "PUT" and "session/renew" not in call[2]]


@pytest.mark.parametrize("state", ["down", "frozen"])
async def test_a_registry_that_is_away_is_found_out_soon_and_met_again_later(state: str) -> None:
    consul = FakeConsul()
    consul.break_connections(state)
    gateway = Gateway(consul, "gw-1")
    async with asyncio.TaskGroup() as tasks:
        running = tasks.create_task(gateway.presence.run())
        await asyncio.wait_for(gateway.presence.announced.wait(), 6)
        assert gateway.presence.applied_index == 0
        await asyncio.sleep(60)
        consul.break_connections("up")
        await asyncio.sleep(10)
        assert published(consul)["applied"] == 0
        running.cancel()


async def test_a_service_that_cannot_be_read_holds_up_no_other() -> None:
    consul = FakeConsul()
    async with gateways(consul, "gw-1") as ((gateway,), _):
        gateway.stuck.add(CARTS)
        stuck = await wait(consul, 1, CARTS)
        assert not stuck.is_applied
        report = await wait(consul, 1, ORDERS)
        assert report.is_applied
        assert published(consul)["behind"] == {"carts": 0}
        assert gateway.presence.applied_index == 0
        assert not (await wait(consul, 1, CARTS)).is_applied


async def test_a_lost_session_is_made_anew_and_fences_are_passed_again() -> None:
    consul = FakeConsul()
    async with gateways(consul, "gw-1") as ((gateway,), _):
        gateway.may_apply.clear()
        await wait(consul, 1)
        gateway.may_apply.set()
        await asyncio.sleep(1)
        before = published(consul)["applied"]
        (session,) = consul.sessions
        consul.end_session(session)
        await asyncio.sleep(10)
        assert published(consul)["applied"] == before
        assert [service for _, service in gateway.applied] == ["orders", "orders"]


async def test_a_key_that_somebody_deleted_is_written_again() -> None:
    consul = FakeConsul()
    async with gateways(consul, "gw-1"):
        await consul.call("DELETE", "/v1/kv/toska/gateways/gw-1")
        await asyncio.sleep(31)
        assert published(consul)["gateway"] == "gw-1"


async def test_a_key_without_a_session_is_no_gateway_and_an_unreadable_word_counts_as_nothing_applied() -> None:
    consul = FakeConsul()
    await consul.call("PUT", "/v1/kv/toska/gateways/left-behind", body=b'{"applied": 1}')
    assert (await wait(consul, 1)).gateways == ()
    consul.sessions["s"] = "newer"
    await consul.call("PUT", "/v1/kv/toska/gateways/newer", {"acquire": "s"}, b"\xff")
    report = await wait(consul, 1)
    assert not report.is_applied
    assert [(one.name, one.applied_index) for one in report.gateways] == [("newer", 0)]


@pytest.mark.parametrize("step", range(1, 12))
async def test_cancelled_at_any_await_a_gateway_leaves_nothing_behind(step: int) -> None:
    consul = FakeConsul()
    gateway = Gateway(consul, "gw-1")
    async with asyncio.TaskGroup() as tasks:
        running = tasks.create_task(gateway.presence.run())
        waiting = tasks.create_task(wait(consul, 3))
        while len(consul.calls) < step:
            await asyncio.sleep(0.0001)
        running.cancel()
        await waiting
    assert not [key for key in consul.kv if "gateways" in key]


# --- its bookkeeping ----------------------------------------------------------------------------------------------


def test_a_ledger_says_how_far_each_service_is() -> None:
    ledger = FenceLedger()
    assert ledger.state("g").applied == 0
    assert ledger.meet({ORDERS: 5, CARTS: 7}) == [ORDERS, CARTS]
    assert ledger.state("g").progress(ORDERS).applied_index == 0
    ledger.pass_(CARTS, 7)
    assert ledger.state("g").progress(CARTS).applied_index == 7
    assert ledger.state("g").progress(ORDERS).applied_index == 0
    assert ledger.meet({ORDERS: 9}) == [ORDERS]
    ledger.pass_(ORDERS, 5)  # a reading that began before the newer fence was met
    assert ledger.state("g").progress(ORDERS).applied_index == 5
    ledger.pass_(ORDERS, 9)
    assert ledger.state("g").progress(ORDERS).applied_index == 9
    assert ledger.meet({}) == []
    assert ledger.state("g").progress(CARTS).applied_index == 9


def test_a_fence_that_was_taken_away_before_it_was_passed_is_passed_all_the_same() -> None:
    ledger = FenceLedger()
    ledger.meet({ORDERS: 5})
    assert ledger.meet({}) == [ORDERS]
    ledger.pass_(ORDERS, 5)
    assert ledger.meet({}) == []
    assert ledger.state("g").behind == {}
