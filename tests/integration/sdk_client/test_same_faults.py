"""One table of faults, two ways: whoever calls through the SDK's client sees what the gateway's clients see."""

import asyncio
import hashlib
import json
import random
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager

import pytest
from tests.integration.faults.mesh import Mesh, in_thread
from tests.integration.sdk_client.ways import Got, Limits, Way, Ways, numbered
from tests.support.backend import Backend
from tests.support.holes import swallowing_port
from tests.support.ports import free_port
from tests.support.servers import RegistryServer
from tests.support.wait import eventually


@asynccontextmanager
async def load(way: Way, tasks_count: int = 8, method: str = "GET") -> AsyncIterator[list[Got]]:
    """Requests, one after the other in each of some tasks, while the block runs; those under way are finished."""
    got: list[Got] = []
    is_over = asyncio.Event()

    async def work() -> None:
        while not is_over.is_set() and len(got) < 20_000:
            got.append(await way.request(method))
            await asyncio.sleep(0.005)

    async with asyncio.TaskGroup() as tasks:
        for _ in range(tasks_count):
            tasks.create_task(work())
        try:
            yield got
        finally:
            is_over.set()


async def _executions(*backends: Backend) -> Counter[str]:
    total: Counter[str] = Counter()
    for backend in backends:
        total.update((await in_thread(backend.state))["executions"])
    return total


# -- what is repeated


async def test_a_reset_before_the_head_is_repeated_elsewhere(mesh: Mesh, ways: Ways) -> None:
    one, two = mesh.backend("one"), mesh.backend("two")
    way = await ways.open()
    await in_thread(one.mode, "reset", health=False)
    for method in ("GET", "PUT", "DELETE", "OPTIONS", "HEAD") * 2:
        got = await way.request(method, body=b"abc" if method == "PUT" else b"")
        assert (got.status, got.instance) == (200, two.instance), method
    assert one.requests >= 5


async def test_a_post_is_repeated_only_when_nothing_of_it_was_sent(mesh: Mesh, ways: Ways) -> None:
    one, two = mesh.backend("one"), mesh.backend("two")
    way = await ways.open()
    await in_thread(one.mode, "reset", health=False)
    ids = numbered()
    got = [await way.request("POST", body=b"x", headers=next(ids)) for _ in range(10)]
    assert sorted(one.status for one in got) == [200] * 5 + [502] * 5
    assert set((await _executions(one, two)).values()) == {1}

    one.kill()  # now its connections are refused
    for number in range(6):
        one_got = await way.request("POST", body=b"x" * 200_000, headers={"X-Execution": f"refused {number}"})
        assert (one_got.status, one_got.instance) == (200, two.instance)
        assert json.loads(one_got.body)["length"] == 200_000
    executions = await _executions(two)
    assert [executions[f"refused {number}"] for number in range(6)] == [1] * 6


async def test_a_body_of_up_to_64_kib_is_sent_again_byte_for_byte(mesh: Mesh, ways: Ways) -> None:
    size = 65536
    one, two = mesh.backend("one"), mesh.backend("two")
    way = await ways.open()
    await in_thread(one.mode, "reset", health=False)
    body = random.Random(size).randbytes(size)
    for _ in range(4):
        got = await way.request("PUT", body=body)
        assert (got.status, got.instance) == (200, two.instance)
        seen = json.loads(got.body)
        assert (seen["length"], seen["sha256"]) == (size, hashlib.sha256(body).hexdigest())
    assert one.requests >= 2


async def test_a_larger_body_is_not_kept(mesh: Mesh, ways: Ways) -> None:
    one, two = mesh.backend("one"), mesh.backend("two")
    way = await ways.open()
    await in_thread(one.mode, "reset", health=False)
    got = [await way.request("PUT", body=b"x" * 300_000) for _ in range(4)]
    assert sorted(one.status for one in got) == [200, 200, 502, 502]
    assert two.requests == 2


async def test_a_503_of_one_instance_is_the_200_of_another(mesh: Mesh, ways: Ways) -> None:
    one, two = mesh.backend("one"), mesh.backend("two")
    way = await ways.open()
    await in_thread(one.mode, "status", 503, health=False)
    for _ in range(4):
        got = await way.request("GET")
        assert (got.status, got.instance) == (200, two.instance)
    posts = [await way.request("POST", body=b"x") for _ in range(4)]
    assert sorted(one.status for one in posts) == [200, 200, 503, 503]


@pytest.mark.parametrize("status", [502, 504])
async def test_the_last_failing_answer_is_passed_on_as_it_is(mesh: Mesh, ways: Ways, status: int) -> None:
    backends = [mesh.backend(name) for name in ("one", "two")]
    way = await ways.open()
    for backend in backends:
        await in_thread(backend.mode, "status", status, health=False)
    got = await way.request("GET", "/some/where?x=1")
    assert got.status == status
    assert json.loads(got.body)["target"] == "/some/where?x=1"
    assert [backend.requests for backend in backends] == [2, 2]


@pytest.mark.parametrize("path", ["/status/500", "/status/429"])
async def test_an_answer_that_blames_the_request_is_asked_for_once(mesh: Mesh, ways: Ways, path: str) -> None:
    one = mesh.backend("one")
    way = await ways.open()
    for _ in range(3):
        assert (await way.request("GET", path)).status == int(path.rpartition("/")[2])
    assert one.requests == 3
    assert way.instances()[one.instance]["breakerFailures"] == 0


async def test_what_no_instance_takes_is_502_with_the_reason(mesh: Mesh, ways: Ways) -> None:
    mesh.register(f"{mesh.service}-nobody", free_port())
    way = await ways.open()
    got = await way.request("GET")
    assert got.status == 502
    assert b"cannot connect" in got.body


async def test_an_answer_that_breaks_off_is_not_repeated_and_looks_broken(mesh: Mesh, ways: Ways) -> None:
    one, two = mesh.backend("one"), mesh.backend("two")
    way = await ways.open()
    assert [(await way.request("GET", "/truncate")).status for _ in range(2)] == [0, 0]
    assert one.requests + two.requests == 2
    await eventually(lambda: [way.instances()[each.instance]["breakerFailures"] for each in (one, two)] == [1, 1])
    assert [way.instances()[each.instance]["inFlight"] for each in (one, two)] == [0, 0]


# -- instances that die, hang, are slow


async def test_killing_one_of_two_instances_fails_no_get(mesh: Mesh, ways: Ways) -> None:
    one, two = mesh.backend("one"), mesh.backend("two")
    way = await ways.open(Limits(threshold=3))
    async with load(way, 16) as got:
        await eventually(lambda: len(got) > 200)
        one.kill()
        before = len(got)
        await eventually(lambda: len(got) > before + 200)
    assert Counter(each.status for each in got) == {200: len(got)}
    assert {each.instance for each in got} == {one.instance, two.instance}
    assert way.instances()[one.instance]["breaker"] == "open"


async def test_an_instance_that_is_back_is_used_again(mesh: Mesh, ways: Ways) -> None:
    one, _ = mesh.backend("one"), mesh.backend("two")
    way = await ways.open(Limits(threshold=3, open_seconds=1))
    async with load(way, 4) as got:
        one.kill()
        await eventually(lambda: way.instances()[one.instance]["breaker"] == "open")
        await in_thread(one.start)
        await eventually(lambda: way.instances()[one.instance]["breaker"] == "closed")
        before = len(got)
        await eventually(lambda: any(each.instance == one.instance for each in got[before:]))
    assert {each.status for each in got} == {200}


@pytest.mark.parametrize("fault", ["stopped", "hanging"])
async def test_a_silent_instance_holds_its_first_requests_and_no_more(mesh: Mesh, ways: Ways, fault: str) -> None:
    one, *_ = [mesh.backend(name) for name in ("one", "two", "three")]
    way = await ways.open()
    async with load(way, 4) as warm:
        await eventually(lambda: len(warm) > 60)
    async with load(way, 8) as got:
        await eventually(lambda: len(got) > 50)
        if fault == "stopped":
            one.pause()
        else:
            await in_thread(one.mode, "hang")
        await eventually(lambda: way.instances()[one.instance]["isSuspect"])
        assert "suspect" in way.instances()[one.instance]["why"]
        before = len(got)
        await eventually(lambda: len(got) > before + 300)
        # Some of those that it held have moved on; nobody else waited for it.
        if fault == "stopped":
            one.resume()
        else:
            await in_thread(one.mode, "ok")
        await eventually(lambda: not way.instances()[one.instance]["isSuspect"])
        before = len(got)
        await eventually(lambda: sum(each.instance == one.instance for each in got[before:]) > 20)
    assert Counter(each.status for each in got) == {200: len(got)}
    assert way.instances()[one.instance]["breaker"] == "closed"


@pytest.mark.parametrize("fault", ["dead", "hung"])
async def test_a_request_with_five_seconds_is_saved_though_nothing_is_known_of_its_service(
    mesh: Mesh, ways: Ways, fault: str
) -> None:
    one, two = mesh.backend("one"), mesh.backend("two")
    with swallowing_port() as port:
        if fault == "dead":
            await in_thread(mesh.register, f"{mesh.service}-hole", port)
        else:
            await in_thread(one.mode, "hang")
        silent = f"{mesh.service}-hole" if fault == "dead" else one.instance
        way = await ways.open(Limits(total_seconds=5.0))
        await eventually(lambda: silent in way.instances())
        for _ in range(6):
            got = await way.request("GET")
            assert (got.status, got.instance != silent) == (200, True), got
        assert way.instances()[silent]["isSuspect"]
        assert not way.instances()[two.instance]["isSuspect"]
        await in_thread(one.mode, "ok")


async def test_a_post_held_by_a_stopped_instance_is_executed_once(mesh: Mesh, ways: Ways) -> None:
    backends = [mesh.backend(name) for name in ("one", "two")]
    way = await ways.open()
    async with load(way, 4) as warm:
        await eventually(lambda: len(warm) > 60)
    backends[0].pause()
    ids = numbered()
    async with asyncio.TaskGroup() as tasks:
        posts = [tasks.create_task(way.request("POST", body=b"x", headers=next(ids))) for _ in range(6)]
        await eventually(lambda: way.instances()[backends[0].instance]["isSuspect"])
        backends[0].resume()
    assert [post.result().status for post in posts] == [200] * 6
    assert (await _executions(*backends)) == {f"n{number}": 1 for number in range(6)}


async def test_a_slow_answer_is_waited_for_and_executed_once(mesh: Mesh, ways: Ways) -> None:
    backends = [mesh.backend(name) for name in ("one", "two")]
    way = await ways.open()
    async with asyncio.TaskGroup() as tasks:
        slow = [
            tasks.create_task(way.request(method, "/slow/1.5", headers={"X-Execution": f"{method}-{number}"}))
            for method in ("GET", "POST")
            for number in range(2)
        ]
    assert [one.result().status for one in slow] == [200] * 4
    assert set((await _executions(*backends)).values()) == {1}


async def test_one_deadline_covers_all_tries(mesh: Mesh, ways: Ways) -> None:
    backends = [mesh.backend(name) for name in ("one", "two", "three")]
    for backend in backends:
        backend.mode("hang", health=False)
    way = await ways.open(Limits(try_seconds=0.7, total_seconds=1.0))
    assert (await way.request("GET")).status == 504
    assert sum(backend.requests for backend in backends) == 2


async def test_an_address_that_is_no_host_name_is_one_failing_instance(mesh: Mesh, ways: Ways) -> None:
    one = mesh.backend("one")
    mesh.register(f"{mesh.service}-bad", 80, "a..b")
    mesh.register(f"{mesh.service}-odd", 80, "ü..ü")
    way = await ways.open()
    got = [await way.request("POST", body=b"x") for _ in range(6)]
    assert {(each.status, each.instance) for each in got} == {(200, one.instance)}


# -- breakers, and nobody left


async def test_with_every_breaker_open_the_answer_is_503_at_once(mesh: Mesh, ways: Ways) -> None:
    one, two = mesh.backend("one"), mesh.backend("two")
    way = await ways.open(Limits(retries=0, threshold=3))
    for backend in (one, two):
        await in_thread(backend.mode, "status", 503)
    for _ in range(6):
        assert (await way.request("GET")).status == 503
    asked = one.requests + two.requests
    assert asked == 6
    assert (await way.request("GET")).status == 503
    assert one.requests + two.requests == asked
    assert {item["breaker"] for item in way.instances().values()} == {"open"}


async def test_everybody_gone_is_502_until_the_breakers_say_503(mesh: Mesh, ways: Ways) -> None:
    backends = [mesh.backend(name) for name in ("one", "two")]
    way = await ways.open(Limits(retries=1, threshold=3))
    assert (await way.request("GET")).status == 200
    for backend in backends:
        backend.kill()
    statuses = [(await way.request("POST", body=b"x")).status for _ in range(6)]
    assert (statuses[0], statuses[-1]) == (502, 503)
    assert set(statuses) == {502, 503}


async def test_a_failing_instance_is_taken_out_and_one_trial_brings_it_back(mesh: Mesh, ways: Ways) -> None:
    one, _ = mesh.backend("one"), mesh.backend("two")
    way = await ways.open(Limits(threshold=3, open_seconds=0.5))
    await in_thread(one.mode, "reset", health=False)
    async with load(way, 2) as got:
        await eventually(lambda: way.instances()[one.instance]["breaker"] == "open")
        assert one.requests <= 5
        await in_thread(one.mode, "ok")
        await eventually(lambda: way.instances()[one.instance]["breaker"] == "closed")
        before = len(got)
        await eventually(lambda: any(each.instance == one.instance for each in got[before:]))
    assert {each.status for each in got} == {200}


# -- the registry, draining, metadata


async def test_a_draining_instance_gets_nothing_while_another_is_there(mesh: Mesh, ways: Ways) -> None:
    one, two = mesh.backend("one"), mesh.backend("two")
    way = await ways.open()
    await in_thread(mesh.register, one.instance, one.port, **{"toska-draining": "true"})
    await eventually(lambda: not way.instances()[one.instance]["isEligible"])
    assert {(await way.request("GET")).instance for _ in range(6)} == {two.instance}
    await in_thread(mesh.deregister, two.instance)
    await eventually(lambda: way.instances()[one.instance]["isEligible"])
    assert {(await way.request("GET")).instance for _ in range(3)} == {one.instance}


@pytest.mark.parametrize(
    ("metadata", "status", "requests"),
    [
        pytest.param({"toska-retries": "0"}, 503, 1, id="no retries"),
        pytest.param({"toska-retries": "2"}, 503, 3, id="fewer retries"),
        pytest.param({"toska-retries": "9"}, 503, 4, id="more retries than the caller's are not had"),
    ],
)
async def test_a_service_may_lower_the_retries(
    mesh: Mesh, ways: Ways, metadata: dict[str, str], status: int, requests: int
) -> None:
    one = mesh.backend("one", **metadata)
    way = await ways.open()
    await in_thread(one.mode, "status", 503, health=False)
    assert (await way.request("GET")).status == status
    assert one.requests == requests


@pytest.mark.parametrize("key", ["toska-timeout-ms", "toska-try-timeout-ms"])
async def test_a_service_may_shorten_the_wait(mesh: Mesh, ways: Ways, key: str) -> None:
    one = mesh.backend("one", **{key: "300", "toska-retries": "1"})
    way = await ways.open()
    await in_thread(one.mode, "hang", health=False)
    assert (await way.request("GET")).status == 504
    assert one.requests == (1 if key == "toska-timeout-ms" else 2)


async def test_without_the_registry_the_last_table_stays(registry_factory: Callable[..., RegistryServer]) -> None:
    """The client's way alone: the gateway's takes seconds, and is in `faults`."""
    registry = await in_thread(registry_factory)
    with Mesh(registry, "outage") as mesh:
        one, two = mesh.backend("one"), mesh.backend("two")
        async with AsyncExitStack() as stack:
            way = await Ways("client", mesh, stack).open()
            async with load(way, 4) as got:
                await eventually(lambda: len(got) > 20)
                registry.kill()
                await eventually(lambda: way.is_stale)
                before = len(got)
                await eventually(lambda: len(got) > before + 100)
                await in_thread(registry.start)
                three = await in_thread(mesh.backend, "three")
                await eventually(lambda: any(each.instance == three.instance for each in got))
                await eventually(lambda: not way.is_stale)
            assert {each.status for each in got} == {200}
            assert {one.instance, two.instance} <= {each.instance for each in got}
