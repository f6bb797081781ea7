"""Discovery's variables and what is wrong with wrong ones."""

import pytest

from toska_mesh.discovery.settings import DiscoverySettings
from toska_mesh.errors import ConfigError
from toska_mesh.settings import load

SECRET = "kJ8sLq2vXz0pRt6wYb4nMc7dFg9hUe3a"


def test_defaults() -> None:
    settings = load(DiscoverySettings, {}).settings
    assert (settings.host, settings.port, settings.http_port) == ("0.0.0.0", 8080, 5010)
    assert (settings.auth, settings.auth_issuer, settings.auth_audience) == (
        "off",
        "ToskaMesh.Services",
        "ToskaMesh.Services",
    )
    assert (settings.rabbitmq_url, settings.consul_address) == ("", "http://localhost:8500")
    assert settings.drain_seconds == 10
    assert settings.data_path.parts[-2:] == ("toska", "discovery")


@pytest.mark.parametrize(
    ("environ", "words"),
    [
        pytest.param({"DISCOVERY_PORT": "http"}, "DISCOVERY_PORT='http'", id="no port"),
        pytest.param({"DISCOVERY_PORT": "70000"}, "DISCOVERY_PORT='70000'", id="port too large"),
        pytest.param({"DISCOVERY_PRT": "1"}, "did you mean DISCOVERY_PORT", id="unknown variable"),
        pytest.param({"DISCOVERY_AUTH": "on"}, "`off` or `optional` or `required`", id="auth mode"),
        pytest.param({"DISCOVERY_AUTH": "required"}, "MESH_SERVICE_AUTH_SECRET is empty", id="no secret"),
        pytest.param(
            {"DISCOVERY_AUTH": "optional", "MESH_SERVICE_AUTH_SECRET": "short"}, "has 5 bytes", id="short secret"
        ),
        pytest.param(
            {"DISCOVERY_AUTH": "required", "MESH_SERVICE_AUTH_SECRET": "change-me" * 5}, "placeholder", id="placeholder"
        ),
        pytest.param({"DISCOVERY_PORT": "5010"}, "must differ", id="both ports alike"),
        pytest.param({"CONSUL_ADDRESS": "ftp://x"}, "CONSUL_ADDRESS", id="registry"),
        pytest.param({"RABBITMQ_URL": "http://x"}, "RABBITMQ_URL", id="broker"),
    ],
)
def test_what_is_wrong_is_said(environ: dict[str, str], words: str) -> None:
    with pytest.raises(ConfigError) as wrong:
        load(DiscoverySettings, environ)
    assert words in str(wrong.value)
    assert "short" not in str(wrong.value)


def test_tokens_are_checked_with_a_good_secret() -> None:
    settings = load(DiscoverySettings, {"DISCOVERY_AUTH": "required", "MESH_SERVICE_AUTH_SECRET": SECRET}).settings
    assert settings.auth_secret.get_secret_value() == SECRET
