"""Which header fields mean something to the proxy, and which end at it. Pure.

End-to-end fields pass unchanged; hop-by-hop fields (RFC 9110 section 7.6.1) and those that `Connection` names stop
here, in both directions. Names are classified through a table that remembers spellings, so that the usual request
costs one dictionary look-up per field.
"""

from enum import IntEnum


class Kind(IntEnum):
    """What the data path does with a field. END_TO_END is 0, so that the common test is plain truth."""

    END_TO_END = 0
    HOP_BY_HOP = 1
    HOST = 2
    CONNECTION = 3
    CONTENT_LENGTH = 4
    TRANSFER_ENCODING = 5
    UPGRADE = 6
    EXPECT = 7
    AUTHORIZATION = 8
    X_FORWARDED_FOR = 9
    X_FORWARDED_PROTO = 10
    X_FORWARDED_HOST = 11
    FORWARDED = 12
    REQUEST_ID = 13
    CORRELATION_ID = 14
    TRACEPARENT = 15
    B3 = 16
    TE = 17
    ORIGIN = 18
    CORS_REQUEST = 19
    CORS_RESPONSE = 20
    RATE_LIMIT = 21
    TRAILER = 22
    TRACESTATE = 23
    DATE = 24
    MAX_FORWARDS = 25


_KINDS: dict[bytes, Kind] = {
    b"keep-alive": Kind.HOP_BY_HOP,
    b"proxy-connection": Kind.HOP_BY_HOP,
    b"proxy-authenticate": Kind.HOP_BY_HOP,
    b"proxy-authorization": Kind.HOP_BY_HOP,
    b"http2-settings": Kind.HOP_BY_HOP,
    b"te": Kind.TE,
    b"trailer": Kind.TRAILER,
    b"host": Kind.HOST,
    b"connection": Kind.CONNECTION,
    b"content-length": Kind.CONTENT_LENGTH,
    b"transfer-encoding": Kind.TRANSFER_ENCODING,
    b"upgrade": Kind.UPGRADE,
    b"expect": Kind.EXPECT,
    b"authorization": Kind.AUTHORIZATION,
    b"x-forwarded-for": Kind.X_FORWARDED_FOR,
    b"x-forwarded-proto": Kind.X_FORWARDED_PROTO,
    b"x-forwarded-host": Kind.X_FORWARDED_HOST,
    b"forwarded": Kind.FORWARDED,
    b"x-request-id": Kind.REQUEST_ID,
    b"x-correlation-id": Kind.CORRELATION_ID,
    b"traceparent": Kind.TRACEPARENT,
    b"tracestate": Kind.TRACESTATE,
    b"b3": Kind.B3,
    b"x-b3-spanid": Kind.B3,
    b"x-b3-parentspanid": Kind.B3,
    b"x-b3-traceid": Kind.B3,
    b"origin": Kind.ORIGIN,
    b"access-control-request-method": Kind.CORS_REQUEST,
    b"access-control-allow-origin": Kind.CORS_RESPONSE,
    b"access-control-allow-methods": Kind.CORS_RESPONSE,
    b"access-control-allow-headers": Kind.CORS_RESPONSE,
    b"access-control-allow-credentials": Kind.CORS_RESPONSE,
    b"access-control-expose-headers": Kind.CORS_RESPONSE,
    b"access-control-max-age": Kind.CORS_RESPONSE,
    b"ratelimit-limit": Kind.RATE_LIMIT,
    b"ratelimit-remaining": Kind.RATE_LIMIT,
    b"ratelimit-reset": Kind.RATE_LIMIT,
    b"max-forwards": Kind.MAX_FORWARDS,
    b"date": Kind.DATE,
}

MAX_SPELLINGS = 4096


class KindTable(dict[bytes, int]):
    """`table[name]` gives the Kind of a field name in any case. Bounded: a client may invent any number of names."""

    def __missing__(self, name: bytes) -> int:
        lower = name.lower()
        kind = int(_KINDS.get(lower, Kind.END_TO_END))
        if not kind and b"_" in lower and lower.replace(b"_", b"-") in _KINDS:
            # Many servers (CGI, WSGI) cannot tell `X_Forwarded_For` from `X-Forwarded-For`: neither gets past us.
            kind = int(Kind.HOP_BY_HOP)
        if len(self) < MAX_SPELLINGS and len(name) <= 64:
            self[name] = kind
        return kind


KINDS = KindTable()
"""Shared by all connections of the process; holds no client's data but names of fields."""

_PROTECTED = frozenset(
    (
        b"host",
        b"content-length",
        b"transfer-encoding",
        b"connection",
        b"close",
        b"keep-alive",
        b"authorization",
        b"origin",
        b"access-control-request-method",
    )
)


def named_by_connection(value: bytes) -> frozenset[bytes]:
    """Lower-case field names listed in a `Connection` header that end here, without connection options.

    Framing fields cannot be listed away, nor what the gateway has judged: the instance must see what was let through
    (RFC 9110 section 7.6.1 forbids a sender to list fields that are meant for all recipients). What the gateway writes
    itself (forwarding, ids, traces) is not affected either way.
    """
    if b"," not in value and value.lower() in _PROTECTED:
        return frozenset()
    tokens = {token.strip().lower() for token in value.split(b",")}
    return frozenset(token for token in tokens if token and token not in _PROTECTED)


_NOT_IN_TRAILERS = frozenset(
    (
        b"age",
        b"cache-control",
        b"content-encoding",
        b"content-range",
        b"content-type",
        b"cookie",
        b"expires",
        b"if-match",
        b"if-modified-since",
        b"if-none-match",
        b"if-range",
        b"if-unmodified-since",
        b"location",
        b"pragma",
        b"range",
        b"retry-after",
        b"set-cookie",
        b"vary",
        b"via",
        b"warning",
        b"www-authenticate",
    )
)
"""Beside the fields that have a Kind: those that decide on routing, authentication, conditions or content."""


def may_be_trailer(name: bytes) -> bool:
    """Whether a field may follow a body (RFC 9110 section 6.5.1).

    Some receivers merge trailers into the head: what is decided there must not be decided anew behind the body.
    """
    return not KINDS[name] and name.lower() not in _NOT_IN_TRAILERS


def has_token(value: bytes, token: bytes) -> bool:
    """Whether a comma-separated header value has this token, in any case."""
    return any(part.strip().lower() == token for part in value.split(b","))
