"""From a parsed request head to what the data path needs of it. Pure.

llhttp (through httptools, strict) has already refused malformed lines, obs-fold, bare CR or LF and conflicting lengths.
What it leaves to us is refused here: Host (RFC 9112 section 3.2), transfer codings (section 6.1), versions, targets,
CONNECT. A head that must be refused still gives a value, with `refusal` set: the answer has to take its turn.
"""

import random
import re

from toska_mesh.gateway import problems
from toska_mesh.gateway.forwarded import TrustedProxies, client_address, forwarded_element
from toska_mesh.gateway.headers import KINDS, Kind, has_token, named_by_connection
from toska_mesh.gateway.paths import BadTargetError, is_plain, parse_target
from toska_mesh.gateway.problems import Problem
from toska_mesh.resilience import is_idempotent
from toska_mesh.telemetry.trace import RequestIds, acceptable_id, continue_b3, continue_traceparent

VIA = b"Via: 1.1 toska\r\n"

ALLOW = b"Allow: GET, HEAD, POST, PUT, PATCH, DELETE, OPTIONS\r\n"
"""Of the gateway itself, whatever the instances allow."""

_LARGEST_MAX_FORWARDS = 999_999_999

# uri-host [":" port] (RFC 9110 section 7.2, RFC 3986 section 3.2.2); an empty Host is allowed. Narrower in two ways:
# no comma, which would make a list of X-Forwarded-Host, and percent-encoding for non-ASCII names alone (what RFC 3986
# has it for), so that nothing hides in it.
_HOST_FIELD = re.compile(
    rb"(?:\[[0-9A-Fa-f:.]+\]|(?:[A-Za-z0-9._~!$&'()*+;=-]|%[89A-Fa-f][0-9A-Fa-f])*)(?::[0-9]{0,5})?"
)

_HOP_BY_HOP = int(Kind.HOP_BY_HOP)
_HOST = int(Kind.HOST)
_CONNECTION = int(Kind.CONNECTION)
_CONTENT_LENGTH = int(Kind.CONTENT_LENGTH)
_TRANSFER_ENCODING = int(Kind.TRANSFER_ENCODING)
_UPGRADE = int(Kind.UPGRADE)
_EXPECT = int(Kind.EXPECT)
_AUTHORIZATION = int(Kind.AUTHORIZATION)
_X_FORWARDED_FOR = int(Kind.X_FORWARDED_FOR)
_X_FORWARDED_PROTO = int(Kind.X_FORWARDED_PROTO)
_X_FORWARDED_HOST = int(Kind.X_FORWARDED_HOST)
_FORWARDED = int(Kind.FORWARDED)
_REQUEST_ID = int(Kind.REQUEST_ID)
_CORRELATION_ID = int(Kind.CORRELATION_ID)
_TRACEPARENT = int(Kind.TRACEPARENT)
_TRACESTATE = int(Kind.TRACESTATE)
_B3 = int(Kind.B3)
_TE = int(Kind.TE)
_ORIGIN = int(Kind.ORIGIN)
_CORS_REQUEST = int(Kind.CORS_REQUEST)
_MAX_FORWARDS = int(Kind.MAX_FORWARDS)

_TWICE = b"came more than once"
"""In place of a `traceparent`: not valid (W3C Trace Context section 3.2)."""


class Peer:
    """The other end of a client connection, with what its requests have in common."""

    __slots__ = ("address", "forwarded_block", "forwarded_host", "is_trusted", "proxies", "scheme")

    def __init__(self, address: str, scheme: str, proxies: TrustedProxies) -> None:
        self.address = address
        self.scheme = scheme
        self.proxies = proxies
        self.is_trusted = proxies.trusts(address)
        self.forwarded_host: bytes | None = None
        self.forwarded_block = b""

    def plain_forwarded(self, host: bytes) -> bytes:
        """The forwarded fields of a request that came without any, remembered for the next one."""
        if host != self.forwarded_host:
            self.forwarded_block = _forwarded_fields(self, b"", b"", b"", b"", host)
            self.forwarded_host = host
        return self.forwarded_block


class HeaderBlock:
    """The header fields of a request, sorted: all that does not depend on its first line. Not changed afterwards.

    Clients send the same block again and again, so those that came lately are kept (see `KnownBlocks`).
    """

    __slots__ = (
        "after_ids",
        "authorization",
        "b3",
        "before_ids",
        "client_address",
        "content_length",
        "correlation_id",
        "cors_method",
        "expects_continue",
        "forwarded",
        "has_body",
        "host",
        "is_11",
        "is_chunked",
        "keep_alive",
        "max_forwards",
        "origin",
        "refusal",
        "request_id",
        "traceparent",
        "tracestate",
        "upgrade",
    )

    def __init__(self, version: str) -> None:
        self.is_11 = version == "1.1"
        self.keep_alive = False
        self.host = b""
        self.before_ids = b""
        """Header lines for the upstream: those that pass unchanged."""
        self.forwarded: tuple[bytes, bytes, bytes, bytes] | None = None
        """What the client itself says about forwarding (for, proto, host, Forwarded); None when it says nothing, not
        even how often (`max_forwards`)."""
        self.max_forwards: bytes | None = None
        self.after_ids = b""
        """Framing and connection options, ended by the empty line."""
        self.has_body = False
        self.is_chunked = False
        self.content_length = -1
        self.expects_continue = False
        self.upgrade: bytes | None = None
        self.authorization = b""
        self.origin = b""
        self.cors_method = False
        self.client_address = ""
        """From what a trusted peer says; empty: the peer is the client."""
        self.request_id = ""
        self.correlation_id = ""
        self.traceparent = b""
        self.tracestate = b""
        self.b3: list[tuple[bytes, bytes]] = []
        self.refusal: tuple[Problem, str] | None = None

    @property
    def body_bytes(self) -> int:
        """How long the body is; 0 when there is none. Not for chunked ones."""
        return self.content_length if self.has_body else 0

    @property
    def is_repeatable(self) -> bool:
        """Whether another request with the same block means the same, and nothing about it waits for anything."""
        return (
            self.refusal is None
            and self.upgrade is None
            and self.is_11
            and not self.is_chunked
            and not self.expects_continue
        )


MAX_KNOWN_BLOCKS = 1024
MAX_KNOWN_BLOCK_BYTES = 2048


class KnownBlocks:
    """Header blocks that came lately, by their bytes: what one request said another may say again, byte for byte.

    Shared by all connections: behind a balancer, or a browser's pool, the requests of many clients take turns on each.
    So only blocks without a word on forwarding are kept: their meaning does not depend on who sent them. Bounded; when
    it is full it begins anew, which costs the next request of each client one reading.
    """

    __slots__ = ("_blocks", "find")

    def __init__(self) -> None:
        self._blocks: dict[bytes, HeaderBlock] = {}
        self.find = self._blocks.get

    def keep(self, wire: bytes, block: HeaderBlock) -> None:
        """`wire` is the block from behind the first line to the empty line, both line ends included."""
        if len(wire) > MAX_KNOWN_BLOCK_BYTES or block.forwarded is not None:
            return
        if len(self._blocks) >= MAX_KNOWN_BLOCKS:
            self._blocks.clear()
        self._blocks[wire] = block

    def __len__(self) -> int:
        return len(self._blocks)


class RequestHead:
    """What is known of a request once its head is complete. Made by `make_head`, not changed afterwards."""

    __slots__ = (
        "authorization",
        "client_address",
        "content_length",
        "correlation_id",
        "cors_method",
        "fields",
        "has_body",
        "host",
        "id_fields",
        "is_11",
        "is_chunked",
        "is_idempotent",
        "keep_alive",
        "method",
        "origin",
        "path",
        "query",
        "refusal",
        "request_id",
        "trace_id",
        "upgrade",
    )

    host: bytes
    """As the client wrote it in the target or, usually, in Host. `refused_head` has none."""

    def __init__(self, method: bytes, block: HeaderBlock) -> None:
        self.method = method
        self.is_11 = block.is_11
        self.keep_alive = block.keep_alive
        self.path = b""
        self.query = b""
        self.fields = b""
        """The header block for the upstream, without Host, ended by the empty line."""
        self.has_body = block.has_body
        self.is_chunked = block.is_chunked
        self.content_length = block.content_length
        self.upgrade = block.upgrade
        self.authorization = block.authorization
        self.origin = block.origin
        self.cors_method = block.cors_method
        self.client_address = block.client_address
        self.request_id = block.request_id
        self.correlation_id = block.correlation_id
        self.id_fields = b""
        """Both ids as header lines, for the upstream and for the client."""
        self.trace_id = ""
        self.is_idempotent = is_idempotent(method)
        self.refusal = block.refusal


def refused_head(problem: Problem, detail: str, peer: Peer, new_ids: RequestIds) -> RequestHead:
    """A head for something that was no request at all."""
    head = RequestHead(b"-", HeaderBlock("1.1"))
    head.keep_alive = False
    head.client_address = peer.address
    head.request_id = head.correlation_id = new_ids.next()
    head.refusal = (problem, detail)
    return head


def read_block(version: str, headers: list[tuple[bytes, bytes]], peer: Peer) -> HeaderBlock:
    """Sort the header fields and decide framing and persistence. What comes twice is refused where one decides."""
    block = HeaderBlock(version)
    fields: list[bytes] = []
    hosts = 0
    forwarded_for = forwarded_proto = forwarded_host = forwarded = b""
    keep_alive = block.is_11
    named: frozenset[bytes] = frozenset()
    says_close = wants_upgrade = False
    upgrade: bytes | None = None
    accepts_trailers = False
    decided_on: list[bytes] = []
    for name, value in headers:
        kind = KINDS[name]
        if not kind:
            fields.append(b"%b: %b\r\n" % (name, value))
        elif kind == _HOST:
            block.host = value
            hosts += 1
        elif kind == _CONNECTION:
            lower = value.lower()
            if lower == b"keep-alive":
                keep_alive = True
            else:
                if has_token(lower, b"close"):
                    says_close = True
                elif has_token(lower, b"keep-alive"):
                    keep_alive = True
                wants_upgrade = wants_upgrade or has_token(lower, b"upgrade")
                named = named | named_by_connection(lower)
        elif kind == _CONTENT_LENGTH:
            block.content_length = int(value)
        elif kind == _TRANSFER_ENCODING:
            block.is_chunked = True
            if value.lower() != b"chunked":
                block.refusal = (problems.NOT_IMPLEMENTED, "the only transfer coding understood here is chunked")
        elif kind == _AUTHORIZATION:
            block.authorization = value
            decided_on.append(name.lower())
            fields.append(b"%b: %b\r\n" % (name, value))
        elif kind == _REQUEST_ID:
            block.request_id = acceptable_id(value)
        elif kind == _CORRELATION_ID:
            block.correlation_id = acceptable_id(value)
        elif kind == _X_FORWARDED_FOR:
            forwarded_for = forwarded_for + b", " + value if forwarded_for else value
        elif kind == _X_FORWARDED_PROTO:
            forwarded_proto = value
        elif kind == _X_FORWARDED_HOST:
            forwarded_host = value
        elif kind == _FORWARDED:
            forwarded = forwarded + b", " + value if forwarded else value
        elif kind == _TRACEPARENT:
            block.traceparent = _TWICE if block.traceparent else value
        elif kind == _TRACESTATE:
            block.tracestate = block.tracestate + b"," + value if block.tracestate else value
        elif kind == _B3:
            block.b3.append((name, value))
        elif kind == _ORIGIN:
            block.origin = value
            decided_on.append(name.lower())
            fields.append(b"%b: %b\r\n" % (name, value))
        elif kind == _CORS_REQUEST:
            block.cors_method = True
            decided_on.append(name.lower())
            fields.append(b"%b: %b\r\n" % (name, value))
        elif kind == _MAX_FORWARDS:
            block.max_forwards = value
            decided_on.append(name.lower())
        elif kind == _EXPECT:
            block.expects_continue = block.is_11 and value.strip().lower() == b"100-continue"
        elif kind == _TE:
            accepts_trailers = has_token(value, b"trailers")
        elif kind == _UPGRADE:
            upgrade = value
        elif kind != _HOP_BY_HOP:
            fields.append(b"%b: %b\r\n" % (name, value))
    if named:
        fields = [field for field in fields if field.partition(b":")[0].lower() not in named]
    block.before_ids = b"".join(fields)
    block.keep_alive = keep_alive and not says_close
    block.has_body = block.is_chunked or block.content_length > 0
    if forwarded_for or forwarded_proto or forwarded_host or forwarded or block.max_forwards is not None:
        block.forwarded = (forwarded_for, forwarded_proto, forwarded_host, forwarded)
    if peer.is_trusted and forwarded_for:
        block.client_address = client_address(peer.address, forwarded_for.decode("latin-1"), peer.proxies)
    _check(block, version, hosts)
    if len(decided_on) > 1 and block.refusal is None and len(set(decided_on)) < len(decided_on):
        # The instance would get both, the one that was judged and another (RFC 9110 section 5.3).
        twice = max(decided_on, key=decided_on.count).decode()
        block.refusal = (problems.BAD_REQUEST, f"{twice} may come only once")
    if wants_upgrade and upgrade is not None:
        # A server may pass the wish over, and must in HTTP/1.0 (RFC 9110 section 7.8); h2c is for the next hop alone.
        if block.is_11 and not block.has_body and upgrade and not has_token(upgrade, b"h2c"):
            block.upgrade = upgrade
        elif block.is_chunked and block.refusal is None:
            block.refusal = (problems.BAD_REQUEST, "a request to switch protocols cannot be chunked here")
    block.after_ids = _framing(block, accepts_trailers)
    return block


def make_head(method: bytes, raw_target: bytes, block: HeaderBlock, peer: Peer, new_ids: RequestIds) -> RequestHead:
    """Put first line and header block together: where it goes, its ids, and what the upstream will get."""
    head = RequestHead(method, block)
    authority = _read_target(head, raw_target)
    head.host = host = authority or block.host
    if not head.request_id:
        head.request_id = head.correlation_id or new_ids.next()
    if not head.correlation_id:
        head.correlation_id = head.request_id
    trace = _continue_trace(head, block, new_ids.rng) if block.traceparent or block.b3 else b""
    if not head.client_address:
        head.client_address = peer.address
    if block.forwarded is None:
        forwarded = peer.plain_forwarded(host)
    else:
        forwarded = _forwarded_fields(peer, *block.forwarded, host)
        if block.max_forwards is not None:
            forwarded += _count_down(head, block.max_forwards)
    head.id_fields = ids = b"X-Request-ID: %b\r\nX-Correlation-ID: %b\r\n" % (
        head.request_id.encode("latin-1"),
        head.correlation_id.encode("latin-1"),
    )
    head.fields = b"".join((block.before_ids, trace, forwarded, ids, block.after_ids))
    return head


def _continue_trace(head: RequestHead, block: HeaderBlock, rng: random.Random) -> bytes:
    lines = b""
    continued = continue_traceparent(block.traceparent, rng) if block.traceparent else None
    if continued is not None:
        lines = b"traceparent: %b\r\n" % continued[0]
        if block.tracestate:
            lines += b"tracestate: %b\r\n" % block.tracestate
        head.trace_id = continued[1]
    if block.b3:
        sent, trace_id = continue_b3(block.b3, rng)
        lines += b"".join(b"%b: %b\r\n" % field for field in sent)
        head.trace_id = head.trace_id or trace_id
    return lines


def _check(block: HeaderBlock, version: str, hosts: int) -> None:
    if block.refusal is not None:
        return
    if version not in ("1.1", "1.0"):
        block.refusal = (problems.BAD_VERSION, "")
    elif hosts > 1 or (block.is_11 and hosts != 1) or not _is_host(block.host):
        block.refusal = (problems.BAD_HOST, "")
    elif block.is_chunked and not block.is_11:
        block.refusal = (problems.BAD_FRAMING, "an HTTP/1.0 request cannot be chunked (RFC 9112 section 6.1)")


def _is_host(host: bytes) -> bool:
    return _HOST_FIELD.fullmatch(host) is not None


def _read_target(head: RequestHead, raw_target: bytes) -> bytes:
    if head.method == b"CONNECT":
        head.refusal = head.refusal or (
            problems.METHOD_NOT_ALLOWED,
            "CONNECT is for forward proxies; this is a gateway",
        )
        return b""
    if is_plain(raw_target):
        head.path, mark, query = raw_target.partition(b"?")
        head.query = mark + query
        return b""
    if raw_target == b"*" and head.method == b"OPTIONS":
        head.path = b"*"
        return b""
    try:
        target = parse_target(raw_target)
    except BadTargetError as exc:
        head.refusal = head.refusal or (problems.BAD_TARGET, str(exc))
        return b""
    if target.authority and not _is_host(target.authority):
        head.refusal = head.refusal or (problems.BAD_TARGET, "the authority of the request target is malformed")
        return b""
    head.path = target.path
    head.query = target.query
    return target.authority


def _forwarded_fields(
    peer: Peer, given_for: bytes, given_proto: bytes, given_host: bytes, given: bytes, host: bytes
) -> bytes:
    """X-Forwarded-* and Forwarded for the upstream; what the client gave is continued only from a trusted peer."""
    if not peer.is_trusted:
        given_for = given_proto = given_host = given = b""
    address = peer.address.encode()
    element = forwarded_element(peer.address, host, peer.scheme)
    return b"X-Forwarded-For: %b\r\nX-Forwarded-Proto: %b\r\nX-Forwarded-Host: %b\r\nForwarded: %b\r\n" % (
        given_for + b", " + address if given_for else address,
        given_proto or peer.scheme.encode(),
        given_host or host,
        given + b", " + element if given else element,
    )


def _count_down(head: RequestHead, given: bytes) -> bytes:
    """`Max-Forwards` for the upstream (RFC 9110 section 7.6.2), for the methods that it is about, if it is a number.

    At 0 the request ends here: OPTIONS asks about the gateway then, as it does with the target `*`; TRACE is refused.
    """
    if head.method in (b"OPTIONS", b"TRACE") and given.isdigit():
        digits = given.lstrip(b"0")
        if not digits and head.method == b"TRACE":
            head.refusal = head.refusal or (problems.METHOD_NOT_ALLOWED, "TRACE is not answered by the gateway")
        elif not digits:
            head.path, head.query = b"*", b""
        given = b"%d" % min(int(digits[:10] or b"1") - 1, _LARGEST_MAX_FORWARDS)
    return b"Max-Forwards: %b\r\n" % given


def _framing(block: HeaderBlock, accepts_trailers: bool) -> bytes:
    lines = [VIA]
    if block.is_chunked:
        lines.append(b"Transfer-Encoding: chunked\r\n")
    elif block.content_length >= 0:
        lines.append(b"Content-Length: %d\r\n" % block.content_length)
    if block.expects_continue and block.has_body:
        lines.append(b"Expect: 100-continue\r\n")
    options = []
    if accepts_trailers and block.is_11:
        lines.append(b"TE: trailers\r\n")
        options.append(b"TE")
    if block.upgrade is not None:
        lines.append(b"Upgrade: %b\r\n" % block.upgrade)
        options.append(b"Upgrade")
    if options:
        lines.append(b"Connection: %b\r\n" % b", ".join(options))
    lines.append(b"\r\n")
    return b"".join(lines)
