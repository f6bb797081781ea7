"""What is counted of calls."""

from prometheus_client import CollectorRegistry, generate_latest
from tests.unit.sdk.scripted_calls import answers, resets, world

from toska_mesh.sdk.callstats import CallStats


async def test_calls_are_counted_by_service_and_end() -> None:
    stats = CallStats()
    registry = CollectorRegistry()
    registry.register(stats)
    async with world("a", "b") as mesh:
        mesh.sender.stats = stats
        stats.targets = mesh.directory.used_targets
        mesh.scripts["a"] += [resets(), answers(404)]
        mesh.scripts["b"] += [answers(after=0.2, ends=False)]
        await mesh.call()
        await mesh.call()
        text = generate_latest(registry).decode()
    for line in (
        'toska_client_calls_total{outcome="200",service="orders"} 1.0',
        'toska_client_calls_total{outcome="404",service="orders"} 1.0',
        'toska_client_retries_total{service="orders"} 1.0',
        'toska_client_call_duration_seconds_bucket{le="0.1",service="orders"} 1.0',
        'toska_client_call_duration_seconds_bucket{le="+Inf",service="orders"} 2.0',
        'toska_client_call_duration_seconds_count{service="orders"} 2.0',
        'toska_client_call_duration_seconds_sum{service="orders"} 0.2',
        'toska_client_calls_in_flight{service="orders"} 1.0',
        'toska_client_breakers{service="orders",state="closed"} 2.0',
    ):
        assert line in text
