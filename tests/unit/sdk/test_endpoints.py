"""The mesh's own paths of a service: health as the family writes it, metrics, and what a drain changes."""

import json
from typing import Any

import pytest
from prometheus_client import CollectorRegistry, Counter, Gauge

from toska_mesh.sdk.checks import Checks
from toska_mesh.sdk.endpoints import Edge


def edge_with(checks: Checks | None = None, health_endpoint: str = "/health", **more: Any) -> Edge:
    return Edge("orders", "orders-1", health_endpoint, checks or Checks(), **more)


async def asked(edge: Edge, path: str) -> tuple[int, dict[str, Any]]:
    answer = await edge.answer(path, "")
    assert answer.content_type == "application/json"
    return answer.status, json.loads(answer.body)


async def down() -> bool:
    return False


async def test_the_body_has_the_keys_of_both_generations() -> None:
    status, body = await asked(edge_with(), "/health")
    assert status == 200
    assert body.keys() == {"status", "duration", "checks", "service", "id"}
    assert (body["status"], body["service"], body["id"]) == ("Healthy", "orders", "orders-1")


async def test_a_failing_check_is_503_where_it_was_asked() -> None:
    checks = Checks()
    checks.add("database", down)
    edge = edge_with(checks)
    assert (await asked(edge, "/health"))[0] == 503
    assert (await asked(edge, "/health/ready"))[0] == 503
    assert (await asked(edge, "/health/live"))[0] == 200


async def test_a_degraded_service_is_still_served() -> None:
    checks = Checks()

    async def lagging() -> str:
        return "Degraded: lags"

    checks.add("replica", lagging)
    status, body = await asked(edge_with(checks), "/health/ready")
    assert (status, body["status"]) == (200, "Degraded")


async def test_draining_is_not_ready_but_live_and_no_failure() -> None:
    edge = edge_with()
    edge.is_draining = True
    ready, live, whole = [await asked(edge, path) for path in ("/health/ready", "/health/live", "/health")]
    assert (ready[0], ready[1]["status"], ready[1]["checks"][0]["name"]) == (503, "Unhealthy", "drain")
    assert (live[0], live[1]["status"]) == (200, "Healthy")
    assert (whole[0], whole[1]["status"]) == (200, "Degraded")


async def test_draining_does_not_hide_that_a_check_fails() -> None:
    checks = Checks()
    checks.add("database", down)
    edge = edge_with(checks)
    edge.is_draining = True
    assert (await asked(edge, "/health"))[0] == 503


@pytest.mark.parametrize(
    ("endpoint", "own"),
    [
        pytest.param("/health", ("/health", "/health/ready", "/health/live"), id="the default"),
        pytest.param("/healthz?deep=1", ("/healthz", "/healthz/ready", "/healthz/live"), id="with a query"),
        pytest.param("/ops/health/", ("/ops/health", "/ops/health/ready", "/ops/health/live"), id="with a slash"),
    ],
)
def test_the_paths_follow_the_options(endpoint: str, own: tuple[str, ...]) -> None:
    edge = edge_with(health_endpoint=endpoint)
    for path in (*own, "/metrics"):
        assert edge.owns("GET", path)
        assert edge.owns("HEAD", path)
        assert not edge.owns("POST", path)
    assert not edge.owns("GET", "/other")
    assert not edge.owns("GET", own[0] + "/other")


async def test_the_metrics_speak_the_names_of_the_familys_dashboards() -> None:
    edge = edge_with(metrics_registry=None)
    edge.is_registered = lambda: True
    edge.in_flight.begin()
    edge.metrics.observe("GET", 200, 0.004)
    edge.metrics.observe("GET", 200, 0.004)
    edge.metrics.observe("BREW", 418, 0.004)
    answer = await edge.answer("/metrics", "")
    lines = answer.body.decode().splitlines()
    labels = 'http_request_method="GET",http_response_status_code="200",service_name="orders"'
    assert f"http_server_request_duration_seconds_count{{{labels}}} 2.0" in lines
    assert any('http_request_method="_OTHER",http_response_status_code="418"' in line for line in lines)
    assert 'http_server_active_requests{service_name="orders"} 1.0' in lines
    assert 'toska_service_registered{service_name="orders"} 1.0' in lines
    assert 'toska_service_draining{service_name="orders"} 0.0' in lines


async def test_the_apps_own_metrics_stand_beside_ours_and_win_where_the_name_is_the_same() -> None:
    registry = CollectorRegistry()
    Counter("orders_placed", "Orders.", registry=registry).inc()
    Gauge("http_server_request_duration_seconds", "Theirs.", registry=registry)
    edge = edge_with(metrics_registry=registry)
    edge.metrics.observe("GET", 200, 0.1)
    text = (await edge.answer("/metrics", "")).body.decode()
    assert "orders_placed_total 1.0" in text
    assert text.count("# HELP http_server_request_duration_seconds") == 1
    assert "# HELP http_server_request_duration_seconds Theirs." in text


async def test_openmetrics_is_spoken_when_asked_for_and_ends_once() -> None:
    answer = await edge_with().answer("/metrics", "application/openmetrics-text; version=1.0.0")
    assert answer.content_type.startswith("application/openmetrics-text")
    assert answer.body.count(b"# EOF") == 1
