"""A network in memory: connections between asyncio protocols without sockets, so that a virtual clock can run them.

What is sent arrives in the next turn of the loop. Both ends behave as a socket's do where a peer can tell: a close is
seen as the end of the stream, an abort as a reset, a slow reader holds its writer up. Real HTTP is spoken over it by
real clients and servers; only the wire is not real.
"""

import asyncio
import errno
import os
from collections import deque
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar, cast

import aiohttp
from aiohttp.client_proto import ResponseHandler

P = TypeVar("P", bound=asyncio.Protocol)
Address = tuple[str, int]
Accept = Callable[[], Awaitable[asyncio.Protocol | None]]
"""What a listener does with a connection: gives the protocol of its side, or None to refuse."""

_CLIENT_HOST = "127.0.0.1"
_FIRST_CLIENT_PORT = 49152
_HIGH_WATER_BYTES = 64 * 1024


class MemoryNetwork:
    """Who listens where. One event loop."""

    def __init__(self) -> None:
        self._listeners: dict[Address, Accept] = {}
        self._connections: dict[Address, set[MemoryTransport]] = {}
        self._cut_off: set[Address] = set()
        self._next_port = _FIRST_CLIENT_PORT

    def listen(self, address: Address, accept: Accept) -> None:
        """Take connections at the address from now on; whoever listened there before does no more."""
        self._listeners[address] = accept

    def stop_listening(self, address: Address) -> None:
        """Refuse connections from now on; those that are open stay."""
        self._listeners.pop(address, None)

    def reset(self, address: Address) -> None:
        """Break every connection to the address, as the end of a process does."""
        for transport in list(self._connections.get(address, ())):
            transport.abort()

    def close(self, address: Address) -> None:
        """End every connection to the address in good order: what was sent still arrives."""
        for transport in list(self._connections.get(address, ())):
            transport.close()

    def cut_off(self, address: Address) -> None:
        """Nothing gets to the address or from it: who connects waits, who is connected hears nothing any more."""
        self._cut_off.add(address)
        for transport in self._connections.get(address, ()):
            transport.cut()

    def reconnect(self, address: Address) -> None:
        """Undo `cut_off`, for connections made from now on."""
        self._cut_off.discard(address)

    async def connect(self, address: Address, make_protocol: Callable[[], P]) -> tuple[asyncio.Transport, P]:
        """Raises ConnectionRefusedError when nobody listens."""
        loop = asyncio.get_running_loop()
        await asyncio.sleep(0)
        if address in self._cut_off:
            await loop.create_future()  # until the caller gives up
        accept = self._listeners.get(address)
        server = None if accept is None else await accept()
        if server is None:
            raise ConnectionRefusedError(errno.ECONNREFUSED, os.strerror(errno.ECONNREFUSED))
        client = make_protocol()
        here = (_CLIENT_HOST, self._next_port)
        self._next_port += 1
        near, far = MemoryTransport(loop, client, here, address), MemoryTransport(loop, server, address, here)
        near.peer, far.peer = far, near
        open_here = self._connections.setdefault(address, set())
        open_here.add(far)
        far.when_lost(lambda: open_here.discard(far))
        server.connection_made(far)
        client.connection_made(near)
        return near, client


class MemoryTransport(asyncio.Transport):
    """One end of a connection. Whoever makes the two gives each its `peer`."""

    peer: "MemoryTransport"

    def __init__(self, loop: asyncio.AbstractEventLoop, protocol: asyncio.Protocol, here: Address, there: Address):
        super().__init__({"sockname": here, "peername": there})
        self._loop = loop
        self._protocol = protocol
        self._inbox: deque[bytes] = deque()
        self._inbox_bytes = 0
        self._is_reading = True
        self._is_closing = False
        self._is_lost = False
        self._has_written_eof = False
        self._eof_is_due = False
        self._is_delivering = False
        self._is_held_up = False
        self._is_cut = False
        self._high = _HIGH_WATER_BYTES
        self._on_lost: list[Callable[[], None]] = []

    def when_lost(self, callback: Callable[[], None]) -> None:
        """Call it when the connection is gone, whoever ended it; at once when it is gone already."""
        if self._is_lost:
            callback()
        else:
            self._on_lost.append(callback)

    def cut(self) -> None:
        """From now on nothing of what either side sends arrives."""
        for end in (self, self.peer):
            end._is_cut = True

    # What the protocol on this side asks for

    def get_protocol(self) -> asyncio.BaseProtocol:
        return self._protocol

    def set_protocol(self, protocol: asyncio.BaseProtocol) -> None:
        self._protocol = cast(asyncio.Protocol, protocol)

    def is_closing(self) -> bool:
        return self._is_closing

    def write(self, data: bytes | bytearray | memoryview) -> None:
        if self._is_closing or self._has_written_eof or self._is_cut or not data:
            return
        peer = self.peer
        if peer._is_closing:
            return  # as bytes that are on their way when the other side closes
        peer._inbox.append(bytes(data))
        peer._inbox_bytes += len(data)
        peer._deliver_soon()
        if peer._inbox_bytes > self._high and not self._is_held_up:
            self._is_held_up = True
            self._protocol.pause_writing()

    def can_write_eof(self) -> bool:
        return True

    def write_eof(self) -> None:
        if self._is_closing or self._has_written_eof:
            return
        self._has_written_eof = True
        self.peer._take_eof()

    def close(self) -> None:
        """What was written arrives; what arrives from now on is nobody's."""
        if self._is_closing:
            return
        self._is_closing = True
        self._inbox.clear()
        if not self._has_written_eof:
            self._has_written_eof = True
            self.peer._take_eof()
        self._loop.call_soon(self._lose, None)

    def abort(self) -> None:
        """The peer sees a reset, and nothing of what had not arrived."""
        if self._is_lost:
            return
        self._is_closing = True
        self._loop.call_soon(self._lose, None)
        peer = self.peer
        if not peer._is_closing and not self._is_cut:
            peer._is_closing = True
            peer._inbox.clear()
            reset = ConnectionResetError(errno.ECONNRESET, os.strerror(errno.ECONNRESET))
            self._loop.call_soon(peer._lose, reset)

    def is_reading(self) -> bool:
        return self._is_reading and not self._is_closing

    def pause_reading(self) -> None:
        self._is_reading = False

    def resume_reading(self) -> None:
        self._is_reading = True
        self._deliver_soon()

    def get_write_buffer_size(self) -> int:
        return self.peer._inbox_bytes

    def get_write_buffer_limits(self) -> tuple[int, int]:
        return 0, self._high

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        self._high = _HIGH_WATER_BYTES if high is None else high

    # What the other side does

    def _take_eof(self) -> None:
        if self._is_cut:
            return
        self._eof_is_due = True
        self._deliver_soon()

    def _deliver_soon(self) -> None:
        if not self._is_delivering and (self._inbox or self._eof_is_due):
            self._is_delivering = True
            self._loop.call_soon(self._deliver)

    def _deliver(self) -> None:
        self._is_delivering = False
        while self._inbox and self._is_reading and not self._is_closing:
            data = self._inbox.popleft()
            self._inbox_bytes -= len(data)
            self._protocol.data_received(data)
        if not self._inbox:
            self._inbox_bytes = 0
            self.peer._may_write_again()
        if self._eof_is_due and not self._inbox and self._is_reading and not self._is_closing:
            self._eof_is_due = False
            if not self._protocol.eof_received():
                self.close()

    def _may_write_again(self) -> None:
        if self._is_held_up:
            self._is_held_up = False
            if not self._is_lost:
                self._protocol.resume_writing()

    def _lose(self, reason: Exception | None) -> None:
        if self._is_lost:
            return
        self._is_lost = True
        self._inbox.clear()
        for callback in self._on_lost:
            callback()
        self._protocol.connection_lost(reason)


class MemoryConnector(aiohttp.BaseConnector):
    """Lets an aiohttp client reach what listens in a memory network, and nothing else. Names are hosts as they are."""

    def __init__(self, network: MemoryNetwork, **options: Any) -> None:
        super().__init__(**options)
        self._network = network

    async def _create_connection(self, req: Any, traces: Any, timeout: aiohttp.ClientTimeout) -> ResponseHandler:
        if req.is_ssl():
            raise aiohttp.ClientConnectorError(
                req.connection_key, OSError(errno.EPROTONOSUPPORT, "the fake mesh speaks plain HTTP only")
            )
        address = (str(req.url.raw_host), int(req.url.port))
        try:
            async with asyncio.timeout(timeout.sock_connect):
                _, protocol = await self._network.connect(address, self._factory)
        except OSError as exc:
            if isinstance(exc, TimeoutError):
                raise
            raise aiohttp.ClientConnectorError(req.connection_key, exc) from exc
        return protocol
