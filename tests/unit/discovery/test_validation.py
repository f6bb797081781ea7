"""What may be registered, and what the refusal says."""

from typing import Any

import pytest

from toska_mesh.discovery import validation
from toska_mesh.discovery.validation import HealthCheck, InvalidArgumentError, RegisterInstance
from toska_mesh.model import HealthStatus, rules


def asked(**fields: Any) -> RegisterInstance:
    return RegisterInstance(**{"service": "orders", "id": "orders-1", "address": "10.0.0.1", "port": 80, **fields})


@pytest.mark.parametrize(
    "fields",
    [
        pytest.param({}, id="plain"),
        pytest.param({"service": "Orders.v2_eu-1"}, id="name with dots, underscores, hyphens"),
        pytest.param({"service": "x"}, id="one letter"),
        pytest.param({"service": "x" * 128}, id="longest name"),
        pytest.param({"id": ""}, id="no id"),
        pytest.param({"id": "pod:orders@node~1+2=3_x-1.y"}, id="odd id"),
        pytest.param({"port": 1}, id="lowest port"),
        pytest.param({"port": 65535}, id="highest port"),
        pytest.param({"metadata": {f"k{n}": "v" for n in range(64)}}, id="64 pairs"),
        pytest.param({"metadata": {"k" * 128: "v" * 512}}, id="longest pair"),
        pytest.param({"metadata": {"k": "ü" * 256}}, id="512 bytes"),
        pytest.param({"metadata": {"scheme": ""}}, id="empty scheme"),
        pytest.param({"metadata": {"scheme": "HTTPS"}}, id="scheme in capitals"),
        pytest.param({"metadata": {"scheme": "grpc"}}, id="gRPC"),
        pytest.param({"metadata": {"scheme": "grpcs"}}, id="gRPC over TLS"),
        pytest.param({"metadata": {"scheme": "tcp"}}, id="TCP"),
        pytest.param({"metadata": {"tcp_port": "5432"}}, id="tcp port"),
        pytest.param({"health_check": HealthCheck("/health?deep=1", 86400)}, id="health check"),
        pytest.param({"health_check": HealthCheck("", -5, -1, -1)}, id="negative means not said"),
    ],
)
def test_accepted(fields: dict[str, Any]) -> None:
    validation.check_registration(asked(**fields))


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        pytest.param({"service": ""}, "serviceName is empty", id="no name"),
        pytest.param({"service": "or/ders"}, "serviceName 'or/ders'", id="slash in the name"),
        pytest.param({"service": "-orders"}, "begin and end", id="name begins with a hyphen"),
        pytest.param({"service": "orders\n"}, "serviceName", id="newline in the name"),
        pytest.param({"service": "x" * 129}, "128", id="name too long"),
        pytest.param({"service": "bestellungö"}, "serviceName", id="letters beyond ASCII"),
        pytest.param({"service": "Consul"}, "registry's own name", id="the registry's name"),
        pytest.param({"id": "a/b"}, "serviceId 'a/b'", id="slash in the id"),
        pytest.param({"id": ".."}, "serviceId", id="dots as id"),
        pytest.param({"id": "x" * 256}, "255", id="id too long"),
        pytest.param({"address": "a@b"}, "address 'a@b'", id="address"),
        pytest.param({"port": 0}, "port 0 is not between 1 and 65535", id="port 0"),
        pytest.param({"port": -1}, "port -1", id="negative port"),
        pytest.param({"port": 65536}, "port 65536", id="port too large"),
        pytest.param({"metadata": {f"k{n}": "v" for n in range(65)}}, "65 pairs; at most 64", id="65 pairs"),
        pytest.param({"metadata": {"a.b": "v"}}, "metadata key 'a.b'", id="dot in a key"),
        pytest.param({"metadata": {"": "v"}}, "metadata key ''", id="empty key"),
        pytest.param({"metadata": {"k" * 129: "v"}}, "128", id="key too long"),
        pytest.param({"metadata": {"k": "v" * 513}}, "513 bytes; at most 512", id="value too long"),
        pytest.param({"metadata": {"k": "ü" * 257}}, "514 bytes", id="value too long in bytes"),
        pytest.param({"metadata": {"consul-x": "v"}}, "reserved", id="reserved key"),
        pytest.param(
            {"metadata": {"scheme": "file"}}, "scheme 'file' is not one of http, https, grpc, grpcs, tcp", id="scheme"
        ),
        pytest.param({"metadata": {"health_check_endpoint": "@evil/"}}, "begins with `/`", id="health path"),
        pytest.param({"metadata": {"health_check_endpoint": "/a b"}}, "begins with `/`", id="blank in the path"),
        pytest.param({"metadata": {"tcp_port": "http"}}, "tcp_port 'http'", id="tcp port"),
        pytest.param({"metadata": {"grpc_port": "70000"}}, "grpc_port '70000'", id="grpc port"),
        pytest.param({"health_check": HealthCheck("health")}, "healthCheck.endpoint 'health'", id="endpoint"),
        pytest.param({"health_check": HealthCheck("", 86401)}, "86401 is above 86400", id="interval"),
    ],
)
def test_refused_with_field_value_and_what_is_right(fields: dict[str, Any], words: str) -> None:
    with pytest.raises(InvalidArgumentError) as refused:
        validation.check_registration(asked(**fields))
    assert words in str(refused.value)


def test_a_long_value_is_not_echoed_whole() -> None:
    with pytest.raises(InvalidArgumentError) as refused:
        validation.check_registration(asked(service="x" * 100_000))
    assert len(str(refused.value)) < 400


def test_the_health_path_of_the_check_is_used_when_the_metadata_names_none() -> None:
    endpoint = HealthCheck("/health")
    assert validation.check_registration(asked(health_check=endpoint)).metadata == {"health_check_endpoint": "/health"}
    own = {"health_check_endpoint": "/up"}
    assert validation.check_registration(asked(health_check=endpoint, metadata=own)).metadata == own


@pytest.mark.parametrize(
    ("interval", "ttl"), [(0, 35), (-1, 35), (1, 10), (5, 10), (6, 11), (30, 35), (60, 65), (86400, 86405)]
)
def test_time_to_live(interval: int, ttl: int) -> None:
    assert rules.ttl_seconds(interval) == ttl


@pytest.mark.parametrize("status", [0, 4, -1, 99])
def test_a_status_that_says_nothing_is_refused(status: int) -> None:
    with pytest.raises(InvalidArgumentError, match="says nothing"):
        validation.check_status(status)


def test_statuses_that_may_be_reported() -> None:
    assert [validation.check_status(n) for n in (1, 2, 3)] == [
        HealthStatus.HEALTHY,
        HealthStatus.UNHEALTHY,
        HealthStatus.DEGRADED,
    ]


def test_long_output_is_cut() -> None:
    assert len(rules.shorten_output("x" * 100_000)) == rules.MAX_OUTPUT_CHARS
    assert rules.shorten_output("fine") == "fine"
