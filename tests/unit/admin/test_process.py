"""A daemon's arguments and what they print. Starting one for real is tested in tests/integration/admin."""

import asyncio
from typing import ClassVar

import pytest
from pydantic import SecretStr

from toska_mesh import __version__
from toska_mesh.admin.process import _main
from toska_mesh.settings import DaemonSettings, setting


class SampleSettings(DaemonSettings):
    env_prefixes: ClassVar[tuple[str, ...]] = ("SAMPLE_",)

    port: int = setting("SAMPLE_PORT", 7000, "Port to listen on.", ge=1, le=65535)
    secret: SecretStr = setting("SAMPLE_SECRET", SecretStr(""), "Key.")
    peer_url: str = setting("SAMPLE_PEER_URL", "", "Peer.", also=("OLD_PEER",), holds_credentials=True)


async def never(settings: SampleSettings, stop: asyncio.Event) -> None:
    raise AssertionError("the daemon must not be started")


def call(*arguments: str) -> int:
    return _main("toska-sample", SampleSettings, never, "a sample.", list(arguments))


@pytest.mark.parametrize("argument", ["--help", "-h"])
def test_help_lists_every_variable(argument: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert call(argument) == 0
    text = capsys.readouterr().out
    assert text.startswith(f"toska-sample {__version__}: a sample.")
    assert "  SAMPLE_PORT\n      Port to listen on. a whole number, at least 1, at most 65535; default 7000" in text
    assert "  SAMPLE_PEER_URL (or OLD_PEER)\n" in text
    assert "  TOSKA_LOG_LEVEL\n" in text


def test_version_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert call("--version") == 0
    assert capsys.readouterr().out == f"toska-sample {__version__}\n"


def test_help_works_with_a_broken_configuration(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("SAMPLE_PORT", "x")
    assert call("--help") == 0
    assert "SAMPLE_PORT" in capsys.readouterr().out


def test_check_prints_every_value_with_its_origin(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("SAMPLE_SECRET", "hidden-one")
    monkeypatch.setenv("OLD_PEER", "amqp://user:hidden-two@host")
    monkeypatch.delenv("TOSKA_LOG_LEVEL", raising=False)
    monkeypatch.delenv("TOSKA_LOG_FORMAT", raising=False)
    assert call("--check") == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split() for line in lines[:3]] == [
        ["SAMPLE_PORT", "7000", "[default]"],
        ["SAMPLE_SECRET", "(set,", "hidden)", "[environment]"],
        ["SAMPLE_PEER_URL", "amqp://***@host", "[environment", "(OLD_PEER)]"],
    ]
    assert lines[-1] == "the configuration is valid"
    assert "hidden-" not in "\n".join(lines)


@pytest.mark.parametrize("arguments", [[], ["--check"]], ids=["start", "check"])
def test_a_wrong_setting_is_one_line_and_exit_code_2(
    arguments: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("SAMPLE_PORT", "http")
    assert call(*arguments) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err == (
        "toska-sample: SAMPLE_PORT='http' is wrong: it should be a whole number, at least 1, at most 65535\n"
    )


@pytest.mark.parametrize("arguments", [["--port", "1"], ["--check", "--help"], ["serve"]])
def test_unknown_arguments_point_to_the_variables(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert call(*arguments) == 2
    assert "settings are environment variables, see toska-sample --help" in capsys.readouterr().err
