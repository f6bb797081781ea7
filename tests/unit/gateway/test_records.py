"""What is written down about a request: problem documents, metrics, the access log."""

from types import SimpleNamespace
from typing import Any

import orjson
import pytest
from prometheus_client import CollectorRegistry, generate_latest

from toska_mesh.gateway import problems
from toska_mesh.gateway.accesslog import MAX_BATCH_LINES, AccessLog, _any_line, _usual_line
from toska_mesh.gateway.problems import Problem, problem_body
from toska_mesh.gateway.stats import GatewayStats, cumulative
from toska_mesh.telemetry import LATENCY_BUCKETS

ALL = [value for value in vars(problems).values() if isinstance(value, Problem)]


def test_codes_are_stable_and_unique() -> None:
    codes = {problem.code: problem.status for problem in ALL}
    assert len(codes) == len(ALL)
    promised = {
        "no-such-route": 404,
        "no-instance": 503,
        "breaker-open": 503,
        "upstream-failed": 502,
        "upstream-timeout": 504,
        "rate-limited": 429,
        "unauthorized": 401,
        "request-too-large": 413,
        "bad-request": 400,
    }
    assert promised.items() <= codes.items()
    assert all(problem.status in problems.REASONS for problem in ALL)


@pytest.mark.parametrize("problem", ALL, ids=lambda problem: problem.code)
def test_document(problem: Problem) -> None:
    document = orjson.loads(problem_body(problem, 'with "quotes"', "id-1"))
    assert document == {
        "type": "about:blank",
        "title": problem.title,
        "status": problem.status,
        "detail": 'with "quotes"',
        "code": problem.code,
        "requestId": "id-1",
    }
    assert orjson.loads(problem_body(problem, "", ""))["detail"] == problem.detail


def test_metrics() -> None:
    stats = GatewayStats(lambda: {"toska_gateway_services": ("Services routed.", 2.0)})
    stats.of("orders").observe(200, 0.004, "ok", 3, 5)
    stats.of("orders").observe(502, 100.0, "upstream-failed", 1, 1)
    stats.of("").observe(204, 0.001, "preflight", 0, 0)
    stats.of('odd"name').observe(200, 0.0, "ok", 0, 0)
    stats.breaker_changes["orders", "open"] += 1
    stats.observe_freshness(0.02)
    stats.observe_build(0.25)
    stats.observe_build(0.5)
    registry = CollectorRegistry()
    registry.register(stats)
    text = generate_latest(registry).decode()
    for line in (
        'toska_gateway_requests_total{service="orders",status="200"} 1.0',
        'toska_gateway_requests_failed_total{reason="upstream-failed",service="orders"} 1.0',
        'toska_gateway_request_duration_seconds_bucket{le="+Inf",service="orders"} 2.0',
        'toska_gateway_request_duration_seconds_count{service="orders"} 2.0',
        'toska_gateway_request_bytes_total{service="orders"} 4.0',
        'toska_gateway_response_bytes_total{service="orders"} 6.0',
        'toska_gateway_breaker_changes_total{service="orders",state="open"} 1.0',
        "toska_gateway_table_freshness_seconds_count 1.0",
        "toska_gateway_table_build_seconds_count 2.0",
        "toska_gateway_table_build_seconds_sum 0.75",
        "toska_gateway_services 2.0",
        'service="odd\\"name"',
    ):
        assert line in text
    assert 'reason="ok"' not in text
    assert 'reason="preflight"' not in text, "an answered preflight did not fail"
    stats.of("").observe(404, 0.0, "no-such-route", 0, 0)
    stats.keep_only({'odd"name'})
    left = generate_latest(registry).decode()
    assert 'service="orders"' not in left
    assert 'toska_gateway_requests_failed_total{reason="no-such-route",service=""} 1.0' in left
    assert 'service="odd\\"name"' in left


def test_buckets_are_cumulative_and_complete() -> None:
    result = cumulative([1] * (len(LATENCY_BUCKETS) + 1))
    assert result[0] == (str(LATENCY_BUCKETS[0]), 1)
    assert result[-1] == ("+Inf", len(LATENCY_BUCKETS) + 1)


class Writer:
    """Collects what a line writer would write."""

    dropped_lines = 0

    def __init__(self) -> None:
        self.written: list[tuple[bytes, int]] = []

    def write(self, lines: bytes, count: int = 1) -> bool:
        self.written.append((lines, count))
        return True


def exchange(path: bytes = b"/api/orders/", **changes: Any) -> Any:
    request_id = changes.pop("request_id", "r")
    head = SimpleNamespace(
        method=b"GET",
        path=path,
        client_address="192.0.2.1",
        request_id=request_id,
        correlation_id="c",
        id_fields=b"X-Request-ID: %b\r\nX-Correlation-ID: c\r\n" % request_id.encode(),
        trace_id="",
    )
    values = {
        "head": head,
        "upstream": None,
        "tried": (),
        "head_at": 10.5,
        "try_started": 10.25,
        "started": 10.0,
        "status": 200,
        "route": "orders",
        "attempts": 1,
        "bytes_in": 1,
        "bytes_out": 2,
        "outcome": "ok",
    }
    return SimpleNamespace(**(values | changes))


def answered_by(instance: str) -> Any:
    return SimpleNamespace(
        instance=SimpleNamespace(id=instance), log_fields=b'"service":"orders","instance":"%b"' % instance.encode()
    )


@pytest.mark.parametrize(
    "changes",
    [
        pytest.param({}, id="usual"),
        pytest.param({"path": b"/api/orders/%22?a=b"}, id="encoded"),
        pytest.param({"path": b'/api/orders/"'}, id="quote in the path"),
        pytest.param({"request_id": 'a"b'}, id="quote in an id"),
        pytest.param({"request_id": "a\\b"}, id="backslash in an id"),
    ],
)
def test_the_short_way_writes_the_same_line_as_the_long_one(changes: dict[str, Any]) -> None:
    finished = exchange(upstream=answered_by("orders-1"), **changes)
    short = _usual_line(finished, 11.0, "2026-01-01T00:00:00.000+00:00")
    long = _any_line(finished, 11.0, "2026-01-01T00:00:00.000+00:00")
    if any(mark in str(changes) for mark in ('"', "\\\\")):
        assert short == b""
    else:
        assert orjson.loads(short) == orjson.loads(long)


def test_access_log_line() -> None:
    writer = Writer()
    log = AccessLog(writer)  # type: ignore[arg-type]
    instance = answered_by("orders-1")
    log.add(exchange(upstream=instance), 11.0)
    log.flush()
    ((text, count),) = writer.written
    line = orjson.loads(text)
    assert text.endswith(b"\n")
    assert count == 1
    assert line["msg"] == "request"
    assert (line["duration_ms"], line["upstream_ms"], line["relay_ms"]) == (1000.0, 250.0, 500.0)
    assert (line["instance"], line["service"], line["outcome"]) == ("orders-1", "orders", "ok")
    log.flush()
    assert len(writer.written) == 1


def test_a_hostile_path_stays_one_line() -> None:
    writer = Writer()
    log = AccessLog(writer)  # type: ignore[arg-type]
    log.add(exchange(path=b'/"\r\n\xff{"msg":"forged"}', head_at=0.0), 11.0)
    log.flush()
    ((text, _),) = writer.written
    assert text.count(b"\n") == 1
    assert orjson.loads(text)["msg"] == "request"


def test_lines_go_out_in_batches() -> None:
    writer = Writer()
    log = AccessLog(writer)  # type: ignore[arg-type]
    for _ in range(MAX_BATCH_LINES * 2 + 1):
        log.add(exchange(), 11.0)
    assert [count for _, count in writer.written] == [MAX_BATCH_LINES] * 2
