"""The client side of the data path: one HTTP/1.1 connection, its requests one after the other.

It parses (RFC 9112), keeps order when a client pipelines, and applies backpressure; what a request means is decided by
the proxy, how it is answered by its exchange.
"""

import asyncio
import re
import socket
from collections import deque
from typing import TYPE_CHECKING, cast

from httptools import HttpParserCallbackError, HttpParserError, HttpParserUpgrade, HttpRequestParser

from toska_mesh.gateway import problems
from toska_mesh.gateway.admission import NOBODY
from toska_mesh.gateway.exchange import Exchange, Phase
from toska_mesh.gateway.firstline import USUAL, LineCheck
from toska_mesh.gateway.goodbye import close_idle, reset, unacknowledged_bytes
from toska_mesh.gateway.headers import may_be_trailer
from toska_mesh.gateway.problems import Problem
from toska_mesh.gateway.request import HeaderBlock, Peer, make_head, read_block, refused_head
from toska_mesh.gateway.tunnel import TunnelEnd
from toska_mesh.telemetry import event_log

if TYPE_CHECKING:
    from toska_mesh.gateway.proxy import Proxy

NEVER = float("inf")
_NOTHING = memoryview(b"")

LINGER_SECONDS = 2.0
"""How long the rest of a refused request is read and thrown away, so that the answer arrives (RFC 9112 section 9.6)."""

EARLY_TUNNEL_BYTES = 64 * 1024
RAW_RELAY_MIN_BYTES = 64 * 1024

MAX_PIPELINED = 128
"""Requests that may wait behind the one being answered; a client that sends more at once is not listened to further."""

ANSWERS_PER_TURN = 8
"""So many pipelined requests of one client are begun before the others have their turn of the loop."""

MANY_CHUNKS = 64
SLICE_BYTES = 4096
"""One read may hold 40,000 chunks of a byte, tens of milliseconds of work: then it is parsed in slices of this size."""

CREDIT_PER_CHUNK = 16
CREDIT_PER_BODY_BYTE = 3
"""What framing may cost beside the body before it counts as overhead: a chunk of one byte takes six on the wire."""

LONGEST_LOOK_SECONDS = 1.0
"""Longer since the last look means that the gateway stood still, which no client is blamed for."""

_END_OF_HEAD = b"\r\n\r\n"

log = event_log("gateway.client")

_BAD_LINE = "the first line is not that of an HTTP/1.1 or HTTP/1.0 request (RFC 9112 section 3)"


class ClientConnection(asyncio.Protocol):
    """One client. Implements `exchange.Downstream`."""

    __slots__ = (
        "_answers_due",
        "_block",
        "_block_bytes",
        "_body_left",
        "_chunks",
        "_chunks_bytes",
        "_current",
        "_early",
        "_early_bytes",
        "_has_eof",
        "_head_bytes",
        "_headers",
        "_holds",
        "_in_head",
        "_incoming",
        "_is_advancing",
        "_is_broken",
        "_is_choppy",
        "_is_closing",
        "_line_check",
        "_overhead",
        "_parser",
        "_queue",
        "_rated",
        "_rated_at",
        "_rated_bytes",
        "_raw_left",
        "_rest",
        "_slack",
        "_target",
        "_trailer_count",
        "_trailers",
        "_unsent",
        "account",
        "deadline",
        "idle_since",
        "is_writing_paused",
        "peer",
        "proxy",
        "transport",
    )

    transport: asyncio.Transport

    def __init__(self, proxy: "Proxy") -> None:
        self.proxy = proxy
        self.peer: Peer
        self.deadline = NEVER
        """When the proxy's tick ends this connection for not moving; seconds on the loop's clock."""
        self.idle_since = proxy.now
        self.is_writing_paused = False
        self.account = NOBODY
        self._parser: HttpRequestParser | None = HttpRequestParser(self)
        self._headers: list[tuple[bytes, bytes]] = []
        self._target = b""
        self._trailers = b""
        self._trailer_count = 0
        self._line_check = LineCheck()
        self._in_head = False
        self._head_bytes = 0
        self._block: HeaderBlock | None = None  # of the last request
        self._block_bytes = b""  # as it came on the wire; empty when it may not be used again
        self._overhead = 0  # bytes of a chunked request beyond its body and what framing may cost
        self._chunks: list[bytes] = []  # parts of a chunked body out of one read
        self._chunks_bytes = 0
        self._is_choppy = False  # the last slice held very many of them
        self._rest = _NOTHING  # of a read that is parsed in slices
        self._body_left = 0
        self._raw_left = 0
        self._incoming: Exchange | None = None  # whose request is being received
        self._current: Exchange | None = None  # whose answer is under way
        self._queue: deque[Exchange] = deque()  # pipelined behind it
        self._early: list[bytes] = []  # what came after a request to switch protocols
        self._early_bytes = 0
        self._holds = False
        self._has_eof = False
        self._is_advancing = False
        self._answers_due = False  # the loop will call `_advance_later`
        self._is_broken = False  # what still comes is not looked at; answers that are due are still given
        self._is_closing = False  # nor is anything answered any more
        self._unsent = NEVER  # bytes that the client had not taken when that was last looked at
        self._rated: Exchange | None = None  # whose body's rate is watched; see `_check_body_rate`
        self._rated_at = 0.0
        self._rated_bytes = 0
        self._slack = 0.0

    # -- asyncio.Protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)
        proxy = self.proxy
        address = transport.get_extra_info("peername")
        scheme = "https" if transport.get_extra_info("sslcontext") is not None else "http"
        self.peer = proxy.make_peer(str(address[0]) if address else "unknown", scheme)
        self.deadline = proxy.now + proxy.header_timeout
        if not proxy.add_client(self):
            if proxy.admission.can_answer(self.peer.address, self.peer.is_trusted):
                self._refuse_unparsed(problems.TOO_MANY_CONNECTIONS, "", b"Retry-After: 1\r\n")
            else:
                self.cut()

    def connection_lost(self, exc: Exception | None) -> None:
        self.proxy.remove_client(self)
        self._is_closing = self._is_broken = True
        current, self._current = self._current, None
        if current is not None:
            current.on_client_left()
        for exchange in self._queue:
            exchange.on_client_left()
        self._queue.clear()
        # They know the connection, too: without this, all would wait for the garbage collector.
        self._parser = self._incoming = self._rated = None
        self._headers = []
        self._rest = _NOTHING

    def eof_received(self) -> bool:
        # TLS knows no half-closed connection.
        if self.peer.scheme == "https" or (self._current is None and not self._queue):
            return False
        incoming = self._incoming
        if incoming is not None and not incoming.request_complete:
            if incoming is self._current:
                return False  # it left in the middle of a request
            self._queue.remove(incoming)
            self._incoming = None
            incoming.on_client_left()
        self._has_eof = self._is_broken = True
        self.deadline = self.proxy.now
        # Half-closed and still reading, or gone altogether? The two look alike until something is written, and an
        # interim answer is always allowed (RFC 9110 section 15.2): one that is gone resets the connection, which
        # `expire` looks for, as the loop does not after the end of what can be read.
        current = self._current
        if current is not None and current.client_speaks_11 and current.phase is not Phase.RELAYING:
            self.transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        return True

    def pause_writing(self) -> None:
        self.is_writing_paused = True
        self._unsent = NEVER
        self.deadline = self.proxy.now + self.proxy.idle_timeout
        if self._current is not None:
            self._current.on_client_paused()

    def resume_writing(self) -> None:
        self.is_writing_paused = False
        if self._current is not None:
            self._current.on_client_resumed()
        elif self._queue:
            self._advance()
        self._await_client()

    def data_received(self, data: bytes) -> None:
        if self._is_broken:
            return
        if self._raw_left:
            data = self._relay_raw(data)
            if not data or self._is_broken:
                return
        parser = self._parser
        if parser is None:
            self._hold_early(data)
            return
        is_fresh = self._incoming is None and not self._in_head
        try:
            if is_fresh and self._repeats_block(data):
                return
        except Exception:
            self._on_own_bug()
            return
        if len(data) > SLICE_BYTES and not self._rest and (self._is_choppy or self._incoming is None):
            data = self._slice(data)
        self._block_bytes = b""
        line = USUAL.match(data) if is_fresh else None
        if not self._in_head:
            self._line_check.begin(data, line)
        elif self._headers:
            self._line_check.add_later(data)
        else:
            self._line_check.add(data)
        if self._in_head or self._incoming is None:
            if not self._head_bytes:
                self.deadline = self.proxy.now + self.proxy.header_timeout
            self._head_bytes += len(data)
        else:
            self.deadline = self.proxy.now + self.proxy.idle_timeout
            self._overhead += len(data)
        try:
            parser.feed_data(data)
            if self._chunks:
                self._pass_chunks()
        except HttpParserUpgrade as upgrade:
            self._on_upgrade(data[upgrade.args[0] :])
            return
        except HttpParserCallbackError as exc:
            if not isinstance(exc.__context__, _EnoughError):
                self._on_own_bug()
            return
        except HttpParserError as exc:
            # What comes after a request with `Connection: close` is none of our business (RFC 9112 section 9.6).
            if "Data after `Connection: close`" in str(exc):
                self._is_broken = True
                if self._current is None and not self._queue:
                    self._close_gently(False)  # the parser heard it from a trailer, and nobody else ends this
            else:
                self._on_unparsable(problems.BAD_FRAMING, str(exc))
            return
        self._after_feed()
        if not self._in_head:
            self._line_check.forget()
        if line is not None:
            self._keep_block(data, line)

    # -- what the parser calls

    def on_message_begin(self) -> None:
        self._headers = []
        self._target = b""
        self._trailers = b""
        self._trailer_count = 0
        self._in_head = True

    def on_url(self, url: bytes) -> None:
        self._target += url

    def on_header(self, name: bytes, value: bytes) -> None:
        if self._in_head:
            self._headers.append((name, value))
        else:
            self._on_trailer(name, value)

    def _on_trailer(self, name: bytes, value: bytes) -> None:
        """Trailer fields (RFC 9112 section 7.1.2) are kept until the last one: they are limited as a head is."""
        proxy = self.proxy
        self._trailer_count += 1
        if may_be_trailer(name):
            self._trailers += b"%b: %b\r\n" % (name, value)
        if self._trailer_count > proxy.max_headers:
            self._on_unparsable(problems.HEAD_TOO_LARGE, f"the body has more than {proxy.max_headers} trailer fields")
        elif len(self._trailers) > proxy.max_header_bytes:
            self._on_unparsable(problems.HEAD_TOO_LARGE, "the chunk extensions or trailers are too large")

    def on_headers_complete(self) -> None:
        parser = self._parser
        if parser is None or self._is_broken:
            raise _EnoughError
        if len(self._queue) >= MAX_PIPELINED:
            # The last answer that is given says close: a client that pipelines must be ready for it (section 9.3.2).
            self._queue[-1].closes = self._is_broken = True
            raise _EnoughError
        self._in_head = False
        is_alone = self._head_bytes > 0  # otherwise the request before it came in the same read
        proxy = self.proxy
        if self._head_bytes > proxy.max_header_bytes and self._exact_head_bytes() > proxy.max_header_bytes:
            self._head_bytes = 0
            self._refuse_unparsed(problems.HEAD_TOO_LARGE, f"the head is larger than {proxy.max_header_bytes} bytes")
            return
        self._head_bytes = 0
        if len(self._headers) > proxy.max_headers:
            self._refuse_unparsed(problems.HEAD_TOO_LARGE, f"the head has more than {proxy.max_headers} fields")
            return
        method, version = parser.get_method(), parser.get_http_version()
        if not self._line_check.is_in_order(method, self._target, version):
            is_http = version != "0.9" and not self._line_check.is_of_kin(self._target)
            self._refuse_unparsed(problems.BAD_REQUEST if is_http else problems.BAD_VERSION, _BAD_LINE)
            return
        block = read_block(version, self._headers, self.peer)
        head = make_head(method, self._target, block, self.peer, proxy.new_ids)
        self._headers = []
        self._block = block
        exchange = Exchange(proxy, self, head, proxy.clock())
        self._incoming = exchange
        if head.has_body:
            self._body_left = head.content_length
            self._is_choppy = head.is_chunked  # until its chunks turn out to be of a decent size
            self.deadline = proxy.now + proxy.idle_timeout
        else:
            exchange.request_complete = True
            self.deadline = NEVER
        if head.refusal is not None:
            exchange.closes = self._is_broken = True
        if is_alone:
            self._enqueue(exchange)
        else:
            self._enqueue_behind(exchange)

    def on_body(self, data: bytes) -> None:
        exchange = self._incoming
        if exchange is None:
            return
        if exchange.head.is_chunked:
            self._chunks.append(data)
            self._chunks_bytes += len(data)
            return
        self._body_left -= len(data)
        if exchange is self._current or not self._is_queued_body_too_large(exchange, len(data)):
            exchange.on_request_data(data)

    def on_message_complete(self) -> None:
        if self._chunks:
            self._pass_chunks()
        exchange, self._incoming = self._incoming, None
        if exchange is not None and not exchange.request_complete:
            if self._body_left > 0 or (exchange.head.is_chunked and self._parser_stops_early()):
                self._incoming = exchange  # the parser saw `Upgrade` and does not look for a body: see `_on_upgrade`
                return
            if not self._is_closing:  # with an answer already given, what the client owes now is to leave
                self.deadline = NEVER
            exchange.on_request_end(self._trailers)

    # -- exchange.Downstream

    def send(self, data: bytes) -> None:
        self.transport.write(data)

    def hold_reading(self, on_hold: bool) -> None:
        if on_hold is self._holds or self._has_eof or self.transport.is_closing():
            return
        self._holds = on_hold
        if on_hold:
            self.transport.pause_reading()
        elif not self._rest:
            self.transport.resume_reading()

    def finish(self, exchange: Exchange, close: bool) -> None:
        if exchange is not self._current:
            return
        self._current = None
        if close or (self._is_broken and not self._queue):
            has_read_all = exchange.request_complete and not self._is_broken and not self._queue
            self._close_gently(has_read_all)
        elif self._queue:
            self._advance()
        else:
            self.idle_since = self.proxy.now
            self.deadline = self.idle_since + self.proxy.keep_alive
            self.hold_reading(False)
            if self._in_head:
                self.deadline = self.idle_since + self.proxy.header_timeout
            elif self._parser is None:
                self._resume_parsing()

    def cut(self) -> None:
        self._is_closing = self._is_broken = True
        self._current = None
        reset(self.transport)  # an answer that ends with the connection must not look complete

    def hand_over(self) -> tuple[TunnelEnd, bytes]:
        self.proxy.clients.discard(self)
        self._is_closing = self._is_broken = True
        self._current = None
        rest, self._rest = self._rest, _NOTHING
        early, self._early = b"".join((*self._early, rest)), []
        if rest:
            self._holds = True  # reading is paused for the slices, too
        self.hold_reading(False)
        end = TunnelEnd(self.transport, is_writing_paused=self.is_writing_paused, has_ended=self._has_eof)
        self.proxy.admission.hand_over(self, end)
        return end, early

    # -- what the proxy's tick and drain call

    @property
    def is_idle(self) -> bool:
        """Between two requests, and nothing of the next one has come."""
        is_between = self._current is None and not self._queue and not self._in_head and not self._is_closing
        return is_between and not self._rest

    def expire(self) -> None:
        """The deadline has passed without the movement that was due."""
        current, now = self._current, self.proxy.now
        if self.is_writing_paused or self._is_closing:
            if not self._takes_slowly():
                self.cut_off()
        elif self._has_eof and current is not None:
            if _has_error(self.transport):
                self.cut_off()
        elif current is None:
            if self._in_head:
                self._refuse_unparsed(problems.REQUEST_TIMEOUT, "the request's head did not arrive in time")
            elif not self._rest and close_idle(self.transport):  # unless the next request has just come
                # What the client has not taken yet still goes out, as long as it takes any of it.
                self._is_closing = self._is_broken = True
                self.deadline = now + self.proxy.idle_timeout
        elif current.request_complete:
            self.deadline = NEVER  # it is not the client that has to move
        elif current.phase is Phase.RELAYING:
            self.deadline = now + self.proxy.idle_timeout  # the answer moves, or `check_upstream` ends it
        elif self._holds:
            self.deadline = now + self.proxy.idle_timeout
            current.closes = True
            current.give_up_waiting()  # it is the upstream that does not take the body
        else:
            current.closes = True
            current.refuse(problems.REQUEST_TIMEOUT, "the request's body stopped arriving")

    def cut_off(self, outcome: str = "client-left") -> None:
        """End the connection of a client that takes nothing any more, or that is not waited for any longer."""
        if self._current is not None:
            self._current.on_client_left(outcome)
        self.cut()

    def _takes_slowly(self) -> bool:
        """Whether the client has taken enough of what waits for it since the last look; sets the deadline anew."""
        proxy = self.proxy
        unsent = self.transport.get_write_buffer_size() + unacknowledged_bytes(self.transport)
        if not 0 < unsent <= self._unsent - max(1.0, proxy.min_bytes_per_second * proxy.idle_timeout):
            return False
        self._unsent = float(unsent)
        self.deadline = self.proxy.now + self.proxy.idle_timeout
        return True

    def give_way(self) -> bool:
        """Close an idle connection; False when its next request has just come, or the last answer is still to go."""
        if self.transport.get_write_buffer_size() or not close_idle(self.transport):
            return False
        self._is_closing = self._is_broken = True
        self.deadline = self.proxy.now + LINGER_SECONDS  # TLS waits for the other side's goodbye
        return True

    def check_progress(self, now: float) -> None:
        """Called about twice a second: end what has stopped moving, or moves too slowly."""
        current = self._current
        if current is None:
            self._rated = None
        elif current.phase is Phase.RELAYING:
            self._check_upstream(current, now)
        elif not current.request_complete:
            self._check_body_rate(current, now)

    def _check_body_rate(self, current: Exchange, now: float) -> None:
        """Refuse a body that comes too slowly.

        The client has as much slack as the idle timeout. Time uses it up, bytes win it back; time in which we do not
        read, because the instance takes no more, does not count.
        """
        proxy = self.proxy
        rate, received = proxy.min_bytes_per_second, current.bytes_in
        if not rate:
            return
        if self._rated is not current:
            self._rated = current
            self._slack = proxy.idle_timeout
        elif not self._holds:
            slack = self._slack - min(now - self._rated_at, LONGEST_LOOK_SECONDS)
            self._slack = min(slack + (received - self._rated_bytes) / rate, proxy.idle_timeout)
            if self._slack <= 0:
                current.closes = True
                current.refuse(problems.REQUEST_TIMEOUT, f"the request's body came in slower than {rate} bytes/s")
                return
        self._rated_at, self._rated_bytes = now, received

    def _check_upstream(self, current: Exchange, now: float) -> None:
        """Give up on an answer that has stopped moving, unless it is the client who does not take it."""
        if self.is_writing_paused:
            return
        connection = current.connection
        if connection is not None and connection.moved_at and now - connection.moved_at >= self.proxy.idle_timeout:
            current.on_connection_broken("the answer stopped moving")

    # -- inside

    def _enqueue(self, exchange: Exchange) -> None:
        # Not before the client takes what it was sent: answers would pile up here (each may be of any size).
        if self._current is None and not self.is_writing_paused and not self._queue:
            self._start(exchange)
        else:
            self._queue.append(exchange)
            self.hold_reading(True)

    def _enqueue_behind(self, exchange: Exchange) -> None:
        """Of a client that pipelines: begun in a later turn of the loop, so that its requests hold up nobody else's."""
        self._queue.append(exchange)
        self.hold_reading(True)
        if self._current is None:
            self._advance_later()

    def _advance_later(self) -> None:
        if not self._answers_due:
            self._answers_due = True
            self.proxy.turns.add(self._advance_now)

    def _advance_now(self) -> None:
        self._answers_due = False
        if self._queue:
            self._advance()

    def _slice(self, data: bytes) -> bytes:
        """Of a read that may hold very many chunks: what is parsed at once; the rest waits for its turns."""
        self._rest = memoryview(data)[SLICE_BYTES:]
        self.transport.pause_reading()
        self.proxy.turns.add(self._take_rest)
        return data[:SLICE_BYTES]

    def _take_rest(self) -> None:
        if not self._rest:
            return  # the connection is closed, or a tunnel has the rest and decides what is read
        size = SLICE_BYTES if self._is_choppy and self._incoming is not None else len(self._rest)
        data, rest = bytes(self._rest[:size]), self._rest[size:]
        self._rest = rest
        if not self._is_broken:
            self.data_received(data)
        if self._is_broken:
            self._rest = _NOTHING
        elif rest:
            self.proxy.turns.add(self._take_rest)
            return
        elif self._rest:
            return  # sliced anew
        if not self._holds and not self.transport.is_closing():
            self.transport.resume_reading()

    def _pass_chunks(self) -> None:
        """Pass on what one read held of a chunked body, as one chunk: there may be thousands of a byte each."""
        chunks, self._chunks = self._chunks, []
        size, self._chunks_bytes = self._chunks_bytes, 0
        self._overhead = max(0, self._overhead - CREDIT_PER_CHUNK * len(chunks) - CREDIT_PER_BODY_BYTE * size)
        self._is_choppy = len(chunks) > MANY_CHUNKS
        exchange = self._incoming
        if exchange is not None:
            data = chunks[0] if len(chunks) == 1 else b"".join(chunks)
            if exchange is self._current or not self._is_queued_body_too_large(exchange, size):
                exchange.on_request_data(data)

    def _keep_block(self, data: bytes, line: re.Match[bytes]) -> None:
        """Remember the header block of a request that came in one read and alone, to know it again."""
        block = self._block
        if block is None or self._incoming is not None or self._in_head or self._is_broken or not block.is_repeatable:
            return
        end = data.find(_END_OF_HEAD, line.end() - 2) + len(_END_OF_HEAD)
        # Were there another request behind the first, its head would stand between the two as well.
        if end > line.end() and len(data) - end == block.body_bytes:
            self._block_bytes = data[line.end() : end]
            self.proxy.known_blocks.keep(self._block_bytes, block)

    def _repeats_block(self, data: bytes) -> bool:
        """Take a request whose header block is, byte for byte, one that came before, mostly here, else elsewhere.

        Its body, if any, has to have come with it.
        The parser would come to the same result: the block is the same, and the first line has only what it accepts.
        """
        proxy = self.proxy
        line = USUAL.match(data)
        if line is None or len(data) > proxy.max_header_bytes or len(self._queue) >= MAX_PIPELINED:
            return False
        block_bytes, block = self._block_bytes, self._block
        is_last = len(data) == line.end() + len(block_bytes) and data.endswith(block_bytes)
        if not is_last or block is None or not block_bytes:
            end = data.find(_END_OF_HEAD, line.end() - 2) + len(_END_OF_HEAD)
            if end <= line.end():
                return False  # more of the head is to come (and mypyc takes no slice that ends before it begins)
            block_bytes = data[line.end() : end]
            block = proxy.known_blocks.find(block_bytes)
            if block is None or len(data) - end != block.body_bytes:
                return False
            self._block_bytes, self._block = block_bytes, block
        method, target = line.groups()
        exchange = Exchange(proxy, self, make_head(method, target, block, self.peer, proxy.new_ids), proxy.clock())
        if block.has_body:
            exchange.take_whole_body(data[-block.body_bytes :])
        exchange.request_complete = True
        self.deadline = NEVER
        if exchange.head.refusal is not None:
            exchange.closes = self._is_broken = True
        self._enqueue(exchange)
        return True

    def _start(self, exchange: Exchange) -> None:
        self._current = exchange
        self.proxy.handle(exchange)

    def _advance(self) -> None:
        """Start what waits. A loop, not a recursion: several answers can be given at once."""
        if self._is_advancing:
            return
        self._is_advancing = True
        left = ANSWERS_PER_TURN
        try:
            while self._queue and self._current is None and not self.is_writing_paused and not self._is_closing:
                if not left:
                    self._advance_later()
                    break
                left -= 1
                exchange = self._queue.popleft()
                exchange.begin(self.proxy.clock())
                if not exchange.request_complete:
                    self._await_client()
                self._start(exchange)
        except Exception:
            # Whoever called has nothing to do with it: as a rule it is the instance of the request before.
            self._on_own_bug()
            if self._current is None and self._queue:
                self._advance_later()
        finally:
            self._is_advancing = False
        if not self._is_closing:
            self._await_client()
            if not self._queue:
                self.hold_reading(False)

    def _await_client(self) -> None:
        """Set the deadline for what the client owes now."""
        proxy, incoming = self.proxy, self._incoming
        is_receiving = incoming is not None and not incoming.request_complete
        if is_receiving or self.is_writing_paused or self._is_closing:
            self.deadline = proxy.now + proxy.idle_timeout
        elif self._current is not None or self._queue:
            self.deadline = NEVER
        else:
            self.deadline = proxy.now + (proxy.header_timeout if self._in_head else proxy.keep_alive)

    def _after_feed(self) -> None:
        incoming = self._incoming
        if self._is_broken:
            return
        if incoming is None or self._in_head:
            # Empty lines before a request count, too (RFC 9112 section 2.2 asks to pass over at least one).
            if self._head_bytes > self.proxy.max_header_bytes:
                self._refuse_unparsed(
                    problems.HEAD_TOO_LARGE, f"the head is larger than {self.proxy.max_header_bytes} bytes"
                )
        elif incoming.head.is_chunked:
            if self._overhead > self.proxy.max_header_bytes:
                self._on_unparsable(problems.HEAD_TOO_LARGE, "the chunk extensions or trailers are too large")
        elif self._body_left >= RAW_RELAY_MIN_BYTES:
            # A long body of known length needs no parser: bytes are counted and passed on.
            self._raw_left = self._body_left
            self._parser = HttpRequestParser(self)

    def _exact_head_bytes(self) -> int:
        """The head alone, without what came behind it in the same read: `name: value CRLF` each, and the first line."""
        return len(self._target) + 16 + sum(len(name) + len(value) + 4 for name, value in self._headers)

    def _relay_raw(self, data: bytes) -> bytes:
        """Pass on a part of a long body; gives what follows the body."""
        left = self._raw_left - len(data)
        rest = b""
        if left < 0:
            data, rest = data[:left], data[left:]
            left = 0
        self._raw_left = self._body_left = left
        self.deadline = self.proxy.now + self.proxy.idle_timeout
        exchange = self._incoming
        if exchange is not None:
            if exchange is self._current or not self._is_queued_body_too_large(exchange, len(data)):
                exchange.on_request_data(data)
            if not left:
                self.on_message_complete()
        return rest

    def _is_queued_body_too_large(self, exchange: Exchange, more: int) -> bool:
        """A request whose turn has not come is refused when it comes: answers keep the order of their requests."""
        limit = self.proxy.unrouted.max_request_bytes
        if not limit or exchange.bytes_in + more <= limit:
            return False
        self._incoming = None
        exchange.head.refusal = (problems.TOO_LARGE, f"the request body is larger than {limit} bytes")
        exchange.closes = self._is_broken = True
        return True

    def _parser_stops_early(self) -> bool:
        return self._parser is not None and self._parser.should_upgrade()

    def _on_upgrade(self, rest: bytes) -> None:
        """The parser stops behind the head of any request with `Upgrade`, even in front of its body."""
        incoming = self._incoming
        if self._is_broken:
            return
        if incoming is not None and incoming.head.is_chunked:
            self._on_unparsable(problems.BAD_REQUEST, "a request to switch protocols cannot be chunked here")
            return
        last = self._queue[-1] if self._queue else self._current
        if incoming is None and last is not None and last.wants_upgrade:
            self._parser = None
            self._hold_early(rest)
            return
        # Nobody switches (RFC 9110 section 7.8 lets a server pass the wish over): what follows is plain HTTP.
        self._parser = HttpRequestParser(self)
        if incoming is not None:
            self._raw_left = self._body_left
        if rest:
            self.data_received(rest)

    def _resume_parsing(self) -> None:
        """The upstream did not switch protocols: what the client sent since is its next request."""
        self._parser = HttpRequestParser(self)
        early, self._early = b"".join(self._early), []
        self._early_bytes = 0
        if early:
            self.data_received(early)

    def _hold_early(self, data: bytes) -> None:
        """Bytes behind a request to switch protocols wait until the upstream has agreed."""
        if not data:
            return
        self._early.append(data)
        self._early_bytes += len(data)
        if self._early_bytes > EARLY_TUNNEL_BYTES:
            self.hold_reading(True)

    def _on_unparsable(self, problem: Problem, why: str) -> None:
        """Nothing that follows can be understood: say so when the turn comes, and close."""
        if self._is_broken:
            return
        incoming, self._incoming = self._incoming, None
        if incoming is None or incoming.request_complete:
            self._refuse_unparsed(problem, why)
            return
        self._is_broken = True
        incoming.closes = True
        if incoming is not self._current:
            incoming.head.refusal = (problem, why)
        elif incoming.phase not in (Phase.RELAYING, Phase.DONE):
            incoming.refuse(problem, why)

    def _on_own_bug(self) -> None:
        """Not the client's mistake: the answer under way cannot be trusted, and what follows is lost."""
        log.exception("request_failed_inside", client=self.peer.address)
        self._is_broken = True
        self._in_head = False
        current = self._current
        if current is None:
            self._refuse_unparsed(problems.INTERNAL, "")
            return
        current.closes = True
        try:
            current.refuse(problems.INTERNAL)
        finally:
            if not self._is_closing:
                self.cut()

    def _refuse_unparsed(self, problem: Problem, detail: str, fields: bytes = b"") -> None:
        """Answer something that never became a request, after the answers that are due before it."""
        proxy = self.proxy
        self._is_broken = True
        self._in_head = False
        exchange = Exchange(proxy, self, refused_head(problem, detail, self.peer, proxy.new_ids), proxy.clock())
        exchange.closes = True
        exchange.client_speaks_11 = True
        exchange.response_fields += fields
        self._enqueue(exchange)

    def _close_gently(self, has_read_all: bool) -> None:
        """Close such that the answer arrives even though the client may still be sending (RFC 9112 section 9.6)."""
        self._is_closing = self._is_broken = True
        self._unsent = NEVER
        for exchange in self._queue:
            exchange.on_client_left()
        self._queue.clear()
        if self.transport.is_closing():
            return
        if has_read_all or self._has_eof:
            self.deadline = self.proxy.now + self.proxy.idle_timeout
            self.transport.close()
            return
        self.deadline = self.proxy.now + LINGER_SECONDS
        self.hold_reading(False)
        if self.transport.can_write_eof():
            self.transport.write_eof()


class _EnoughError(Exception):
    """Ends the parsing of data that is not looked at any further."""


def _has_error(transport: asyncio.Transport) -> bool:
    """Whether the other side has reset the connection."""
    raw = transport.get_extra_info("socket")
    return raw is not None and bool(raw.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR))
