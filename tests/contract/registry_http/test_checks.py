"""The life of a check: beats, outputs, expiry, maintenance, registering again."""

import time
from typing import Any

import pytest
from tests.contract.registry_http.client import Registry, until


def with_check(name: str, **fields: Any) -> dict[str, Any]:
    return {"Name": name, "Check": {"TTL": "60s", **fields}}


def state(registry: Registry, check_id: str) -> tuple[str, str]:
    check = registry.check_of(check_id)
    return check["Status"], check["Output"]


def in_catalog(registry: Registry, name: str) -> list[tuple[str, str, str]]:
    return [(c["CheckID"], c["Status"], c["Output"]) for c in registry.get(f"/v1/health/checks/{name}").json]


def test_a_ttl_check_begins_critical_unless_told_otherwise(registry: Registry, name: str) -> None:
    registry.register(with_check(name))
    registry.register(with_check(f"{name}-p", Status="passing"))
    assert state(registry, f"service:{name}") == ("critical", "")
    assert state(registry, f"service:{name}-p") == ("passing", "")


@pytest.mark.parametrize(("word", "status"), [("pass", "passing"), ("warn", "warning"), ("fail", "critical")])
def test_a_beat_sets_status_and_output(registry: Registry, name: str, word: str, status: str) -> None:
    registry.register(with_check(name, Status="warning" if word == "pass" else "passing"))
    assert registry.put(f"/v1/agent/check/{word}/service:{name}?note=as%20said").raw == b""
    assert state(registry, f"service:{name}") == (status, "as said")
    until(lambda: in_catalog(registry, name) == [(f"service:{name}", status, "as said")])


@pytest.mark.parametrize("status", ["passing", "warning", "critical"])
def test_an_update_sets_status_and_output(registry: Registry, name: str, status: str) -> None:
    registry.register(with_check(name))
    assert registry.put(f"/v1/agent/check/update/service:{name}", {"Status": status, "Output": "o"}).status == 200
    assert state(registry, f"service:{name}") == (status, "o")


def test_a_long_output_is_cut_with_a_remark(registry: Registry, name: str) -> None:
    registry.register(with_check(name))
    registry.put(f"/v1/agent/check/update/service:{name}", {"Status": "passing", "Output": "x" * 5000})
    assert state(registry, f"service:{name}")[1] == "x" * 4096 + " ... (captured 4096 of 5000 bytes)"


def test_the_same_status_with_another_output_stays_with_the_agent(registry: Registry, name: str) -> None:
    registry.register(with_check(name))
    registry.put(f"/v1/agent/check/pass/service:{name}?note=first")
    until(lambda: in_catalog(registry, name) == [(f"service:{name}", "passing", "first")])
    before = registry.settled_index(f"/v1/health/service/{name}")
    registry.put(f"/v1/agent/check/pass/service:{name}?note=second")
    assert state(registry, f"service:{name}") == ("passing", "second")
    assert registry.settled_index(f"/v1/health/service/{name}") == before
    assert in_catalog(registry, name) == [(f"service:{name}", "passing", "first")]


def test_a_kept_back_output_reaches_the_catalog_with_the_next_change(registry: Registry, name: str) -> None:
    registry.register(with_check(name))
    registry.put(f"/v1/agent/check/pass/service:{name}?note=first")
    registry.settled_index(f"/v1/health/service/{name}")
    registry.put(f"/v1/agent/check/pass/service:{name}?note=second")
    check = {"ID": f"service:{name}", "Name": "renamed", "TTL": "60s", "ServiceID": name}
    assert registry.put("/v1/agent/check/register", check).status == 200
    until(lambda: in_catalog(registry, name) == [(f"service:{name}", "passing", "second")])


def test_without_beats_a_check_expires_with_consuls_words(registry: Registry, name: str) -> None:
    registry.register(with_check(name, TTL="600ms", Status="passing"))
    until(lambda: state(registry, f"service:{name}") == ("critical", "TTL expired"))
    registry.put(f"/v1/agent/check/pass/service:{name}?note=alive")
    assert state(registry, f"service:{name}") == ("passing", "alive")
    words = "TTL expired (last output before timeout follows): alive"
    until(lambda: in_catalog(registry, name) == [(f"service:{name}", "critical", words)])


def test_beats_keep_a_check_alive(registry: Registry, name: str) -> None:
    registry.register(with_check(name, TTL="1s", Status="passing"))
    for _ in range(10):
        time.sleep(0.2)
        registry.put(f"/v1/agent/check/pass/service:{name}")
        assert registry.check_of(f"service:{name}")["Status"] == "passing"


def test_registering_again_keeps_status_and_output(registry: Registry, name: str) -> None:
    registry.register(with_check(name))
    registry.put(f"/v1/agent/check/warn/service:{name}?note=hm")
    registry.register(with_check(name, Status="passing", Notes="new notes"))
    check = registry.check_of(f"service:{name}")
    assert (check["Status"], check["Output"], check["Notes"]) == ("warning", "hm", "new notes")


def test_registering_again_keeps_the_other_checks_unless_told_to_replace(registry: Registry, name: str) -> None:
    registry.register(with_check(name))
    registry.put("/v1/agent/check/register", {"ID": f"{name}-2", "Name": "n", "TTL": "60s", "ServiceID": name})
    registry.register({"Name": name})
    until(lambda: [item[0] for item in in_catalog(registry, name)] == [f"service:{name}", f"{name}-2"])
    registry.register({"Name": name}, "?replace-existing-checks=true")
    until(lambda: in_catalog(registry, name) == [])


def test_a_renamed_instance_moves(registry: Registry, name: str) -> None:
    registry.register({"Name": name, "ID": f"{name}-1"})
    registry.register({"Name": f"{name}-new", "ID": f"{name}-1", "Tags": ["t"]})
    assert registry.get(f"/v1/catalog/service/{name}").json == []
    services = registry.get("/v1/catalog/services").json
    assert name not in services
    assert services[f"{name}-new"] == ["t"]


def test_deregistering_takes_the_checks_along(registry: Registry, name: str) -> None:
    registry.register(with_check(name))
    assert registry.put(f"/v1/agent/service/deregister/{name}").raw == b""
    until(lambda: registry.get(f"/v1/health/service/{name}").json == [])
    assert f"service:{name}" not in registry.get("/v1/agent/checks").json
    assert in_catalog(registry, name) == []


def test_a_check_can_be_taken_away(registry: Registry, name: str) -> None:
    registry.register(with_check(name))
    registry.put(f"/v1/agent/check/deregister/service:{name}")
    until(lambda: in_catalog(registry, name) == [])
    assert len(registry.get(f"/v1/health/service/{name}?passing").json) == 1


def test_a_critical_check_of_the_node_makes_every_service_fail(registry: Registry, name: str) -> None:
    registry.register({"Name": name})
    assert len(registry.get(f"/v1/health/service/{name}?passing").json) == 1
    registry.put("/v1/agent/check/register", {"ID": f"{name}-n", "Name": "node check", "TTL": "60s"})
    until(lambda: registry.get(f"/v1/health/service/{name}?passing").json == [])
    checks = registry.get(f"/v1/health/service/{name}").json[0]["Checks"]
    assert {check["CheckID"]: check["ServiceID"] for check in checks}[f"{name}-n"] == ""
    assert f"{name}-n" in [check["CheckID"] for check in registry.get(f"/v1/health/node/{registry.node}").json]
    registry.put(f"/v1/agent/check/deregister/{name}-n")
    until(lambda: len(registry.get(f"/v1/health/service/{name}?passing").json) == 1)


@pytest.mark.parametrize(
    ("query", "notes"),
    [
        ("&reason=why%20not", "why not"),
        ("", "Maintenance mode is enabled for this service, but no reason was provided. This is a default message."),
    ],
    ids=["with a reason", "without"],
)
def test_maintenance_is_a_critical_check(registry: Registry, name: str, query: str, notes: str) -> None:
    registry.register({"Name": name})
    path = f"/v1/agent/service/maintenance/{name}?enable="
    for _ in range(2):
        assert registry.put(f"{path}true{query}").status == 200
    check = registry.check_of(f"_service_maintenance:{name}")
    assert (check["Name"], check["Status"], check["Notes"], check["Type"]) == (
        "Service Maintenance Mode",
        "critical",
        notes,
        "maintenance",
    )
    until(lambda: registry.get(f"/v1/health/service/{name}?passing").json == [])
    for _ in range(2):
        assert registry.put(f"{path}false").status == 200
    until(lambda: len(registry.get(f"/v1/health/service/{name}?passing").json) == 1)


def test_the_node_can_be_in_maintenance(registry: Registry, name: str) -> None:
    registry.register({"Name": name})
    registry.put("/v1/agent/maintenance?enable=true&reason=r")
    try:
        check = registry.check_of("_node_maintenance")
        assert (check["Name"], check["Notes"], check["ServiceID"]) == ("Node Maintenance Mode", "r", "")
        until(lambda: registry.get(f"/v1/health/service/{name}?passing").json == [])
    finally:
        registry.put("/v1/agent/maintenance?enable=false")
    until(lambda: len(registry.get(f"/v1/health/service/{name}?passing").json) == 1)


@pytest.mark.parametrize("status", ["passing", "warning", "critical"])
def test_a_state_lists_the_checks_that_are_in_it(registry: Registry, name: str, status: str) -> None:
    registry.register(with_check(name, Status=status))

    def states() -> set[str]:
        return {
            one
            for one in ("passing", "warning", "critical", "any")
            if any(c["CheckID"] == f"service:{name}" for c in registry.get(f"/v1/health/state/{one}").json)
        }

    until(lambda: states() == {status, "any"})


def test_changed_tags_show_in_the_checks(registry: Registry, name: str) -> None:
    registry.register(with_check(name, Status="passing"))
    registry.register({**with_check(name, Status="passing"), "Tags": ["blue"]})
    until(lambda: registry.get(f"/v1/health/checks/{name}").json[0]["ServiceTags"] == ["blue"])
