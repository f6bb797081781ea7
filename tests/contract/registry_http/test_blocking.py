"""Blocking queries: what wakes them, what must not, which index they answer."""

import time
from typing import Any

import pytest
from tests.contract.registry_http.client import Registry

REGISTER = "/v1/agent/service/register"


def with_check(name: str, **fields: Any) -> dict[str, Any]:
    return {"Name": name, "Check": {"TTL": "300s", "Status": "passing"}, **fields}


@pytest.mark.parametrize(
    "path",
    [
        "/v1/health/service/{name}",
        "/v1/health/service/{name}?passing",
        "/v1/health/checks/{name}",
        "/v1/health/state/any",
        "/v1/health/state/passing",
        "/v1/health/state/critical",
        "/v1/health/node/{node}",
    ],
)
def test_a_changed_check_wakes(registry: Registry, name: str, path: str) -> None:
    registry.register(with_check(name))
    with registry.watching(path.format(name=name, node=registry.node)) as watch:
        registry.put(f"/v1/agent/check/fail/service:{name}?note=down")
        answer = watch.result()
    assert answer.index > watch.index
    assert watch.seconds < 5


@pytest.mark.parametrize(
    "path",
    [
        "/v1/health/service/{name}",
        "/v1/catalog/service/{name}",
        "/v1/catalog/services",
        "/v1/catalog/node/{node}",
    ],
)
def test_changed_metadata_wakes(registry: Registry, name: str, path: str) -> None:
    registry.register(with_check(name))
    with registry.watching(path.format(name=name, node=registry.node)) as watch:
        registry.register(with_check(name, Meta={"k": "v"}))
        answer = watch.result()
    assert answer.index > watch.index
    assert watch.seconds < 5


@pytest.mark.parametrize("path", ["/v1/health/service/{name}", "/v1/catalog/service/{name}", "/v1/catalog/services"])
def test_a_first_instance_wakes_and_a_last_one_too(registry: Registry, name: str, path: str) -> None:
    path = path.format(name=name)
    with registry.watching(path) as watch:
        registry.register({"Name": name})
        appeared = watch.result()
    assert appeared.index > watch.index
    assert name in appeared.text
    with registry.watching(path) as watch:
        registry.put(f"/v1/agent/service/deregister/{name}")
        gone = watch.result()
    assert gone.index > watch.index
    assert name not in gone.text


@pytest.mark.parametrize(
    ("path", "change"),
    [
        ("/v1/health/service/{name}", "other service"),
        ("/v1/health/service/{name}", "other check"),
        ("/v1/catalog/service/{name}", "other service"),
        ("/v1/health/checks/{name}", "other check"),
        ("/v1/catalog/services", "own check"),
        ("/v1/catalog/nodes", "other service"),
        ("/v1/catalog/node/{node}", "own check"),
        ("/v1/health/state/any", "other service"),
        ("/v1/health/state/critical", "own check"),
        ("/v1/health/service/{name}", "same again"),
        ("/v1/health/service/{name}", "beat"),
        ("/v1/health/service/{name}", "beat with another output"),
        ("/v1/health/state/any", "beat"),
        ("/v1/catalog/services", "same again"),
        ("/v1/health/service/absent-{name}", "other service"),
    ],
)
def test_what_changes_nothing_for_the_query_does_not_wake(
    registry: Registry, name: str, path: str, change: str
) -> None:
    registry.register(with_check(name))
    registry.register(with_check(f"{name}-other"))
    registry.put(f"/v1/agent/check/pass/service:{name}?note=first")
    with registry.watching(path.format(name=name, node=registry.node), wait="400ms") as watch:
        match change:
            case "other service":
                registry.put(REGISTER, {"Name": f"{name}-other", "Port": 99})
            case "other check":
                registry.put(f"/v1/agent/check/warn/service:{name}-other")
            case "own check":
                registry.put(f"/v1/agent/check/warn/service:{name}")
            case "same again":
                registry.put(REGISTER, {"Name": name})
            case "beat":
                registry.put(f"/v1/agent/check/pass/service:{name}?note=first")
            case _:
                registry.put(f"/v1/agent/check/pass/service:{name}?note=another")
        watch.result()
    assert watch.seconds >= 0.4


@pytest.mark.parametrize(
    "path", ["/v1/health/service/{name}", "/v1/catalog/services", "/v1/kv/{name}", "/v1/session/list"]
)
def test_an_index_from_the_future_waits_out_its_time(registry: Registry, name: str, path: str) -> None:
    index = registry.settled_index(path.format(name=name))
    started = time.monotonic()
    answer = registry.get(f"{path.format(name=name)}?index={index + 1_000_000}&wait=300ms")
    assert 0.3 <= time.monotonic() - started < 5
    assert answer.index < index + 1_000_000


def test_an_old_index_is_answered_at_once(registry: Registry, name: str) -> None:
    registry.register({"Name": name})
    index = registry.settled_index(f"/v1/health/service/{name}")
    started = time.monotonic()
    answer = registry.get(f"/v1/health/service/{name}?index={index - 1}&wait=60s")
    assert answer.index == index
    assert time.monotonic() - started < 5


def test_a_node_check_wakes_the_watchers_of_every_service(registry: Registry, name: str) -> None:
    registry.register({"Name": name})
    with registry.watching(f"/v1/health/service/{name}") as watch:
        registry.put("/v1/agent/check/register", {"ID": f"{name}-n", "Name": "n", "TTL": "60s", "Status": "passing"})
        answer = watch.result()
    assert [check["CheckID"] for check in answer.json[0]["Checks"]].count(f"{name}-n") == 1
    registry.put(f"/v1/agent/check/deregister/{name}-n")


def test_an_expired_check_wakes(registry: Registry, name: str) -> None:
    registry.register({"Name": name, "Check": {"TTL": "900ms", "Status": "passing"}})
    with registry.watching(f"/v1/health/service/{name}") as watch:
        answer = watch.result()
    assert answer.json[0]["Checks"][-1]["Status"] == "critical"
    assert watch.seconds < 5


def test_a_name_without_instances_answers_one_index_for_all(registry: Registry, name: str) -> None:
    registry.register({"Name": name})
    registry.put(f"/v1/agent/service/deregister/{name}")
    index = registry.settled_index(f"/v1/health/service/{name}")
    assert registry.get(f"/v1/catalog/service/{name}-never").index == index
    assert registry.get(f"/v1/health/service/{name}-never").index == index


def test_indexes_follow_what_they_describe(registry: Registry, name: str) -> None:
    registry.register(with_check(name))
    service_index = registry.settled_index(f"/v1/health/service/{name}")
    services_index = registry.get("/v1/catalog/services").index
    registry.put(f"/v1/agent/check/warn/service:{name}")
    assert registry.settled_index(f"/v1/health/service/{name}") > service_index
    assert registry.get("/v1/catalog/services").index == services_index
    found = registry.get(f"/v1/health/service/{name}")
    check = found.json[0]["Checks"][-1]
    assert check["ModifyIndex"] == found.index == registry.get("/v1/health/state/any").index
    assert check["CreateIndex"] < check["ModifyIndex"]
    assert found.json[0]["Service"]["CreateIndex"] == found.json[0]["Service"]["ModifyIndex"]


@pytest.mark.parametrize(
    ("query", "consistency"), [("", "leader"), ("?stale", "stale"), ("?consistent", "consistent")], ids=str
)
def test_reads_say_how_consistent_they_are(registry: Registry, query: str, consistency: str) -> None:
    headers = registry.get(f"/v1/catalog/services{query}").headers
    assert headers["x-consul-effective-consistency"] == consistency
    assert headers["x-consul-knownleader"] == "true"
    assert headers["x-consul-lastcontact"] == "0"


def test_one_service_can_be_watched_by_its_hash(registry: Registry, name: str) -> None:
    registry.register({"Name": name})
    digest = registry.get(f"/v1/agent/service/{name}").json["ContentHash"]
    started = time.monotonic()
    same = registry.get(f"/v1/agent/service/{name}?hash={digest}&wait=300ms")
    assert time.monotonic() - started >= 0.3
    assert same.json["ContentHash"] == same.headers["x-consul-contenthash"] == digest
    registry.register({"Name": name, "Port": 5})
    assert registry.get(f"/v1/agent/service/{name}?hash={digest}&wait=5s").json["ContentHash"] != digest
