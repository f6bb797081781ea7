"""Instances that are there and say nothing: frozen, hung, or behind an address that swallows connection attempts."""

import asyncio
import itertools

import pytest
from tests.integration.faults.mesh import Mesh, in_thread
from tests.support.backend import Backend
from tests.support.holes import swallowing_port
from tests.support.load import Figures
from tests.support.wait import eventually

SUSPICION_SECONDS = 1.0
"""The gateway's shortest patience, for a service that answers in milliseconds."""

NOTICED_SECONDS = SUSPICION_SECONDS + 0.5
PROBED_SECONDS = 1.5


async def _warm_up(mesh: Mesh) -> None:
    """Enough answers that the gateway knows what is usual for the service."""
    figures = await mesh.load(connections=4, most_requests=60).run(0.3)
    figures.assert_no_failure()


def _assert_no_further_one_waits(figures: Figures, silent_at: float) -> None:
    """Those that the silent instance got before it was noticed wait for the probe's word; nobody after them waits."""
    figures.assert_no_failure()
    assert figures.slowest(since=silent_at + NOTICED_SECONDS) < SUSPICION_SECONDS
    assert figures.slowest() < NOTICED_SECONDS + PROBED_SECONDS + 2.0
    waited = sum(1 for seconds in figures.seconds if seconds >= SUSPICION_SECONDS)
    assert 0 < waited <= 16, f"{waited} requests waited"


@pytest.mark.parametrize("fault", ["stopped", "hanging"])
async def test_a_silent_instance_holds_its_first_requests_and_no_more(mesh: Mesh, fault: str) -> None:
    one, *_ = [mesh.backend(name) for name in ("one", "two", "three")]
    mesh.start()
    await _warm_up(mesh)
    loop = asyncio.get_running_loop()
    load = mesh.load(connections=16)
    async with load.running() as figures:
        await asyncio.sleep(0.2)
        if fault == "stopped":
            one.pause()
        else:
            await in_thread(one.mode, "hang")
        silent_at = loop.time()
        await eventually(lambda: mesh.instances()[one.instance]["isSuspect"])
        assert "suspect" in mesh.instances()[one.instance]["why"]
        await asyncio.sleep(2.0)
        before = figures.instances[one.instance]
        if fault == "stopped":
            one.resume()
        else:
            await in_thread(one.mode, "ok")
        await eventually(lambda: figures.instances[one.instance] > before + 20, what="the instance gets traffic again")
        assert not mesh.instances()[one.instance]["isSuspect"]

    _assert_no_further_one_waits(figures, silent_at)
    assert mesh.instances()[one.instance]["breaker"] == "closed"


async def test_an_instance_that_hangs_but_answers_probes_costs_time_and_no_get(mesh: Mesh) -> None:
    one, *_ = [mesh.backend(name) for name in ("one", "two", "three")]
    mesh.start(GATEWAY_RESPONSE_TIMEOUT_SECONDS=2.5)
    await _warm_up(mesh)
    loop = asyncio.get_running_loop()
    async with mesh.load(connections=12).running() as figures:
        await in_thread(one.mode, "hang", health=False)
        silent_at = loop.time()
        await asyncio.sleep(3.0)

    figures.assert_no_failure()
    assert figures.slowest(since=silent_at + NOTICED_SECONDS) < SUSPICION_SECONDS


async def test_an_address_that_swallows_connections_holds_its_first_requests_and_no_more(mesh: Mesh) -> None:
    mesh.backend("one")
    mesh.backend("two")
    mesh.start(GATEWAY_SLOW_START_SECONDS=0)
    await _warm_up(mesh)
    loop = asyncio.get_running_loop()
    with swallowing_port() as port:
        load = mesh.load(connections=16)
        async with load.running() as figures:
            silent_at = loop.time()
            await in_thread(mesh.register, f"{mesh.service}-hole", port)
            await eventually(lambda: mesh.instances().get(f"{mesh.service}-hole", {}).get("isSuspect"))
            await asyncio.sleep(2.5)

    figures.assert_no_failure()
    assert figures.slowest(since=silent_at + NOTICED_SECONDS) < SUSPICION_SECONDS
    assert SUSPICION_SECONDS <= figures.slowest() < NOTICED_SECONDS + 1.0


async def test_a_post_held_by_a_stopped_instance_is_executed_once(mesh: Mesh) -> None:
    backends = [mesh.backend(name) for name in ("one", "two", "three")]
    mesh.start()
    await _warm_up(mesh)
    numbers = itertools.count()
    bodies = ((b"x" * 100, {"X-Execution": f"post-{next(numbers)}"}) for _ in itertools.repeat(0))
    load = mesh.load(method="POST", connections=12, bodies=bodies)
    async with load.running() as figures:
        await asyncio.sleep(0.3)
        backends[0].pause()
        await asyncio.sleep(3.0)
        backends[0].resume()

    figures.assert_no_failure()  # also those that the stopped instance held: they waited for it
    executions = await _executions(backends)
    assert len(executions) == figures.sent
    assert set(executions.values()) == {1}


async def _executions(backends: list[Backend]) -> dict[str, int]:
    total: dict[str, int] = {}
    for backend in backends:
        for key, count in (await in_thread(backend.state))["executions"].items():
            total[key] = total.get(key, 0) + count
    return total


async def test_a_departed_instance_that_hangs_gives_its_requests_up(mesh: Mesh) -> None:
    one = mesh.backend("one")
    mesh.start(GATEWAY_RESPONSE_TIMEOUT_SECONDS=1.5, GATEWAY_RETRY_COUNT=0)
    one.pause()
    async with asyncio.TaskGroup() as tasks:
        held = tasks.create_task(mesh.request("POST", body=b"x", timeout_seconds=10))
        await eventually(lambda: mesh.instances()[one.instance]["waiting"] == 1)
        await in_thread(mesh.deregister, one.instance)
        await eventually(lambda: not mesh.instances())
        answer = await held
    assert answer.status == 504
    assert b"upstream-timeout" in answer.body
    await eventually(lambda: mesh.metrics()["toska_gateway_requests_in_flight"] == 0)


async def test_a_get_held_by_a_departed_instance_moves_to_one_that_came_later(mesh: Mesh) -> None:
    one = mesh.backend("one")
    mesh.start()
    await _warm_up(mesh)
    one.pause()
    async with asyncio.TaskGroup() as tasks:
        held = tasks.create_task(mesh.request("GET", timeout_seconds=10))
        await eventually(lambda: mesh.instances()[one.instance]["waiting"] == 1)
        two = await in_thread(mesh.backend, "two")
        await in_thread(mesh.deregister, one.instance)
        answer = await held
    assert (answer.status, answer.instance) == (200, two.instance)


async def test_a_slow_answer_is_waited_for(mesh: Mesh) -> None:
    """Three seconds where five milliseconds are usual: not usual, and nothing is wrong."""
    backends = [mesh.backend(name) for name in ("one", "two")]
    mesh.start()
    await _warm_up(mesh)
    async with asyncio.TaskGroup() as tasks, mesh.load(connections=4, pause_seconds=0.01).running() as figures:
        slow = [
            tasks.create_task(
                mesh.request(method, "/slow/3", b"x" if method == "POST" else b"", headers={"X-Execution": name})
            )
            for method, name in (("GET", "get-1"), ("POST", "post-1"), ("POST", "post-2"), ("POST", "post-3"))
        ]
        answers = [await request for request in slow]

    assert [answer.status for answer in answers] == [200] * 4
    figures.assert_no_failure()
    assert figures.slowest() < SUSPICION_SECONDS
    assert await _executions(backends) == {"get-1": 1, "post-1": 1, "post-2": 1, "post-3": 1}
    # Answering others all the time, they were never taken for silent.
    assert mesh.service not in {event["service"] for event in mesh.gateway.events("instance_silent")}


async def test_a_service_of_one_slow_instance_is_never_refused(mesh: Mesh) -> None:
    one = mesh.backend("one")
    mesh.start()
    await _warm_up(mesh)
    await in_thread(one.mode, "slow", 2.5, health=False)
    load = mesh.load(connections=4)
    figures = await load.run(3.0)
    figures.assert_no_failure()
    assert mesh.instances()[one.instance]["breaker"] == "closed"
