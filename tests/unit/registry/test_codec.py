"""Consul's JSON to and from values."""

import json
from datetime import UTC, datetime
from typing import Any

import pytest

from toska_mesh.errors import RegistryError
from toska_mesh.model import HealthStatus, InstanceId, ServiceName
from toska_mesh.registry.api import Registration
from toska_mesh.registry.consul.codec import (
    go_duration,
    judge_checks,
    registration_body,
    service_names,
    service_reading,
)

ORDERS = ServiceName("orders")
UNKNOWN, HEALTHY, UNHEALTHY, DEGRADED = HealthStatus


def check(status: str, output: str = "", check_id: str = "service:o1", **more: str) -> dict[str, str]:
    return {"CheckID": check_id, "Status": status, "Output": output, "ServiceID": "o1", **more}


NODE_DOWN = check("critical", "Agent not live or unreachable", "serfHealth", ServiceID="", Name="Serf Health Status")


@pytest.mark.parametrize(
    ("checks", "status", "output", "is_silent"),
    [
        pytest.param([], UNKNOWN, "", False, id="none"),
        pytest.param([check("passing", "fine")], HEALTHY, "", False, id="passing"),
        pytest.param([check("passing"), check("warning", "hot")], DEGRADED, "hot", False, id="warning"),
        pytest.param([check("warning", "hot"), check("critical", "dead")], UNHEALTHY, "dead", False, id="critical"),
        pytest.param([check("critical", "first"), check("critical", "second")], UNHEALTHY, "first", False, id="two"),
        pytest.param([check("passing"), check("odd", "?")], UNKNOWN, "?", False, id="other word"),
        pytest.param([check("odd", "?"), check("warning", "hot")], DEGRADED, "hot", False, id="warning beats other"),
        pytest.param(
            [check("passing"), check("critical", "", "_service_maintenance:o1", Notes="new disk")],
            UNHEALTHY,
            "maintenance: new disk",
            False,
            id="maintenance",
        ),
        pytest.param(
            [check("warning", "hot"), check("warning", "draining for a deploy"), check("warning", "slow")],
            DEGRADED,
            "draining for a deploy",
            False,
            id="drain note",
        ),
        pytest.param([check("warning", "draining"), check("critical", "dead")], UNHEALTHY, "dead", False, id="dead"),
        pytest.param([check("maintenance", "x")], UNHEALTHY, "x", False, id="status maintenance"),
        pytest.param([check("critical", "TTL expired")], UNHEALTHY, "TTL expired", True, id="expired"),
        pytest.param([check("critical")], UNHEALTHY, "", True, id="never heard of"),
        pytest.param(
            [check("passing"), NODE_DOWN],
            UNHEALTHY,
            "node check Serf Health Status: Agent not live or unreachable",
            True,
            id="node away",
        ),
        pytest.param([NODE_DOWN, check("critical", "dead")], UNHEALTHY, None, False, id="its own word counts"),
    ],
)
def test_status_from_checks(
    checks: list[dict[str, str]], status: HealthStatus, output: str | None, is_silent: bool
) -> None:
    found_status, found_output, found_silent = judge_checks(checks)
    assert (found_status, found_silent) == (status, is_silent)
    if output is not None:
        assert found_output == output


def entry(instance_id: str = "o1", node: str = "n1", **service: Any) -> dict[str, Any]:
    values = {"ID": instance_id, "Address": "10.0.0.1", "Port": 80, "CreateIndex": 3, "ModifyIndex": 9} | service
    return {"Node": {"Node": node, "Address": "127.0.0.9"}, "Service": values, "Checks": [check("passing")]}


def read(*entries: Any) -> Any:
    return service_reading(ORDERS, json.dumps(entries).encode())


def test_an_entry_becomes_an_instance() -> None:
    (one,) = read(entry(Meta={"weight": "3", "toska-registered-at": "2026-01-02T03:04:05.5+01:00"})).entries
    assert (one.node, one.modify_index, one.is_silent) == ("n1", 9, False)
    assert (one.instance.service, one.instance.id, one.instance.create_index) == ("orders", "o1", 3)
    assert one.instance.endpoint.authority == "10.0.0.1:80"
    assert one.instance.metadata["weight"] == "3"
    assert one.instance.registered_at == datetime(2026, 1, 2, 2, 4, 5, 500000, UTC)


def test_an_empty_address_means_the_nodes() -> None:
    assert read(entry(Address="")).instances[0].endpoint.host == "127.0.0.9"


@pytest.mark.parametrize(
    "bad",
    [
        pytest.param(entry("bad", Port=0), id="port 0"),
        pytest.param(entry("bad", Port=70000), id="port too large"),
        pytest.param({"Node": {"Node": "n1"}, "Service": {"ID": "bad", "Port": 80}}, id="no address"),
        pytest.param({"Service": {"ID": "bad"}}, id="no node"),
        pytest.param({"Node": None, "Service": None}, id="nothing"),
        pytest.param("bad", id="no object"),
    ],
)
def test_a_bad_entry_is_dropped_with_a_reason_and_the_rest_stays(bad: Any) -> None:
    reading = read(entry("o1"), bad, entry("o2"))
    assert [one.id for one in reading.instances] == ["o1", "o2"]
    assert len(reading.dropped) == 1
    assert len(reading.marks) == 3


@pytest.mark.parametrize(
    "time",
    [
        "",
        "yesterday",
        "2026-99-99T00:00:00Z",
        pytest.param("9999-12-31T23:59:59-23:59", id="its offset leads beyond the last year"),
        pytest.param("0001-01-01T00:00:00+23:59", id="its offset leads before the first year"),
    ],
)
def test_an_odd_registration_time_is_none(time: str) -> None:
    assert read(entry(Meta={"toska-registered-at": time})).instances[0].registered_at is None


def test_of_one_id_on_two_nodes_the_usable_and_newer_stays() -> None:
    dead = entry("o1", "old", CreateIndex=99) | {"Checks": [NODE_DOWN]}
    for order in ([dead, entry("o1", "new")], [entry("o1", "new"), dead]):
        reading = read(*order)
        assert [one.node for one in reading.entries] == ["new"]
        assert "'old'" in reading.dropped[0]
        assert {mark[0] for mark in reading.marks} == {"old", "new"}


@pytest.mark.parametrize("body", [b"", b"<html>", b'{"a": 1}', b"3"])
def test_a_foreign_answer_is_an_error_and_no_emptiness(body: bytes) -> None:
    with pytest.raises(RegistryError):
        service_reading(ORDERS, body)


def test_names_leave_out_the_registry() -> None:
    assert service_names(b'{"consul": [], "b": ["y", "x"], "a": null}') == {"b": ("x", "y"), "a": ()}
    for body in (b"[]", b"null", b"no"):
        with pytest.raises(RegistryError):
            service_names(body)


def body_of(**changes: Any) -> dict[str, Any]:
    values = {"address": "10.0.0.1", "port": 80, "metadata": {"scheme": "http"}} | changes
    return json.loads(registration_body(Registration(ORDERS, InstanceId("o1"), **values)))  # type: ignore[no-any-return]


def test_a_registration_has_the_familys_layout() -> None:
    body = body_of()
    notes = body["Check"].pop("Notes")
    assert body == {
        "ID": "o1",
        "Name": "orders",
        "Address": "10.0.0.1",
        "Port": 80,
        "Meta": {"scheme": "http"},
        "Check": {
            "CheckID": "service:o1",
            "Name": "orders TTL Health",
            "TTL": "35s",
            "DeregisterCriticalServiceAfter": "1m0s",
            "Status": "passing",
        },
    }
    assert notes.startswith("Service registered (revision ")


def test_the_revision_in_the_notes_follows_the_content() -> None:
    def notes(**changes: Any) -> str:
        return str(body_of(**changes)["Check"]["Notes"])

    assert notes() == notes()
    assert notes(metadata={"a": "1", "b": "2"}) == notes(metadata={"b": "2", "a": "1"})
    others = [notes(), notes(port=81), notes(address="10.0.0.2"), notes(metadata={"scheme": "https"})]
    assert len(set(others)) == len(others)


def test_nobody_is_born_unknown() -> None:
    with pytest.raises(ValueError, match="Unknown"):
        body_of(status=UNKNOWN)


@pytest.mark.parametrize(("seconds", "text"), [(35, "35s"), (60, "1m0s"), (95, "1m35s"), (3605, "1h0m5s"), (0, "0s")])
def test_durations_are_written_as_go_does(seconds: int, text: str) -> None:
    assert go_duration(seconds) == text
