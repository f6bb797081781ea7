"""The command itself: what it says about its settings and its ports."""

import os
import socket
import subprocess
import sys
from collections.abc import Iterator

import pytest


def run(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    clean = {name: value for name, value in os.environ.items() if name in ("PATH", "HOME", "PYTHONPATH", "LANG")}
    return subprocess.run(
        [sys.executable, "-m", "toska_mesh.gateway.app", *arguments],
        env=clean | environment,
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )


@pytest.fixture
def taken() -> Iterator[int]:
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen()
        yield listening.getsockname()[1]


def test_help_lists_every_variable() -> None:
    answer = run("--help")
    assert answer.returncode == 0
    for name in ("GATEWAY_PORT", "GATEWAY_ADMIN_PORT", "JWT_SECRET_KEY", "CONSUL_ADDRESS", "GATEWAY_RETRY_COUNT"):
        assert name in answer.stdout


def test_check_shows_values_with_their_origin_and_no_secret() -> None:
    secret = "0123456789abcdef0123456789abcdef"
    answer = run("--check", GATEWAY_PORT="5055", JWT_SECRET_KEY=secret)
    assert answer.returncode == 0
    assert "5055" in answer.stdout
    assert secret not in answer.stdout + answer.stderr


@pytest.mark.parametrize(
    ("environment", "words"),
    [
        ({"GATEWAY_PORT": "http"}, ("GATEWAY_PORT", "http")),
        ({"GATEWAY_PROT": "5000"}, ("GATEWAY_PROT",)),
        ({"JWT_SECRET_KEY": "short"}, ("JWT_SECRET_KEY", "32")),
        ({"GATEWAY_TLS_CERT": "/nowhere.pem", "GATEWAY_TLS_KEY": "/nowhere.pem"}, ("GATEWAY_TLS_CERT", "/nowhere.pem")),
    ],
)
def test_bad_settings_are_one_line_and_exit_2(environment: dict[str, str], words: tuple[str, ...]) -> None:
    for arguments in ((), ("--check",)):
        answer = run(*arguments, **environment)
        assert answer.returncode == 2
        assert "Traceback" not in answer.stderr
        (line,) = answer.stderr.strip().splitlines()
        for word in words:
            assert word in line
        assert "short" not in line or "JWT" not in line


@pytest.mark.parametrize("variable", ["GATEWAY_PORT", "GATEWAY_ADMIN_PORT"])
def test_a_taken_port_is_one_line_and_exit_2(variable: str, taken: int) -> None:
    ports = {"GATEWAY_HOST": "127.0.0.1", "GATEWAY_PORT": "0", "GATEWAY_ADMIN_PORT": "0"} | {variable: str(taken)}
    answer = run(**ports)
    assert answer.returncode == 2, answer.stderr
    lines = [line for line in answer.stderr.strip().splitlines() if line]
    assert len(lines) == 1, answer.stderr
    assert variable in lines[0]
    assert str(taken) in lines[0]
