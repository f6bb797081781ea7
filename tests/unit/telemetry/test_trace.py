"""Trace context on its way through the mesh."""

import random

import pytest

from toska_mesh.telemetry.trace import RequestIds, acceptable_id, continue_b3, continue_traceparent

TRACE = b"0af7651916cd43dd8448eb211c80319c"
SPAN = b"b7ad6b7169203331"


def rng() -> random.Random:
    return random.Random(1)


@pytest.mark.parametrize("version", [b"00", b"01", b"fe"])
def test_a_valid_traceparent_goes_on_with_a_new_span(version: bytes) -> None:
    more = b"-x" if version != b"00" else b""
    continued = continue_traceparent(b"%b-%b-%b-01%b" % (version, TRACE, SPAN, more), rng())
    assert continued is not None
    value, trace_id = continued
    version_sent, trace, span, flags = value.split(b"-")
    assert (version_sent, trace, flags, trace_id) == (b"00", TRACE, b"01", TRACE.decode())
    assert len(span) == 16
    assert span != SPAN


@pytest.mark.parametrize(
    ("flags", "sent"), [(b"00", b"00"), (b"01", b"01"), (b"03", b"03"), (b"ff", b"03"), (b"fd", b"01")]
)
def test_flags_that_are_not_defined_are_not_passed_on(flags: bytes, sent: bytes) -> None:
    continued = continue_traceparent(b"00-%b-%b-%b" % (TRACE, SPAN, flags), rng())
    assert continued is not None
    assert continued[0].endswith(b"-" + sent)


@pytest.mark.parametrize(
    "value",
    [
        b"",
        b"00",
        b"ff-%b-%b-01" % (TRACE, SPAN),
        b"00-%b-%b-01-x" % (TRACE, SPAN),
        b"00-%b-%b-1" % (TRACE, SPAN),
        b"00-%b-%b-01" % (TRACE.upper(), SPAN),
        b"00-%b-%b-01" % (b"0" * 32, SPAN),
        b"00-%b-%b-01" % (TRACE, b"0" * 16),
        b"00-%b-%b-01" % (TRACE[1:], SPAN),
        b" 00-%b-%b-01" % (TRACE, SPAN),
    ],
)
def test_an_invalid_traceparent_ends_here(value: bytes) -> None:
    assert continue_traceparent(value, rng()) is None


@pytest.mark.parametrize("value", [b"0", b"1", b"d"])
def test_a_b3_decision_passes(value: bytes) -> None:
    assert continue_b3([(b"B3", value)], rng()) == ([(b"b3", value)], "")


@pytest.mark.parametrize(("tail", "kept"), [(b"", 2), (b"-1", 4), (b"-d-05e3ac9a4f6e3b90", 4)])
def test_a_b3_header_goes_on_with_a_new_span(tail: bytes, kept: int) -> None:
    ((name, value),), trace_id = continue_b3([(b"b3", TRACE + b"-" + SPAN + tail)], rng())
    parts = value.split(b"-")
    assert (name, len(parts), parts[0], trace_id) == (b"b3", kept, TRACE, TRACE.decode())
    assert parts[1] != SPAN
    if kept == 4:
        assert parts[3] == SPAN, "the old span is the parent"


@pytest.mark.parametrize("value", [b"", b"x", TRACE, b"x-" + SPAN, TRACE + b"-x", TRACE + b"-" + SPAN + b"-9"])
def test_a_malformed_b3_header_ends_here(value: bytes) -> None:
    assert continue_b3([(b"b3", value)], rng()) == ([], "")


def test_b3_in_several_headers() -> None:
    sent, trace_id = continue_b3([(b"X-B3-TraceId", TRACE[:16]), (b"X-B3-SpanId", SPAN)], rng())
    fields = dict(sent)
    assert (fields[b"X-B3-TraceId"], fields[b"X-B3-ParentSpanId"], trace_id) == (TRACE[:16], SPAN, TRACE[:16].decode())
    assert fields[b"X-B3-SpanId"] not in (SPAN, TRACE[:16])
    assert continue_b3([(b"X-B3-TraceId", b"\xff" * 16), (b"X-B3-SpanId", SPAN)], rng()) == ([], "")


@pytest.mark.parametrize(("value", "text"), [(b"a-1", "a-1"), (b"", ""), (b"a b", ""), (b"\xe4", ""), (b"a" * 129, "")])
def test_ids_of_clients(value: bytes, text: str) -> None:
    assert acceptable_id(value) == text


def test_new_ids_are_long_and_differ() -> None:
    source = RequestIds(rng())
    ids = {source.next() for _ in range(100)}
    assert len(ids) == 100
    assert {len(one) for one in ids} == {32}
