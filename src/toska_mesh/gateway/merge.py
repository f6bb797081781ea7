"""One answer out of several workers' answers: metrics and instances. Pure."""

from collections.abc import Mapping, Sequence
from typing import Any

from prometheus_client import Metric
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.samples import Sample

OF_ONE_PROCESS = ("process_", "python_")
"""Metrics that say something about a single process: they keep it as the label `worker`."""

NEWEST = ("toska_gateway_table_version", "toska_gateway_table_stale_seconds", "toska_gateway_services",
          "toska_gateway_instances", "toska_build_info", "toska_gateway_files_refused")  # fmt: skip
"""What all workers see alike: the largest value counts, the sum would mean nothing."""


SMALLEST = ("toska_gateway_certificate_expiry_timestamp_seconds", "toska_gateway_applied_index")
"""Where workers differ for a moment, the smallest value is the one to act on."""


class MergedMetrics:
    """A collector's answer for all workers: counters, histograms and most gauges are summed."""

    def __init__(self, texts: Mapping[str, str]) -> None:
        """`texts`: by worker, its `/metrics` in Prometheus' text format."""
        self._families: dict[str, Metric] = {}
        self._samples: dict[str, dict[tuple[str, tuple[tuple[str, str], ...]], float]] = {}
        for worker, text in texts.items():
            for family in text_string_to_metric_families(text):
                self._add(worker, family)

    def _add(self, worker: str, family: Metric) -> None:
        name = family.name
        self._families.setdefault(name, Metric(name, family.documentation, family.type))
        samples = self._samples.setdefault(name, {})
        for sample in family.samples:
            labels = dict(sample.labels)
            if name.startswith(OF_ONE_PROCESS):
                labels["worker"] = worker
            key = (sample.name, tuple(sorted(labels.items())))
            if name in NEWEST or sample.name in NEWEST:
                samples[key] = max(samples.get(key, float("-inf")), sample.value)
            elif name in SMALLEST:
                samples[key] = min(samples.get(key, float("inf")), sample.value)
            else:
                samples[key] = samples.get(key, 0.0) + sample.value

    def collect(self) -> Sequence[Metric]:
        """What `prometheus_client` calls."""
        merged = []
        for name, family in self._families.items():
            family.samples = [
                Sample(sample, dict(labels), value, None, None)
                for (sample, labels), value in self._samples[name].items()
            ]
            merged.append(family)
        return merged


def merge_instances(answers: Sequence[Sequence[Mapping[str, Any]]]) -> list[dict[str, Any]]:
    """The workers' views of the same instances: loads are summed, states are listed where they differ."""
    merged: dict[tuple[str, str, str], dict[str, Any]] = {}
    for answer in answers:
        for item in answer:
            key = (item["service"], item["id"], item["address"])
            known = merged.get(key)
            if known is None:
                merged[key] = {**item, "breakers": [item["breaker"]]} if "breaker" in item else dict(item)
                continue
            for name in ("inFlight", "waiting", "idleConnections"):
                if name in known and name in item:
                    known[name] += item[name]
            if "breaker" in item:
                known["breakers"].append(item["breaker"])
                if item["breaker"] != "closed":
                    known["breaker"] = item["breaker"]
                    known["breakerRetryInSeconds"] = item["breakerRetryInSeconds"]
            known["isSuspect"] = known.get("isSuspect", False) or item.get("isSuspect", False)
            known["why"] = known["why"] or item["why"]
    return list(merged.values())
