"""Which options are possible, and what a refusal says."""

import uuid
from dataclasses import fields, replace
from typing import Any

import pytest

from toska_mesh.errors import ConfigError
from toska_mesh.sdk.options import ConnectOptions, InvalidOptionError, ServiceOptions

SECRET = "kJ8sLq2vXz0pRt6wYb4nMc7dFg9hUe3a"


def test_the_defaults_are_those_of_the_family() -> None:
    options = ServiceOptions()
    assert (options.name, options.host, options.port) == ("mesh-service", "0.0.0.0", 8080)
    assert (options.health_endpoint, options.health_interval_seconds, options.health_timeout_seconds) == (
        "/health",
        30,
        5,
    )
    assert (options.scheme, options.strategy, options.weight) == ("http", "RoundRobin", 1)
    assert options.connect.target == "localhost:8080"
    assert options.connect.auth_issuer == options.connect.auth_audience == "ToskaMesh.Services"


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"name": ""}, r"ServiceOptions.name is empty; give the service a name"),
        ({"name": "a b"}, r"ServiceOptions.name 'a b' is not 1 to 128 letters"),
        ({"name": "consul"}, r"registry's own name"),
        ({"id": "/x"}, r"ServiceOptions.id '/x' is not 1 to 255"),
        ({"port": -1}, r"ServiceOptions.port -1 is not between 0 and 65535"),
        ({"port": 70000}, r"port 70000"),
        ({"advertised_address": "169.254.169.254"}, r"advertised_address '169.254.169.254' is a link-local"),
        ({"advertised_address": "orders:80"}, r"without a port"),
        ({"health_endpoint": "health"}, r"health_endpoint 'health' is not a path"),
        ({"health_endpoint": ""}, r"health_endpoint is empty"),
        ({"health_interval_seconds": 0}, r"health_interval_seconds 0 is not between 1"),
        ({"health_interval_seconds": 0.5}, r"health_interval_seconds 0.5"),
        ({"health_interval_seconds": float("nan")}, r"nan"),
        ({"health_timeout_seconds": 0}, r"health_timeout_seconds"),
        ({"unhealthy_threshold": 0}, r"unhealthy_threshold 0 is below 1"),
        ({"scheme": "ftp"}, r"scheme 'ftp' is not one of http, https, grpc, grpcs, tcp"),
        ({"strategy": "Best"}, r"strategy 'Best' is not one of RoundRobin, LeastConnections"),
        ({"weight": 0}, r"weight 0 is not between 1 and 1000"),
        ({"drain_seconds": -1}, r"drain_seconds -1 is not between 0"),
        ({"notice_seconds": float("inf")}, r"notice_seconds inf"),
        ({"metadata": {"scheme": "http"}}, r"metadata holds 'scheme', which is written from the option scheme"),
        ({"metadata": {"weight": "2"}}, r"the option weight"),
        ({"metadata": {"lb_strategy": "Random"}}, r"the option strategy"),
        ({"metadata": {"toska-registered-at": "x"}}, r"discovery's own"),
        ({"metadata": {"version": "1"}, "version": "2"}, r"keep one"),
        ({"metadata": {"a.b": "x"}}, r"metadata key 'a.b' is not 1 to 128 letters"),
        ({"metadata": {"consul-x": "x"}}, r"reserved"),
        ({"metadata": {"a": "x" * 513}}, r"has 513 bytes"),
        ({"metadata": {f"k{n}": "" for n in range(61)}}, r"has 65 pairs"),
        ({"metadata": {"a": 1}}, r"metadata has 1 \(int\) for 'a'; keys and values are texts"),
        ({"metadata": {1: "a"}}, r"metadata has the key 1 \(int\)"),
        ({"metadata": "foo"}, r"metadata 'foo' \(str\) is no mapping"),
        ({"name": 5}, r"ServiceOptions\.name 5 \(int\) is wrong; it should be a text"),
        ({"port": "8000"}, r"port '8000' \(str\) is wrong; it should be a whole number"),
        ({"port": True}, r"port True \(bool\)"),
        ({"weight": 1.5}, r"weight 1.5 \(float\)"),
        ({"register": "no"}, r"register 'no' \(str\) is wrong; it should be True or False"),
        ({"drain_seconds": None}, r"drain_seconds None .* should be a number"),
        ({"connect": {"a": 1}}, r"connect is of type dict; write ConnectOptions\("),
    ],
)
def test_what_cannot_be_is_refused_with_what_would_be_right(fields: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        ServiceOptions(**fields)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"provider": "zookeeper"}, r"ConnectOptions.provider 'zookeeper' is not `discovery` or `consul`"),
        ({"discovery_address": "discovery"}, r"no address of a gRPC server; write host:port"),
        ({"discovery_address": "ftp://discovery:1"}, r"begins with ftp://"),
        ({"discovery_address": "discovery:x"}, r"no address"),
        ({"discovery_address": "http://discovery:1/path"}, r"no address"),
        ({"discovery_address": "http://discovery:1", "use_tls": True}, r"begins with http:// but use_tls"),
        ({"client_key": "k.pem", "use_tls": True}, r"client_key is set without client_cert"),
        ({"ca_file": "ca.pem"}, r"ca_file is set but the connection is plaintext"),
        ({"client_cert": "c.pem"}, r"client_cert is set but the connection is plaintext"),
        ({"consul_address": "localhost:8500"}, r"should be an http:// or https:// URL"),
        ({"consul_client_cert": "c.pem"}, r"belong together"),
        ({"auth_secret": "short"}, r"auth_secret has 5 bytes; it needs at least 32"),
        ({"auth_secret": "change-me-change-me-change-me-change-me"}, r"is a placeholder"),
        ({"provider": None}, r"provider None \(NoneType\) is wrong; it should be a text"),
        ({"roles": "Service"}, r"roles .* should be a tuple of texts"),
        ({"roles": (1,)}, r"roles .* should be a tuple of texts"),
        ({"auth_secret": b"very secret bytes"}, r"auth_secret is of type bytes; it should be a text"),
        ({"token_minutes": 0}, r"token_minutes 0 is below 1"),
    ],
)
def test_a_way_to_the_mesh_that_cannot_be_is_refused(fields: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        ConnectOptions(**fields)


def test_no_secret_is_ever_shown() -> None:
    options = ConnectOptions(auth_secret=SECRET, consul_token="t0ken", consul_address="http://me:passw0rd@consul:8500")
    for secret in (SECRET, "t0ken", "passw0rd"):
        assert secret not in repr(options)
        assert secret not in repr(ServiceOptions(connect=options))
    with pytest.raises(ConfigError) as refused:
        ConnectOptions(consul_address="ftp://me:passw0rd@consul")
    assert "passw0rd" not in str(refused.value)


@pytest.mark.parametrize("kind", [ServiceOptions, ConnectOptions])
def test_no_option_takes_a_value_of_any_type(kind: type[Any]) -> None:
    for option in fields(kind):
        with pytest.raises(InvalidOptionError, match=option.name):
            kind(**{option.name: object()})


@pytest.mark.parametrize(
    ("address", "target", "is_tls"),
    [
        ("discovery:8080", "discovery:8080", False),
        ("http://discovery:8080/", "discovery:8080", False),
        ("https://discovery:50051", "discovery:50051", True),
        ("HTTPS://discovery:50051", "discovery:50051", True),
        ("[::1]:8080", "[::1]:8080", False),
    ],
)
def test_the_address_may_say_how_to_speak(address: str, target: str, is_tls: bool) -> None:
    options = ConnectOptions(discovery_address=address)
    assert (options.target, options.use_tls) == (target, is_tls)


def test_the_id_is_made_from_the_name_that_is_used_in_the_end() -> None:
    options = replace(ServiceOptions(), name="orders").resolved(lambda: uuid.UUID(int=7))
    assert options.id == "orders-00000000000000000000000000000007"
    assert options.resolved() is options
    assert ServiceOptions(name="orders").resolved().id != ServiceOptions(name="orders").resolved().id


def test_what_is_registered_holds_the_real_port_and_all_that_gateways_read() -> None:
    options = ServiceOptions(
        name="orders",
        id="orders-1",
        host="127.0.0.1",
        port=0,
        scheme="HTTPS",
        strategy="least_connections",
        weight=3,
        version="1.2",
        metadata={"zone": "a"},
        health_interval_seconds=9.5,
        health_endpoint="/up",
    )
    member = options.member(40123)
    assert (member.service, member.id, member.address, member.port) == ("orders", "orders-1", "127.0.0.1", 40123)
    assert member.metadata == {
        "zone": "a",
        "scheme": "https",
        "health_check_endpoint": "/up",
        "lb_strategy": "LeastConnections",
        "weight": "3",
        "version": "1.2",
    }
    assert (member.interval_seconds, member.ttl_seconds) == (10, 15)


def test_the_port_that_was_asked_for_is_never_registered_by_mistake() -> None:
    with pytest.raises(ValueError, match="register the one that was bound"):
        ServiceOptions(name="orders", id="orders-1", port=0).member(0)
    with pytest.raises(ValueError, match="resolved"):
        ServiceOptions(name="orders").member(80)


def test_the_advertised_address_goes_before_the_bound_one() -> None:
    options = ServiceOptions(id="a", advertised_address="10.0.0.7")
    assert options.member(80).address == "10.0.0.7"
    assert ServiceOptions(id="a").member(80).address == "0.0.0.0"  # discovery knows better


def test_metadata_cannot_be_altered_afterwards() -> None:
    given = {"zone": "a"}
    options = ServiceOptions(metadata=given)
    given["zone"] = "b"
    assert options.metadata["zone"] == "a"
