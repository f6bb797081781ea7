"""Settings that are wrong, unknown or not ours: what each daemon says about them, and how it ends.

A process for what only a process can show; for the rest the console script's own function is called, which saves half a
second each time.
"""

import importlib.metadata
import os
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from tests.integration.daemons.daemons import (
    ALL,
    DISCOVERY,
    GATEWAY,
    HEALTHMONITOR,
    REGISTRY,
    Daemon,
    Ended,
    run_to_the_end,
)

from toska_mesh.settings import variables_of

Call = Callable[..., Ended]
SECRET = "not-to-be-seen-by-anybody-0123456789"


@pytest.fixture
def call(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Call:
    """`call(program, env, *arguments)`: the console script's function, with these variables and nothing else."""
    scripts = {entry.name: entry for entry in importlib.metadata.entry_points(group="console_scripts")}

    def run(program: str, env: dict[str, str], *arguments: str) -> Ended:
        assert arguments, "without an argument the daemon would be started"
        main = scripts[program].load()
        with monkeypatch.context() as patch:
            patch.setattr(os, "environ", dict(env))
            patch.setattr(sys, "argv", [program, *arguments])
            with pytest.raises(SystemExit) as ended:
                main()
        said = capsys.readouterr()
        return Ended(int(ended.value.code or 0), said.out, said.err)

    return run


def test_everything_that_is_wrong_is_said_at_once_one_line_each(daemon: Daemon, tmp_path: Path) -> None:
    port = daemon.ports[0]
    ended = run_to_the_end(
        daemon.program, tmp_path, {f"{port}S": "1", port: "eighty", "TOSKA_LOG_LEVEL": "loud", "TOSKA_LOG_LEVLE": "x"}
    )
    assert ended.code == 2
    assert ended.output == ""
    assert sorted(ended.lines) == sorted(
        [
            f"{daemon.program}: {port}S is not a setting; did you mean {port}?",
            f"{daemon.program}: TOSKA_LOG_LEVLE is not a setting; did you mean TOSKA_LOG_LEVEL?",
            next(line for line in ended.lines if line.startswith(f"{daemon.program}: {port}='eighty' is wrong: ")),
            f"{daemon.program}: TOSKA_LOG_LEVEL='loud' is wrong: it should be"
            " `debug` or `info` or `warning` or `error`",
        ]
    )
    assert any("a whole number, at least" in line and "at most 65535" in line for line in ended.lines)


CERT_ALONE = {"GATEWAY_TLS_CERT": "/etc/hostname"}


@pytest.mark.parametrize(
    ("daemon", "env", "words"),
    [
        pytest.param(GATEWAY, {"JWT_SECRET_KEY": "short"}, ("JWT_SECRET_KEY", "5 bytes", "32"), id="short JWT secret"),
        pytest.param(
            GATEWAY,
            {"JWT_SECRET_KEY": SECRET, "JWT_JWKS_URL": "https://id.example/keys"},
            ("JWT_SECRET_KEY", "JWT_JWKS_URL", "exclude each other"),
            id="two sources of keys",
        ),
        pytest.param(GATEWAY, CERT_ALONE, ("GATEWAY_TLS_CERT", "GATEWAY_TLS_KEY"), id="certificate without key"),
        pytest.param(
            GATEWAY,
            {"GATEWAY_TLS_CERT": "/nowhere/cert.pem", "GATEWAY_TLS_KEY": "/nowhere/key.pem"},
            ("GATEWAY_TLS_CERT", "/nowhere/cert.pem", "readable file"),
            id="certificate that is not there",
        ),
        pytest.param(
            GATEWAY,
            {"GATEWAY_CORS_ALLOWED_ORIGINS": "https://a.example", "GATEWAY_CORS_ALLOW_ANY_ORIGIN": "true"},
            ("GATEWAY_CORS_ALLOWED_ORIGINS", "GATEWAY_CORS_ALLOW_ANY_ORIGIN"),
            id="any origin and a list",
        ),
        pytest.param(
            GATEWAY,
            {"GATEWAY_TRUSTED_PROXIES": "10.0.0.0/8,everybody"},
            ("GATEWAY_TRUSTED_PROXIES", "'everybody' is no network"),
            id="trusted proxies",
        ),
        pytest.param(
            GATEWAY,
            {"GATEWAY_PORT": "5999", "GATEWAY_ADMIN_PORT": "5999"},
            ("GATEWAY_PORT", "GATEWAY_ADMIN_PORT", "5999"),
            id="gateway with one port for two",
        ),
        pytest.param(
            GATEWAY,
            {"GATEWAY_SNAPSHOT_PATH": "/nowhere/routes.json"},
            ("GATEWAY_SNAPSHOT_PATH", "/nowhere/routes.json", "folder"),
            id="snapshot without a folder",
        ),
        pytest.param(
            DISCOVERY,
            {"DISCOVERY_AUTH": "required"},
            ("MESH_SERVICE_AUTH_SECRET", "DISCOVERY_AUTH=required", "at least 32 bytes"),
            id="auth without a secret",
        ),
        pytest.param(
            DISCOVERY,
            {"DISCOVERY_AUTH": "required", "MESH_SERVICE_AUTH_SECRET": "short"},
            ("MESH_SERVICE_AUTH_SECRET", "32 bytes"),
            id="auth with a short secret",
        ),
        pytest.param(
            DISCOVERY,
            {"DISCOVERY_PORT": "5999", "DISCOVERY_HTTP_PORT": "5999"},
            ("DISCOVERY_PORT", "DISCOVERY_HTTP_PORT", "5999"),
            id="discovery with one port for two",
        ),
        pytest.param(DISCOVERY, {"RABBITMQ_URL": "localhost"}, ("RABBITMQ_URL", "amqp://"), id="broker URL"),
        pytest.param(
            HEALTHMONITOR,
            {"CONSUL_CLIENT_CERT": "/etc/hostname"},
            ("CONSUL_CLIENT_CERT", "CONSUL_CLIENT_KEY", "both or none"),
            id="client certificate without key",
        ),
        pytest.param(
            HEALTHMONITOR,
            {"HEALTHMONITOR_HTTP_HEADERS": "Authorization"},
            ("HEALTHMONITOR_HTTP_HEADERS", "Name=Value"),
            id="probe header without a value",
        ),
        pytest.param(
            HEALTHMONITOR, {"CONSUL_ADDRESS": "ftp://consul"}, ("CONSUL_ADDRESS", "http://"), id="registry URL"
        ),
    ],
)
def test_values_that_do_not_fit_together_are_refused(
    daemon: Daemon, env: dict[str, str], words: tuple[str, ...], call: Call
) -> None:
    ended = call(daemon.program, env, "--check")
    ended.assert_refusal(daemon.program, *words)
    assert SECRET not in ended.errors


@pytest.mark.parametrize(
    ("daemon", "env", "words"),
    [
        pytest.param(
            GATEWAY,
            {"GATEWAY_TLS_CERT": "/etc/hostname", "GATEWAY_TLS_KEY": "/etc/hostname"},
            ("GATEWAY_TLS_CERT", "/etc/hostname"),
            id="certificate that is none",
        ),
        pytest.param(
            HEALTHMONITOR,
            {"HEALTHMONITOR_TLS_CA_FILE": "/etc/hostname"},
            ("HEALTHMONITOR_TLS_CA_FILE", "/etc/hostname"),
            id="CA file that is none",
        ),
        pytest.param(REGISTRY, {"REGISTRY_HOST": "no.such.host.invalid"}, ("REGISTRY_HOST",), id="bind address"),
        pytest.param(GATEWAY, {"GATEWAY_HOST": "192.0.2.1"}, ("GATEWAY_HOST", "192.0.2.1"), id="foreign address"),
    ],
)
def test_what_only_a_start_can_find_out_is_refused_in_the_same_way(
    daemon: Daemon, env: dict[str, str], words: tuple[str, ...], tmp_path: Path
) -> None:
    run_to_the_end(daemon.program, tmp_path, env).assert_refusal(daemon.program, *words)


def _secrets(daemon: Daemon) -> dict[str, str]:
    """A secret in every variable that may hold one; the registry's user is in the address, so not beside it."""
    env = {variable.name: SECRET for variable in variables_of(daemon.settings) if variable.is_secret}
    if "RABBITMQ_URL" in {variable.name for variable in variables_of(daemon.settings)}:
        env["RABBITMQ_URL"] = f"amqp://mesh:{SECRET}@broker/"
    if daemon.follows:
        env["CONSUL_HTTP_ADDR"] = f"http://mesh:{SECRET}@consul:8500"
        del env["CONSUL_HTTP_AUTH"]
    return env


def test_check_prints_every_value_with_its_origin_and_no_secret(daemon: Daemon, call: Call) -> None:
    ended = call(daemon.program, _secrets(daemon) | {"TOSKA_LOG_FORMAT": "console"}, "--check")
    assert (ended.code, ended.errors) == (0, "")
    *rows, last = ended.output.splitlines()
    shown = {row.split()[0]: row for row in rows}
    assert last == "the configuration is valid"
    assert list(shown) == [variable.name for variable in variables_of(daemon.settings)]
    assert SECRET not in ended.output
    assert shown["TOSKA_LOG_FORMAT"].endswith("console  [environment]")
    assert shown["TOSKA_LOG_LEVEL"].endswith("info  [default]")
    for variable in variables_of(daemon.settings):
        if variable.is_secret and variable.name != "CONSUL_HTTP_AUTH":
            assert shown[variable.name].endswith("(set, hidden)  [environment]")
    if daemon.follows:
        assert shown["CONSUL_ADDRESS"].endswith("http://***@consul:8500  [environment (CONSUL_HTTP_ADDR)]")
        ended = call(daemon.program, {"CONSUL_HTTP_AUTH": f"mesh:{SECRET}"}, "--check")
        (row,) = [row for row in ended.output.splitlines() if row.startswith("CONSUL_HTTP_AUTH ")]
        assert row.endswith("(set, hidden)  [environment]")
        assert SECRET not in ended.output


@pytest.mark.parametrize("daemon", [daemon for daemon in ALL if daemon.follows], ids=str)
def test_a_user_in_two_places_is_refused_without_showing_it(daemon: Daemon, call: Call) -> None:
    env = {"CONSUL_HTTP_AUTH": f"mesh:{SECRET}", "CONSUL_ADDRESS": f"http://mesh:{SECRET}@consul:8500"}
    ended = call(daemon.program, env, "--check")
    assert ended.code == 2
    assert "CONSUL_ADDRESS holds a user and CONSUL_HTTP_AUTH is set too" in ended.errors
    assert SECRET not in ended.errors + ended.output


def test_check_refuses_what_a_start_refuses(daemon: Daemon, tmp_path: Path) -> None:
    ended = run_to_the_end(daemon.program, tmp_path, {daemon.ports[0]: "65536"}, "--check")
    ended.assert_refusal(daemon.program, f"{daemon.ports[0]}='65536'", "at most 65535")


def test_help_lists_every_variable_and_version_is_said(daemon: Daemon, call: Call) -> None:
    # Help must come whatever else is wrong: it is what somebody in trouble asks for.
    ended = call(daemon.program, {daemon.ports[0]: "x"}, "--help")
    assert (ended.code, ended.errors) == (0, "")
    for variable in variables_of(daemon.settings):
        assert f"\n  {variable.name}" in ended.output
        assert variable.description in ended.output


def test_an_unknown_argument_is_refused(daemon: Daemon, call: Call) -> None:
    ended = call(daemon.program, {}, "--port", "80")
    ended.assert_refusal(daemon.program, "--port 80", "environment variables", f"{daemon.program} --help")


def test_service_links_of_kubernetes_are_passed_over(daemon: Daemon, call: Call) -> None:
    """A pod beside Services called `gateway`, `registry`, … gets these variables whether it wants them or not."""
    links: dict[str, str] = {}
    for other in ALL:
        name = other.name.upper()
        links |= {
            f"{name}_SERVICE_HOST": "10.96.7.7",
            f"{name}_SERVICE_PORT": "80",
            f"{name}_SERVICE_PORT_HTTP": "80",
            f"{name}_PORT": "tcp://10.96.7.7:80",
            f"{name}_PORT_80_TCP": "tcp://10.96.7.7:80",
            f"{name}_PORT_80_TCP_PROTO": "tcp",
            f"{name}_PORT_80_TCP_PORT": "80",
            f"{name}_PORT_80_TCP_ADDR": "10.96.7.7",
        }
    ended = call(daemon.program, links, "--check")
    assert (ended.code, ended.errors) == (0, "")
    row = next(row for row in ended.output.splitlines() if row.startswith(f"{daemon.prefix}PORT "))
    assert row.endswith("[default]")
