"""The gateway's variables: their defaults are a promise to operators, and nonsense is refused with the reason."""

from pathlib import Path

import pytest

from toska_mesh.errors import ConfigError
from toska_mesh.gateway.settings import GatewaySettings
from toska_mesh.settings import load, variables_of

OF_THE_MESH_FAMILY = {
    "GATEWAY_PORT": "5000",
    "GATEWAY_ROUTE_PREFIX": "/api/",
    "GATEWAY_ROUTE_REFRESH_SECONDS": "30",
    "GATEWAY_RATE_LIMIT_ENABLED": "true",
    "GATEWAY_RATE_LIMIT_PERMITS": "100",
    "GATEWAY_RATE_LIMIT_WINDOW_SECONDS": "60",
    "GATEWAY_CORS_ALLOW_ANY_ORIGIN": "true",
    "GATEWAY_CORS_ALLOWED_ORIGINS": "",
    "JWT_SECRET_KEY": "",
    "JWT_ISSUER": "ToskaMesh.Gateway",
    "JWT_AUDIENCE": "ToskaMesh.Services",
    "GATEWAY_RETRY_COUNT": "3",
    "DASHBOARD_PROMETHEUS_URL": "http://localhost:9090",
    "DASHBOARD_TRACING_URL": "http://localhost:5004",
    "DASHBOARD_DISCOVERY_URL": "http://localhost:5010",
    "MESH_SERVICE_AUTH_SECRET": "",
}
OURS = {
    "DASHBOARD_HEALTHMONITOR_URL": "http://localhost:8081",  # the family's 5005 is a port on which nobody listens
    "GATEWAY_HOST": "0.0.0.0",
    "GATEWAY_ADMIN_HOST": "127.0.0.1",
    "GATEWAY_ADMIN_PORT": "9901",
    "GATEWAY_WORKERS": "1",
    "GATEWAY_EXPOSE": "mesh",
    "GATEWAY_SNAPSHOT_PATH": "",
    "GATEWAY_MAX_REQUEST_BYTES": "10485760",
    "GATEWAY_MAX_HEADER_BYTES": "65536",
    "GATEWAY_MAX_HEADERS": "100",
    "GATEWAY_TRUSTED_PROXIES": "127.0.0.0/8,::1/128",
    "GATEWAY_RETRY_BASE_MS": "200",
    "GATEWAY_RETRY_BACKOFF": "2.0",
    "GATEWAY_RETRY_JITTER_MS": "200",
    "GATEWAY_BREAKER_FAILURE_THRESHOLD": "3",
    "GATEWAY_BREAKER_OPEN_SECONDS": "20",
    "GATEWAY_CONNECT_TIMEOUT_SECONDS": "5",
    "GATEWAY_RESPONSE_TIMEOUT_SECONDS": "30",
    "GATEWAY_IDLE_TIMEOUT_SECONDS": "60",
    "GATEWAY_HEADER_TIMEOUT_SECONDS": "10",
    "GATEWAY_DRAIN_SECONDS": "10",
    "GATEWAY_ACCESS_LOG": "true",
    "GATEWAY_TLS_CERT": "",
    "GATEWAY_TLS_KEY": "",
    "GATEWAY_TLS_CLIENT_CA": "",
    "JWT_JWKS_URL": "",
    "JWT_PUBLIC_KEY_FILE": "",
}
SECRET = "0123456789abcdef0123456789abcdef"


def loaded(**environ: str) -> GatewaySettings:
    return load(GatewaySettings, environ).settings


@pytest.mark.parametrize("promised", [pytest.param(OF_THE_MESH_FAMILY, id="family"), pytest.param(OURS, id="ours")])
def test_defaults_are_as_promised(promised: dict[str, str]) -> None:
    defaults = {known.name: known.default for known in variables_of(GatewaySettings)}
    assert {name: defaults.get(name) for name in promised} == promised


@pytest.mark.parametrize(
    ("written", "prefix"),
    [
        pytest.param("/api/", "/api/", id="as the default"),
        pytest.param("mesh", "/mesh/", id="bare"),
        pytest.param("/mesh", "/mesh/", id="open end"),
        pytest.param("/a/b/", "/a/b/", id="two segments"),
        pytest.param("/", "/", id="root"),
    ],
)
def test_a_prefix_is_normalised_once(written: str, prefix: str) -> None:
    assert loaded(GATEWAY_ROUTE_PREFIX=written).route_prefix == prefix


@pytest.mark.parametrize(
    ("environ", "words"),
    [
        pytest.param({"GATEWAY_RETRY_COUNTS": "3"}, "did you mean GATEWAY_RETRY_COUNT", id="unknown"),
        pytest.param({"JWT_SECRET": SECRET}, "JWT_SECRET is not a setting", id="unknown with another prefix"),
        pytest.param({"GATEWAY_RATE_LIMIT_PERMITS": "many"}, "GATEWAY_RATE_LIMIT_PERMITS='many'", id="no number"),
        pytest.param({"GATEWAY_RATE_LIMIT_PERMITS": "0"}, "above 0", id="too small"),
        pytest.param({"GATEWAY_CONNECT_TIMEOUT_SECONDS": "inf"}, "GATEWAY_CONNECT_TIMEOUT_SECONDS", id="endless"),
        pytest.param({"GATEWAY_EXPOSE": "some"}, "`mesh` or `all`", id="no choice of these"),
        pytest.param({"GATEWAY_ROUTE_PREFIX": "/a?b/"}, "plain path", id="prefix with a query"),
        pytest.param({"GATEWAY_TRUSTED_PROXIES": "10.0.0.0/8,proxy"}, "'proxy' is no network", id="no network"),
        pytest.param({"GATEWAY_CORS_ALLOWED_ORIGINS": "app.example"}, "is no origin", id="no origin"),
        pytest.param({"DASHBOARD_TRACING_URL": "tracing:80"}, "http://", id="no URL"),
        pytest.param({"JWT_SECRET_KEY": SECRET[1:]}, "31 bytes", id="secret too short"),
        pytest.param({"MESH_SERVICE_AUTH_SECRET": "short"}, "5 bytes", id="service secret too short"),
        pytest.param({"JWT_SECRET_KEY": SECRET, "JWT_JWKS_URL": "http://keys"}, "exclude each other", id="two keys"),
        pytest.param({"GATEWAY_ADMIN_PORT": "5000"}, "must differ", id="one port for two"),
        pytest.param({"GATEWAY_TLS_CERT": __file__}, "belong together", id="certificate without key"),
        pytest.param({"GATEWAY_TLS_CLIENT_CA": __file__}, "needs GATEWAY_TLS_CERT", id="client CA without TLS"),
        pytest.param({"JWT_PUBLIC_KEY_FILE": "/no/such/file"}, "cannot be read", id="no file"),
        pytest.param({"GATEWAY_SNAPSHOT_PATH": "/no/such/folder/table"}, "does not exist", id="no folder"),
        pytest.param(
            {"GATEWAY_CORS_ALLOW_ANY_ORIGIN": "true", "GATEWAY_CORS_ALLOWED_ORIGINS": "https://a.example"},
            "contradicts",
            id="any origin and a list",
        ),
    ],
)
def test_nonsense_is_refused_with_the_reason(environ: dict[str, str], words: str) -> None:
    with pytest.raises(ConfigError) as refused:
        loaded(**environ)
    assert words in str(refused.value)
    assert SECRET[1:] not in str(refused.value)


@pytest.mark.parametrize(
    ("environ", "is_any"),
    [
        pytest.param({}, True, id="default"),
        pytest.param({"GATEWAY_CORS_ALLOW_ANY_ORIGIN": "false"}, False, id="off: none"),
        pytest.param({"GATEWAY_CORS_ALLOWED_ORIGINS": "https://a.example"}, False, id="a list by itself"),
    ],
)
def test_which_origins_are_allowed(environ: dict[str, str], is_any: bool) -> None:
    assert loaded(**environ).is_any_origin_allowed is is_any


def test_any_kind_of_key_turns_authentication_on(tmp_path: Path) -> None:
    key = tmp_path / "key.pem"
    key.write_text("read at the start")
    assert not loaded().is_auth_on
    assert loaded(JWT_SECRET_KEY=SECRET).is_auth_on
    assert loaded(JWT_JWKS_URL="https://keys.example/jwks").is_auth_on
    assert loaded(JWT_PUBLIC_KEY_FILE=str(key)).is_auth_on
