"""What a request brings along, and what the calls made for it send on."""

import asyncio
import random

import pytest
from multidict import CIMultiDict

from toska_mesh.resilience.deadline import NEVER, Deadline
from toska_mesh.sdk.context import RequestContext, context_of, current, outgoing_headers, serving_request

TRACE = "0af7651916cd43dd8448eb211c80319c"
SPAN = "b7ad6b7169203331"
TRACEPARENT = f"00-{TRACE}-{SPAN}-01"


def sent(headers: dict[str, str], now: float = 0.0) -> dict[str, str]:
    return outgoing_headers(context_of(headers, 0.0), now, random.Random(1))


def test_ids_are_taken_over_in_any_case_of_the_name() -> None:
    context = context_of({"x-request-id": "r-1", "X-CORRELATION-ID": "c-1"}, 0.0)
    assert (context.request_id, context.correlation_id) == ("r-1", "c-1")


@pytest.mark.parametrize(
    ("headers", "expected"),
    [
        pytest.param({"X-Request-ID": "r-1"}, ("r-1", "r-1"), id="request id alone"),
        pytest.param({"X-Correlation-ID": "c-1"}, ("c-1", "c-1"), id="correlation id alone"),
        pytest.param({"X-Request-ID": "a b", "X-Correlation-ID": "c-1"}, ("c-1", "c-1"), id="a bad one is replaced"),
    ],
)
def test_one_id_stands_in_for_the_other(headers: dict[str, str], expected: tuple[str, str]) -> None:
    context = context_of(headers, 0.0)
    assert (context.request_id, context.correlation_id) == expected


@pytest.mark.parametrize("value", ["", "a b", "x" * 129, "line\nbreak", "Wörter", "\u20ac"])
def test_an_id_unfit_for_a_log_line_is_replaced_by_a_new_one(value: str) -> None:
    context = context_of({"X-Request-ID": value}, 0.0)
    assert context.request_id != value
    assert len(context.request_id) == 32


def test_requests_without_ids_get_different_ones() -> None:
    assert context_of({}, 0.0).request_id != context_of({}, 0.0).request_id


def test_an_id_that_comes_twice_is_not_believed() -> None:
    headers = CIMultiDict([("X-Request-ID", "a"), ("X-Request-ID", "b")])
    assert context_of(headers, 0.0).request_id not in ("a", "b")


def test_a_trace_goes_on_with_a_new_span() -> None:
    fields = sent({"traceparent": TRACEPARENT, "tracestate": "vendor=1"})
    version, trace, span, flags = fields["traceparent"].split("-")
    assert (version, trace, flags) == ("00", TRACE, "01")
    assert span != SPAN
    assert fields["tracestate"] == "vendor=1"


def test_two_calls_for_one_request_have_spans_of_their_own() -> None:
    context = context_of({"traceparent": TRACEPARENT}, 0.0)
    rng = random.Random(1)
    assert len({outgoing_headers(context, 0.0, rng)["traceparent"] for _ in range(3)}) == 3


def test_tracestate_spread_over_several_fields_is_put_together() -> None:
    headers = CIMultiDict([("traceparent", TRACEPARENT), ("tracestate", "a=1"), ("tracestate", "b=2")])
    fields = outgoing_headers(context_of(headers, 0.0), 0.0, random.Random(1))
    assert fields["tracestate"] == "a=1,b=2"


@pytest.mark.parametrize(
    "headers",
    [
        pytest.param({"traceparent": "00-xyz", "tracestate": "a=1"}, id="malformed"),
        pytest.param({"tracestate": "a=1"}, id="tracestate without its trace"),
        pytest.param({"b3": "nonsense"}, id="b3"),
        pytest.param({"X-B3-TraceId": "zz", "X-B3-SpanId": SPAN}, id="b3 in several fields"),
        pytest.param({"traceparent": "\u20ac"}, id="no header's character"),
    ],
)
def test_an_invalid_trace_is_not_passed_on(headers: dict[str, str]) -> None:
    assert sent(headers).keys() == {"X-Request-ID", "X-Correlation-ID"}


def test_a_traceparent_that_comes_twice_is_not_passed_on() -> None:
    headers = CIMultiDict([("traceparent", TRACEPARENT), ("traceparent", TRACEPARENT)])
    assert "traceparent" not in outgoing_headers(context_of(headers, 0.0), 0.0, random.Random(1))


def test_b3_goes_on_with_a_new_span_whose_parent_is_the_old_one() -> None:
    fields = sent({"b3": f"{TRACE}-{SPAN}-1"})
    trace, span, sampled, parent = fields["b3"].split("-")
    assert (trace, sampled, parent) == (TRACE, "1", SPAN)
    assert span != SPAN


def test_the_trace_id_is_there_for_log_lines() -> None:
    assert context_of({"traceparent": TRACEPARENT}, 0.0).trace_id == TRACE
    assert context_of({"b3": f"{TRACE}-{SPAN}"}, 0.0).trace_id == TRACE
    assert context_of({}, 0.0).trace_id == ""


def test_the_next_hop_is_told_what_is_left_of_the_time() -> None:
    assert context_of({"X-Toska-Timeout-Ms": "1500"}, 10.0).deadline == Deadline(11.5)
    assert sent({"X-Toska-Timeout-Ms": "1500"}, now=1.0)["X-Toska-Timeout-Ms"] == "500"


def test_an_expired_deadline_is_sent_as_zero() -> None:
    assert sent({"X-Toska-Timeout-Ms": "1500"}, now=5.0)["X-Toska-Timeout-Ms"] == "0"


@pytest.mark.parametrize("value", ["", "soon", "-1", "1.5", "9" * 40, "86400001", "٣"])
def test_a_deadline_that_is_no_number_of_milliseconds_is_none(value: str) -> None:
    assert context_of({"X-Toska-Timeout-Ms": value}, 0.0).deadline == NEVER
    assert "X-Toska-Timeout-Ms" not in sent({"X-Toska-Timeout-Ms": value})


async def test_the_context_belongs_to_the_request_and_to_the_tasks_it_starts() -> None:
    seen: list[RequestContext | None] = []

    async def look() -> None:
        await asyncio.sleep(1)
        seen.append(current())

    async with asyncio.TaskGroup() as tasks:
        with serving_request(context_of({"X-Request-ID": "r-1"}, 0.0)) as context:
            tasks.create_task(look())
        assert current() is None
        tasks.create_task(look())
    assert seen == [context, None]


async def test_a_task_that_outlives_its_request_keeps_the_trace_and_has_no_deadline() -> None:
    over = asyncio.Event()

    async def refresh() -> RequestContext | None:
        await over.wait()
        return current()

    async with asyncio.TaskGroup() as tasks:
        with serving_request(RequestContext("corr", "req", (("traceparent", TRACEPARENT),), Deadline(5.0))):
            task = tasks.create_task(refresh())
        over.set()
    found = await task
    assert found is not None
    assert found.deadline is NEVER
    assert (found.correlation_id, found.trace) == ("corr", (("traceparent", TRACEPARENT),))
    assert current() is None
