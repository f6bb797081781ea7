"""Several workers' answers become one."""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from toska_mesh.gateway.merge import MergedMetrics, merge_instances


def exposition(requests: int, version: int, memory: int) -> str:
    registry = CollectorRegistry()
    counter = Counter("toska_gateway_requests", "r", ["service"], registry=registry)
    counter.labels("orders").inc(requests)
    Gauge("toska_gateway_table_version", "v", registry=registry).set(version)
    Gauge("toska_gateway_requests_in_flight", "f", registry=registry).set(2)
    Gauge("process_resident_memory_bytes", "m", registry=registry).set(memory)
    Histogram("toska_gateway_request_duration_seconds", "d", buckets=(1, 2), registry=registry).observe(1.5)
    return generate_latest(registry).decode()


def merged() -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    text = generate_latest(MergedMetrics({"1": exposition(3, 7, 100), "2": exposition(4, 6, 200)})).decode()
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def test_counters_and_histograms_are_summed() -> None:
    samples = merged()
    assert samples["toska_gateway_requests_total", (("service", "orders"),)] == 7
    assert samples["toska_gateway_request_duration_seconds_bucket", (("le", "2.0"),)] == 2
    assert samples["toska_gateway_request_duration_seconds_count", ()] == 2


def test_loads_are_summed_but_what_all_see_alike_is_not() -> None:
    samples = merged()
    assert samples["toska_gateway_requests_in_flight", ()] == 4
    assert samples["toska_gateway_table_version", ()] == 7


def test_figures_of_a_process_stay_apart() -> None:
    samples = merged()
    assert samples["process_resident_memory_bytes", (("worker", "1"),)] == 100
    assert samples["process_resident_memory_bytes", (("worker", "2"),)] == 200


def test_instances_are_listed_once_with_the_load_of_all_and_the_worst_breaker() -> None:
    def seen(in_flight: int, breaker: str, why: str) -> dict[str, object]:
        return {
            "service": "orders",
            "id": "orders-1",
            "address": "10.0.0.1:80",
            "inFlight": in_flight,
            "breaker": breaker,
            "breakerRetryInSeconds": None if breaker == "closed" else 9.0,
            "isSuspect": False,
            "why": why,
        }

    (one,) = merge_instances([[seen(1, "closed", "")], [seen(2, "open", "breaker open")]])
    assert one["inFlight"] == 3
    assert one["breaker"] == "open"
    assert one["breakers"] == ["closed", "open"]
    assert one["breakerRetryInSeconds"] == 9.0
    assert one["why"] == "breaker open"
