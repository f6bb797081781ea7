"""The upstream side of the data path: one `Upstream` per instance with its pool, and the connections to it.

A connection parses what the instance sends and hands it, already framed for the client, to the exchange that it
carries. It knows HTTP/1.1 framing (RFC 9112 section 6) and nothing about routing, retries or breakers.
"""

import asyncio
import re
import ssl
from email.utils import formatdate
from typing import NamedTuple, Protocol, cast

import orjson
from httptools import HttpParserCallbackError, HttpParserError, HttpParserUpgrade, HttpResponseParser

from toska_mesh.gateway.goodbye import is_readable
from toska_mesh.gateway.headers import KINDS, Kind, has_token, may_be_trailer, named_by_connection
from toska_mesh.gateway.problems import REASONS
from toska_mesh.gateway.tunnel import TunnelEnd
from toska_mesh.guard import Guarded
from toska_mesh.model import Instance
from toska_mesh.resilience import RETRYABLE_STATUSES, BreakerPolicy, RecentLatency
from toska_mesh.telemetry import event_log

MAX_HEAD_BYTES = 256 * 1024
"""An upstream's response head larger than this is broken, not big; so are chunk extensions and trailers."""

MAX_FIELDS = 1000
"""So many header fields, or trailer fields, and an answer is broken, too; each is an object here."""

MAX_KNOWN_HEAD_BYTES = 4096
"""A larger head is not kept: every idle connection would."""

MAX_INTERIM_RESPONSES = 32
"""1xx answers before the final one (RFC 9110 section 15.2 sets no limit; a flood of them is an attack or a bug)."""

RAW_RELAY_MIN_BYTES = 32 * 1024
"""From this many remaining bytes on, a body of known length bypasses the parser."""

FRESH_SECONDS = 1.0
"""A pooled connection idle for longer may be closing at the other side just now: not for what cannot be resent."""

log = event_log("gateway.upstream")

_CONNECTION = int(Kind.CONNECTION)
_CONTENT_LENGTH = int(Kind.CONTENT_LENGTH)
_TRANSFER_ENCODING = int(Kind.TRANSFER_ENCODING)
_ENDS_HERE = frozenset(map(int, (Kind.HOP_BY_HOP, Kind.UPGRADE, Kind.REQUEST_ID, Kind.CORRELATION_ID)))
"""Not passed on: hop-by-hop fields, and the ids that the gateway itself puts on every answer."""

_H = ord("H")

_CORS_RESPONSE = int(Kind.CORS_RESPONSE)
_RATE_LIMIT = int(Kind.RATE_LIMIT)
_DATE = int(Kind.DATE)


class Carried(Protocol):
    """What a connection needs of the exchange that it carries."""

    is_head: bool
    client_speaks_11: bool
    replaces_cors: bool
    replaces_rate_limit: bool
    wants_upgrade: bool

    def on_interim(self, status: int, reason: bytes, fields: list[bytes]) -> None: ...

    def on_response_head(self, connection: "UpstreamConnection", relayed: bytes) -> bytes | None:
        """Complete the head for the client; None asks for the answer to be dropped: the request is tried again.

        `relayed` is what comes from the upstream: status line, header lines, framing.
        """

    def on_response_data(self, data: bytes) -> None: ...

    def on_response_end(self) -> None: ...

    def on_answer_dropped(self) -> None: ...

    def on_upgraded(self, connection: "UpstreamConnection", early: bytes) -> None: ...

    def on_connection_broken(self, why: str) -> None: ...

    def on_upstream_paused(self) -> None: ...

    def on_upstream_resumed(self) -> None: ...


_NOT_REMEMBERED = frozenset({204, 304, *RETRYABLE_STATUSES})

_STATUS_LINES: dict[tuple[int, bytes], bytes] = {}

_CONTROL = re.compile(rb"[\x00-\x08\x0a-\x1f\x7f]")


def status_line(status: int, reason: bytes) -> bytes:
    """Remembered by status and reason; bounded, because an upstream may invent reasons."""
    key = (status, reason)
    line = _STATUS_LINES.get(key)
    if line is None:
        if _CONTROL.search(reason):
            reason = b""  # no reason phrase (RFC 9112 section 4), and it means nothing to a client anyway
        line = b"HTTP/1.1 %d %b\r\n" % (status, reason or REASONS.get(status, b""))
        if len(_STATUS_LINES) < 1024:
            _STATUS_LINES[key] = line
    return line


def date_line() -> bytes:
    """The `Date` of an answer that is made, or comes without one, just now (RFC 9110 section 6.6.1)."""
    return b"Date: %b\r\n" % formatdate(usegmt=True).encode()


def passing_lines(headers: list[tuple[bytes, bytes]]) -> list[bytes]:
    """Of an interim answer or a switch of protocols: the lines of end-to-end fields that `Connection` does not name."""
    named: frozenset[bytes] = frozenset()
    for name, value in headers:
        if KINDS[name] == _CONNECTION:
            named = named | named_by_connection(value)
    return [
        b"%b: %b\r\n" % (name, value)
        for name, value in headers
        if (not KINDS[name] or KINDS[name] == _DATE) and name.lower() not in named
    ]


class CoarseClock:
    """A reading of the loop's clock that is refreshed some times a second: good enough for idle times, and free."""

    now = 0.0


class Upstream(Guarded):
    """One instance as the gateway uses it: the router's target, its guard, and a pool of idle connections.

    Lives as long as the instance keeps id and endpoint; owned by the route table, touched by the data path.
    """

    __slots__ = ("address_line", "idle", "log_fields", "max_idle")

    def __init__(
        self,
        instance: Instance,
        policy: BreakerPolicy,
        latency: RecentLatency,
        tls: ssl.SSLContext | None = None,
        max_idle: int = 512,
    ) -> None:
        super().__init__(instance, policy, latency, tls)
        self.idle: list[UpstreamConnection] = []
        self.max_idle = max_idle
        self.log_fields = b'"service":%b,"instance":%b' % (orjson.dumps(instance.service), orjson.dumps(instance.id))
        """Its part of a line of the access log."""
        self.address_line = b" HTTP/1.1\r\nHost: %b\r\n" % _host_field(instance)

    def take_idle(self, now: float, only_fresh: bool) -> "UpstreamConnection | None":
        """The most recently used idle connection.

        With `only_fresh`, for a request that cannot be sent twice: none that has been idle for long, and none whose end
        has arrived and waits for the loop's next turn. What is passed over here, the loop closes then.
        """
        idle = self.idle
        while idle:
            if only_fresh and now - idle[-1].idle_since > FRESH_SECONDS:
                return None
            connection = idle.pop()
            if only_fresh and is_readable(connection.transport):
                continue
            if not connection.transport.is_closing():
                return connection
        return None

    def give_back(self, connection: "UpstreamConnection", now: float) -> None:
        """Keep the connection for the next request, if there is room and the instance is still there."""
        if self.is_gone or len(self.idle) >= self.max_idle or connection.transport.is_closing():
            connection.transport.close()
            return
        connection.idle_since = now
        self.idle.append(connection)

    def close_idle(self, idle_before: float = float("inf")) -> None:
        """Close connections that became idle before that moment (default: all)."""
        keep = [connection for connection in self.idle if connection.idle_since >= idle_before]
        for connection in self.idle:
            if connection.idle_since < idle_before:
                connection.transport.close()
        self.idle = keep

    def leave(self) -> None:
        """The instance is no longer in the table: nothing new goes there, running exchanges end by themselves."""
        self.is_gone = True
        self.close_idle()


def _host_field(instance: Instance) -> bytes:
    authority = instance.endpoint.authority
    try:
        return authority.encode("ascii" if authority.isascii() else "idna")
    except UnicodeError:
        return b""  # no host name at all; every dial will say so


class KnownHead(NamedTuple):
    """The head of an answer as it came, and what became of it: the next one is often the same, byte for byte."""

    wire: bytes
    """From the status line to the empty line, both included."""
    relayed: bytes
    status: int
    content_length: int
    replaces_cors: bool
    replaces_rate_limit: bool


class UpstreamConnection(asyncio.Protocol):
    """One connection to an instance; carries one exchange at a time."""

    __slots__ = (
        "_clock",
        "_done",
        "_drop",
        "_first_data",
        "_has_date",
        "_has_end",
        "_head_bytes",
        "_interim",
        "_known",
        "_out",
        "_overhead",
        "_parser",
        "_raw_remaining",
        "_remaining",
        "_spoiled",
        "_trailer_count",
        "_trailers",
        "chunked_to_client",
        "content_length",
        "exchange",
        "fields",
        "has_body",
        "head_done",
        "headers",
        "idle_since",
        "is_reading_paused",
        "is_writing_paused",
        "keep_alive",
        "moved_at",
        "reason",
        "status",
        "transport",
        "until_close",
        "upstream",
    )

    transport: asyncio.Transport

    def __init__(self, upstream: Upstream, clock: CoarseClock) -> None:
        self.upstream = upstream
        self._clock = clock
        self.exchange: Carried | None = None
        self.idle_since = 0.0
        self.moved_at = 0.0
        """When a part of an unfinished answer came last."""
        self._parser: HttpResponseParser | None = None
        self.headers: list[tuple[bytes, bytes]] = []
        self._out: list[bytes] = []
        self._known: KnownHead | None = None
        self._first_data = b""
        self._has_date = False
        self._has_end = False
        """The instance itself has said that nothing more comes."""
        self._spoiled = False
        self.is_reading_paused = False
        self.is_writing_paused = False
        self.keep_alive = False
        self.has_body = False
        self.content_length = -1
        self.fields: list[bytes] = []
        self._reset()

    def _reset(self) -> None:
        self.head_done = False
        self.reason = b""
        self.status = 0
        self._trailers = b""
        self._done = False
        self._drop = False
        self._head_bytes = 0
        self._overhead = 0  # bytes since the last that belonged to the body
        self._interim = 0
        self._raw_remaining = 0
        self._remaining = 0
        self.until_close = False
        self.chunked_to_client = False

    # -- asyncio.Protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)

    def connection_lost(self, exc: Exception | None) -> None:
        exchange, self.exchange = self.exchange, None
        if exchange is None:
            # Idle: the instance closed it, as it may at any time.
            try:
                self.upstream.idle.remove(self)
            except ValueError:
                pass
            return
        if self.until_close and self.head_done and self._has_end:
            # RFC 9112 section 6.3 rule 8: the close is the end of the body.
            if self.chunked_to_client:
                exchange.on_response_data(b"0\r\n\r\n")
            exchange.on_response_end()
        else:
            exchange.on_connection_broken(str(exc) if exc else "the upstream closed the connection")

    def eof_received(self) -> bool:
        # A FIN; with TLS only a close_notify: without it anybody on the way may have ended the body (section 9.8).
        self._has_end = True
        return False

    def pause_writing(self) -> None:
        self.is_writing_paused = True
        if self.exchange is not None:
            self.exchange.on_upstream_paused()

    def resume_writing(self) -> None:
        self.is_writing_paused = False
        if self.exchange is not None:
            self.exchange.on_upstream_resumed()

    def data_received(self, data: bytes) -> None:
        exchange = self.exchange
        if exchange is None:
            # Nothing was asked: whatever this is, it must not become the answer to the next request.
            self.transport.abort()
            return
        if self._raw_remaining:
            self._relay_raw(exchange, data)
            return
        parser = self._parser
        if parser is None:
            parser = self._parser = HttpResponseParser(self)
        if self.head_done:
            self._overhead += len(data)
        elif not self._head_bytes:
            known = self._known
            if known is not None and data.startswith(known.wire) and self._repeats(known, exchange, data):
                return
            if data[0] != _H:
                # The parser also takes RTSP/1.0 and ICE/1.0 for HTTP, and empty lines in front.
                self._break("the answer is not HTTP")
                return
            self._head_bytes = len(data)
            self._first_data = data
        else:
            self._head_bytes += len(data)
            self._first_data = b""
        try:
            parser.feed_data(data)
        except HttpParserUpgrade as upgrade:
            self._switch_protocols(exchange, data[upgrade.args[0] :])
            return
        except HttpParserCallbackError:
            log.exception("answer_failed_inside", instance=self.upstream.instance.id)
            self._break("the gateway failed at the answer")
            return
        except HttpParserError as exc:
            self._spoiled = True
            if not self._done:
                self._break(f"malformed answer: {exc}")
                return
        self._after_feed(exchange)

    # -- what the parser calls

    def on_message_begin(self) -> None:
        if self._done:
            self._spoiled = True  # a second answer to one request
            return
        self.headers = []

    def on_status(self, reason: bytes) -> None:
        if not self._done:
            self.reason += reason

    def on_header(self, name: bytes, value: bytes) -> None:
        if not self.head_done:
            self.headers.append((name, value))
        elif not self._done:
            # Trailer fields (RFC 9112 section 7.1.2).
            self._trailer_count += 1
            if self._trailer_count > MAX_FIELDS:
                self._break("the answer has too many trailer fields")
            elif self.chunked_to_client and may_be_trailer(name):
                self._trailers += b"%b: %b\r\n" % (name, value)

    def on_headers_complete(self) -> None:
        exchange = self.exchange
        if self._done or exchange is None or self._parser is None:
            self._spoiled = True
            return
        self.status = status = self._parser.get_status_code()
        if not 200 <= status < 600:
            if not 100 <= status < 200:
                self._break("the status of the answer is no status")  # RFC 9110 section 15: 100 to 599
            return
        if len(self.headers) > MAX_FIELDS:
            self._break("the answer has too many header fields")
            return
        if not self._read_head(exchange):
            return
        self.head_done = True
        self._known = None
        relayed = self._relayed_head()
        head = exchange.on_response_head(self, relayed)
        if head is None:
            self._drop = True
        else:
            self._out.append(head)
            self._remember(exchange, relayed)
        # An idle connection need not hold what it has got.
        self._first_data = b""
        self.headers = []
        self.fields = []
        if not self.has_body:
            self._done = True

    def on_body(self, data: bytes) -> None:
        if self._done or self._drop or not self.head_done:
            self._spoiled = self._spoiled or self._done
            return
        self._overhead = 0
        if self.chunked_to_client:
            self._out.append(b"%x\r\n%b\r\n" % (len(data), data))
        else:
            self._remaining -= len(data)
            self._out.append(data)

    def on_message_complete(self) -> None:
        if self.status < 200:
            self._finish_interim()
            return
        if self._done:
            return
        if self.chunked_to_client and not self._drop and not self.until_close:
            self._out.append(b"0\r\n%b\r\n" % self._trailers)
        self._done = True

    def _repeats(self, known: "KnownHead", exchange: Carried, data: bytes) -> bool:
        """Take an answer whose head is, byte for byte, that of the answer before it on this connection.

        The parser would come to the same result. Only heads with Content-Length are known again, so what follows is
        counted and passed on.
        """
        if exchange.is_head or exchange.replaces_cors is not known.replaces_cors:
            return False
        if exchange.replaces_rate_limit is not known.replaces_rate_limit:
            return False
        self.head_done = True
        self.status = known.status
        self.keep_alive = True
        self.content_length = length = known.content_length
        self.has_body = length > 0
        head = exchange.on_response_head(self, known.relayed)
        if head is None:
            raise AssertionError("a status that may be tried again is never known")
        body = data[len(known.wire) :]
        left = length - len(body)
        if left < 0:
            self._spoiled = True  # more than Content-Length said: not part of this answer
            body = body[:left]
        elif left:
            self._raw_remaining = left
            self.moved_at = self._clock.now
        exchange.on_response_data(head + body)
        if left <= 0 and self.exchange is exchange:
            self._finish(exchange)
        return True

    def _remember(self, exchange: Carried, relayed: bytes) -> None:
        """Keep a head with Content-Length that came whole and first, to know it again."""
        data = self._first_data
        end = data.find(b"\r\n\r\n") + 4
        is_framed = self.content_length >= 0 and self.keep_alive and not exchange.is_head
        if not 4 < end <= MAX_KNOWN_HEAD_BYTES or not self._has_date:
            return  # a Date that was added here holds for this answer alone
        if is_framed and not self._interim and self.status not in _NOT_REMEMBERED:
            self._known = KnownHead(
                data[:end],
                relayed,
                self.status,
                self.content_length,
                exchange.replaces_cors,
                exchange.replaces_rate_limit,
            )

    # -- sending

    def carry(self, exchange: Carried) -> None:
        """Take an exchange; its request is written to `transport` by the caller."""
        self.exchange = exchange
        self._reset()

    def drop_exchange(self) -> None:
        """Forget the exchange and close: what was asked on this connection is not wanted any more."""
        self.exchange = None
        self.transport.abort()

    def pause_reading(self) -> None:
        """The client does not take what it was sent."""
        self.is_reading_paused = True
        self.transport.pause_reading()

    def resume_reading(self) -> None:
        self.is_reading_paused = False
        self.moved_at = self._clock.now  # it was the client who did not move
        self.transport.resume_reading()

    def hand_over(self) -> TunnelEnd:
        """Leave the transport to a tunnel."""
        self.exchange = None
        if self.is_reading_paused:
            self.resume_reading()
        return TunnelEnd(self.transport, is_writing_paused=self.is_writing_paused)

    # -- inside

    def _read_head(self, exchange: Carried) -> bool:
        """Sort the header fields and decide the framing (RFC 9112 section 6.3). False when it cannot be trusted."""
        fields: list[bytes] = []
        self.fields = fields
        self._trailer_count = 0
        length = -1
        is_chunked = False
        keep_alive = True
        named: frozenset[bytes] = frozenset()
        self._has_date = False
        for name, value in self.headers:
            kind = KINDS[name]
            if not kind:
                fields.append(b"%b: %b\r\n" % (name, value))
            elif kind == _CONTENT_LENGTH:
                length = int(value)
            elif kind == _TRANSFER_ENCODING:
                if is_chunked or value.lower() != b"chunked":
                    # White space behind the word is one, too: the parser does not take such a body for chunked.
                    self._break("the answer has a transfer coding other than chunked")
                    return False
                is_chunked = True
            elif kind == _CONNECTION:
                if value.lower() != b"keep-alive":
                    keep_alive = keep_alive and not has_token(value, b"close")
                    named = named | named_by_connection(value)
            elif kind == _DATE:
                self._has_date = True
                fields.append(b"%b: %b\r\n" % (name, value))
            elif not (
                kind in _ENDS_HERE
                or (kind == _CORS_RESPONSE and exchange.replaces_cors)
                or (kind == _RATE_LIMIT and exchange.replaces_rate_limit)
            ):
                fields.append(b"%b: %b\r\n" % (name, value))
        if named:
            self.fields = [field for field in fields if field.partition(b":")[0].lower() not in named]
            self._has_date = self._has_date and b"date" not in named
        version = self._parser.get_http_version() if self._parser is not None else ""
        if version != "1.1" and (version != "1.0" or is_chunked):
            # HTTP/1.0 has no transfer codings: its framing is faulty (RFC 9112 section 6.1).
            self._break("the answer is not HTTP/1.1 or HTTP/1.0")
            return False
        self.keep_alive = keep_alive and version == "1.1"
        self.content_length = length
        status = self.status
        if exchange.is_head or status == 204 or status == 304:
            self.has_body = False
            if exchange.is_head or is_chunked or length > 0:
                self._parser = None  # it waits for a body that never comes
            if status == 204:
                if is_chunked or length > 0:
                    self.keep_alive = False  # RFC 9110 section 6.4.1 forbids it; its body may still come
                self.content_length = -1
        elif is_chunked:
            self.has_body = True
            self.chunked_to_client = exchange.client_speaks_11
        elif length >= 0:
            self.has_body = length > 0
            self._remaining = length
        else:
            self.has_body = True
            self.until_close = True
            self.keep_alive = False
            self.chunked_to_client = exchange.client_speaks_11
        return True

    def _relayed_head(self) -> bytes:
        lines = [status_line(self.status, self.reason), *self.fields]
        if not self._has_date:
            lines.append(date_line())
        if self.chunked_to_client:
            lines.append(b"Transfer-Encoding: chunked\r\n")
        elif self.content_length >= 0:
            lines.append(b"Content-Length: %d\r\n" % self.content_length)
        return b"".join(lines)

    def _after_feed(self, exchange: Carried) -> None:
        if self.exchange is not exchange:
            return  # the exchange was cut off while the data was read
        if self._drop:
            if self._done:
                self._finish(exchange)
            else:
                self.exchange = None  # the rest of an unwanted answer is not worth reading
                self.transport.abort()
                exchange.on_answer_dropped()
            return
        if self._out:
            out, self._out = self._out, []
            exchange.on_response_data(out[0] if len(out) == 1 else b"".join(out))
            if self.exchange is not exchange:
                return
        if self._done:
            self._finish(exchange)
        elif self.head_done:
            self.moved_at = self._clock.now
            if self._overhead > MAX_HEAD_BYTES:
                self._break("the chunk extensions or trailers of the answer are too large")
            elif not self.chunked_to_client and not self.until_close and self._remaining >= RAW_RELAY_MIN_BYTES:
                self._raw_remaining = self._remaining
                self._parser = None
        elif self.status == 101:
            self._break("the upstream answered 101 without switching protocols")
        elif self._head_bytes > MAX_HEAD_BYTES:
            self._break("the head of the answer is too large")

    def _finish(self, exchange: Carried) -> None:
        dropped = self._drop
        self.exchange = None
        if self.is_reading_paused:
            self.resume_reading()  # for a client that does not matter to the next one
        if self.keep_alive and not self._spoiled and not self.is_writing_paused:
            self.upstream.give_back(self, self._clock.now)
        else:
            self.transport.abort()  # what is not sent yet belongs to a request that is answered
        if dropped:
            exchange.on_answer_dropped()
        else:
            exchange.on_response_end()

    def _relay_raw(self, exchange: Carried, data: bytes) -> None:
        remaining = self._raw_remaining - len(data)
        if remaining > 0:
            self._raw_remaining = remaining
            self.moved_at = self._clock.now
            exchange.on_response_data(data)
            return
        if remaining < 0:
            self._spoiled = True  # more than Content-Length said: not part of this answer
            data = data[:remaining]
        self._raw_remaining = 0
        exchange.on_response_data(data)
        if self.exchange is exchange:
            self._finish(exchange)

    def _finish_interim(self) -> None:
        exchange = self.exchange
        if exchange is None or self.status == 101:
            return  # after a true switch the parser stops; `_after_feed` refuses a 101 that switches nothing
        self._interim += 1
        if self._interim > MAX_INTERIM_RESPONSES:
            self._break("too many interim answers")
            return
        exchange.on_interim(self.status, self.reason, passing_lines(self.headers))
        self.headers = []
        self.reason = b""
        self.status = 0

    def _switch_protocols(self, exchange: Carried, early: bytes) -> None:
        if self.status != 101 or not exchange.wants_upgrade:
            self._break("the upstream switched protocols unasked")
            return
        exchange.on_upgraded(self, early)

    def _break(self, why: str) -> None:
        exchange, self.exchange = self.exchange, None
        self.transport.abort()
        if exchange is not None:
            exchange.on_connection_broken(why)
