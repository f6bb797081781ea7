"""Which failed tries are repeated, where, and with which bytes."""

import asyncio
import hashlib
import json
import random
import time

import pytest
from tests.integration.faults.mesh import Mesh, in_thread
from tests.support.ports import free_port
from tests.support.wait import eventually


async def test_a_reset_before_the_head_is_retried_elsewhere_at_once(mesh: Mesh) -> None:
    one, two = mesh.backend("one"), mesh.backend("two")
    mesh.start(GATEWAY_RETRY_BASE_MS=5000, GATEWAY_BREAKER_FAILURE_THRESHOLD=1000)
    await in_thread(one.mode, "reset", health=False)
    began = time.monotonic()
    for method in ("GET", "PUT", "DELETE", "OPTIONS", "HEAD") * 4:
        answer = await mesh.request(method, body=b"abc" if method == "PUT" else b"")
        assert (answer.status, answer.instance) == (200, two.instance), method
    assert time.monotonic() - began < 3.0  # none of them waited for a pause
    assert one.requests >= 10


async def test_a_post_is_retried_only_when_nothing_of_it_was_sent(mesh: Mesh) -> None:
    one, two = mesh.backend("one"), mesh.backend("two")
    mesh.start(GATEWAY_BREAKER_FAILURE_THRESHOLD=1000)
    await in_thread(one.mode, "reset", health=False)
    answers = [await mesh.request("POST", body=b"x", headers={"X-Execution": str(n)}) for n in range(10)]
    assert sorted(answer.status for answer in answers) == [200] * 5 + [502] * 5
    assert all(count == 1 for state in (one.state(), two.state()) for count in state["executions"].values())

    one.kill()  # now its connections are refused
    await asyncio.sleep(0.1)
    for number in range(10):
        answer = await mesh.request("POST", body=b"x" * 200_000, headers={"X-Execution": f"refused {number}"})
        assert (answer.status, answer.instance) == (200, two.instance)
        assert json.loads(answer.body)["length"] == 200_000
    executions = two.state()["executions"]
    assert [executions[f"refused {number}"] for number in range(10)] == [1] * 10


@pytest.mark.parametrize("size", [1, 1000, 65536])
async def test_a_body_of_up_to_64_kib_is_replayed_byte_for_byte(mesh: Mesh, size: int) -> None:
    one, two = mesh.backend("one"), mesh.backend("two")
    mesh.start(GATEWAY_BREAKER_FAILURE_THRESHOLD=1000)
    await in_thread(one.mode, "reset", health=False)
    body = random.Random(size).randbytes(size)
    for _ in range(4):
        answer = await mesh.request("PUT", body=body)
        assert (answer.status, answer.instance) == (200, two.instance)
        seen = json.loads(answer.body)
        assert (seen["length"], seen["sha256"]) == (size, hashlib.sha256(body).hexdigest())
    assert one.requests >= 2


async def test_a_chunked_body_is_replayed_too(mesh: Mesh) -> None:
    one, two = mesh.backend("one"), mesh.backend("two")
    mesh.start(GATEWAY_BREAKER_FAILURE_THRESHOLD=1000)
    await in_thread(one.mode, "reset", health=False)
    for _ in range(2):
        reader, writer = await asyncio.open_connection("127.0.0.1", mesh.port)
        writer.write(f"PUT {mesh.path}/ HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n".encode())
        for piece in (b"3\r\nabc\r\n", b"5\r\ndefgh\r\n", b"0\r\n\r\n"):
            await asyncio.sleep(0.05)
            writer.write(piece)
        head = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 5)
        writer.transport.abort()
        assert head.startswith(b"HTTP/1.1 200")
        assert two.instance.encode() in head
    assert one.requests >= 1


async def test_a_larger_body_is_not_kept(mesh: Mesh) -> None:
    one, two = mesh.backend("one"), mesh.backend("two")
    mesh.start(GATEWAY_BREAKER_FAILURE_THRESHOLD=1000)
    await in_thread(one.mode, "reset", health=False)
    answers = [await mesh.request("PUT", body=b"x" * 300_000) for _ in range(4)]
    assert sorted(answer.status for answer in answers) == [200, 200, 502, 502]
    assert two.requests == 2


async def test_a_503_of_one_instance_is_the_200_of_another(mesh: Mesh) -> None:
    one, two = mesh.backend("one"), mesh.backend("two")
    mesh.start(GATEWAY_BREAKER_FAILURE_THRESHOLD=1000)
    await in_thread(one.mode, "status", 503, health=False)
    for _ in range(6):
        answer = await mesh.request("GET")
        assert (answer.status, answer.instance) == (200, two.instance)
    answers = [await mesh.request("POST", body=b"x") for _ in range(4)]
    assert sorted(answer.status for answer in answers) == [200, 200, 503, 503]


@pytest.mark.parametrize("status", [502, 503, 504])
async def test_the_last_failing_answer_is_passed_on_as_it_is(mesh: Mesh, status: int) -> None:
    backends = [mesh.backend(name) for name in ("one", "two")]
    mesh.start(GATEWAY_RETRY_BASE_MS=10, GATEWAY_RETRY_JITTER_MS=1, GATEWAY_BREAKER_FAILURE_THRESHOLD=1000)
    for backend in backends:
        await in_thread(backend.mode, "status", status, health=False)
    answer = await mesh.request("GET", "/some/where?x=1")
    assert answer.status == status
    assert json.loads(answer.body)["target"] == "/some/where?x=1"
    assert sum(backend.requests for backend in backends) == 4  # and each instance twice, in turn
    assert {backend.requests for backend in backends} == {2}


async def test_a_single_instance_is_tried_again_after_a_pause(mesh: Mesh) -> None:
    """Its restart is ridden out by requests that may be repeated."""
    one = mesh.backend("one")
    mesh.start(GATEWAY_BREAKER_FAILURE_THRESHOLD=1000, GATEWAY_RETRY_COUNT=6, GATEWAY_RETRY_BASE_MS=100)
    await mesh.request("GET")
    one.kill()
    async with asyncio.TaskGroup() as tasks:
        waiting = [tasks.create_task(mesh.request("GET")) for _ in range(5)]
        waiting += [tasks.create_task(mesh.request("POST", body=b"not sent yet")) for _ in range(5)]
        await asyncio.sleep(0.2)
        await in_thread(one.start)
        answers = [await request for request in waiting]
    assert [answer.status for answer in answers] == [200] * 10


async def test_what_no_instance_takes_is_502_with_the_reason(mesh: Mesh) -> None:
    mesh.register(f"{mesh.service}-nobody", free_port())
    mesh.start(GATEWAY_RETRY_BASE_MS=10, GATEWAY_RETRY_JITTER_MS=1, GATEWAY_BREAKER_FAILURE_THRESHOLD=1000)
    answer = await mesh.request("GET")
    assert answer.status == 502
    problem = json.loads(answer.body)
    assert problem["code"] == "upstream-failed"
    assert "cannot connect" in problem["detail"]
    retries = mesh.metrics()[f'toska_gateway_retries_total{{service="{mesh.service}"}}']
    assert retries == 3


async def test_an_answer_that_breaks_off_is_not_repeated_and_looks_broken(mesh: Mesh) -> None:
    one, two = mesh.backend("one"), mesh.backend("two")
    mesh.start()
    for _ in range(2):
        with pytest.raises((asyncio.IncompleteReadError, ConnectionResetError)):
            await mesh.request("GET", "/truncate")
    assert one.requests + two.requests == 2
    item = mesh.instances()
    assert [item[backend.instance]["breakerFailures"] for backend in (one, two)] == [1, 1]
    await eventually(lambda: mesh.metrics()["toska_gateway_requests_in_flight"] == 0)
