"""A breaker's trial that nobody settles must not keep its instance out for good."""

import asyncio

import pytest
from tests.unit.sdk.scripted_calls import ORDERS, answers, resets, world

from toska_mesh.errors import CircuitOpenError
from toska_mesh.guard.patience import Patience
from toska_mesh.resilience import BreakerPolicy, Outcome, RetryPolicy, State

ONE_FAILURE = BreakerPolicy(failure_threshold=1)


async def test_a_trial_by_a_call_that_has_failed_there_before_is_settled() -> None:
    async with world("a", "b", breaker=ONE_FAILURE, ticking=False) as mesh:
        # The second try takes so long that the third one, at the first instance again, is that one's trial.
        mesh.scripts["a"] = [answers(503), answers(503)]
        mesh.scripts["b"] = [resets(after=25.0)]
        with pytest.raises(CircuitOpenError):
            await mesh.call("GET", patience=Patience(30.0, 90.0, RetryPolicy()))
        await asyncio.sleep(60)
        mesh.asked.clear()
        for _ in range(6):
            await mesh.call("GET")
        assert set(mesh.asked) == {"a", "b"}
        assert mesh.target("a").circuit.state is State.CLOSED


async def test_a_trial_that_is_never_reported_is_given_to_another_after_its_time() -> None:
    async with world("a", breaker=ONE_FAILURE, ticking=False) as mesh:
        target, loop = mesh.target("a"), asyncio.get_running_loop()
        service = mesh.directory.get(ORDERS)
        assert service is not None
        mesh.guard.settle(target, target.circuit.epoch, Outcome.FAILURE, loop.time())
        await asyncio.sleep(25)
        assert mesh.guard.choose(service, None, (), True, loop.time()) is target  # and nobody says how it went
        assert mesh.guard.choose(service, None, (), True, loop.time()) is None
        await asyncio.sleep(40)
        assert mesh.guard.choose(service, None, (), True, loop.time()) is target


async def test_a_trial_that_takes_long_gives_its_place_back_after_trial_seconds() -> None:
    async with world("a", breaker=ONE_FAILURE, ticking=False) as mesh, asyncio.TaskGroup() as tasks:
        mesh.scripts["a"] = [answers(503), answers(after=300.0)]
        assert (await mesh.call("POST")).status == 503
        with pytest.raises(CircuitOpenError):
            await mesh.call("POST")
        await asyncio.sleep(25)
        slow = tasks.create_task(mesh.call("PUT", patience=Patience(900.0, 900.0, RetryPolicy()), own_seconds=900.0))
        await asyncio.sleep(60)
        assert (await mesh.call("GET")).status == 200
        assert not slow.done()


async def test_headers_that_are_none_leave_no_trace_at_the_instance() -> None:
    async with world("a") as mesh:
        with pytest.raises(AttributeError):
            await mesh.call("GET", headers={1: "x"})  # type: ignore[dict-item]
        mesh.assert_balanced()
        await asyncio.sleep(200)  # and no timer is left that would cancel us
        assert (await mesh.call("GET")).status == 200
        assert not mesh.target("a").is_suspect


async def test_two_trials_in_a_row_that_are_never_reported_block_nobody_for_good() -> None:
    async with world("a", breaker=ONE_FAILURE, ticking=False) as mesh:
        target, loop = mesh.target("a"), asyncio.get_running_loop()
        service = mesh.directory.get(ORDERS)
        assert service is not None
        mesh.guard.settle(target, target.circuit.epoch, Outcome.FAILURE, loop.time())
        for _ in range(3):
            await asyncio.sleep(40)
            assert mesh.guard.choose(service, None, (), True, loop.time()) is target
            assert mesh.guard.choose(service, None, (), True, loop.time()) is None


async def test_an_instance_that_answers_requests_and_no_probe_comes_back() -> None:
    async with world("a", breaker=ONE_FAILURE, ticking=False) as mesh:
        mesh.prober.silent.add("a")  # its health path may take longer than a probe waits
        mesh.scripts["a"] = [answers(503)]
        assert (await mesh.call("POST")).status == 503
        await asyncio.sleep(25)
        with pytest.raises(CircuitOpenError):
            await mesh.call("GET")
        await asyncio.sleep(15)
        assert (await mesh.call("GET")).status == 200
        assert mesh.target("a").circuit.state is State.CLOSED
