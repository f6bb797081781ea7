"""Reading settings: what is accepted, what is refused, and in which words."""

import os
from enum import Enum
from pathlib import Path
from typing import Annotated, ClassVar, Literal

import pytest
from annotated_types import Ge
from pydantic import SecretStr, ValidationError, field_validator, model_validator

from toska_mesh.errors import ConfigError
from toska_mesh.settings import CommaList, DaemonSettings, Variable, load, mask_credentials, setting, show, variables_of


class Colour(Enum):
    RED = "red"
    BLUE = "blue"


class SampleSettings(DaemonSettings):
    env_prefixes: ClassVar[tuple[str, ...]] = ("SAMPLE_",)

    port: int = setting("SAMPLE_PORT", 7000, "Port.", ge=1, le=65535)
    interval_seconds: float = setting("SAMPLE_INTERVAL_SECONDS", 30.0, "Seconds between rounds.", gt=0)
    is_on: bool = setting("SAMPLE_ON", True, "Switch.")
    origins: CommaList = setting("SAMPLE_ORIGINS", (), "Who may ask.")
    colour: Colour = setting("SAMPLE_COLOUR", Colour.RED, "Paint.")
    workers: Annotated[int, Ge(1)] | Literal["auto"] = setting("SAMPLE_WORKERS", 1, "Processes.")
    folder: Path | None = setting("SAMPLE_FOLDER", None, "State folder.")
    limit_bytes: float = setting("SAMPLE_LIMIT_BYTES", 1.0, "Limit.", le=1048576, lt=2_500_000.5)
    secret: SecretStr = setting("SAMPLE_SECRET", SecretStr(""), "Key.")
    peer_url: str = setting("SAMPLE_PEER_URL", "", "Peer.", also=("PEER_URL", "OLD_PEER"), holds_credentials=True)

    @field_validator("secret")
    @classmethod
    def _check_secret(cls, value: SecretStr) -> SecretStr:
        if value.get_secret_value() == "short":
            raise ValueError("it should be longer")
        return value

    @field_validator("peer_url")
    @classmethod
    def _check_peer(cls, value: str) -> str:
        if value and not value.startswith("http"):
            raise ValueError("it should be a URL")
        return value

    @model_validator(mode="after")
    def _check_together(self) -> "SampleSettings":
        if self.is_on and self.port == 7777:
            raise ValueError("SAMPLE_PORT=7777 and SAMPLE_ON=true exclude each other")
        return self


def sample(**environ: str) -> SampleSettings:
    return load(SampleSettings, environ).settings


def problems(**environ: str) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        load(SampleSettings, environ)
    return str(caught.value).splitlines()


def variable(name: str) -> Variable:
    return next(known for known in variables_of(SampleSettings) if known.name == name)


def test_an_empty_environment_gives_the_defaults() -> None:
    loaded = load(SampleSettings, {})
    assert loaded.settings == SampleSettings()
    assert set(loaded.origins.values()) == {"default"}


@pytest.mark.parametrize(
    ("name", "text", "field", "value"),
    [
        pytest.param("SAMPLE_PORT", "80", "port", 80, id="whole number"),
        pytest.param("SAMPLE_INTERVAL_SECONDS", "0.25", "interval_seconds", 0.25, id="number"),
        pytest.param("SAMPLE_ON", "false", "is_on", False, id="switch"),
        pytest.param("SAMPLE_ON", "FALSE", "is_on", False, id="switch in capitals"),
        pytest.param("SAMPLE_ORIGINS", " a, b ,,c", "origins", ("a", "b", "c"), id="comma list"),
        pytest.param("SAMPLE_ORIGINS", ",", "origins", (), id="comma list of nothing"),
        pytest.param("SAMPLE_COLOUR", "blue", "colour", Colour.BLUE, id="choice"),
        pytest.param("SAMPLE_WORKERS", "auto", "workers", "auto", id="union, the word"),
        pytest.param("SAMPLE_WORKERS", "4", "workers", 4, id="union, the number"),
        pytest.param("SAMPLE_FOLDER", "/var/x", "folder", Path("/var/x"), id="path"),
        pytest.param("TOSKA_LOG_LEVEL", "debug", "log_level", "debug", id="common setting"),
    ],
)
def test_a_text_becomes_its_value(name: str, text: str, field: str, value: object) -> None:
    loaded = load(SampleSettings, {name: text})
    assert getattr(loaded.settings, field) == value
    assert loaded.origins[name] == "environment"


@pytest.mark.parametrize(
    ("name", "text", "expected"),
    [
        pytest.param("SAMPLE_PORT", "http", "a whole number, at least 1, at most 65535", id="no number"),
        pytest.param("SAMPLE_PORT", "0", "a whole number, at least 1, at most 65535", id="too small"),
        pytest.param("SAMPLE_PORT", "65536", "a whole number, at least 1, at most 65535", id="too large"),
        pytest.param("SAMPLE_PORT", "80.5", "a whole number, at least 1, at most 65535", id="fraction"),
        pytest.param("SAMPLE_PORT", " ", "a whole number, at least 1, at most 65535", id="blanks"),
        pytest.param("SAMPLE_INTERVAL_SECONDS", "0", "a number, above 0", id="not above"),
        pytest.param("SAMPLE_INTERVAL_SECONDS", "nan", "a number, above 0", id="nan"),
        pytest.param("SAMPLE_INTERVAL_SECONDS", "inf", "a number, above 0", id="infinite"),
        pytest.param("SAMPLE_INTERVAL_SECONDS", "30s", "a number, above 0", id="with a unit"),
        pytest.param("SAMPLE_ON", "maybe", "`true` or `false`", id="no switch"),
        pytest.param("SAMPLE_COLOUR", "green", "`red` or `blue`", id="no choice"),
        pytest.param("TOSKA_LOG_FORMAT", "xml", "`json` or `console`", id="common setting"),
    ],
)
def test_a_wrong_value_is_named_with_what_would_be_right(name: str, text: str, expected: str) -> None:
    assert problems(**{name: text}) == [f"{name}={text!r} is wrong: it should be {expected}"]


def test_every_problem_is_told_at_once() -> None:
    told = "\n".join(problems(SAMPLE_PORT="x", SAMPLE_ON="perhaps", SAMPLE_PROT="1"))
    assert "SAMPLE_PORT='x'" in told
    assert "SAMPLE_ON='perhaps'" in told
    assert "SAMPLE_PROT is not a setting" in told


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        pytest.param("SAMPLE_PROT", "did you mean SAMPLE_PORT?", id="near miss"),
        pytest.param("TOSKA_LOG_LEVL", "did you mean TOSKA_LOG_LEVEL?", id="near miss of a common setting"),
        pytest.param("SAMPLE_ZZZZZZZZZZZZZZZZ", "--help lists the ones there are", id="nothing like it"),
    ],
)
def test_an_unknown_variable_is_an_error_with_a_hint(name: str, hint: str) -> None:
    assert problems(**{name: ""}) == [f"{name} is not a setting; {hint}"]


def test_variables_of_others_are_no_business_of_ours() -> None:
    assert sample(PATH="/bin", OTHER_PORT="x", SAMPLEX="1") == SampleSettings()


def test_an_empty_value_means_the_default() -> None:
    loaded = load(SampleSettings, {"SAMPLE_PORT": "", "SAMPLE_ON": ""})
    assert loaded.settings.port == 7000
    assert loaded.origins["SAMPLE_PORT"] == "default"


def test_kubernetes_service_links_are_passed_over() -> None:
    loaded = load(
        SampleSettings,
        {
            "SAMPLE_SERVICE_HOST": "10.0.0.1",
            "SAMPLE_SERVICE_PORT": "80",
            "SAMPLE_SERVICE_PORT_HTTP": "80",
            "SAMPLE_PORT": "tcp://10.0.0.1:80",
            "SAMPLE_PORT_80_TCP": "tcp://10.0.0.1:80",
            "SAMPLE_PORT_80_TCP_PROTO": "tcp",
            "SAMPLE_PORT_80_TCP_PORT": "80",
            "SAMPLE_PORT_80_TCP_ADDR": "10.0.0.1",
            "SAMPLE_ADMIN_PORT": "tcp://10.0.0.2:80",
        },
    )
    assert loaded.settings.port == 7000
    assert loaded.origins["SAMPLE_PORT"] == "default"


def test_another_name_is_read_when_the_first_is_unset() -> None:
    loaded = load(SampleSettings, {"OLD_PEER": "http://old"})
    assert loaded.settings.peer_url == "http://old"
    assert loaded.origins["SAMPLE_PEER_URL"] == "environment (OLD_PEER)"


def test_the_first_name_wins_over_the_others() -> None:
    assert sample(OLD_PEER="http://old", PEER_URL="http://newer", SAMPLE_PEER_URL="http://own").peer_url == "http://own"


def test_an_error_names_the_variable_that_was_written() -> None:
    assert problems(OLD_PEER="ftp://x") == ["OLD_PEER='ftp://x': it should be a URL"]


def test_a_rule_across_settings_names_them_itself() -> None:
    assert problems(SAMPLE_PORT="7777") == ["SAMPLE_PORT=7777 and SAMPLE_ON=true exclude each other"]


@pytest.mark.parametrize(
    ("name", "text"),
    [
        pytest.param("SAMPLE_SECRET", "short", id="secret"),
        pytest.param("SAMPLE_PEER_URL", "ftp://user:short@host", id="password in a URL"),
        pytest.param("SAMPLE_PEER_URL", "ftp://user:a@short@host", id="password with an at sign"),
        pytest.param("SAMPLE_PEER_URL", "ftp://user:a/short@host", id="password with a slash"),
        pytest.param("SAMPLE_PEER_URL", "user:short@host", id="no URL at all"),
    ],
)
def test_an_error_shows_no_secret(name: str, text: str) -> None:
    (told,) = problems(**{name: text})
    assert told.startswith(f"{name}=")
    assert "short" not in told


def test_shown_values_hide_secrets() -> None:
    assert show(SecretStr("x"), variable("SAMPLE_SECRET")) == "(set, hidden)"
    assert show(SecretStr(""), variable("SAMPLE_SECRET")) == "(empty)"
    assert show("amqp://u:p@h/v", variable("SAMPLE_PEER_URL")) == "amqp://***@h/v"
    assert mask_credentials("http://host/path") == "http://host/path"


def test_neither_do_their_representations() -> None:
    text = repr(load(SampleSettings, {"SAMPLE_SECRET": "hidden-one", "SAMPLE_PEER_URL": "http://u:hidden-two@h"}))
    assert "hidden" not in text


@pytest.mark.parametrize(
    ("name", "value", "text"),
    [
        pytest.param("SAMPLE_ON", True, "true", id="switch"),
        pytest.param("SAMPLE_ORIGINS", ("a", "b"), "a,b", id="list"),
        pytest.param("SAMPLE_ORIGINS", (), "(empty)", id="empty list"),
        pytest.param("SAMPLE_COLOUR", Colour.BLUE, "blue", id="choice"),
        pytest.param("SAMPLE_FOLDER", None, "(empty)", id="nothing"),
        pytest.param("SAMPLE_PORT", 80, "80", id="number"),
    ],
)
def test_values_are_shown_as_they_would_be_written(name: str, value: object, text: str) -> None:
    assert show(value, variable(name)) == text


def test_variables_say_what_they_expect() -> None:
    expected = {known.name: known.expected for known in variables_of(SampleSettings)}
    assert expected["SAMPLE_WORKERS"] == "a whole number, at least 1 or `auto`"
    assert expected["SAMPLE_ORIGINS"] == "a comma-separated list"
    assert expected["SAMPLE_FOLDER"] == "a path"
    assert expected["SAMPLE_LIMIT_BYTES"] == "a number, below 2500000.5, at most 1048576"
    assert expected["SAMPLE_PEER_URL"] == "text"


def test_own_variables_come_before_the_common_ones() -> None:
    names = [known.name for known in variables_of(SampleSettings)]
    assert names[0] == "SAMPLE_PORT"
    assert names[-2:] == ["TOSKA_LOG_LEVEL", "TOSKA_LOG_FORMAT"]


def test_settings_cannot_be_changed() -> None:
    with pytest.raises(ValidationError):
        SampleSettings().port = 1  # type: ignore[misc]


def test_only_the_given_environment_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(os.environ, "SAMPLE_PORT", "1")
    assert sample().port == 7000
