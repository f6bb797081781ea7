"""What a request brings along that the calls made for it must carry on: its ids, its trace, its deadline.

The server side sets one `RequestContext` per request; the client side reads `current()` and sends `outgoing_headers`.
The rules are the gateway's (`telemetry.trace`): what is invalid is not passed on, each call gets a span id of its own,
and nobody starts a trace here. Pure but for the context variable itself.
"""

import math
import random
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar, Token
from dataclasses import dataclass, field, replace
from typing import Final, Protocol

from toska_mesh.resilience.deadline import NEVER, Deadline
from toska_mesh.telemetry.trace import RequestIds, acceptable_id, continue_b3, continue_traceparent

CORRELATION_ID: Final = "X-Correlation-ID"
REQUEST_ID: Final = "X-Request-ID"
TIMEOUT_MS: Final = "X-Toska-Timeout-Ms"
"""How many milliseconds the caller will still wait; an integer. Each hop sends on what is left."""

_LONGEST_MS = 24 * 3600 * 1000
"""Nobody waits longer for an answer; a larger number says nothing that "no deadline" does not."""
_MILLISECONDS = re.compile(r"[0-9]{1,12}")
_B3 = frozenset({"b3", "x-b3-traceid", "x-b3-spanid", "x-b3-parentspanid", "x-b3-sampled", "x-b3-flags"})
_TRACE = _B3 | {"traceparent", "tracestate"}
_IDS: Final = RequestIds(random.Random())


class Fields(Protocol):
    """A request's fields as pairs: a dict, a multi-dict, or whatever an edge has."""

    def items(self) -> Iterable[tuple[str, str]]: ...


@dataclass(frozen=True, slots=True)
class RequestContext:
    """Neither id is ever empty. `trace`: the trace fields as they came, with names in small letters."""

    correlation_id: str
    request_id: str
    trace: tuple[tuple[str, str], ...] = ()
    deadline: Deadline = field(default=NEVER)
    """On the clock of the loop that serves the request."""

    @property
    def trace_id(self) -> str:
        """For log lines; empty without a valid trace."""
        return _continued(self.trace, random.Random(0))[1] if self.trace else ""


class _Serving:
    """What the tasks of one request share: when it is over, nobody waits for those that go on."""

    __slots__ = ("context",)

    def __init__(self, context: RequestContext) -> None:
        self.context = context


_current: ContextVar[_Serving | None] = ContextVar("toska_request_context", default=None)


def current() -> RequestContext | None:
    """The context of the request that is being served here; None outside of one.

    A task that was started for a request and outlives it keeps the ids and the trace, without the deadline.
    """
    serving = _current.get()
    return serving.context if serving is not None else None


def enter(context: RequestContext) -> Token[_Serving | None]:
    """Make `context` the current one here, and for tasks started from now on; to be followed by `leave`."""
    return _current.set(_Serving(context))


def leave(token: Token[_Serving | None]) -> None:
    serving = _current.get()
    if serving is not None and serving.context.deadline is not NEVER:
        serving.context = replace(serving.context, deadline=NEVER)
    _current.reset(token)


@contextmanager
def serving_request(context: RequestContext) -> Iterator[RequestContext]:
    """The same for the length of a block."""
    token = enter(context)
    try:
        yield context
    finally:
        leave(token)


def context_of(headers: Fields, now: float, new_ids: RequestIds = _IDS) -> RequestContext:
    """Read a request's fields (names in any case; a name may come twice). Never fails.

    An id that is missing or unfit for a log line is replaced: by the other of the two, or by a new one.
    """
    found: dict[str, list[str]] = {}
    for name, value in headers.items():
        lower = name.lower()
        if lower in READ_NAMES:
            found.setdefault(lower, []).append(value)
    if not found:
        new = new_ids.next()
        return RequestContext(new, new)
    request_id = _id(found.get("x-request-id"))
    correlation_id = _id(found.get("x-correlation-id"))
    request_id = request_id or correlation_id or new_ids.next()
    trace = tuple((name, _joined(name, values)) for name, values in found.items() if name in _TRACE)
    return RequestContext(
        correlation_id or request_id,
        request_id,
        tuple(pair for pair in trace if pair[1]),
        _deadline(found.get("x-toska-timeout-ms"), now),
    )


def outgoing_headers(context: RequestContext, now: float, rng: random.Random) -> dict[str, str]:
    """The fields of one call made for that request, with a new span id and what is left of the time.

    An expired deadline is sent as 0; whether to call at all then is the caller's decision.
    """
    fields = {CORRELATION_ID: context.correlation_id, REQUEST_ID: context.request_id}
    if context.trace:
        fields |= _continued(context.trace, rng)[0]
    if not math.isinf(context.deadline.at):
        fields[TIMEOUT_MS] = str(int(context.deadline.remaining(now) * 1000))
    return fields


READ_NAMES: Final = _TRACE | {CORRELATION_ID.lower(), REQUEST_ID.lower(), TIMEOUT_MS.lower()}
"""In small letters: all that `context_of` looks at."""


def _continued(trace: tuple[tuple[str, str], ...], rng: random.Random) -> tuple[dict[str, str], str]:
    """The trace fields of a call and the trace id."""
    values = dict(trace)
    fields: dict[str, str] = {}
    trace_id = ""
    parent = continue_traceparent(_bytes(values["traceparent"]), rng) if "traceparent" in values else None
    if parent is not None:
        fields["traceparent"] = parent[0].decode("ascii")
        trace_id = parent[1]
        if values.get("tracestate"):
            fields["tracestate"] = values["tracestate"]
    b3 = [(name.encode("ascii"), _bytes(value)) for name, value in trace if name in _B3]
    if b3:
        sent, b3_trace_id = continue_b3(b3, rng)
        fields |= {name.decode("ascii"): value.decode("latin-1") for name, value in sent}
        trace_id = trace_id or b3_trace_id
    return fields, trace_id


def _bytes(value: str) -> bytes:
    """Header bytes; a character that no header can have makes the value an invalid one."""
    try:
        return value.encode("latin-1")
    except UnicodeEncodeError:
        return b"\0"


def _id(values: list[str] | None) -> str:
    return acceptable_id(_bytes(values[0])) if values is not None and len(values) == 1 else ""


def _joined(name: str, values: list[str]) -> str:
    """One value per field: `tracestate` may be spread over several, any other that came twice is not to be believed."""
    if name == "tracestate":
        joined = ",".join(values)
        return joined if joined.isascii() and joined.isprintable() else ""
    return values[0] if len(values) == 1 else ""


def _deadline(values: list[str] | None, now: float) -> Deadline:
    if values is None or len(values) != 1 or not _MILLISECONDS.fullmatch(values[0].strip()):
        return NEVER
    milliseconds = int(values[0])
    return Deadline(now + milliseconds / 1000) if milliseconds <= _LONGEST_MS else NEVER
