"""Consul's own variables reach every request: headers and the TLS context that the client makes of them."""

import ssl
from pathlib import Path

import pytest
import trustme

from toska_mesh.errors import ConfigError
from toska_mesh.registry.consul.client import ConsulClient
from toska_mesh.registry.consul.options import ConsulOptions
from toska_mesh.settings import ConsulSettings, load


def client(**environ: str) -> ConsulClient:
    return ConsulClient(ConsulOptions.from_settings(load(ConsulSettings, environ).settings))


@pytest.mark.parametrize(
    ("environ", "headers"),
    [
        pytest.param({}, {}, id="nothing"),
        pytest.param({"CONSUL_HTTP_TOKEN": "t0p"}, {"X-Consul-Token": "t0p"}, id="token"),
        pytest.param({"CONSUL_NAMESPACE": "team"}, {"X-Consul-Namespace": "team"}, id="namespace"),
        pytest.param({"CONSUL_PARTITION": "west"}, {"X-Consul-Partition": "west"}, id="partition"),
        pytest.param({"CONSUL_HTTP_AUTH": "user:pw"}, {"Authorization": "Basic dXNlcjpwdw=="}, id="basic auth"),
        pytest.param(
            {"CONSUL_ADDRESS": "http://user:pw@consul:8500"}, {"Authorization": "Basic dXNlcjpwdw=="}, id="in the URL"
        ),
        pytest.param(
            {"CONSUL_HTTP_ADDR": "user:pw@consul:8500"}, {"Authorization": "Basic dXNlcjpwdw=="}, id="without a scheme"
        ),
        pytest.param(
            {"CONSUL_ADDRESS": "http://us%3Aer:p%40%2Fw@consul"},
            {"Authorization": "Basic dXM6ZXI6cEAvdw=="},
            id="percent-encoded",
        ),
        pytest.param({"CONSUL_ADDRESS": "http://user@consul"}, {"Authorization": "Basic dXNlcjo="}, id="no password"),
    ],
)
def test_credentials_travel_with_every_request(environ: dict[str, str], headers: dict[str, str]) -> None:
    assert client(**environ).headers() == headers


async def test_a_token_file_is_read_at_the_start_and_again_after_a_refusal(tmp_path: Path) -> None:
    path = tmp_path / "token"
    path.write_text("first\n")
    async with client(CONSUL_HTTP_TOKEN_FILE=str(path)) as consul:
        assert consul.headers() == {"X-Consul-Token": "first"}
        path.write_text("second\n")
        assert consul.headers() == {"X-Consul-Token": "first"}
        consul.refusal(403, b"ACL not found")
        assert consul.headers() == {"X-Consul-Token": "second"}
        path.unlink()  # as while it is being replaced
        consul.refusal(403, b"ACL not found")
        assert consul.headers() == {"X-Consul-Token": "second"}


@pytest.mark.parametrize(
    ("environ", "address"),
    [
        pytest.param({"CONSUL_ADDRESS": "https://consul:8501"}, "https://consul:8501", id="by the address"),
        pytest.param({"CONSUL_ADDRESS": "consul:8501", "CONSUL_HTTP_SSL": "true"}, "https://consul:8501", id="by name"),
    ],
)
def test_tls_is_spoken_when_asked_for(environ: dict[str, str], address: str) -> None:
    assert client(**environ).address == address


def test_the_certificate_is_checked_unless_told_otherwise(tmp_path: Path) -> None:
    authority = trustme.CA()
    authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    checked = client(CONSUL_CACERT=str(tmp_path / "ca.pem"), CONSUL_TLS_SERVER_NAME="server.dc1.consul")
    context = checked.ssl_context()
    assert (context.verify_mode, context.check_hostname) == (ssl.CERT_REQUIRED, True)
    assert len(context.get_ca_certs()) == 1, "only the given authority is trusted"
    assert checked.tls_server_name == "server.dc1.consul"
    unchecked = client(CONSUL_HTTP_SSL_VERIFY="false").ssl_context()
    assert (unchecked.verify_mode, unchecked.check_hostname) == (ssl.CERT_NONE, False)


def test_a_client_certificate_is_shown_and_has_to_fit_its_key(tmp_path: Path) -> None:
    authority = trustme.CA()
    ours, other = authority.issue_cert("client"), authority.issue_cert("other")
    cert, key, wrong = (str(tmp_path / name) for name in ("cert.pem", "key.pem", "wrong.pem"))
    ours.cert_chain_pems[0].write_to_path(cert)
    ours.private_key_pem.write_to_path(key)
    other.private_key_pem.write_to_path(wrong)
    client(CONSUL_CLIENT_CERT=cert, CONSUL_CLIENT_KEY=key).ssl_context()
    with pytest.raises(ConfigError, match="CONSUL_CLIENT_CERT"):
        client(CONSUL_CLIENT_CERT=cert, CONSUL_CLIENT_KEY=wrong).ssl_context()
