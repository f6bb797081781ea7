"""Finding out what a server has opened, and who of several workers speaks for it."""

import asyncio
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from tests.support.wait import eventually

from toska_mesh.sdk.ports import PortLease, listening_ports, until_open


def listening() -> socket.socket:
    return socket.create_server(("127.0.0.1", 0))


def port_of(sock: socket.socket) -> int:
    return int(sock.getsockname()[1])


def test_only_ports_that_this_process_listens_on_are_listed() -> None:
    command = (
        "import socket,sys; s=socket.create_server(('127.0.0.1',0)); print(s.getsockname()[1], flush=True); input()"
    )
    with (
        listening() as ours,
        socket.socket() as bound,
        socket.create_server(("::1", 0), family=socket.AF_INET6) as ours6,
        subprocess.Popen([sys.executable, "-c", command], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other,
    ):
        bound.bind(("127.0.0.1", 0))
        assert other.stdout is not None
        theirs = int(other.stdout.readline())
        found = listening_ports()
        other.communicate(b"\n")
        assert {port_of(ours), port_of(ours6)} <= found
        assert not found & {theirs, port_of(bound)}


async def test_the_port_that_a_server_opens_is_found() -> None:
    with listening() as metrics:
        before = listening_ports()
        assert port_of(metrics) in before
        async with asyncio.timeout(20), asyncio.TaskGroup() as tasks:
            finding = tasks.create_task(until_open(0, before))
            await asyncio.sleep(0.1)
            assert not finding.done()
            with listening() as server:
                assert await finding == port_of(server)


async def test_a_wanted_port_is_waited_for_whatever_else_is_open() -> None:
    with listening() as server:
        wanted = port_of(server)
    async with asyncio.timeout(20), asyncio.TaskGroup() as tasks:
        finding = tasks.create_task(until_open(wanted, frozenset()))
        with listening():
            await asyncio.sleep(0.1)
            assert not finding.done()
            with socket.create_server(("127.0.0.1", wanted)):
                assert await finding == wanted


async def test_one_process_holds_the_lease_and_the_next_gets_it_when_that_ends() -> None:
    with listening() as server:
        port = port_of(server)
    command = (
        "from toska_mesh.sdk.ports import PortLease; "
        f"lease = PortLease({port}, 'orders'); print(lease.take(), flush=True); input()"
    )
    with subprocess.Popen([sys.executable, "-c", command], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == b"True\n"
        ours = PortLease(port, "orders")
        assert not ours.take()
        other.kill()
        other.communicate()
        await eventually(ours.take)
        assert ours.take(), "held already"
    ours.release()
    again = PortLease(port, "orders")
    assert again.take()
    again.release()


def test_services_of_other_names_or_at_other_addresses_have_leases_of_their_own() -> None:
    with listening() as server:
        port = port_of(server)
        ours, foreign = PortLease(port, "orders"), PortLease(port, "carts")
        assert ours.take()
        assert foreign.take()
    elsewhere = PortLease(port, "orders")  # this process does not listen there any more
    assert elsewhere.take()
    for lease in (ours, foreign, elsewhere):
        lease.release()


def test_where_no_lock_can_be_had_the_service_is_registered_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path / "missing"))
    assert PortLease(1, "orders").take()
