"""Shared values: a value that exists is valid, and equality means what the catalog needs."""

from dataclasses import FrozenInstanceError, replace

import pytest

from toska_mesh.model import CatalogSnapshot, Endpoint, HealthStatus, Instance, InstanceId, ServiceName

ORDERS = Instance(
    service=ServiceName("orders"),
    id=InstanceId("orders-1"),
    endpoint=Endpoint("10.0.0.1", 8080),
    status=HealthStatus.HEALTHY,
    metadata={"scheme": "http"},
)


@pytest.mark.parametrize(
    ("host", "authority"),
    [
        pytest.param("10.0.0.1", "10.0.0.1:80", id="IPv4"),
        pytest.param("orders.internal", "orders.internal:80", id="name"),
        pytest.param("::1", "[::1]:80", id="IPv6"),
        pytest.param("fe80::1%eth0", "[fe80::1%eth0]:80", id="IPv6 with a zone"),
    ],
)
def test_an_authority_brackets_ipv6_only(host: str, authority: str) -> None:
    assert Endpoint(host, 80).authority == authority


@pytest.mark.parametrize(("host", "port"), [("", 80), ("h", 0), ("h", -1), ("h", 65536)])
def test_an_impossible_endpoint_cannot_be_made(host: str, port: int) -> None:
    with pytest.raises(ValueError, match=r"host|port"):
        Endpoint(host, port)


@pytest.mark.parametrize(
    "change",
    [
        {"endpoint": Endpoint("10.0.0.1", 8081)},
        {"status": HealthStatus.DEGRADED},
        {"metadata": {"scheme": "https"}},
        {"create_index": 9},
        {"id": InstanceId("orders-2")},
        {"service": ServiceName("other")},
    ],
    ids=lambda change: next(iter(change)),
)
def test_a_change_that_matters_makes_another_instance(change: dict[str, object]) -> None:
    assert replace(ORDERS, **change) != ORDERS  # type: ignore[arg-type]


def test_other_words_of_the_check_are_no_change() -> None:
    assert replace(ORDERS, output="beat 17") == ORDERS


def test_equal_instances_have_equal_hashes() -> None:
    twin = replace(ORDERS, metadata={"scheme": "http"})
    assert twin == ORDERS
    assert len({twin, ORDERS}) == 1


def test_an_instance_is_no_other_thing() -> None:
    assert ORDERS != "orders-1"


def test_an_instance_cannot_be_altered() -> None:
    with pytest.raises(FrozenInstanceError):
        ORDERS.status = HealthStatus.UNHEALTHY  # type: ignore[misc]


@pytest.mark.parametrize(
    ("metadata", "is_member"),
    [
        pytest.param({"scheme": "http"}, True, id="scheme"),
        pytest.param({"health_check_endpoint": "/health"}, True, id="health path"),
        pytest.param({"lb_strategy": "Random"}, True, id="strategy"),
        pytest.param({"weight": "1"}, False, id="weight alone"),
        pytest.param({}, False, id="nothing"),
    ],
)
def test_a_mesh_key_makes_a_member(metadata: dict[str, str], is_member: bool) -> None:
    assert replace(ORDERS, metadata=metadata).is_mesh_member is is_member


@pytest.mark.parametrize("status", list(HealthStatus))
def test_a_status_survives_its_label_in_any_case(status: HealthStatus) -> None:
    assert HealthStatus.from_label(status.label) is status
    assert HealthStatus.from_label(status.label.upper()) is status


def test_the_numbers_of_the_statuses_are_those_of_the_contract() -> None:
    assert {status.label: int(status) for status in HealthStatus} == {
        "Unknown": 0,
        "Healthy": 1,
        "Unhealthy": 2,
        "Degraded": 3,
    }


def test_a_wrong_label_is_refused_with_the_right_ones() -> None:
    with pytest.raises(ValueError, match="Healthy, Unhealthy, Degraded"):
        HealthStatus.from_label("fine")


def test_an_empty_snapshot_is_not_a_stale_one() -> None:
    assert not CatalogSnapshot().is_stale
    assert CatalogSnapshot(stale_since=0.0).is_stale


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        pytest.param({}, False, id="healthy"),
        pytest.param({"metadata": {"toska-draining": " True "}}, True, id="metadata"),
        pytest.param({"metadata": {"toska-draining": "soon"}}, False, id="other metadata"),
        pytest.param({"status": HealthStatus.DEGRADED, "output": "draining, 3 left"}, True, id="note"),
        pytest.param({"status": HealthStatus.DEGRADED, "output": "slow"}, False, id="other note"),
        pytest.param({"status": HealthStatus.DEGRADED, "output": "not draining"}, False, id="note elsewhere"),
        pytest.param({"output": "draining"}, False, id="note of a healthy one"),
        pytest.param({"status": HealthStatus.UNHEALTHY, "output": "draining"}, False, id="note of a dead one"),
    ],
)
def test_an_instance_drains_by_its_metadata_or_by_its_last_report(changes: dict[str, object], expected: bool) -> None:
    assert replace(ORDERS, **changes).is_draining is expected  # type: ignore[arg-type]


def test_words_are_no_change_unless_they_begin_or_end_draining() -> None:
    slow = replace(ORDERS, status=HealthStatus.DEGRADED, output="slow")
    assert slow == replace(slow, output="slower")
    assert slow != replace(slow, output="draining")
    assert replace(slow, output="draining") == replace(slow, output="draining, 3 left")
