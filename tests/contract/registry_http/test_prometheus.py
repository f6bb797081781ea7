"""The queries of Prometheus' service discovery (consul_sd_configs), in the shape in which its Go client sends them.

It asks the agent once for its datacenter, watches the list of services, and watches each service it wants. Older
releases watch `catalog/service`, newer ones `health/service`.
"""

from typing import Any

import pytest
from tests.contract.registry_http.client import Answer, Registry, until

WAIT = "120000ms"
"""Prometheus' watch timeout of two minutes, as the Go client writes it."""

WATCHES = ["/v1/health/service/{name}?stale=", "/v1/catalog/service/{name}?stale="]


def instance(name: str, number: int = 1, **meta: str) -> dict[str, Any]:
    return {
        "ID": f"{name}-{number}",
        "Name": name,
        "Address": "10.1.2.3",
        "Port": 9000 + number,
        "Tags": ["metrics", "v2"],
        "Meta": meta,
        "Check": {"TTL": "300s", "Status": "passing"},
    }


def assert_query_meta(answer: Answer) -> None:
    """What the Go client parses of every answer; without one of them it gives an error."""
    assert answer.status == 200
    assert answer.index > 0
    assert int(answer.headers["x-consul-lastcontact"]) >= 0
    assert answer.headers["x-consul-knownleader"] == "true"


def test_the_datacenter_comes_from_the_agent(registry: Registry, name: str) -> None:
    datacenter = registry.get("/v1/agent/self").json["Config"]["Datacenter"]
    assert isinstance(datacenter, str)
    registry.register(instance(name))
    (entry,) = registry.get(f"/v1/health/service/{name}?dc={datacenter}&stale=").json
    assert entry["Node"]["Datacenter"] == datacenter


def test_a_new_service_wakes_the_watch_of_all_services(registry: Registry, name: str) -> None:
    first = registry.get(f"/v1/catalog/services?stale=&wait={WAIT}")  # the first query has no index
    assert_query_meta(first)
    assert name not in first.json
    with registry.watching("/v1/catalog/services?stale=", WAIT) as watch:
        registry.register(instance(name))
        answer = watch.result()
    assert_query_meta(answer)
    assert answer.index > watch.index
    # A neighbour's change may have woken the watch first; Prometheus too asks again and again. Consul gives the tags
    # in any order.
    until(lambda: sorted(registry.get("/v1/catalog/services?stale=").json.get(name, [])) == ["metrics", "v2"])


def test_an_instance_has_all_that_becomes_a_label(registry: Registry, name: str) -> None:
    registry.register(instance(name, metrics_path="/metrics"))
    answer = registry.get(f"/v1/health/service/{name}?stale=&wait={WAIT}")
    assert_query_meta(answer)
    (entry,) = answer.json
    service, node = entry["Service"], entry["Node"]
    assert (service["ID"], service["Service"]) == (f"{name}-1", name)
    assert (service["Address"], service["Port"]) == ("10.1.2.3", 9001)
    assert service["Tags"] == ["metrics", "v2"]
    assert service["Meta"] == {"metrics_path": "/metrics"}
    assert node["Node"] == registry.node
    assert node["Address"]
    assert isinstance(node["Meta"], dict)
    assert isinstance(node["TaggedAddresses"], dict)
    assert {check["Status"] for check in entry["Checks"]} == {"passing"}

    (listed,) = registry.get(f"/v1/catalog/service/{name}?stale=&wait={WAIT}").json
    assert (listed["ServiceID"], listed["ServiceName"]) == (f"{name}-1", name)
    assert (listed["ServiceAddress"], listed["ServicePort"]) == ("10.1.2.3", 9001)
    assert listed["ServiceTags"] == ["metrics", "v2"]
    assert listed["ServiceMeta"] == {"metrics_path": "/metrics"}
    assert (listed["Node"], listed["Datacenter"]) == (registry.node, node["Datacenter"])
    assert isinstance(listed["NodeMeta"], dict)


@pytest.mark.parametrize("path", WATCHES)
def test_a_service_is_watched_from_its_first_to_its_last_instance(registry: Registry, name: str, path: str) -> None:
    path = path.format(name=name)
    assert_query_meta(registry.get(f"{path}&wait={WAIT}"))
    for number in (1, 2):
        with registry.watching(path, WAIT) as watch:
            registry.register(instance(name, number))
            assert_query_meta(watch.result())
        # On Consul a change can take several steps; the first of them may be what woke the watch.
        until(lambda number=number: len(registry.get(path).json) == number)
    for left in (1, 0):
        with registry.watching(path, WAIT) as watch:
            registry.put(f"/v1/agent/service/deregister/{name}-{left + 1}")
            assert_query_meta(watch.result())
        until(lambda left=left: len(registry.get(path).json) == left)


def test_a_failing_check_wakes_the_watch_of_its_service(registry: Registry, name: str) -> None:
    registry.register(instance(name))
    with registry.watching(f"/v1/health/service/{name}?stale=", WAIT) as watch:
        registry.put(f"/v1/agent/check/fail/service:{name}-1?note=down")
        (entry,) = watch.result().json
    assert {check["CheckID"]: check["Status"] for check in entry["Checks"]} == {
        "serfHealth": "passing",
        f"service:{name}-1": "critical",
    }


@pytest.mark.parametrize("path", WATCHES)
def test_tags_narrow_a_watch(registry: Registry, name: str, path: str) -> None:
    registry.register(instance(name))
    registry.register({**instance(name, 2), "Tags": ["metrics"]})
    path = path.format(name=name)
    assert len(registry.get(f"{path}&tag=metrics").json) == 2
    assert len(registry.get(f"{path}&tag=metrics&tag=v2").json) == 1
    assert registry.get(f"{path}&tag=none").json == []


def test_nothing_new_answers_the_same_index_after_the_wait(registry: Registry, name: str) -> None:
    registry.register(instance(name))
    path = f"/v1/health/service/{name}?stale="
    index = registry.settled_index(path)
    again = registry.get(f"{path}&index={index}&wait=200ms")
    assert_query_meta(again)
    assert again.index == index
