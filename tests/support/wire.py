"""The gateway's data path without a socket: every byte, every pause and every second is the test's own.

`WireLoop` is an event loop whose clock moves only when the test says so, `Wire` a transport that keeps the promises of
uvloop's (what may be called when, what raises), and `Bench` the proxy between clients and instances of the test's. A
whole conversation takes well under a millisecond, repeats exactly, and ends with `Bench.finish`: nothing may be left.
"""

import asyncio
import logging
import os
import random
import socket
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar, cast

import orjson

from toska_mesh.gateway.accesslog import AccessLog
from toska_mesh.gateway.client import ClientConnection
from toska_mesh.gateway.exchange import Exchange
from toska_mesh.gateway.proxy import Proxy
from toska_mesh.gateway.settings import GatewaySettings
from toska_mesh.gateway.upstream import Upstream, UpstreamConnection
from toska_mesh.model import CatalogSnapshot, Endpoint, HealthStatus, Instance, InstanceId, ServiceName
from toska_mesh.router import RouteTable
from toska_mesh.telemetry.lines import LineWriter

HIGH_WATER = 64 * 1024
LOW_WATER = 16 * 1024
"""asyncio's own marks; uvloop has the same."""

BEGIN = 1000.0
"""The clock's first reading, in seconds; 0 means "never" in places."""

_Result = TypeVar("_Result")


class HangError(AssertionError):
    """Nothing moves any more, and something should."""


class WireLoop(asyncio.BaseEventLoop):
    """An event loop without file descriptors. Time moves to the next timer when nothing else is left to do."""

    def __init__(self) -> None:
        super().__init__()
        self._selector = self  # what BaseEventLoop asks for events, and how long it would wait
        self._now = BEGIN
        self._resting: list[asyncio.Future[None]] = []
        self.failures: list[str] = []
        self.connect: Callable[..., Awaitable[Any]]
        self.set_exception_handler(lambda _, context: self.failures.append(str(context)))

    def time(self) -> float:
        return self._now

    def select(self, timeout: float | None) -> list[Any]:
        if timeout == 0:
            return []
        if self._resting:
            resting, self._resting = self._resting, []
            for waiter in resting:
                if not waiter.done():
                    waiter.set_result(None)
        elif timeout is None:
            raise HangError("everybody waits for somebody else")
        else:
            self._now += timeout
        return []

    def _process_events(self, event_list: list[Any]) -> None: ...

    def _write_to_self(self) -> None: ...

    async def at_rest(self) -> None:
        """Until every callback has run that does not wait for time to pass."""
        waiter = self.create_future()
        self._resting.append(waiter)
        await waiter

    async def create_connection(self, protocol_factory: Any, host: Any = None, port: Any = None, **_: Any) -> Any:
        return await self.connect(protocol_factory, port)

    def timers(self) -> list[asyncio.TimerHandle]:
        return [timer for timer in self._scheduled if not timer.cancelled()]  # type: ignore[attr-defined]


def on_wires(main: Callable[[], Awaitable[_Result]]) -> _Result:
    """Run the coroutine function on a loop of its own. Raises what it raises, HangError when it waits for ever."""
    loop = WireLoop()
    try:
        return loop.run_until_complete(cast(Any, main()))
    finally:
        loop.close()


_QUIET, _READABLE = os.eventfd(0), os.eventfd(1)
"""Handles that refuse every question about a socket, and of which `poll` says that nothing, or something, is there."""


class _Socket:
    """As much of a socket as the gateway asks about."""

    def __init__(self, wire: "Wire") -> None:
        self._wire = wire

    def fileno(self) -> int:
        wire = self._wire
        has_something = wire.inbox or (wire.has_end and not wire.is_end_seen) or wire.is_reset
        return _READABLE if has_something else _QUIET

    def setsockopt(self, *_: object) -> None:
        self._wire.resets_on_close = True

    def getsockopt(self, _: int, name: int) -> int:
        return int(name == socket.SO_ERROR and self._wire.is_reset)


class Wire(asyncio.Transport):
    """One connection, from the gateway's end and from the other one.

    The other end gives bytes with `feed`, `end` and `reset` and has in `taken` what it got. Nothing is handed to the
    gateway before `deliver`. While `is_stalled` the other end takes nothing but what `take` says.
    """

    def __init__(self, loop: WireLoop, protocol: asyncio.Protocol, address: str = "127.0.0.1") -> None:
        super().__init__({"peername": (address, 40000), "socket": _Socket(self)})
        self.loop = loop
        self.protocol = protocol
        self.taken = bytearray()
        self.inbox = bytearray()
        self.on_taken: Callable[[Wire], None] = lambda _: None
        self.is_stalled = False
        self.is_reset = False
        """By the other end."""
        self.resets_on_close = False
        self.is_lost = False
        """The gateway has been told that the connection is gone."""
        self.has_end = False
        """The other end has sent its last byte."""
        self.is_end_seen = False
        self.got_end = False
        """The other end has seen the gateway's last byte: a FIN, nothing is missing."""
        self._unsent = bytearray()
        self._is_paused = False
        self._is_writing_paused = False
        self._is_closing = False
        self._is_gone = False
        self._has_eof = False

    # -- the gateway's end: asyncio.Transport, as uvloop has it

    def set_protocol(self, protocol: asyncio.BaseProtocol) -> None:
        self.protocol = cast(asyncio.Protocol, protocol)

    def get_protocol(self) -> asyncio.BaseProtocol:
        return self.protocol

    def write(self, data: Any) -> None:
        self._write([data])

    def writelines(self, list_of_data: Any) -> None:
        self._write(list_of_data)

    def _write(self, parts: Any) -> None:
        if self.is_lost:
            raise RuntimeError("unable to perform operation; the handler is closed")
        if self._has_eof:
            raise RuntimeError("Cannot call write() after write_eof()")
        if self._is_gone:
            return
        for part in parts:
            self._unsent += part
        if not self.is_stalled:
            self._flush(len(self._unsent))
        elif len(self._unsent) > HIGH_WATER and not self._is_writing_paused:
            self._is_writing_paused = True
            self.protocol.pause_writing()

    def write_eof(self) -> None:
        if self.is_lost:
            raise RuntimeError("unable to perform operation; the handler is closed")
        if not self._has_eof and not self._is_gone:
            self._has_eof = True
            if not self._unsent:
                self.got_end = True
                self.on_taken(self)

    def can_write_eof(self) -> bool:
        return True

    def get_write_buffer_size(self) -> int:
        return len(self._unsent)

    def is_closing(self) -> bool:
        return self._is_closing

    def pause_reading(self) -> None:
        self._is_paused = True

    def resume_reading(self) -> None:
        self._is_paused = False

    def close(self) -> None:
        if not self._is_closing:
            self._is_closing = True
            if not self._unsent:
                self._go(None)

    def abort(self) -> None:
        if not self._is_gone:
            self._unsent.clear()
            self._go(None)

    def _go(self, exc: Exception | None) -> None:
        self._is_closing = self._is_gone = True
        self.loop.call_soon(self._lose, exc)

    def _lose(self, exc: Exception | None) -> None:
        self.is_lost = True
        # Bytes that are there and that nobody reads turn the close into a reset (RFC 9112 section 9.6).
        is_unread = self._is_paused and bool(self.inbox)
        self.got_end = self.got_end or not (self.resets_on_close or self.is_reset or is_unread)
        self.protocol.connection_lost(exc)
        self.on_taken(self)

    # -- the other end

    def feed(self, data: bytes) -> None:
        self.inbox += data

    def end(self) -> None:
        """Send no more."""
        self.has_end = True

    def reset(self) -> None:
        """Be gone, without having taken what is under way."""
        self.is_reset = True
        self.inbox.clear()
        if not self._is_gone:
            self._unsent.clear()
            self._go(ConnectionResetError("Connection reset by peer"))

    @property
    def can_deliver(self) -> bool:
        is_read = not (self._is_paused or self._is_closing)
        return is_read and (bool(self.inbox) or (self.has_end and not self.is_end_seen))

    def deliver(self, count: int) -> None:
        """Hand so many bytes to the gateway in one piece; or the end, when there are none left."""
        if self.inbox:
            data = bytes(self.inbox[:count])
            del self.inbox[:count]
            self.protocol.data_received(data)
        elif self.has_end:
            self.is_end_seen = True
            if not self.protocol.eof_received():
                self.close()

    def stall(self) -> None:
        self.is_stalled = True

    def take(self, count: int) -> None:
        """Take so many bytes of what the gateway wrote."""
        self._flush(count)
        if self._is_writing_paused and len(self._unsent) <= LOW_WATER:
            self._is_writing_paused = False
            self.protocol.resume_writing()

    def flow(self) -> None:
        """Take everything, now and from now on."""
        self.is_stalled = False
        self.take(len(self._unsent))

    def _flush(self, count: int) -> None:
        part = self._unsent[:count]
        if part:
            del self._unsent[:count]
            self.taken += part
        if not self._unsent:
            self.got_end = self.got_end or self._has_eof
            if self._is_closing and not self._is_gone:
                self._go(None)
        if part or self.got_end:
            self.on_taken(self)


class _Lines:
    """Stands where the access log's writer stands; every line must be JSON."""

    dropped_lines = 0

    def __init__(self) -> None:
        self.lines: list[dict[str, Any]] = []

    def write(self, lines: bytes, count: int = 1) -> bool:
        self.lines += map(orjson.loads, lines.splitlines())
        return True


class _Complaints(logging.Handler):
    """The gateway contains its own bugs and logs them; here they fail the test."""

    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.found: list[str] = []
        self._formatter = logging.Formatter()

    def emit(self, record: logging.LogRecord) -> None:
        trace = self._formatter.formatException(record.exc_info) if record.exc_info else ""
        self.found.append(f"{record.getMessage()} {getattr(record, 'fields', {})}\n{trace}")


_COMPLAINTS = _Complaints()
_GATEWAY_LOG = logging.getLogger("toska.gateway")


@contextmanager
def _listening_to_logs() -> Iterator[list[str]]:
    was = _GATEWAY_LOG.level, _GATEWAY_LOG.propagate
    _GATEWAY_LOG.setLevel(logging.ERROR)
    _GATEWAY_LOG.propagate = False
    _GATEWAY_LOG.addHandler(_COMPLAINTS)
    _COMPLAINTS.found = []
    try:
        yield _COMPLAINTS.found
    finally:
        _GATEWAY_LOG.removeHandler(_COMPLAINTS)
        _GATEWAY_LOG.setLevel(was[0])
        _GATEWAY_LOG.propagate = was[1]


class _WatchedProxy(Proxy):
    """Remembers every request that it has brought to an end."""

    ended: list[Exchange]

    def record(self, exchange: Exchange) -> None:
        self.ended.append(exchange)
        super().record(exchange)


def vars_of(thing: object) -> dict[str, object]:
    """What a slotted object holds, for the text of a failure."""
    return {name: getattr(thing, name, None) for name in getattr(type(thing), "__slots__", ())}


class Server:
    """An instance as the test plays it: how it takes a dial, and the connections that it has."""

    def __init__(self, port: int) -> None:
        self.port = port
        self.dial = "accept"
        """What becomes of the next dials: `accept`, `refuse`, `hang`, `close` (accepted and closed at once)."""
        self.wires: list[Wire] = []


class Bench:
    """The proxy with its clients and instances. One service `hello`, its instances on the ports 1, 2, ... ."""

    def __init__(self, proxy: _WatchedProxy, loop: WireLoop, on_upstream: Callable[[Server, Wire], None]) -> None:
        self.proxy = proxy
        self.loop = loop
        self.servers: dict[int, Server] = {}
        self.clients: list[Wire] = []
        self._on_upstream = on_upstream
        self._seen: list[Upstream] = []
        loop.connect = self._connect

    def use_instances(self, ports: list[int], strategy: str = "RoundRobin") -> None:
        """Route to instances on these ports and to no others; none: the service is gone."""
        name = ServiceName("hello")
        instances = tuple(
            Instance(
                name,
                InstanceId(f"hello-{port}"),
                Endpoint("127.0.0.1", port),
                HealthStatus.HEALTHY,
                {"scheme": "http", "lb_strategy": strategy},
            )
            for port in ports
        )
        proxy = self.proxy
        for port in ports:
            self.server(port)
        catalog = CatalogSnapshot({name: instances} if instances else {})
        proxy.use_table(
            RouteTable.build(
                catalog, previous=proxy.table, make_target=proxy.make_upstream, now=proxy.now, rng=random.Random(1)
            )
        )
        self._seen += [upstream for upstream in proxy.upstreams() if upstream not in self._seen]

    def server(self, port: int) -> Server:
        """The instance on that port."""
        return self.servers.setdefault(port, Server(port))

    async def _connect(self, factory: Callable[[], asyncio.Protocol], port: int) -> tuple[Wire, asyncio.Protocol]:
        server = self.servers[port]
        how = server.dial
        await asyncio.sleep(0)
        if how == "refuse":
            raise ConnectionRefusedError(111, "Connection refused")
        if how == "hang":
            await self.loop.create_future()
        protocol = factory()
        wire = Wire(self.loop, protocol)
        protocol.connection_made(wire)
        server.wires.append(wire)
        if isinstance(protocol, UpstreamConnection):
            self._on_upstream(server, wire)
        if how == "close":
            wire.close()  # who dials is told before the protocol is told of the loss, as in uvloop
        else:
            await asyncio.sleep(0)
        return wire, protocol

    def connect(self, address: str = "10.0.0.1") -> Wire:
        """A new client."""
        protocol = ClientConnection(self.proxy)
        wire = Wire(self.loop, protocol, address)
        self.clients.append(wire)
        protocol.connection_made(wire)
        return wire

    @property
    def wires(self) -> list[Wire]:
        return self.clients + [wire for server in self.servers.values() for wire in server.wires]

    async def rest(self) -> None:
        """Let everything happen that happens without time, and fail for what failed inside the gateway."""
        await self.loop.at_rest()
        self.check()

    def check(self) -> None:
        if self.loop.failures or _COMPLAINTS.found:
            raise AssertionError("\n".join(["inside the gateway:", *self.loop.failures, *_COMPLAINTS.found]))

    async def pass_time(self, seconds: float, ticks: int = 1) -> None:
        """Let time pass. The proxy's watch, which looks ten times a second, looks `ticks` times."""
        proxy = self.proxy
        for _ in range(ticks):
            await asyncio.sleep(seconds / ticks)
            await self.loop.at_rest()
            proxy.now = proxy.clock()
            proxy._tick(proxy.now, 10)  # `run` would log what fails in it and go on
        await self.rest()

    async def finish(self) -> None:
        """Nothing may be left: no connection, no task, no timer, no request counted as under way."""
        await self.rest()
        for wire in self.wires:
            wire.flow()
        # Whoever says nothing any more is sooner or later shown out.
        for _ in range(12):
            if all(wire.is_lost for wire in self.clients):
                break
            for wire in self.clients:
                while wire.can_deliver:  # what was held back until the answer before it
                    wire.deliver(HIGH_WATER)
            await self.pass_time(60.0, 2)
        staying = [vars_of(wire.protocol) for wire in self.clients if not wire.is_lost]
        assert not staying, f"clients stay for ever: {staying}"
        assert not self.proxy.clients, "lost connections are still listed"
        for upstream in self._seen:
            found = upstream.instance.id, upstream.in_flight, dict(upstream.waiting)
            assert found[1:] == (0, {}), f"still counted as under way: {found}"
        self.use_instances([])
        await self.rest()
        for _ in range(12):
            if len(asyncio.all_tasks()) <= 1 and not self.loop.timers():
                break
            await self.pass_time(10.0)
        for upstream in self._seen:
            assert not upstream.idle, f"{upstream.instance.id} has left and still has a pool"
        open_upstreams = [wire for server in self.servers.values() for wire in server.wires if not wire.is_lost]
        assert not open_upstreams, f"{len(open_upstreams)} upstream connections are left"
        tasks = [task.get_name() for task in asyncio.all_tasks() if task is not asyncio.current_task()]
        assert not tasks, f"tasks are left: {tasks}"
        assert not self.loop.timers(), f"timers are left: {self.loop.timers()}"
        assert all(exchange.outcome for exchange in self.proxy.ended)
        assert len(set(map(id, self.proxy.ended))) == len(self.proxy.ended), "a request ended twice"
        for wire in self.clients:
            assert b'"code":"internal-error"' not in wire.taken


def with_bench(
    scenario: Callable[[Bench], Awaitable[_Result]],
    on_upstream: Callable[[Server, Wire], None] = lambda _server, _wire: None,
    seed: int = 1,
    **settings: Any,
) -> _Result:
    """Run a scenario on a bench of its own and see to it that nothing is left behind."""

    async def main() -> _Result:
        loop = cast(WireLoop, asyncio.get_running_loop())
        async with asyncio.TaskGroup() as tasks:
            given = {"rate_limit_permits": 10**9, "trusted_proxies": ("192.0.2.0/24",), **settings}
            lines = _Lines()
            proxy = _WatchedProxy(
                GatewaySettings(**given),
                tasks,
                access_log=AccessLog(cast(LineWriter, lines)),
                rng=random.Random(seed),
            )
            proxy.clock = proxy.guard._clock = loop.time
            proxy.now = BEGIN
            proxy.ended = []
            bench = Bench(proxy, loop, on_upstream)
            result = await scenario(bench)
            await bench.finish()
            if proxy.access_log is not None:
                proxy.access_log.flush()
            assert len(lines.lines) == len(proxy.ended)
            return result

    with _listening_to_logs():
        try:
            return on_wires(main)
        except BaseExceptionGroup as group:
            raise group.exceptions[0] from None  # the scenario's own; the group's other tasks were cancelled for it
