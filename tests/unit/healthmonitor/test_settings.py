"""Names, defaults and refusals."""

from pathlib import Path

import pytest

from toska_mesh.errors import ConfigError
from toska_mesh.healthmonitor.settings import HealthMonitorSettings
from toska_mesh.healthmonitor.verdict import Thresholds
from toska_mesh.settings import load


def test_defaults_are_those_of_the_mesh_family():
    settings = load(HealthMonitorSettings, {}).settings
    assert (settings.host, settings.port, settings.probe_interval_seconds) == ("0.0.0.0", 8081, 30)
    assert (settings.http_timeout_seconds, settings.tcp_timeout_seconds, settings.grpc_timeout_seconds) == (5, 3, 5)
    assert settings.ledger.thresholds == Thresholds(fall=3, rise=2)
    assert (settings.concurrency, settings.allow_link_local, settings.tls_verify) == (256, False, True)
    assert (settings.rabbitmq_url, settings.consul_address) == ("", "http://localhost:8500")
    assert settings.headers == {}


def test_every_variable_reaches_its_policy(tmp_path):
    ca = tmp_path / "ca.pem"
    ca.write_text("")
    settings = load(
        HealthMonitorSettings,
        {
            "HEALTHMONITOR_PROBE_INTERVAL_SECONDS": "10",
            "HEALTHMONITOR_HTTP_TIMEOUT_SECONDS": "1.5",
            "HEALTHMONITOR_TCP_TIMEOUT_SECONDS": "2.5",
            "HEALTHMONITOR_GRPC_TIMEOUT_SECONDS": "3.5",
            "HEALTHMONITOR_FAILURE_THRESHOLD": "5",
            "HEALTHMONITOR_RECOVERY_THRESHOLD": "4",
            "HEALTHMONITOR_CONCURRENCY": "1000",
            "HEALTHMONITOR_HISTORY_LIMIT": "7",
            "HEALTHMONITOR_HTTP_HEADERS": "X-Probe=yes, Authorization=Basic dXNlcjpwYXNz=",
            "HEALTHMONITOR_ALLOW_LINK_LOCAL": "true",
            "HEALTHMONITOR_TLS_CA_FILE": str(ca),
            "HEALTHMONITOR_TLS_VERIFY": "false",
            "HEALTHMONITOR_DATA_DIR": str(tmp_path),
        },
    ).settings
    assert (settings.monitor.interval_seconds, settings.monitor.concurrency) == (10, 1000)
    assert (settings.ledger.interval_seconds, settings.ledger.history_limit, settings.ledger.allow_link_local) == (
        10,
        7,
        True,
    )
    assert settings.ledger.thresholds == Thresholds(fall=5, rise=4)
    policy = settings.probes
    assert (policy.http_timeout_seconds, policy.tcp_timeout_seconds, policy.grpc_timeout_seconds) == (1.5, 2.5, 3.5)
    assert policy.headers == {"X-Probe": "yes", "Authorization": "Basic dXNlcjpwYXNz="}
    assert (policy.allow_link_local, policy.ca_file, policy.verify_tls) == (True, str(ca), False)
    assert settings.data_path == Path(tmp_path)


@pytest.mark.parametrize(
    ("variable", "value", "words"),
    [
        pytest.param("HEALTHMONITOR_PROBE_INTERVAL_SECONDS", "0", "at least 0.1", id="interval"),
        pytest.param("HEALTHMONITOR_PROBE_INTERVAL_SECONDS", "soon", "'soon'", id="no number"),
        pytest.param("HEALTHMONITOR_FAILURE_THRESHOLD", "0", "at least 1", id="threshold"),
        pytest.param("HEALTHMONITOR_CONCURRENCY", "0", "at least 1", id="concurrency"),
        pytest.param("HEALTHMONITOR_HTTP_HEADERS", "X-Probe", "Name=Value", id="header without value"),
        pytest.param("HEALTHMONITOR_HTTP_HEADERS", "X Probe=1", "Name=Value", id="header name with a space"),
        pytest.param("HEALTHMONITOR_HTTP_HEADERS", "X=a\r\nHost: b", "Name=Value", id="header with a line break"),
        pytest.param("HEALTHMONITOR_HTTP_HEADERS", "Content-Length=5", "belongs to the connection", id="framing"),
        pytest.param("HEALTHMONITOR_TLS_CA_FILE", "/does/not/exist.pem", "not a file", id="CA file"),
        pytest.param("HEALTHMONITOR_INTERVAL", "5", "not a setting", id="unknown"),
        pytest.param("RABBITMQ_URL", "http://x", "amqp://", id="broker"),
    ],
)
def test_wrong_values_are_refused_by_name(variable, value, words):
    with pytest.raises(ConfigError) as refusal:
        load(HealthMonitorSettings, {variable: value})
    assert variable in str(refusal.value)
    assert words in str(refusal.value)
