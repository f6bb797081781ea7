"""Which variables are read, in which order, and what is said about those that cannot be understood."""

import re
from collections.abc import Mapping
from dataclasses import fields
from typing import Any

import pytest

from toska_mesh.errors import ConfigError
from toska_mesh.sdk.environment import connect_options, service_options, variables
from toska_mesh.sdk.options import ConnectOptions, ServiceOptions

SECRET = "kJ8sLq2vXz0pRt6wYb4nMc7dFg9hUe3a"


def read(environ: Mapping[str, str], option: str) -> Any:
    options = service_options(environ)
    return getattr(options, option) if hasattr(options, option) else getattr(options.connect, option)


def test_an_empty_environment_gives_the_defaults() -> None:
    assert service_options({}) == ServiceOptions()
    assert connect_options({}) == ConnectOptions()


@pytest.mark.parametrize(
    ("variable", "text", "option", "value"),
    [
        # The names that the Go SDK documents, and ours in the same spirit.
        ("MESH_SERVICE_NAME", "orders", "name", "orders"),
        ("MESH_SERVICE_PORT", "9090", "port", 9090),
        ("MESH_DISCOVERY_ADDRESS", "discovery:8080", "discovery_address", "discovery:8080"),
        ("MESH_SERVICE_ID", "orders-1", "id", "orders-1"),
        ("MESH_SERVICE_HOST", "127.0.0.1", "host", "127.0.0.1"),
        ("MESH_SERVICE_ADVERTISED_ADDRESS", "10.0.0.7", "advertised_address", "10.0.0.7"),
        ("MESH_SERVICE_HEALTH_INTERVAL_SECONDS", "10", "health_interval_seconds", 10.0),
        ("MESH_SERVICE_HEALTH_INTERVAL_SECONDS", "00:01:00", "health_interval_seconds", 60.0),
        ("MESH_SERVICE_DRAIN_SECONDS", "2.5", "drain_seconds", 2.5),
        ("MESH_SERVICE_REGISTER", "no", "register", False),
        ("MESH_SERVICE_STRATEGY", "IPHash", "strategy", "IPHash"),
        ("MESH_SERVICE_WEIGHT", "3", "weight", 3),
        ("MESH_REGISTRY_PROVIDER", "consul", "provider", "consul"),
        ("MESH_SERVICE_AUTH_SECRET", SECRET, "auth_secret", SECRET),
        ("MESH_SERVICE_ROLES", "Admin, Service", "roles", ("Admin", "Service")),
        ("MESH_DISCOVERY_TLS", "true", "use_tls", True),
        ("CONSUL_HTTP_ADDR", "consul:8500", "consul_address", "http://consul:8500"),
        # The .NET SDK's, in any case.
        ("Mesh__Service__ServiceName", "orders", "name", "orders"),
        ("MESH__SERVICE__SERVICENAME", "orders", "name", "orders"),
        ("Mesh__Service__ServiceId", "orders-1", "id", "orders-1"),
        ("Mesh__Service__Address", "127.0.0.1", "host", "127.0.0.1"),
        ("Mesh__Service__AdvertisedAddress", "10.0.0.7", "advertised_address", "10.0.0.7"),
        ("Mesh__Service__Port", "9090", "port", 9090),
        ("Mesh__Service__HealthEndpoint", "/up", "health_endpoint", "/up"),
        ("Mesh__Service__Routing__HealthCheckEndpoint", "/up", "health_endpoint", "/up"),
        ("Mesh__Service__HealthInterval", "00:00:10", "health_interval_seconds", 10.0),
        ("Mesh__Service__HealthInterval", "00:00:10.5000000", "health_interval_seconds", 10.5),
        ("Mesh__Service__HealthTimeout", "00:00:02", "health_timeout_seconds", 2.0),
        ("Mesh__Service__UnhealthyThreshold", "5", "unhealthy_threshold", 5),
        ("Mesh__Service__HeartbeatEnabled", "False", "heartbeat", False),
        ("Mesh__Service__RegisterAutomatically", "False", "register", False),
        ("Mesh__Service__ServiceRegistryProvider", "Grpc", "provider", "discovery"),
        ("Mesh__Service__ServiceRegistryProvider", "Consul", "provider", "consul"),
        ("Mesh__Service__Routing__Scheme", "https", "scheme", "https"),
        ("Mesh__Service__Routing__Strategy", "LeastConnections", "strategy", "LeastConnections"),
        ("Mesh__Service__Routing__Weight", "3", "weight", 3),
        ("Mesh__ServiceDiscovery__Grpc__Address", "https://discovery:50051", "use_tls", True),
        ("Consul__Address", "http://consul:8500", "consul_address", "http://consul:8500"),
        ("Mesh__ServiceAuth__Secret", SECRET, "auth_secret", SECRET),
        ("Mesh__ServiceAuth__Issuer", "me", "auth_issuer", "me"),
        ("Mesh__ServiceAuth__Audience", "you", "auth_audience", "you"),
        ("Mesh__ServiceAuth__TokenLifetimeMinutes", "5", "token_minutes", 5),
        ("Mesh__Identity__ServiceName", "orders-team", "identity", "orders-team"),
        ("Mesh__Identity__Roles__0", "Admin", "roles", ("Admin",)),
        # What Kubernetes' downward API is used for in the family's manifests.
        ("POD_NAME", "orders-7f9-x2", "id", "orders-7f9-x2"),
        ("POD_IP", "10.0.0.7", "advertised_address", "10.0.0.7"),
    ],
)
def test_a_variable_fills_its_option(variable: str, text: str, option: str, value: object) -> None:
    assert read({variable: text}, option) == value


@pytest.mark.parametrize(
    ("environ", "metadata"),
    [
        ({"Mesh__Service__Metadata__team": "blue"}, {"team": "blue"}),
        ({"MESH__SERVICE__METADATA__Team": "blue"}, {"Team": "blue"}),
        ({"MESH_SERVICE_METADATA_ZONE": "a"}, {"zone": "a"}),
        ({"MESH_SERVICE_METADATA_TOSKA__TIMEOUT__MS": "500"}, {"toska-timeout-ms": "500"}),
        ({"MESH_SERVICE_METADATA_TCP_PORT": "81"}, {"tcp_port": "81"}),
        ({"MESH_SERVICE_METADATA_ZONE": ""}, {}),
    ],
)
def test_metadata_is_taken_from_its_names(environ: dict[str, str], metadata: dict[str, str]) -> None:
    assert dict(service_options(environ).metadata) == metadata


def test_our_own_names_count_before_those_of_others() -> None:
    environ = {"MESH_SERVICE_ID": "ours", "Mesh__Service__ServiceId": "theirs", "POD_NAME": "pod"}
    assert read(environ, "id") == "ours"
    del environ["MESH_SERVICE_ID"]
    assert read(environ, "id") == "theirs"


def test_code_overrides_the_environment_which_overrides_the_default() -> None:
    environ = {"MESH_SERVICE_NAME": "orders", "MESH_SERVICE_PORT": "9090", "MESH_DISCOVERY_ADDRESS": "a:1"}
    options = service_options(environ, port=1234, discovery_address="b:2", metadata={"zone": "a"})
    assert (options.name, options.port, options.connect.discovery_address) == ("orders", 1234, "b:2")
    assert service_options(environ, connect=ConnectOptions()).connect == ConnectOptions()


def test_metadata_in_code_stands_beside_that_of_the_environment() -> None:
    environ = {"MESH_SERVICE_METADATA_ZONE": "a", "MESH_SERVICE_METADATA_TEAM": "blue"}
    assert service_options(environ, metadata={"zone": "b"}).metadata == {"zone": "b", "team": "blue"}


def test_an_empty_value_is_the_default() -> None:
    assert (
        service_options({"MESH_SERVICE_PORT": "", "Mesh__Service__Port": "", "MESH_SERVICE_ID": " "})
        == ServiceOptions()
    )


@pytest.mark.parametrize(
    ("environ", "words"),
    [
        ({"MESH_SERVICE_PORT": "http"}, "MESH_SERVICE_PORT='http' is wrong: it should be a whole number"),
        ({"MESH_SERVICE_PORT": "70000"}, "MESH_SERVICE_PORT: 70000 is not between 0 and 65535"),
        ({"MESH_SERVICE_NAME": "a b"}, "MESH_SERVICE_NAME: 'a b' is not 1 to 128 letters"),
        ({"MESH_SERVICE_REGISTER": "maybe"}, "MESH_SERVICE_REGISTER='maybe' is wrong: it should be `true` or `false`"),
        ({"MESH_SERVICE_DRAIN_SECONDS": "30s"}, "MESH_SERVICE_DRAIN_SECONDS='30s' is wrong: it should be seconds"),
        ({"MESH_SERVICE_DRAIN_SECONDS": "-3"}, "it should be seconds, 0 or more, or a time such as 00:00:30"),
        ({"Mesh__Service__HealthInterval": "soon"}, "it should be a time such as 00:00:30"),
        ({"Mesh__Service__HealthInterval": "30"}, "to .NET that is 30 days; write 00:00:30"),
        ({"Mesh__Service__HealthInterval": "00:99:00"}, "at most 23 hours, 59 minutes"),
        ({"Mesh__Service__HealthInterval": "00:00:00"}, "Mesh__Service__HealthInterval: 0.0 is not between 1"),
        ({"MESH_REGISTRY_PROVIDER": "etcd"}, "MESH_REGISTRY_PROVIDER='etcd' is wrong: it should be `discovery`"),
        ({"MESH_SERVICE_PROT": "1"}, "MESH_SERVICE_PROT is not a setting; did you mean MESH_SERVICE_PORT?"),
        (
            {"MESH_DISCOVERY_ADRESS": "x"},
            "did you mean MESH_DISCOVERY_ADDRESS?",
        ),
        ({"Mesh__Service__Prot": "1"}, "Mesh__Service__Prot is not a setting; did you mean Mesh__Service__Port?"),
        ({"MESH_SERVICE_METADATA_": "x"}, "MESH_SERVICE_METADATA_ is not a setting"),
        ({"MESH_SERVICE_METADATA": "zone=a"}, "write MESH_SERVICE_METADATA_<KEY>=value, one variable for each key"),
        ({"MESH_LB_STRATEGY": "Random"}, "did you mean MESH_SERVICE_STRATEGY?"),
        ({"MESH_STRATEGY": "Random"}, "did you mean MESH_SERVICE_STRATEGY?"),
        ({"MESH_SERVICEPORT": "80"}, "did you mean MESH_SERVICE_PORT?"),
        ({"MESH_REGISTER": "false"}, "did you mean MESH_SERVICE_REGISTER?"),
        ({"MESH_PORT": "80"}, "MESH_PORT is not a setting; did you mean MESH_SERVICE_PORT?"),
        ({"MESH_FOO": "1"}, "MESH_FOO is not a setting; docs/configuration.md lists the ones there are"),
        ({"MESH_SERVICE_METADATA_SCHEME": "http"}, "the option scheme"),
        ({"MESH_DISCOVERY_CA_FILE": "ca.pem"}, "MESH_DISCOVERY_CA_FILE: is set but the connection is plaintext"),
        (
            {
                "Mesh__ServiceDiscovery__Grpc__Address": "http://discovery:80",
                "Mesh__ServiceDiscovery__Grpc__AllowInsecureTransport": "false",
            },
            "AllowInsecureTransport='false', but 'http://discovery:80' is plaintext: write https:// or allow it",
        ),
    ],
)
def test_what_cannot_be_understood_is_named_with_what_would_be_right(environ: dict[str, str], words: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(words)):
        service_options(environ)


def test_all_that_is_wrong_is_said_at_once() -> None:
    with pytest.raises(ConfigError) as refused:
        service_options({"MESH_SERVICE_PORT": "x", "MESH_SERVICE_WEIGHT": "y", "MESH_SERVICE_TOKEN_MINUTES": "z"})
    assert len(str(refused.value).splitlines()) == 3


@pytest.mark.parametrize(
    ("variable", "text"), [("MESH_SERVICE_AUTH_SECRET", "s3cret-ish"), ("CONSUL_ADDRESS", "ftp://me:s3cret-ish@x")]
)
def test_no_secret_is_shown_in_a_refusal(variable: str, text: str) -> None:
    with pytest.raises(ConfigError, match=variable) as refused:
        service_options({variable: text})
    assert "s3cret-ish" not in str(refused.value)


@pytest.mark.parametrize(
    "links",
    [
        pytest.param(
            {
                "MESH_SERVICE_SERVICE_HOST": "10.96.0.1",
                "MESH_SERVICE_SERVICE_PORT": "80",
                "MESH_SERVICE_SERVICE_PORT_HTTP": "80",
                "MESH_SERVICE_PORT": "tcp://10.96.0.1:80",
                "MESH_SERVICE_PORT_80_TCP": "tcp://10.96.0.1:80",
                "MESH_SERVICE_PORT_80_TCP_PROTO": "tcp",
                "MESH_SERVICE_PORT_80_TCP_ADDR": "10.96.0.1",
            },
            id="a Service called mesh-service",
        ),
        pytest.param(
            {"MESH_DISCOVERY_SERVICE_HOST": "10.96.0.1", "MESH_DISCOVERY_PORT": "tcp://10.96.0.1:8080"},
            id="a Service called mesh-discovery",
        ),
        pytest.param(
            {"MESH_SERVICE_HOST": "10.96.0.1", "MESH_SERVICE_PORT": "80", "MESH_PORT": "tcp://10.96.0.1:80"},
            id="a Service called mesh, whose links have our very names",
        ),
        pytest.param(
            {
                "MESH_GATEWAY_SERVICE_HOST": "10.96.0.1",
                "MESH_GATEWAY_SERVICE_PORT": "80",
                "MESH_GATEWAY_SERVICE_PORT_HTTP": "80",
                "MESH_GATEWAY_PORT": "tcp://10.96.0.1:80",
                "MESH_GATEWAY_PORT_80_TCP": "tcp://10.96.0.1:80",
                "MESH_GATEWAY_PORT_80_TCP_PORT": "80",
                "MESH_PORT_80_TCP_ADDR": "10.96.0.1",
            },
            id="a Service called mesh-gateway, and one called mesh",
        ),
    ],
)
def test_kubernetes_service_links_are_passed_over(links: dict[str, str]) -> None:
    assert service_options(links) == ServiceOptions()


def test_a_port_beside_a_service_called_mesh_is_ours_when_it_is_not_that_services() -> None:
    links = {"MESH_SERVICE_HOST": "10.96.0.1", "MESH_SERVICE_PORT": "9090", "MESH_PORT": "tcp://10.96.0.1:80"}
    options = service_options(links)
    assert (options.host, options.port) == ("0.0.0.0", 9090)


def test_settings_of_the_dotnet_sdk_without_a_meaning_here_are_no_error() -> None:
    environ = {
        "Mesh__Service__EnableTelemetry": "true",
        "Mesh__Service__EnableAuth": "false",
        "Mesh__Service__AllowNoopServiceRegistry": "true",
        "Mesh__ServiceDiscovery__Grpc__ClientCertificatePassword": "x",
        "Mesh__KeyValue__Provider": "Redis",
        "MESH__TELEMETRY__ENABLED": "true",
        "MESH_KV_PROVIDER": "Redis",
        "ASPNETCORE_URLS": "http://+:80",
    }
    assert service_options(environ) == ServiceOptions()


def test_an_unknown_option_in_code_is_a_mistake_in_the_code() -> None:
    with pytest.raises(TypeError, match="prot is no option; did you mean port"):
        service_options({}, prot=1)
    with pytest.raises(TypeError, match="nme is no option"):
        connect_options({}, nme="x")
    with pytest.raises(ConfigError, match="stategy is no option; did you mean strategy"):
        service_options({}, stategy="Random")  # the same error, for those who tell it in one line
    with pytest.raises(ConfigError, match="metadata 'foo'"):
        service_options({"MESH_SERVICE_METADATA_ZONE": "a"}, metadata="foo")
    with pytest.raises(TypeError, match="discovery_address should be said in it"):
        service_options({}, connect=ConnectOptions(), discovery_address="a:1")


def test_a_wrong_value_in_code_is_named_as_the_option_and_not_as_a_variable() -> None:
    with pytest.raises(ConfigError, match=r"^ServiceOptions\.port 70000"):
        service_options({"MESH_SERVICE_PORT": "80"}, port=70000)


def test_every_option_has_a_variable_and_every_variable_an_option() -> None:
    options = {field.name for kind in (ServiceOptions, ConnectOptions) for field in fields(kind)}
    filled = {variable.option for variable in variables()}
    assert options - {"connect", "metadata"} == filled


def test_the_reference_can_be_made_from_the_table() -> None:
    names = [variable.name for variable in variables()]
    assert len(names) == len(set(names))
    for variable in variables():
        assert variable.description.endswith("."), variable.name
        assert variable.expected
        assert variable.name == variable.name.upper()


def test_the_documented_defaults_can_be_written_down() -> None:
    written = {variable.name: variable.default for variable in variables()}
    assert service_options(written) == ServiceOptions()
