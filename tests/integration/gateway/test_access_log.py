"""The access log: one whole line per request, whatever becomes of the request, and whatever becomes of the log."""

import asyncio
import contextlib
import json
import os
import random
import select
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.integration.gateway.daemons import Gateway as Daemon
from tests.integration.gateway.daemons import hello, start
from tests.integration.gateway.harness import REQUEST, Backend, Caller, Gateway, running_gateway
from tests.support.servers import http_get
from tests.support.wait import eventually

from toska_mesh.gateway.accesslog import AccessLog
from toska_mesh.telemetry.lines import LineWriter

__all__ = ["hello", "start"]

FIELDS = {
    "time", "level", "msg", "method", "path", "status", "duration_ms", "service", "instance", "attempts", "before_ms",
    "upstream_ms", "relay_ms", "bytes_in", "bytes_out", "outcome", "client_ip", "request_id", "correlation_id",
    "trace_id",
}  # fmt: skip
TRACE = "0af7651916cd43dd8448eb211c80319c"


class Log:
    """A gateway's access log, read from its pipe."""

    def __init__(self, gateway: Gateway, descriptor: int) -> None:
        self.gateway = gateway
        self._descriptor = descriptor
        self._read = b""

    async def lines(self, count: int) -> list[dict[str, Any]]:
        """All lines so far, once there are `count`; each must be whole, and no more may have come."""

        def enough() -> bool:
            with contextlib.suppress(BlockingIOError):
                self._read += os.read(self._descriptor, 1 << 20)
            return self._read.count(b"\n") >= count

        await eventually(enough)
        assert self._read.endswith(b"\n")
        assert self._read.count(b"\n") == count, self._read
        found = [json.loads(line) for line in self._read.splitlines()]
        for line in found:
            assert line.keys() >= FIELDS
            assert line["msg"] == "request"
            parts = [line[name] for name in ("before_ms", "upstream_ms", "relay_ms")]
            if None not in parts:
                assert sum(parts) == pytest.approx(line["duration_ms"], abs=0.01)
            assert all(part is None or part >= 0 for part in parts)
        return found

    async def line(self) -> dict[str, Any]:
        (only,) = await self.lines(1)
        return only


@contextlib.asynccontextmanager
async def logging_gateway(*backends: Backend, **variables: object) -> AsyncIterator[Log]:
    reading, writing = os.pipe()
    os.set_blocking(reading, False)
    writer = LineWriter(writing)
    log = AccessLog(writer)

    def configure(proxy: Any) -> None:
        proxy.access_log = log

    try:
        async with running_gateway(*backends, configure=configure, **variables) as gateway:
            yield Log(gateway, reading)
    finally:
        writer.close()
        os.close(reading)
        os.close(writing)


async def test_a_request_that_went_well() -> None:
    async with Backend() as backend, logging_gateway(backend) as log:
        body = b"x" * 1000
        client = await log.gateway.connect()
        client.send(
            b"POST /api/orders/a%20b HTTP/1.1\r\nHost: a\r\nContent-Length: 1000\r\nX-Request-ID: req-1\r\n"
            b"Connection: close\r\nX-Correlation-ID: cor-1\r\ntraceparent: 00-"
            + TRACE.encode()
            + b"-b7ad6b7169203331-01\r\n\r\n"
            + body
        )
        client_bytes = await client.everything()
        line = await log.line()
        assert line.keys() == FIELDS
        assert line["level"] == "info"
        assert (line["method"], line["path"], line["status"]) == ("POST", "/api/orders/a%20b", 200)
        assert (line["service"], line["instance"], line["attempts"]) == ("orders", "orders-0", 1)
        assert (line["bytes_in"], line["outcome"], line["client_ip"]) == (1000, "ok", "127.0.0.1")
        assert (line["request_id"], line["correlation_id"], line["trace_id"]) == ("req-1", "cor-1", TRACE)
        assert line["bytes_out"] == len(client_bytes), "head and body, as the client gets them"


async def test_a_request_without_ids_is_found_by_the_one_in_its_answer() -> None:
    async with Backend() as backend, logging_gateway(backend) as log:
        answer = await log.gateway.get()
        line = await log.line()
        assert line["request_id"] == answer.get("X-Request-ID") == backend.requests[0].get("X-Request-ID")
        assert line["trace_id"] is None


async def test_pipelined_requests_have_a_line_each() -> None:
    async with Backend() as backend, logging_gateway(backend) as log:
        client = await log.gateway.connect()
        paths = [f"/api/orders/{number}" for number in range(20)]
        client.send(b"".join(f"GET {path} HTTP/1.1\r\nHost: a\r\n\r\n".encode() for path in paths))
        for _ in paths:
            assert (await client.answer()).status == 200
        assert [line["path"] for line in await log.lines(20)] == paths


@pytest.mark.parametrize(
    ("data", "status", "outcome"),
    [
        (b"GET /api/nobody/x HTTP/1.1\r\nHost: a\r\n\r\n", 404, "no-such-route"),
        (b"GET /other HTTP/1.1\r\nHost: a\r\n\r\n", 404, "no-such-route"),
        (b"GET /api/orders/ HTTP/1.1\r\n\r\n", 400, "bad-host"),
        (b"GET /api/orders/ HTTP/3.7\r\nHost: a\r\n\r\n", None, None),
        (b"CONNECT a:1 HTTP/1.1\r\nHost: a\r\n\r\n", 405, "method-not-allowed"),
        (b"POST /api/orders/ HTTP/1.1\r\nHost: a\r\nContent-Length: 99999999\r\n\r\n", 413, "request-too-large"),
        (b"\x16\x03\x01 what is this\r\n\r\n", 400, None),
        (b"GET /api/orders/ HTTP/1.1\r\nHost: a\r\nX: " + b"y" * 70_000 + b"\r\n\r\n", 431, "head-too-large"),
        (b"GET /api/orders/\xff\xfe HTTP/1.1\r\nHost: a\r\n\r\n", 400, None),
    ],
)
async def test_a_request_that_was_refused(data: bytes, status: int | None, outcome: str | None) -> None:
    """None: which of the refusals it is, is tested elsewhere; the line says what the client was told."""
    async with Backend() as backend, logging_gateway(backend) as log:
        client = await log.gateway.connect()
        answer = await client.ask(data)
        line = await log.line()
        assert answer.status == line["status"] == (status or answer.status) >= 400
        assert line["outcome"] == json.loads(answer.body)["code"] == (outcome or line["outcome"])
        assert (line["instance"], line["attempts"], line["upstream_ms"]) == (None, 0, None)
        assert line["request_id"] == json.loads(answer.body)["requestId"]
        assert line["bytes_out"] > len(answer.body)
        assert not backend.requests


async def test_an_address_that_a_proxy_passes_on_cannot_write_into_the_line() -> None:
    async with Backend() as backend, logging_gateway(backend, GATEWAY_TRUSTED_PROXIES="127.0.0.1") as log:
        answer = await log.gateway.get(headers='X-Forwarded-For: fe80::1%a"b\\\r\n')
        assert answer.status == 200
        assert (await log.line())["client_ip"] == "fe80::1"


async def test_a_request_that_was_tried_again() -> None:
    async def dies(caller: Caller) -> None:
        await caller.head()
        caller.reset()

    async with Backend(dies) as bad, Backend() as good, logging_gateway(bad, good) as log:
        for number in range(1, 20):
            assert (await log.gateway.get()).status == 200
            *_, line = await log.lines(number)
            assert (line["outcome"], line["instance"]) == ("ok", "orders-1")
            if line["attempts"] == 2:
                assert line["before_ms"] > 0, "the first try was before the one that decided"
                return
            assert line["attempts"] == 1
        raise AssertionError("the instance that dies was never tried")


async def test_a_request_that_no_instance_answered() -> None:
    async def dies(caller: Caller) -> None:
        await caller.head()
        caller.reset()

    async with Backend(dies) as bad, logging_gateway(bad, GATEWAY_RETRY_COUNT=1) as log:
        assert (await log.gateway.get()).status == 502
        line = await log.line()
        assert (line["status"], line["outcome"], line["attempts"]) == (502, "upstream-failed", 2)
        assert line["instance"] == "orders-0", "the last one that was asked"


async def test_a_client_that_left_and_an_instance_that_broke_off() -> None:
    asked = asyncio.Event()

    async def silent(caller: Caller) -> None:
        await caller.request()
        asked.set()
        await caller.wait_closed()

    async with Backend(silent) as backend, logging_gateway(backend) as log:
        client = await log.gateway.connect()
        client.send(REQUEST)
        await asked.wait()
        client.reset()
        line = await log.line()
        assert (line["outcome"], line["instance"], line["attempts"]) == ("client-left", "orders-0", 1)
        assert (line["status"], line["bytes_out"], line["relay_ms"]) == (0, 0, None)

    async def breaks_off(caller: Caller) -> None:
        await caller.request()
        await caller.send(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nhello")

    async with Backend(breaks_off) as backend, logging_gateway(backend) as log:
        client = await log.gateway.connect()
        client.send(REQUEST)
        received = await client.everything()
        line = await log.line()
        assert (line["status"], line["outcome"]) == (200, "upstream-truncated")
        assert line["bytes_out"] == len(received)


async def test_a_tunnel() -> None:
    async def upgrades(caller: Caller) -> None:
        await caller.head()
        await caller.send(b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\nConnection: Upgrade\r\n\r\nhello")
        assert await caller.reader.readexactly(3) == b"you"
        caller.close()

    async with Backend(upgrades) as backend, logging_gateway(backend) as log:
        client = await log.gateway.connect()
        client.send(b"GET /api/orders/ HTTP/1.1\r\nHost: a\r\nUpgrade: x\r\nConnection: Upgrade\r\n\r\n")
        assert (await client.answer()).status == 101
        assert await client.reader.readexactly(5) == b"hello"
        client.send(b"you")
        assert await client.is_closed()
        client.close()
        line = await log.line()
        assert (line["status"], line["outcome"], line["instance"]) == (101, "ok", "orders-0")
        assert (line["bytes_in"], line["bytes_out"]) == (3, 5)


async def test_a_line_fits_into_one_piece_of_a_pipe_however_long_the_request() -> None:
    async with Backend() as backend, logging_gateway(backend) as log:
        client = await log.gateway.connect()
        long_path = "/api/orders/" + '"' * 100 + "x" * 30_000
        quoted = "/api/orders/" + "x" * 2000
        identifier = "i" * 128
        for path in (long_path, quoted):
            await client.ask(
                f"GET {path} HTTP/1.1\r\nHost: a\r\nX-Request-ID: {identifier}\r\n"
                f"X-Correlation-ID: {identifier}\r\n\r\n".encode()
            )
        cut, whole = await log.lines(2)
        assert len(log._read.splitlines()[0]) < select.PIPE_BUF
        assert (cut["path"], cut["path_bytes"]) == (long_path[:1024], len(long_path))
        assert whole["path"] == quoted
        assert "path_bytes" not in whole


# -- a log that nobody takes


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    """Reading and writing end, closed at the end where the test has not done so."""
    ends = os.pipe()
    yield ends
    for end in ends:
        with contextlib.suppress(OSError):
            os.close(end)


async def ask(gateway: Gateway, count: int, path: str = "/api/orders/") -> None:
    client = await gateway.connect()
    for _ in range(count):
        assert (await client.ask(f"GET {path} HTTP/1.1\r\nHost: a\r\n\r\n".encode())).status == 200


async def test_a_reader_that_stops_and_goes_on(pipe: tuple[int, int]) -> None:
    """Requests are answered meanwhile; every line is there, whole, or counted as dropped."""
    reading, writing = pipe
    writer = LineWriter(writing, max_pending_bytes=100_000)
    log = AccessLog(writer)
    async with (
        Backend() as backend,
        running_gateway(backend, configure=lambda proxy: setattr(proxy, "access_log", log)) as gateway,
    ):
        asked = 0
        while not log.dropped_lines:
            await ask(gateway, 100, "/api/orders/" + "x" * 1000)
            asked += 100
            assert asked < 5000
        read = bytearray()
        stop = asyncio.Event()
        os.set_blocking(reading, False)

        async def go_on_reading() -> None:
            while not stop.is_set() or select.select([reading], [], [], 0)[0]:
                with contextlib.suppress(BlockingIOError):
                    read.extend(os.read(reading, 1 << 16))
                await asyncio.sleep(0.001)

        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(go_on_reading())
            async with asyncio.timeout(20):
                while b"/api/orders/after" not in read:
                    await ask(gateway, 1, "/api/orders/after")
                    asked += 1
                    await asyncio.sleep(0.01)
            await eventually(lambda: read.count(b"\n") + log.dropped_lines == asked)
            stop.set()
        lines = [json.loads(line) for line in bytes(read).splitlines()]
        assert len(lines) == asked - log.dropped_lines
        assert lines[-1]["path"] == "/api/orders/after"
    writer.close()


async def test_a_reader_that_is_gone(pipe: tuple[int, int]) -> None:
    os.close(pipe[0])
    writer = LineWriter(pipe[1])
    log = AccessLog(writer)
    async with (
        Backend() as backend,
        running_gateway(backend, configure=lambda proxy: setattr(proxy, "access_log", log)) as gateway,
    ):
        await ask(gateway, 50)
        await eventually(lambda: log.dropped_lines == 50)
        await ask(gateway, 50)
        await eventually(lambda: log.dropped_lines == 100)
    writer.close()


async def test_a_disk_that_is_full() -> None:
    with open("/dev/full", "wb", buffering=0) as full:
        writer = LineWriter(full.fileno())
        log = AccessLog(writer)
        async with (
            Backend() as backend,
            running_gateway(backend, configure=lambda proxy: setattr(proxy, "access_log", log)) as gateway,
        ):
            await ask(gateway, 50)
            await eventually(lambda: log.dropped_lines == 50)
        writer.close()


def test_half_a_line_does_not_spoil_the_next_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The disk fills up in the middle of a line, and later has room again."""
    path = tmp_path / "log"
    room = 25
    real_write = os.write

    def write(descriptor: int, data: bytes) -> int:
        nonlocal room
        if descriptor != file.fileno():
            return real_write(descriptor, data)
        if not room:
            raise OSError(28, "No space left on device")
        written = real_write(descriptor, bytes(data)[:room])
        room -= written
        return written

    with path.open("wb", buffering=0) as file:
        monkeypatch.setattr(os, "write", write)
        writer = LineWriter(file.fileno())
        writer.write(b"0123456789\n" * 4, 4)
        writer.close()
        assert writer.dropped_lines == 2
        writer._write_all(b"still full\n")
        assert writer.dropped_lines == 3
        room = 1000
        writer._write_all(b"abcdefghij\n")
        writer._write_all(b"klmnopqrst\n")
    assert path.read_bytes().split(b"\n") == [b"0123456789", b"0123456789", b"012", b"abcdefghij", b"klmnopqrst", b""]


# -- as a process


async def test_lines_of_several_workers_are_whole_and_all_there_at_the_end(start: Callable[..., Daemon]) -> None:
    daemon = await asyncio.to_thread(start)
    await eventually(lambda: len(daemon.serving()) == 2, 20)
    stop = asyncio.Event()
    async with asyncio.TaskGroup() as tasks:
        load = tasks.create_task(daemon.load(stop, random.Random(1)))
        await eventually(lambda: daemon.asked > 500)
        stop.set()
    await asyncio.to_thread(daemon.daemon.assert_clean_exit)  # lines are written out before the end
    requests = daemon.daemon.events("request")
    assert len(requests) == sum(load.result().values())
    assert len({line["request_id"] for line in requests}) == len(requests)
    assert all(line.startswith("{") and json.loads(line) for line in daemon.daemon.log_lines())


async def test_it_can_be_switched_off(start: Callable[..., Daemon]) -> None:
    daemon = await asyncio.to_thread(start, GATEWAY_WORKERS="1", GATEWAY_ACCESS_LOG="false")
    assert (await asyncio.to_thread(http_get, f"http://127.0.0.1:{daemon.port}/api/hello/x"))[0] == 200
    await asyncio.to_thread(daemon.daemon.assert_clean_exit)
    assert not daemon.daemon.events("request")
    assert daemon.daemon.events("gateway_listening")
