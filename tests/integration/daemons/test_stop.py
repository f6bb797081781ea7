"""Being stopped at any moment, more than once, and with nobody who reads the log."""

import asyncio
import os
import signal
import socket
from collections.abc import Callable, Iterator

import pytest
from tests.integration.daemons.daemons import ALL, GATEWAY, NOBODY, Daemon, Running
from tests.support.load import Client
from tests.support.servers import ConsulServer, http_get
from tests.support.wait import eventually

Make = Callable[..., Running]

PROMPT_SECONDS = 6.0
"""An idle daemon is gone in one to two seconds; the rest is room for a busy machine."""


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    """A pipe whose reading end the test closes when it likes."""
    reading, writing = os.pipe()
    yield reading, writing
    for end in (reading, writing):
        try:
            os.close(end)
        except OSError:
            pass


def _registry_of(daemon: Daemon, consul: ConsulServer) -> str:
    return consul.url if daemon.follows else ""


async def test_an_idle_daemon_ends_at_once_and_further_signals_do_no_harm(
    daemon: Daemon, make: Make, consul: ConsulServer
) -> None:
    """A shower of signals, also in the moments in which the loop is gone and the process is not."""
    running = make(daemon, _registry_of(daemon, consul))
    await asyncio.to_thread(running.start)
    running.terminate()
    deadline = asyncio.get_running_loop().time() + PROMPT_SECONDS
    while running.is_running:
        assert asyncio.get_running_loop().time() < deadline, running.tail()
        for number in (signal.SIGTERM, signal.SIGINT):
            running.signal(number)
        await asyncio.sleep(0.001)
    running.assert_ended_well(0)
    assert running.events("stopped"), running.log_text()


@pytest.mark.parametrize(
    ("daemon", "has_registry"),
    [*((daemon, True) for daemon in ALL), *((daemon, False) for daemon in ALL if daemon.follows)],
    ids=lambda value: str(value) if isinstance(value, Daemon) else ("registry" if value else "no registry"),
)
async def test_a_stop_while_it_starts(daemon: Daemon, has_registry: bool, make: Make, consul: ConsulServer) -> None:
    """At its first sign of life: the log's first line, or the open port."""
    running = make(daemon, _registry_of(daemon, consul) if has_registry else NOBODY)
    running.start(wait=False)
    port = running.ports[daemon.ports[-1]]

    def is_alive() -> bool:
        if running.log_text():
            return True
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", port)) == 0

    await eventually(is_alive, 30, every_seconds=0.001)
    running.terminate()
    assert await asyncio.to_thread(running.wait, PROMPT_SECONDS) == 0, running.tail()
    assert "Traceback" not in running.log_text(), running.log_text()


@pytest.mark.parametrize("after_seconds", [0.05, 0.35])
async def test_a_stop_before_it_has_begun(daemon: Daemon, after_seconds: float, make: Make) -> None:
    """While Python loads its modules nothing is open yet, and the signal's own effect is the right one."""
    running = make(daemon)
    running.start(wait=False)
    await asyncio.sleep(after_seconds)
    running.terminate()
    await asyncio.to_thread(running.assert_ended_well, 0, -signal.SIGTERM)


@pytest.mark.parametrize("is_closed", [False, True], ids=["reader gone", "no standard output"])
async def test_a_daemon_does_not_need_a_reader_of_its_log(
    daemon: Daemon, is_closed: bool, make: Make, consul: ConsulServer, pipe: tuple[int, int]
) -> None:
    reading, writing = pipe
    os.close(reading)
    running = make(daemon, _registry_of(daemon, consul), TOSKA_LOG_LEVEL="debug")
    running.stdout = -1 if is_closed else writing
    await asyncio.to_thread(running.start)
    for _ in range(50):
        assert http_get(f"{running.url}/health/ready")[0] == 200
    await asyncio.to_thread(running.assert_clean_exit)
    assert running.log_text() == ""


async def test_a_gateway_whose_log_is_not_read_serves_and_stops(
    make: Make, consul: ConsulServer, pipe: tuple[int, int]
) -> None:
    """The pipe is full after some hundred lines of the access log; nobody waits for it."""
    _, writing = pipe
    gateway = make(GATEWAY, consul.url, GATEWAY_RATE_LIMIT_ENABLED="false")
    gateway.stdout = writing
    await asyncio.to_thread(gateway.start)
    client = Client(gateway.ports["GATEWAY_PORT"])
    try:
        for _ in range(1500):
            answer = await client.request("GET", "/api/nobody-has-this-name/", timeout_seconds=10)
            assert answer.status == 404
    finally:
        client.close()
    await asyncio.to_thread(gateway.assert_clean_exit)
