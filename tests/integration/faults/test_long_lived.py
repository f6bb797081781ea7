"""Answers that last: they live as long as they move, whatever the timeouts are."""

import asyncio
import time

import pytest
from tests.integration.faults.mesh import Mesh, in_thread
from tests.support.load import Client
from tests.support.wait import eventually

SHORT = {
    "GATEWAY_RESPONSE_TIMEOUT_SECONDS": 1,
    "GATEWAY_TOTAL_TIMEOUT_SECONDS": 1,
    "GATEWAY_IDLE_TIMEOUT_SECONDS": 1,
    "GATEWAY_HEADER_TIMEOUT_SECONDS": 1,
    "GATEWAY_KEEP_ALIVE_SECONDS": 1,
}


async def test_a_stream_that_moves_lives_longer_than_every_timeout(mesh: Mesh) -> None:
    mesh.backend("one")
    mesh.start(**SHORT)
    answers = await asyncio.gather(  # noqa: TID251 - both at once
        mesh.request("GET", "/events/9/0.4"), mesh.request("GET", "/bytes/300000/3.5")
    )
    assert answers[0].body == b"".join(b"data: %d\n\n" % number for number in range(9))
    assert len(answers[1].body) == 300_000


async def test_events_arrive_when_they_are_sent(mesh: Mesh) -> None:
    mesh.backend("one")
    mesh.start()
    reader, writer = await asyncio.open_connection("127.0.0.1", mesh.port)
    writer.write(f"GET {mesh.path}/events/3/0.5 HTTP/1.1\r\nHost: x\r\n\r\n".encode())
    await reader.readuntil(b"\r\n\r\n")
    moments = []
    for number in range(3):
        await asyncio.wait_for(reader.readuntil(b"data: %d\n\n" % number), 5)
        moments.append(time.monotonic())
    writer.transport.abort()
    assert moments[1] - moments[0] > 0.25
    assert moments[2] - moments[1] > 0.25


@pytest.mark.parametrize("path", ["/stall", "/events/2/2"])
async def test_a_stream_that_stops_moving_is_cut_and_looks_cut(mesh: Mesh, path: str) -> None:
    one = mesh.backend("one")
    mesh.start(**SHORT)
    began = time.monotonic()
    with pytest.raises((asyncio.IncompleteReadError, ConnectionResetError)):
        await mesh.request("GET", path, timeout_seconds=10)
    assert 0.9 < time.monotonic() - began < 4
    await eventually(lambda: mesh.metrics()["toska_gateway_requests_in_flight"] == 0)
    assert one.state()["connections"] <= 1  # the one that asks


async def test_a_slow_upload_is_no_reason_to_give_up(mesh: Mesh) -> None:
    mesh.backend("one")
    mesh.start(**SHORT)
    reader, writer = await asyncio.open_connection("127.0.0.1", mesh.port)
    writer.write(f"POST {mesh.path}/ HTTP/1.1\r\nHost: x\r\nContent-Length: 60\r\n\r\n".encode())
    for _ in range(6):
        await asyncio.sleep(0.5)
        writer.write(b"0123456789")
    head = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 5)
    writer.transport.abort()
    assert head.startswith(b"HTTP/1.1 200")


async def test_a_client_that_reads_slowly_gets_everything(mesh: Mesh) -> None:
    """It pauses longer than the idle timeout now and then; the instance is not to blame for that."""
    one = mesh.backend("one")
    mesh.start(**SHORT | {"GATEWAY_IDLE_TIMEOUT_SECONDS": 2})
    size = 20_000_000
    client = Client(mesh.port)
    await client.connect()
    assert client.reader is not None
    assert client.writer is not None
    client.writer.write(f"GET {mesh.path}/bytes/{size} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
    await client.reader.readuntil(b"\r\n\r\n")
    received = 0
    async with asyncio.timeout(30):
        while received < size:
            received += len(await client.reader.readexactly(min(4_000_000, size - received)))
            await asyncio.sleep(0.7)
    client.close()
    assert mesh.instances()[one.instance]["breakerFailures"] == 0


async def test_the_client_leaving_ends_the_stream_at_the_instance(mesh: Mesh) -> None:
    one = mesh.backend("one")
    mesh.start()
    client = Client(mesh.port)
    await client.connect()
    assert client.writer is not None
    client.writer.write(f"GET {mesh.path}/events/1000/0.05 HTTP/1.1\r\nHost: x\r\n\r\n".encode())
    await eventually(lambda: mesh.metrics()["toska_gateway_requests_in_flight"] == 1)
    client.close()
    await eventually(lambda: mesh.metrics()["toska_gateway_requests_in_flight"] == 0)
    assert (await in_thread(one.state))["connections"] == 1
    assert mesh.instances()[one.instance]["breakerFailures"] == 0
