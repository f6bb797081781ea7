"""Circuit breakers: what opens them, what must not, how they close, and what clients are told meanwhile."""

import asyncio
import time

import pytest
from tests.integration.faults.mesh import Mesh, in_thread
from tests.support.backend import Backend
from tests.support.load import Client
from tests.support.wait import eventually


def _breaker(mesh: Mesh, backend: Backend) -> str:
    return str(mesh.instances()[backend.instance]["breaker"])


def _changes(mesh: Mesh, state: str) -> float:
    name = f'toska_gateway_breaker_changes_total{{service="{mesh.service}",state="{state}"}}'
    return mesh.metrics().get(name, 0.0)


@pytest.mark.parametrize(("mode", "value"), [("status", 502), ("status", 503), ("status", 504), ("reset", "")])
async def test_a_failing_instance_is_taken_out_and_one_trial_brings_it_back(
    mesh: Mesh, mode: str, value: object
) -> None:
    one, two = mesh.backend("one"), mesh.backend("two")
    mesh.start(GATEWAY_BREAKER_OPEN_SECONDS=0.5)
    await in_thread(one.mode, mode, value, health=False)
    async with mesh.load(connections=2, pause_seconds=0.005).running() as figures:
        await eventually(lambda: _breaker(mesh, one) == "open")
        assert one.requests <= 5  # three failures, and what was under way beside the third
        await eventually(lambda: _changes(mesh, "half-open") >= 2, what="failing trials")
        asked = one.requests
        assert asked <= 5 + _changes(mesh, "half-open") + 1  # one request for each trial
        await in_thread(one.mode, "ok")
        await eventually(lambda: _breaker(mesh, one) == "closed")
        await eventually(lambda: figures.instances[one.instance] > 5)

    figures.assert_no_failure()
    assert figures.instances[two.instance]
    assert mesh.metrics()["toska_gateway_breakers_not_closed"] == 0


async def test_with_every_breaker_open_the_answer_is_503_at_once(mesh: Mesh) -> None:
    one, two = mesh.backend("one"), mesh.backend("two")
    mesh.start(GATEWAY_RETRY_COUNT=0)
    for backend in (one, two):
        await in_thread(backend.mode, "status", 503)
    for _ in range(6):
        answer = await mesh.request("GET")
        assert (answer.status, bool(answer.instance)) == (503, True)
    assert mesh.metrics()["toska_gateway_breakers_not_closed"] == 2
    began = time.monotonic()
    answer = await mesh.request("GET")
    assert time.monotonic() - began < 1.0
    assert answer.status == 503
    assert b'"breaker-open"' in answer.body
    assert 1 <= int(answer.fields["retry-after"]) <= 20
    for backend in (one, two):
        item = mesh.instances()[backend.instance]
        assert item["breaker"] == "open"
        assert 0 < item["breakerRetryInSeconds"] <= 20
        assert "breaker" in item["why"]


async def test_with_the_usual_retries_every_failing_instance_is_taken_out_too(mesh: Mesh) -> None:
    one, two = mesh.backend("one"), mesh.backend("two")
    mesh.start()
    for backend in (one, two):
        await in_thread(backend.mode, "status", 503)
    for _ in range(8):
        await mesh.request("GET")
    assert {item["breaker"] for item in mesh.instances().values()} == {"open"}


@pytest.mark.parametrize("path", ["/status/500", "/status/400", "/status/429", "/status/501"])
async def test_an_answer_that_blames_the_request_opens_nothing(mesh: Mesh, path: str) -> None:
    one = mesh.backend("one")
    mesh.start()
    for _ in range(6):
        assert (await mesh.request("GET", path)).status == int(path.rpartition("/")[2])
    assert mesh.instances()[one.instance]["breakerFailures"] == 0
    assert _breaker(mesh, one) == "closed"
    assert one.requests == 6  # and none of them was tried twice


async def _send_and_leave(mesh: Mesh, data: bytes, wait_seconds: float = 0.05) -> None:
    _, writer = await asyncio.open_connection("127.0.0.1", mesh.port)
    writer.write(data)
    await asyncio.sleep(wait_seconds)
    writer.transport.abort()


@pytest.mark.parametrize("upload", ["left-waiting", "left-uploading", "bad-chunk", "too-long", "too-long-chunked"])
async def test_no_client_can_switch_a_service_off(mesh: Mesh, upload: str) -> None:
    one = mesh.backend("one")
    mesh.start(GATEWAY_MAX_REQUEST_BYTES=1000)
    start = f" {mesh.path}/slow/0.3 HTTP/1.1\r\nHost: x\r\n".encode()
    data = {
        "left-waiting": b"GET" + start + b"\r\n",
        "left-uploading": b"PUT" + start + b"Content-Length: 500\r\n\r\nabc",
        "bad-chunk": b"POST" + start + b"Transfer-Encoding: chunked\r\n\r\n5\r\nhello\r\nzz\r\n",
        "too-long": b"POST" + start + b"Content-Length: 5000\r\n\r\n" + b"x" * 5000,
        "too-long-chunked": b"POST"
        + start
        + b"Transfer-Encoding: chunked\r\n\r\n"
        + b"100\r\n%b\r\n" % (b"x" * 256) * 9,
    }[upload]
    for _ in range(5):
        await _send_and_leave(mesh, data)
    assert mesh.instances()[one.instance]["breakerFailures"] == 0
    assert (await mesh.request("GET")).status == 200
    await eventually(lambda: mesh.metrics()["toska_gateway_requests_in_flight"] == 0)


async def test_a_client_that_leaves_during_the_trial_frees_its_place(mesh: Mesh) -> None:
    one = mesh.backend("one")
    mesh.start(GATEWAY_BREAKER_OPEN_SECONDS=0.3, GATEWAY_RETRY_COUNT=0)
    await in_thread(one.mode, "status", 503, health=False)
    for _ in range(3):
        await mesh.request("GET")
    assert _breaker(mesh, one) == "open"
    await in_thread(one.mode, "slow", 5, health=False)
    await eventually(lambda: not mesh.instances()[one.instance]["why"], what="a trial is due")
    await _send_and_leave(mesh, f"GET {mesh.path}/ HTTP/1.1\r\nHost: x\r\n\r\n".encode(), 0.2)
    await in_thread(one.mode, "ok")
    await eventually(lambda: _leaves_no_trial(mesh, one))
    assert (await mesh.request("GET")).status == 200
    assert _breaker(mesh, one) == "closed"


def _leaves_no_trial(mesh: Mesh, backend: Backend) -> bool:
    return mesh.instances()[backend.instance]["waiting"] == 0


async def test_a_trial_that_becomes_a_stream_closes_the_breaker_when_it_begins(mesh: Mesh) -> None:
    one = mesh.backend("one")
    mesh.start(GATEWAY_BREAKER_OPEN_SECONDS=0.3, GATEWAY_RETRY_COUNT=0)
    await in_thread(one.mode, "reset", health=False)
    for _ in range(3):
        assert (await mesh.request("GET")).status == 502
    await in_thread(one.mode, "ok")
    await eventually(lambda: not mesh.instances()[one.instance]["why"], what="a trial is due")
    async with asyncio.TaskGroup() as tasks:
        stream = tasks.create_task(mesh.request("GET", "/events/20/0.1"))
        await eventually(lambda: _breaker(mesh, one) == "closed", seconds=1.5)
        assert (await mesh.request("GET")).status == 200
        assert (await stream).body.endswith(b"data: 19\n\n")


async def test_the_breaker_of_a_departed_instance_is_forgotten(mesh: Mesh) -> None:
    one, two = mesh.backend("one"), mesh.backend("two")
    mesh.start(GATEWAY_BREAKER_OPEN_SECONDS=2)
    await in_thread(one.mode, "status", 503, health=False)
    figures = await mesh.load(connections=2).run(0.2)
    figures.assert_no_failure()
    assert _breaker(mesh, one) == "open"
    await in_thread(one.mode, "ok")
    await in_thread(mesh.deregister, one.instance)
    await mesh.until_routed(two)
    assert mesh.metrics()["toska_gateway_breakers_not_closed"] == 0
    await in_thread(mesh.register, one.instance, one.port)
    await mesh.until_routed(one, two)
    assert _breaker(mesh, one) == "closed"
    await in_thread(mesh.deregister, one.instance)
    await in_thread(mesh.deregister, two.instance)
    await eventually(lambda: not mesh.instances())
    assert not [name for name in mesh.metrics() if f'"{mesh.service}"' in name]
    await eventually(lambda: not [name for name in mesh.admin("/tasks") if one.instance in name])


async def test_retries_stay_within_their_budget_when_everything_fails(mesh: Mesh) -> None:
    one, two = mesh.backend("one"), mesh.backend("two")
    mesh.start(own=True, GATEWAY_BREAKER_FAILURE_THRESHOLD=100000, GATEWAY_RETRY_BASE_MS=1, GATEWAY_RETRY_JITTER_MS=1)
    for backend in (one, two):
        await in_thread(backend.mode, "status", 503)
    load = mesh.load(connections=4, pause_seconds=0, most_requests=1500, is_fine=lambda answer: answer.status == 503)
    figures = await load.run(3.0)
    figures.assert_no_failure()
    assert figures.sent > 500
    retries = mesh.metrics()[f'toska_gateway_retries_total{{service="{mesh.service}"}}']
    assert retries == one.requests + two.requests - figures.sent
    # 20 % of the requests, and the floor: 10 a second in a window of 10 s, refilled as it fades.
    assert 100 <= retries <= 0.2 * figures.sent + 140


async def test_one_deadline_covers_all_tries(mesh: Mesh) -> None:
    for name in ("one", "two", "three"):
        backend = mesh.backend(name)
        backend.mode("hang", health=False)
    mesh.start(GATEWAY_RESPONSE_TIMEOUT_SECONDS=0.7, GATEWAY_TOTAL_TIMEOUT_SECONDS=1.0)
    began = time.monotonic()
    answer = await mesh.request("GET")
    assert answer.status == 504
    assert 0.9 < time.monotonic() - began < 1.9


async def test_an_address_that_is_no_host_name_is_one_failing_instance(mesh: Mesh) -> None:
    one = mesh.backend("one")
    await in_thread(mesh.register, f"{mesh.service}-bad", 80, "a..b")
    await in_thread(mesh.register, f"{mesh.service}-odd", 80, "ü..ü")
    mesh.start(GATEWAY_BREAKER_OPEN_SECONDS=0.3)
    await in_thread(mesh.register, f"{mesh.service}-evil", 80, "a\r\nX-Evil: 1")
    figures = await mesh.load(connections=4).run(0.7)
    figures.assert_no_failure()
    assert set(figures.instances) == {one.instance}


async def test_pipelined_requests_do_not_inherit_the_wait_before_them(mesh: Mesh) -> None:
    one = mesh.backend("one")
    mesh.start(GATEWAY_RESPONSE_TIMEOUT_SECONDS=1.5)
    request = "GET {} HTTP/1.1\r\nHost: x\r\n\r\n"
    client = Client(mesh.port)
    try:
        await client.connect()
        assert client.writer is not None
        client.writer.write("".join(request.format(f"{mesh.path}/slow/1.2") for _ in range(3)).encode())
        async with asyncio.timeout(8):
            answers = [await client.read("GET") for _ in range(3)]
    finally:
        client.close()
    assert [answer.status for answer in answers] == [200, 200, 200]
    assert one.requests == 3


async def test_the_trial_is_made_by_a_request_that_can_be_repeated(mesh: Mesh) -> None:
    one, two = mesh.backend("one"), mesh.backend("two")
    mesh.start(GATEWAY_BREAKER_OPEN_SECONDS=0.3)
    await in_thread(one.mode, "status", 503, health=False)
    figures = await mesh.load(connections=2).run(0.3)
    figures.assert_no_failure()
    load = mesh.load(method="POST", connections=4)
    async with load.running() as posts:
        await asyncio.sleep(1.5)  # trials are due all the time
        assert _breaker(mesh, one) == "open"
        await in_thread(one.mode, "ok")
        await asyncio.sleep(0.2)
        await mesh.load(connections=1).run(0.2)
        assert _breaker(mesh, one) == "closed"
    posts.assert_no_failure()
    assert set(posts.instances) == {one.instance, two.instance}
