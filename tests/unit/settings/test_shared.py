"""The groups of settings that several daemons carry."""

from pathlib import Path

import pytest

from toska_mesh.errors import ConfigError
from toska_mesh.settings import (
    BrokerSettings,
    ConsulSettings,
    DaemonSettings,
    load,
    setting,
    show,
    state_dir,
    variables_of,
)


def test_the_defaults_are_those_of_the_mesh_family() -> None:
    consul = {known.name: known.default for known in variables_of(ConsulSettings)}
    assert consul == {
        "CONSUL_ADDRESS": "http://localhost:8500",
        "CONSUL_HTTP_TOKEN": "",
        "CONSUL_HTTP_TOKEN_FILE": "",
        "CONSUL_HTTP_AUTH": "",
        "CONSUL_HTTP_SSL": "false",
        "CONSUL_HTTP_SSL_VERIFY": "true",
        "CONSUL_CACERT": "",
        "CONSUL_CAPATH": "",
        "CONSUL_CLIENT_CERT": "",
        "CONSUL_CLIENT_KEY": "",
        "CONSUL_TLS_SERVER_NAME": "",
        "CONSUL_NAMESPACE": "",
        "CONSUL_PARTITION": "",
        "TOSKA_LOG_LEVEL": "info",
        "TOSKA_LOG_FORMAT": "json",
    }
    assert {known.name: known.default for known in variables_of(BrokerSettings)}["RABBITMQ_URL"] == ""


@pytest.mark.parametrize(
    ("environ", "address"),
    [
        pytest.param({"CONSUL_ADDRESS": "https://consul:8501"}, "https://consul:8501", id="our name"),
        pytest.param({"CONSUL_HTTP_ADDR": "consul:8500"}, "http://consul:8500", id="Consul's name, without a scheme"),
        pytest.param(
            {"CONSUL_ADDRESS": "http://ours", "CONSUL_HTTP_ADDR": "http://theirs"}, "http://ours", id="ours wins"
        ),
    ],
)
def test_the_registry_address_is_read_from_either_name(environ: dict[str, str], address: str) -> None:
    assert load(ConsulSettings, environ).settings.consul_address == address


@pytest.mark.parametrize(
    ("environ", "words"),
    [
        pytest.param({"CONSUL_ADDRESS": "ftp://u:secret@x"}, ["CONSUL_ADDRESS", "http://"], id="scheme"),
        pytest.param(
            {"CONSUL_ADDRESS": "http://u:secret@x", "CONSUL_HTTP_AUTH": "u:secret"},
            ["CONSUL_ADDRESS", "CONSUL_HTTP_AUTH", "keep one"],
            id="two users",
        ),
        pytest.param({"CONSUL_ADDRESS": "http://u:sec/ret@x"}, ["'http://***@x'", "%2F"], id="a slash in a password"),
        pytest.param({"CONSUL_ADDRESS": "http://u:1/secret@x"}, ["'http://***@x'", "%2F"], id="it looks like a port"),
        pytest.param({"CONSUL_ADDRESS": "http://u:1?secret@x"}, ["'http://***@x'", "%3F"], id="a question mark"),
        pytest.param({"CONSUL_ADDRESS": "http://u:1#secret@x"}, ["'http://***@x'", "%23"], id="a hash"),
        pytest.param({"CONSUL_ADDRESS": "http://:8500"}, ["CONSUL_ADDRESS", "whole URL"], id="no host"),
        pytest.param({"CONSUL_ADDRESS": "http://x:99999"}, ["CONSUL_ADDRESS", "whole URL"], id="no port"),
        pytest.param({"CONSUL_CLIENT_CERT": __file__}, ["CONSUL_CLIENT_CERT and CONSUL_CLIENT_KEY"], id="half a pair"),
        pytest.param({"CONSUL_CACERT": "/no/such/file"}, ["CONSUL_CACERT", "/no/such/file", "readable"], id="no file"),
        pytest.param({"CONSUL_HTTP_TOKEN_FILE": "/no/t"}, ["CONSUL_HTTP_TOKEN_FILE", "/no/t"], id="no token file"),
    ],
)
def test_a_wrong_consul_setting_is_explained(environ: dict[str, str], words: list[str]) -> None:
    with pytest.raises(ConfigError) as caught:
        load(ConsulSettings, environ)
    assert all(word in str(caught.value) for word in words)
    assert "secret" not in str(caught.value)


class EverythingShared(ConsulSettings, BrokerSettings):
    """What a daemon of the mesh carries."""

    auth_secret: str = setting("MESH_SERVICE_AUTH_SECRET", "", "Secret.")


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("CONSUL_ADRESS", "CONSUL_ADDRESS"),
        ("CONSUL_HTTP_ADRR", "CONSUL_HTTP_ADDR"),
        ("CONSUL_HTTP_TOKENS", "CONSUL_HTTP_TOKEN"),
        ("CONSUL_CA_CERT", "CONSUL_CACERT"),
        ("RABBITMQ_UR", "RABBITMQ_URL"),
        ("RABBITMQ_URI", "RABBITMQ_URL"),
        ("MESH_SERVICE_AUTH_SECRT", "MESH_SERVICE_AUTH_SECRET"),
    ],
)
def test_a_near_miss_under_a_shared_prefix_is_an_error(name: str, meant: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load(EverythingShared, {name: "x"})
    assert str(caught.value) == f"{name} is not a setting; did you mean {meant}?"


@pytest.mark.parametrize(
    "name",
    [
        "CONSUL_GRPC_ADDR", "CONSUL_GRPC_CACERT", "CONSUL_HTTP_MAX_CONNS", "CONSUL_LOCAL_CONFIG", "CONSUL_UID",
        "RABBITMQ_NODENAME", "RABBITMQ_DEFAULT_USER", "RABBITMQ_USER", "RABBITMQ_LOGS",
        "MESH_SERVICE_AUTH_ISSUER", "MESH_SERVICE_AUTH_AUDIENCE", "CONSUL_SERVICE_HOST", "ANOTHER_CONSUL_ADRESS",
    ],
)  # fmt: skip
def test_what_others_read_under_a_shared_prefix_is_theirs(name: str) -> None:
    assert load(EverythingShared, {name: "x"}).settings == EverythingShared()


def test_a_variable_of_consul_itself_is_never_a_typing_error() -> None:
    class Narrow(DaemonSettings):
        addresses: str = setting("CONSUL_GRPC_ADDRS", "", "Nearly one of Consul's.")

    assert load(Narrow, {"CONSUL_GRPC_ADDR": "x"}).settings == Narrow()


def test_no_daemon_takes_consul_s_own_variables_for_a_typing_error() -> None:
    consuls = {known.name: "" for known in variables_of(ConsulSettings) if known.name.startswith("CONSUL_")}
    assert load(BrokerSettings, consuls).settings == BrokerSettings()


def test_credentials_in_the_registry_address_are_not_in_the_representation() -> None:
    settings = load(ConsulSettings, {"CONSUL_ADDRESS": "http://user:secret@consul:8500"}).settings
    assert "secret" not in repr(settings)
    address = next(known for known in variables_of(ConsulSettings) if known.name == "CONSUL_ADDRESS")
    assert show(settings.consul_address, address) == "http://***@consul:8500"


def test_a_wrong_broker_url_is_refused_without_showing_its_password() -> None:
    with pytest.raises(ConfigError, match="RABBITMQ_URL should begin with amqp://") as caught:
        load(BrokerSettings, {"RABBITMQ_URL": "http://user:secret@rabbit"})
    assert "secret" not in str(caught.value)


def test_the_state_folder_follows_the_xdg_variable(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    assert state_dir("registry") == tmp_path / "toska" / "registry"


def test_the_state_folder_is_under_the_home_without_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("XDG_STATE_HOME", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert state_dir("registry") == tmp_path / ".local" / "state" / "toska" / "registry"
