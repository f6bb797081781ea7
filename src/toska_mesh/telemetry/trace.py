"""Trace context on its way through: W3C `traceparent` and B3, each passed on with a new span id. Pure.

Neither gateway nor SDK starts a trace of its own: without a tracer behind it, a made-up sampling decision would mislead
those that have one. What is invalid is not passed on, and `tracestate` never without a valid `traceparent` (W3C Trace
Context section 3.3.2: it belongs to it): the next one behind us that traces begins anew. Each request has an id all the
same.
"""

import random
import re

# version-traceid-parentid-flags (W3C Trace Context section 3.2); version ff and all-zero ids are invalid.
_TRACEPARENT = re.compile(rb"(?!ff)([0-9a-f]{2})-(?!0{32})([0-9a-f]{32})-(?!0{16})([0-9a-f]{16})-([0-9a-f]{2})(-.*)?$")
# "sampled", and "random trace id" of level 2; other flags are not defined and must be sent as zero (section 3.2.2.5).
_KNOWN_FLAGS = 0x03
# A trace id of 64 or 128 bits, a span id of 64 bits (openzipkin/b3-propagation).
_B3_TRACE_ID = re.compile(rb"(?:[0-9A-Fa-f]{16}){1,2}")
_B3_SPAN_ID = re.compile(rb"[0-9A-Fa-f]{16}")
_B3_SAMPLING = (b"0", b"1", b"d")
_DRAWN_AT_ONCE = 64
_ID = re.compile(r"[\x21-\x7e]{1,128}$")


def new_span_id(rng: random.Random) -> bytes:
    return b"%016x" % (rng.getrandbits(64) or 1)


def continue_traceparent(value: bytes, rng: random.Random) -> tuple[bytes, str] | None:
    """The `traceparent` to send on and the trace id; None when the value is not valid and must not be passed on."""
    match = _TRACEPARENT.match(value)
    if match is None or (match.group(1) == b"00" and match.group(5) is not None):
        return None
    trace_id = match.group(2)
    flags = int(match.group(4), 16) & _KNOWN_FLAGS
    return b"00-%b-%b-%02x" % (trace_id, new_span_id(rng), flags), trace_id.decode()


def continue_b3(fields: list[tuple[bytes, bytes]], rng: random.Random) -> tuple[list[tuple[bytes, bytes]], str]:
    """B3 fields (single or multiple headers) with a new span id whose parent is the old one, and the trace id.

    What is malformed is not passed on.
    """
    values = {name.lower(): value for name, value in fields}
    span_id = new_span_id(rng)
    trace_id = b""
    sent: list[tuple[bytes, bytes]] = []
    single = values.get(b"b3")
    if single in _B3_SAMPLING:
        sent.append((b"b3", single))  # a sampling decision alone
    elif single is not None:
        parts = single.split(b"-")
        is_valid = len(parts) in (2, 3, 4) and _B3_TRACE_ID.fullmatch(parts[0]) and _B3_SPAN_ID.fullmatch(parts[1])
        if is_valid and (len(parts) == 2 or parts[2] in _B3_SAMPLING):
            trace_id = parts[0]
            kept = (parts[0], span_id, parts[2], parts[1]) if len(parts) > 2 else (parts[0], span_id)
            sent.append((b"b3", b"-".join(kept)))
    if _B3_TRACE_ID.fullmatch(values.get(b"x-b3-traceid", b"")):
        trace_id = values[b"x-b3-traceid"]
        sent += [(b"X-B3-TraceId", trace_id), (b"X-B3-SpanId", span_id)]
        if _B3_SPAN_ID.fullmatch(values.get(b"x-b3-spanid", b"")):
            sent.append((b"X-B3-ParentSpanId", values[b"x-b3-spanid"]))
    return sent, trace_id.decode("ascii")


def acceptable_id(value: bytes) -> str:
    """A client's request or correlation id if it is short and printable, else empty: it goes into logs and headers."""
    text = value.decode("latin-1")
    return text if _ID.match(text) else ""


class RequestIds:
    """Makes request ids: 128 random bits each, as 32 hexadecimal digits. Drawn many at a time, which is cheaper."""

    __slots__ = ("_at", "_drawn", "rng")

    def __init__(self, rng: random.Random) -> None:
        self.rng = rng
        self._drawn = ""
        self._at = 0

    def next(self) -> str:
        at = self._at
        if at == len(self._drawn):
            self._drawn = self.rng.randbytes(16 * _DRAWN_AT_ONCE).hex()
            at = 0
        self._at = at + 32
        return self._drawn[at : at + 32]
