"""Two connections that carry each other's bytes, once both sides speak something else (RFC 9110 section 7.8).

A tunnel takes both transports over from the connections that led the conversation in HTTP, so that those know nothing
of it. Each direction ends by itself: the end of one side's bytes is passed on, and the other side may go on speaking.
"""

import asyncio
from typing import TYPE_CHECKING, Protocol

from toska_mesh.gateway.admission import NOBODY
from toska_mesh.gateway.goodbye import reset, unacknowledged_bytes

if TYPE_CHECKING:
    from toska_mesh.gateway.proxy import Proxy

FLUSH_SECONDS = 10.0
"""How long a side may take the last bytes of a tunnel that is over."""

_ALL = float("inf")


class Tunnelled(Protocol):
    """What a tunnel needs of the exchange that it came from."""

    bytes_in: int
    bytes_out: int

    def on_tunnel_over(self, outcome: str) -> None:
        """Called once. `ok`, `client-left` and `upstream-truncated` (reset or torn by that side), `idle`, `drained`."""


class TunnelEnd(asyncio.Protocol):
    """One of the two connections; takes the place of the protocol that its transport had."""

    __slots__ = ("account", "has_ended", "is_writing_paused", "other", "transport", "tunnel")

    tunnel: "Tunnel"
    other: "TunnelEnd"

    def __init__(self, transport: asyncio.Transport, *, is_writing_paused: bool, has_ended: bool = False) -> None:
        self.transport = transport
        self.is_writing_paused = is_writing_paused
        self.has_ended = has_ended
        """Whether this side has said all that it will."""
        self.account = NOBODY

    def data_received(self, data: bytes) -> None:
        self.tunnel.on_data(self, data)

    def eof_received(self) -> bool:
        self.has_ended = True
        return self.tunnel.on_end(self)

    def connection_lost(self, exc: Exception | None) -> None:
        self.tunnel.on_lost(self, exc)

    def pause_writing(self) -> None:
        self.is_writing_paused = True
        other = self.other
        if not (other.has_ended or other.transport.is_closing()):
            other.transport.pause_reading()

    def resume_writing(self) -> None:
        self.is_writing_paused = False
        other = self.other
        if not (other.has_ended or other.transport.is_closing()):
            other.transport.resume_reading()

    @property
    def unsent_bytes(self) -> int:
        """What this side has not taken yet."""
        return self.transport.get_write_buffer_size() + unacknowledged_bytes(self.transport)


class Tunnel:
    """See the module. Listed in `proxy.tunnels` from `open` until it is over; lives on one event loop."""

    __slots__ = ("_client", "_exchange", "_moved_at", "_proxy", "_unsent", "_upstream", "deadline")

    def __init__(self, proxy: "Proxy", exchange: Tunnelled, client: TunnelEnd, upstream: TunnelEnd) -> None:
        self._proxy = proxy
        self._exchange = exchange
        self._client = client
        self._upstream = upstream
        client.tunnel = upstream.tunnel = self
        client.other, upstream.other = upstream, client
        self._moved_at = proxy.now
        self._unsent = _ALL  # bytes that waited for either side when that was last looked at
        self.deadline = proxy.now + proxy.idle_timeout
        """When the proxy's tick looks whether it still moves; seconds on the loop's clock."""

    def open(self, from_client: bytes, from_upstream: bytes) -> None:
        """Begin, with what either side sent before it could know."""
        self._proxy.tunnels.add(self)
        for end in (self._client, self._upstream):
            end.transport.set_protocol(end)
            if end.is_writing_paused:
                end.pause_writing()
        if from_upstream:
            self.on_data(self._upstream, from_upstream)
        if from_client:
            self.on_data(self._client, from_client)
        if self._client.has_ended:
            self.on_end(self._client)

    def on_data(self, end: TunnelEnd, data: bytes) -> None:
        self._moved_at = self._proxy.now
        if end is self._client:
            self._exchange.bytes_in += len(data)
        else:
            self._exchange.bytes_out += len(data)
        end.other.transport.write(data)

    def on_end(self, end: TunnelEnd) -> bool:
        """One side will not speak any more. Gives whether its connection stays, for what the other has to say."""
        other = end.other
        # TLS as the loop has it knows no half-closed connection: there the first end is the end of both.
        if other.has_ended or not (end.transport.can_write_eof() and other.transport.can_write_eof()):
            self._finish("ok")
            return False
        self._moved_at = self._proxy.now
        if not other.transport.is_closing():
            other.transport.write_eof()
        return True

    def on_lost(self, end: TunnelEnd, exc: Exception | None) -> None:
        """A connection is gone as a whole. A broken stream must not look like one that has ended: a reset stays one."""
        self._proxy.admission.release(end)
        if self not in self._proxy.tunnels:
            return
        # Over TLS an end without the other side's goodbye comes without an error, but anybody on the way can make it
        # (RFC 8446 section 6.1), and bytes may be missing.
        is_torn = exc is not None or not end.transport.can_write_eof()
        if end.has_ended or not is_torn:
            self._finish("ok")
        else:
            self.cut("client-left" if end is self._client else "upstream-truncated")

    def expire(self) -> None:
        """The deadline has passed: end the tunnel unless something has moved since, in either direction."""
        now, idle_timeout = self._proxy.now, self._proxy.idle_timeout
        if now - self._moved_at < idle_timeout:
            self.deadline = self._moved_at + idle_timeout
            self._unsent = _ALL
            return
        unsent = self._client.unsent_bytes + self._upstream.unsent_bytes
        if 0 < unsent < self._unsent:
            self._unsent = unsent  # a slow reader
            self.deadline = now + idle_timeout
        elif unsent:
            self.cut("idle")
        else:
            self._finish("idle")

    def cut(self, outcome: str) -> None:
        """End both connections such that neither side can take the tunnel for complete."""
        self._leave(outcome)
        for end in (self._client, self._upstream):
            reset(end.transport)

    def _finish(self, outcome: str) -> None:
        """End both connections behind the last bytes that they are owed."""
        self._leave(outcome)
        for end in (self._client, self._upstream):
            end.transport.close()
            if end.transport.get_write_buffer_size():
                self._proxy.loop.call_later(FLUSH_SECONDS, end.transport.abort)

    def _leave(self, outcome: str) -> None:
        self._proxy.tunnels.discard(self)
        self._exchange.on_tunnel_over(outcome)
