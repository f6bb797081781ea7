"""SIGTERM: everything that was sent is answered, nobody idle is waited for."""

import asyncio
import signal
import time

import pytest
from tests.integration.faults.mesh import Mesh, in_thread
from tests.support.load import Client
from tests.support.wait import eventually


@pytest.mark.parametrize("kind", ["keep-alive", "new-connections", "slow-keep-alive", "rare"])
async def test_nothing_that_was_sent_is_left_without_an_answer(mesh: Mesh, kind: str) -> None:
    mesh.backend("one")
    mesh.backend("two")
    gateway = mesh.start(own=True, GATEWAY_DRAIN_SECONDS=6)
    load = mesh.load(
        "/slow/0.2" if kind == "slow-keep-alive" else "/",
        connections={"rare": 40, "slow-keep-alive": 40}.get(kind, 16),
        pause_seconds={"rare": 0.7}.get(kind, 0.001),
        new_connections=kind == "new-connections",
        may_be_refused=True,
    )
    async with load.running() as figures:
        await asyncio.sleep(0.7)
        began = time.monotonic()
        gateway.signal(signal.SIGTERM)
        code = await in_thread(gateway.wait, 8)
        took = time.monotonic() - began
        await asyncio.sleep(0.9)

    figures.assert_no_failure()
    assert code == 0, gateway.tail()
    assert took < 4.0
    assert figures.unsent >= 1  # the load outlived the gateway


async def test_idle_connections_do_not_delay_the_end_and_the_port_is_free_at_once(mesh: Mesh) -> None:
    mesh.backend("one")
    gateway = mesh.start(own=True, GATEWAY_DRAIN_SECONDS=8)
    clients = [Client(mesh.port) for _ in range(50)]
    for client in clients:
        await client.request("GET", f"{mesh.path}/")
    silent = [Client(mesh.port) for _ in range(10)]
    for client in silent:
        await client.connect()
    began = time.monotonic()
    code = await in_thread(gateway.stop)
    assert code == 0
    assert time.monotonic() - began < 4.0
    for client in clients:
        assert client.reader is not None
        assert await client.reader.read() == b""  # closed, not reset
    await in_thread(gateway.start)
    assert (await mesh.request("GET")).status == 200
    for client in clients + silent:
        client.close()


async def test_not_ready_from_the_first_moment_and_a_long_download_is_finished(mesh: Mesh) -> None:
    mesh.backend("one")
    gateway = mesh.start(own=True, GATEWAY_DRAIN_SECONDS=8)
    async with asyncio.TaskGroup() as tasks:
        download = tasks.create_task(mesh.request("GET", "/bytes/5000000/3"))
        upload = tasks.create_task(mesh.request("POST", "/slow/2", b"z" * 500_000))
        await asyncio.sleep(0.5)
        gateway.signal(signal.SIGTERM)
        await eventually(lambda: mesh.ready()[0] == 503, seconds=0.9)
        answers = await download, await upload
        code = await in_thread(gateway.wait, 9)
    assert [answer.status for answer in answers] == [200, 200]
    assert answers[0].body == b"y" * 5_000_000
    assert code == 0, gateway.tail()


async def test_what_does_not_end_in_time_is_cut_and_looks_cut(mesh: Mesh) -> None:
    mesh.backend("one")
    gateway = mesh.start(own=True, GATEWAY_DRAIN_SECONDS=1)
    client = Client(mesh.port)
    async with asyncio.TaskGroup() as tasks:
        stream = tasks.create_task(_outcome(client, f"{mesh.path}/events/1000/0.1"))
        await eventually(lambda: mesh.metrics()["toska_gateway_requests_in_flight"] == 1)
        began = time.monotonic()
        gateway.signal(signal.SIGTERM)
        code = await in_thread(gateway.wait, 8)
        took = time.monotonic() - began
        outcome = await stream
    assert code == 0, gateway.tail()
    assert 0.9 < took < 4
    assert isinstance(outcome, OSError | EOFError)


async def _outcome(client: Client, path: str) -> object:
    try:
        return await client.request("GET", path)
    except (OSError, EOFError) as error:
        return error
    finally:
        client.close()


async def test_a_second_gateway_beside_the_draining_one_takes_over(mesh: Mesh) -> None:
    """Rolling restart behind one address: the next process is started as soon as the port is free."""
    mesh.backend("one")
    gateway = mesh.start(own=True, GATEWAY_DRAIN_SECONDS=2)
    load = mesh.load(connections=8, pause_seconds=0.01, may_be_refused=False)
    async with load.running() as figures:
        await asyncio.sleep(0.3)
        await in_thread(gateway.stop)
        await in_thread(gateway.start)
        figures.statuses.clear()
        await eventually(lambda: figures.statuses[200] > 20)

    assert figures.statuses[503] == 0 or "no-table-yet" in str(figures.failures)
    lost = [failure for failure in figures.failures if failure.startswith("no whole answer")]
    assert not lost
