"""`GATEWAY_HANDOVER_PATH`: a second process takes over from the running one without a failed request."""

import asyncio
import contextlib
import errno
import os
import signal
import socket
import stat
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import orjson
import pytest
from tests.integration.gateway.daemons import Gateway, hello, start
from tests.support.servers import http_get
from tests.support.wait import eventually

from toska_mesh.errors import ConfigError
from toska_mesh.gateway import handover
from toska_mesh.gateway.handover import HandoverError, HandoverServer, Sockets, find_predecessor, listen

__all__ = ["hello", "start"]


@pytest.mark.parametrize("workers", ["1", "2"])
async def test_each_new_process_takes_over_without_a_failed_request(
    start: Callable[..., Gateway], tmp_path: Path, workers: str
) -> None:
    """The new release has another limit, which every answer shows; the third takes over from the second."""
    path = tmp_path / "gateway.sock"
    common = {"GATEWAY_HANDOVER_PATH": str(path), "GATEWAY_WORKERS": workers, "GATEWAY_RATE_LIMIT_ENABLED": "true"}
    running = first = await asyncio.to_thread(start, GATEWAY_RATE_LIMIT_PERMITS="1000000", **common)
    await eventually(lambda: len(running.serving()) == int(workers), 20)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    stop = asyncio.Event()
    async with asyncio.TaskGroup() as tasks:
        load = tasks.create_task(first.load(stop))
        await eventually(lambda: b"RateLimit-Limit: 1000000\r\n" in first.last_head)
        for permits in ("2000000", "3000000")[: 3 - int(workers)]:
            before = {worker["pid"] for worker in running.serving()}
            new = await asyncio.to_thread(start, running, GATEWAY_RATE_LIMIT_PERMITS=permits, **common)
            assert await asyncio.to_thread(running.daemon.wait, 40) == 0, running.daemon.tail()
            assert running.daemon.events("handed_over")
            assert "Traceback" not in running.daemon.log_text()
            await eventually(lambda new=new: new.daemon.events("took_over"))
            await eventually(lambda new=new: len(new.serving()) == int(workers), 20)
            assert before.isdisjoint(worker["pid"] for worker in new.serving())
            assert new.admin("/config")["GATEWAY_RATE_LIMIT_PERMITS"]["value"] == permits
            await eventually(lambda permits=permits: f"RateLimit-Limit: {permits}\r\n".encode() in first.last_head)
            running = new
        stop.set()
    assert set(load.result()) == {"200"}
    assert path.exists()
    await asyncio.to_thread(running.daemon.assert_clean_exit)
    assert not path.exists()


async def test_a_new_process_that_fails_leaves_the_running_one_in_place(
    start: Callable[..., Gateway], tmp_path: Path
) -> None:
    """Killed, stopped, and refused its configuration, while it starts; limits are the same before and after."""
    path = str(tmp_path / "gateway.sock")
    common = {"GATEWAY_HANDOVER_PATH": path, "GATEWAY_WORKERS": "1"}
    limit = {"GATEWAY_RATE_LIMIT_ENABLED": "true", "GATEWAY_RATE_LIMIT_PERMITS": "3"}
    gateway = await asyncio.to_thread(start, GATEWAY_RATE_LIMIT_WINDOW_SECONDS="3600", **common, **limit)
    url = f"http://127.0.0.1:{gateway.port}/api/hello/x"
    answers = [(await asyncio.to_thread(http_get, url))[0] for _ in range(4)]
    assert answers == [200, 200, 200, 429]
    # Nobody listens there: this one never gets a table.
    for number in (signal.SIGKILL, signal.SIGTERM):
        failing = await asyncio.to_thread(start, gateway, **common, CONSUL_ADDRESS="http://127.0.0.1:9")
        await eventually(lambda failing=failing: failing.daemon.events("worker_started"), 30)
        failing.daemon.signal(number)
        code = await asyncio.to_thread(failing.daemon.wait, 30)
        assert code == (-signal.SIGKILL if number == signal.SIGKILL else 0), failing.daemon.tail()
        await asyncio.to_thread(failing.daemon.kill)  # its workers too
        said = 1 if number == signal.SIGKILL else 2
        await eventually(lambda said=said: len(gateway.daemon.events("handover_failed")) == said)
    assert gateway.daemon.is_running
    assert (await asyncio.to_thread(http_get, url))[0] == 429
    assert http_get(f"http://127.0.0.1:{gateway.admin_port}/health/ready")[0] == 200
    new = await asyncio.to_thread(start, gateway, GATEWAY_RATE_LIMIT_WINDOW_SECONDS="3600", **common, **limit)
    assert await asyncio.to_thread(gateway.daemon.wait, 40) == 0
    await eventually(lambda: new.daemon.events("took_over"))
    assert (await asyncio.to_thread(http_get, url))[0] == 429, "the limit's table passed on"
    await asyncio.to_thread(new.daemon.assert_clean_exit)


async def test_one_worker_is_replaced_at_sighup_where_a_handover_is_possible(
    start: Callable[..., Gateway], tmp_path: Path
) -> None:
    gateway = await asyncio.to_thread(start, GATEWAY_WORKERS="1", GATEWAY_HANDOVER_PATH=str(tmp_path / "gateway.sock"))
    (before,) = await eventually(gateway.serving, 20)
    stop = asyncio.Event()
    async with asyncio.TaskGroup() as tasks:
        load = tasks.create_task(gateway.load(stop))
        os.kill(gateway.daemon.pid, signal.SIGHUP)
        await eventually(lambda: [worker["pid"] for worker in gateway.admin("/workers")] != [before["pid"]], 30)
        await eventually(lambda: before["pid"] not in {worker["pid"] for worker in gateway.admin("/workers")}, 30)
        stop.set()
    assert set(load.result()) == {"200"}
    await asyncio.to_thread(gateway.daemon.assert_clean_exit)


# -- the protocol


class Running:
    """The running gateway's side, without a gateway."""

    def __init__(self, path: Path, listener: socket.socket) -> None:
        self.path = str(path)
        self.listener = listener
        self.listening = listen(self.path)
        self.steps_down = 0

    async def step_down(self) -> None:
        self.steps_down += 1


@contextlib.asynccontextmanager
async def running(path: Path, patience_seconds: float = 10.0) -> AsyncIterator[Running]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        side = Running(path, listener)
        server = HandoverServer(
            side.listening,
            lambda: Sockets(listener=[listener], handover=[side.listening]),
            side.step_down,
            patience_seconds,
        )
        async with asyncio.TaskGroup() as tasks:
            task = tasks.create_task(server.run())
            yield side
            task.cancel()
        side.listening.close()


async def test_the_sockets_themselves_pass_on(tmp_path: Path) -> None:
    async with running(tmp_path / "s") as side:
        new = await asyncio.to_thread(find_predecessor, side.path)
        assert new is not None
        assert new.pid == os.getpid()
        (listener,) = new.sockets.listener
        assert listener.getsockname() == side.listener.getsockname()
        assert listener.fileno() != side.listener.fileno()
        assert not listener.get_inheritable()
        assert new.sockets.limit_table is None
        await new.dismiss()
        assert side.steps_down == 1
        new.sockets.close()


async def test_a_newcomer_that_gives_up_or_takes_too_long_changes_nothing(tmp_path: Path) -> None:
    async with running(tmp_path / "s", patience_seconds=0.2) as side:
        leaving = await asyncio.to_thread(find_predecessor, side.path)
        assert leaving is not None
        leaving.close()
        leaving.sockets.close()
        slow = await asyncio.to_thread(find_predecessor, side.path)
        assert slow is not None
        next_one = await asyncio.to_thread(find_predecessor, side.path)  # answered once the slow one was given up
        assert next_one is not None
        assert side.steps_down == 0
        await next_one.dismiss()
        assert side.steps_down == 1
        await slow.dismiss()
        assert side.steps_down == 1
        slow.sockets.close()
        next_one.sockets.close()


async def test_a_newcomer_that_cannot_be_accepted_is_taken_in_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(handover, "ACCEPT_PAUSE_SECONDS", 0.01)
    loop = asyncio.get_running_loop()
    accept = loop.sock_accept
    refused = []

    async def out_of_descriptors(sock: socket.socket) -> Any:
        if len(refused) < 3:
            refused.append(OSError(errno.EMFILE, "Too many open files"))
            raise refused[-1]
        return await accept(sock)

    monkeypatch.setattr(loop, "sock_accept", out_of_descriptors)
    async with running(tmp_path / "s") as side:
        new = await asyncio.to_thread(find_predecessor, side.path)
        assert new is not None
        assert len(refused) == 3
        await new.dismiss()
        assert side.steps_down == 1
        new.sockets.close()


async def test_strangers_get_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own = os.geteuid()
    async with running(tmp_path / "s") as side:
        with monkeypatch.context() as patched:
            patched.setattr(handover, "uid_of", lambda _: own + 1)
            with pytest.raises(HandoverError, match="another user"):
                await asyncio.to_thread(find_predecessor, side.path)
            with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as stranger:
                stranger.settimeout(10)
                await asyncio.to_thread(stranger.connect, side.path)
                assert await asyncio.to_thread(stranger.recv, 4096) == b"", "an offer to another user"
        assert side.steps_down == 0
        again = await asyncio.to_thread(find_predecessor, side.path)
        assert again is not None
        again.close()
        again.sockets.close()


def test_the_socket_is_closed_to_other_users(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        with listen(str(tmp_path / "s")):
            assert stat.S_IMODE((tmp_path / "s").stat().st_mode) == 0o600
        assert os.umask(0) == 0, "the process keeps its own mask"
    finally:
        os.umask(before)


@pytest.mark.parametrize("said", [b"x", b"[]", b"{}", b'{"say":"hello","protocol":99}', b'{"say":"ready"}'])
async def test_what_is_not_understood_is_refused_and_forgotten(tmp_path: Path, said: bytes) -> None:
    async with running(tmp_path / "s") as side:
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as strange:
            strange.settimeout(10)
            await asyncio.to_thread(strange.connect, side.path)
            strange.send(said)
            answer, descriptors, _, _ = await asyncio.to_thread(socket.recv_fds, strange, 4096, 8)
            assert not descriptors
            assert not answer or orjson.loads(answer)["say"] == "refusal"
        assert side.steps_down == 0
        new = await asyncio.to_thread(find_predecessor, side.path)
        assert new is not None
        new.close()
        new.sockets.close()


async def test_a_running_gateway_that_is_silent_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(handover, "ANSWER_SECONDS", 0.1)
    with listen(str(tmp_path / "s")), pytest.raises(HandoverError, match="does not answer"):
        find_predecessor(str(tmp_path / "s"))


def test_nobody_there_is_no_predecessor_and_its_socket_is_replaced(tmp_path: Path) -> None:
    path = str(tmp_path / "s")
    assert find_predecessor(path) is None
    listen(path).close()
    assert find_predecessor(path) is None
    listen(path).close()


def test_a_path_that_is_something_else_is_a_config_error(tmp_path: Path) -> None:
    path = tmp_path / "notes.txt"
    path.write_text("mine")
    with pytest.raises(ConfigError, match="no socket"):
        listen(str(path))
    assert path.read_text() == "mine"


def test_the_path_is_checked_at_start() -> None:
    clean = {name: value for name, value in os.environ.items() if name in ("PATH", "HOME", "PYTHONPATH", "LANG")}
    for path in ("/nowhere/gateway.sock", "/tmp/" + "x" * 120):
        answer = subprocess.run(
            [sys.executable, "-m", "toska_mesh.gateway.app", "--check"],
            env=clean | {"GATEWAY_HANDOVER_PATH": path},
            capture_output=True,
            text=True,
        )
        assert answer.returncode == 2
        assert "GATEWAY_HANDOVER_PATH" in answer.stderr
