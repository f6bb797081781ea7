"""The registry every daemon starts from."""

from prometheus_client import Counter
from prometheus_client.exposition import generate_latest

from toska_mesh import __version__
from toska_mesh.telemetry import LATENCY_BUCKETS, new_metrics_registry


def test_a_daemon_says_what_it_is() -> None:
    text = generate_latest(new_metrics_registry("discovery")).decode()
    assert f'toska_build_info{{process="discovery",version="{__version__}"}} 1.0' in text
    assert "process_resident_memory_bytes" in text


def test_two_daemons_in_one_process_do_not_share_metrics() -> None:
    first, second = new_metrics_registry("a"), new_metrics_registry("b")
    Counter("toska_test_total", "Test.", registry=first).inc()
    assert "toska_test_total" not in generate_latest(second).decode()


def test_the_latency_buckets_grow() -> None:
    assert list(LATENCY_BUCKETS) == sorted(set(LATENCY_BUCKETS))
    assert LATENCY_BUCKETS[0] < 0.001
    assert LATENCY_BUCKETS[-1] >= 30
