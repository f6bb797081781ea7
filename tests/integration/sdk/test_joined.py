"""A stay under somebody else's server: several workers on one port, and a stay that cannot be."""

import asyncio
import signal
import socket
from collections.abc import Iterator

import pytest
from tests.integration.sdk.scripted import Recorder
from tests.support.wait import eventually

from toska_mesh.sdk.joined import Joined
from toska_mesh.sdk.options import ConnectOptions, ServiceOptions


@pytest.fixture(autouse=True)
def heard() -> Iterator[list[int]]:
    """The server's handler."""
    heard: list[int] = []
    before = {number: signal.signal(number, lambda number, _: heard.append(number)) for number in (15, 2)}
    yield heard
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.fixture
def port() -> Iterator[int]:
    """What the workers share: the server's port."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield int(server.getsockname()[1])


def worker(port: int, mesh: Recorder) -> Joined:
    options = ServiceOptions(name="orders", host="127.0.0.1", port=port, drain_seconds=20)
    return Joined(options, metrics_registry=None, open_enrolment=mesh.open)


async def test_one_of_several_workers_is_registered_and_the_others_wait_until_it_has_left(port: int) -> None:
    meshes = [Recorder(), Recorder()]
    first, second = (worker(port, mesh) for mesh in meshes)
    meshes[0].may_leave.clear()
    async with asyncio.timeout(30), asyncio.TaskGroup() as tasks:
        running = tasks.create_task(first.run())
        await eventually(first.stay.is_registered)
        standing_by = tasks.create_task(second.run())
        for joined in (second, first):
            joined.stay.ask_to_leave()
        await eventually(lambda: "wait_applied" in meshes[0].order)
        await asyncio.sleep(0.6)
        assert not standing_by.done(), "its listener would close while gateways still send"
        meshes[0].may_leave.set()
        await asyncio.wait([running, standing_by])
    assert "deregister" in meshes[0].order
    assert meshes[1].order == []


async def test_another_worker_takes_over_when_the_registered_one_dies(port: int) -> None:
    meshes = [Recorder(), Recorder()]
    first, second = (worker(port, mesh) for mesh in meshes)
    async with asyncio.timeout(30), asyncio.TaskGroup() as tasks:
        dying = tasks.create_task(first.run())
        await eventually(first.stay.is_registered)
        tasks.create_task(second.run())
        dying.cancel()
        await eventually(second.stay.is_registered)
        second.stay.ask_to_leave()
    assert meshes[1].order[-1] == "wait_applied"


async def test_a_signal_is_the_servers_when_the_mesh_has_been_left(port: int, heard: list[int]) -> None:
    mesh = Recorder()
    mesh.may_leave.clear()
    joined = worker(port, mesh)
    async with asyncio.timeout(30), asyncio.TaskGroup() as tasks:
        tasks.create_task(joined.run())
        await eventually(joined.stay.is_registered)
        signal.raise_signal(signal.SIGTERM)
        await eventually(lambda: "wait_applied" in mesh.order)
        assert heard == []
        mesh.may_leave.set()
    await eventually(lambda: heard == [signal.SIGTERM])


async def test_a_way_to_the_mesh_that_cannot_work_asks_the_server_to_stop(
    port: int, heard: list[int], caplog: pytest.LogCaptureFixture
) -> None:
    connect = ConnectOptions(discovery_address="https://localhost:1", ca_file="/nowhere/ca.pem")
    joined = Joined(ServiceOptions(name="orders", port=port, connect=connect), metrics_registry=None)
    async with asyncio.timeout(30):
        await joined.run()
    await eventually(lambda: heard == [signal.SIGTERM])
    (record,) = [record for record in caplog.records if vars(record).get("event") == "cannot_join"]
    assert "/nowhere/ca.pem" in str(record.__dict__["fields"])
