"""Prometheus metrics: one registry per daemon, made in its `app.py` and handed down."""

from prometheus_client import CollectorRegistry, GCCollector, Info, PlatformCollector, ProcessCollector

from toska_mesh import __version__

LATENCY_BUCKETS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
"""Seconds. From a fast local call to the longest timeout anybody should wait for."""


def new_metrics_registry(process: str) -> CollectorRegistry:
    """A registry with the process's own figures and `toska_build_info`."""
    registry = CollectorRegistry(auto_describe=True)
    ProcessCollector(registry=registry)
    PlatformCollector(registry=registry)
    GCCollector(registry=registry)
    Info("toska_build", "Version of this process.", registry=registry).info(
        {"version": __version__, "process": process}
    )
    return registry
