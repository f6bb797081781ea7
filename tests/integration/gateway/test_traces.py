"""Trace context and ids, as an instance gets them (W3C Trace Context, B3 propagation)."""

import re

import pytest
from tests.integration.gateway.harness import Backend, Message, running_gateway

TRACE = "0af7651916cd43dd8448eb211c80319c"
SPAN = "b7ad6b7169203331"
VALID = f"traceparent: 00-{TRACE}-{SPAN}-01\r\n"


async def sent(headers: str) -> tuple[Message, Message]:
    """The answer, and the request as the instance got it."""
    async with Backend() as backend, running_gateway(backend) as gateway:
        answer = await gateway.get(headers=headers)
        assert answer.status == 200
        return answer, backend.requests[0]


async def test_no_trace_is_begun_but_every_request_has_an_id() -> None:
    answer, request = await sent("")
    for name in ("traceparent", "tracestate", "b3", "X-B3-TraceId"):
        assert request.get(name) is None
    identifier = request.get("X-Request-ID")
    assert identifier is not None
    assert re.fullmatch("[0-9a-f]{32}", identifier)
    assert identifier == request.get("X-Correlation-ID")
    assert identifier == answer.get("X-Request-ID") == answer.get("X-Correlation-ID")


async def test_a_trace_goes_on_with_a_new_span_and_its_state() -> None:
    _, request = await sent(VALID + "tracestate: a=1,b=2\r\ntracestate: c=3\r\n")
    version, trace, span, flags = (request.get("traceparent") or "").split("-")
    assert (version, trace, flags) == ("00", TRACE, "01")
    assert span != SPAN
    assert re.fullmatch("[0-9a-f]{16}", span)
    assert request.get("tracestate") == "a=1,b=2,c=3"


@pytest.mark.parametrize(
    "headers",
    [
        "",
        f"traceparent: 00-{TRACE.upper()}-{SPAN}-01\r\n",
        f"traceparent: 00-{'0' * 32}-{SPAN}-01\r\n",
        f"traceparent: ff-{TRACE}-{SPAN}-01\r\n",
        "traceparent: \r\n",
        VALID + VALID,
        VALID + f"TraceParent: 00-{TRACE}-{'1' * 16}-00\r\n",
    ],
    ids=["none", "upper case", "no trace", "version ff", "empty", "the same twice", "two"],
)
async def test_an_invalid_trace_ends_here_and_its_state_too(headers: str) -> None:
    _, request = await sent(headers + "tracestate: a=1\r\n")
    assert request.get("traceparent") is None
    assert request.get("tracestate") is None


async def test_b3_goes_on_beside_it() -> None:
    _, request = await sent(
        f"X-B3-TraceId: {TRACE}\r\nX-B3-SpanId: {SPAN}\r\nX-B3-Sampled: 1\r\nX-B3-ParentSpanId: {'2' * 16}\r\n"
        f"b3: {TRACE}-{SPAN}-1\r\n" + VALID
    )
    assert (request.get("X-B3-TraceId"), request.get("X-B3-ParentSpanId")) == (TRACE, SPAN)
    assert request.get("X-B3-Sampled") == "1"
    span = request.get("X-B3-SpanId")
    assert span not in (None, SPAN)
    assert request.get("b3") == f"{TRACE}-{span}-1-{SPAN}"
    assert (request.get("traceparent") or "").startswith(f"00-{TRACE}-")


@pytest.mark.parametrize(
    ("headers", "request_id", "correlation_id"),
    [
        ("X-Request-ID: r\r\n", "r", "r"),
        ("X-Correlation-ID: c\r\n", "c", "c"),
        ("X-Request-ID: r\r\nX-Correlation-ID: c\r\n", "r", "c"),
        ("X-Request-ID: a b\r\nX-Correlation-ID: c\r\n", "c", "c"),
        (f"X-Request-ID: {'r' * 129}\r\nX-Correlation-ID: c\r\n", "c", "c"),
    ],
)
async def test_ids_are_kept_where_they_are_fit(headers: str, request_id: str, correlation_id: str) -> None:
    answer, request = await sent(headers)
    for message in (answer, request):
        assert (message.get("X-Request-ID"), message.get("X-Correlation-ID")) == (request_id, correlation_id)
