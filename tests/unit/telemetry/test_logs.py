"""How an event becomes a line."""

import json
import logging
import sys

import pytest

from toska_mesh.telemetry import event_log
from toska_mesh.telemetry.logs import ConsoleFormatter, JsonFormatter


def record(event: str = "instance_registered", level: int = logging.INFO, **fields: object) -> logging.LogRecord:
    made = logging.LogRecord("toska.discovery", level, __file__, 1, "%s", (event,), None)
    made.created = 0.0
    made.fields = fields
    return made


def as_json(**fields: object) -> dict[str, object]:
    line = JsonFormatter().format(record(**fields))
    assert "\n" not in line
    parsed = json.loads(line)
    assert isinstance(parsed, dict)
    return parsed


def test_a_json_line_carries_time_level_event_and_fields() -> None:
    assert as_json(service="orders", attempt=2) == {
        "time": "1970-01-01T00:00:00.000+00:00",
        "level": "info",
        "msg": "instance_registered",
        "logger": "toska.discovery",
        "service": "orders",
        "attempt": 2,
    }


def test_a_field_cannot_replace_the_event_itself() -> None:
    line = as_json(time="never", msg="forged")
    assert line["msg"] == "instance_registered"
    assert line["msg_"] == "forged"
    assert line["time_"] == "never"


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        pytest.param("two\nlines", "two\nlines", id="line feed stays inside the string"),
        pytest.param(ValueError("x"), "x", id="an object by its text"),
        pytest.param({1: "a"}, {"1": "a"}, id="keys that are no strings"),
        pytest.param(2**70, 2**70, id="a number above 64 bits"),
        pytest.param("a\udc80b", "a\udc80b", id="a byte that was no text"),
    ],
)
def test_any_value_can_be_logged(value: object, shown: object) -> None:
    assert as_json(value=value)["value"] == shown


def test_an_exception_is_part_of_the_line() -> None:
    try:
        raise RuntimeError("broken")
    except RuntimeError:
        made = record()
        made.exc_info = sys.exc_info()
    assert "RuntimeError: broken" in json.loads(JsonFormatter().format(made))["exception"]
    assert ConsoleFormatter(use_colour=False).format(made).splitlines()[-1] == "RuntimeError: broken"


def test_a_console_line_is_short_and_plain() -> None:
    line = ConsoleFormatter(use_colour=False).format(record(service="orders", attempt=2))
    assert line == "00:00:00.000 info    instance_registered service=orders attempt=2"


def test_colours_are_used_only_when_asked_for() -> None:
    assert "\033[" in ConsoleFormatter(use_colour=True).format(record(level=logging.ERROR))
    assert "\033[" not in ConsoleFormatter(use_colour=False).format(record(level=logging.ERROR))


@pytest.mark.parametrize("text", ["a\nINFO forged", "\033[2J", "two words", ""])
def test_a_console_line_quotes_what_could_mislead(text: str) -> None:
    line = ConsoleFormatter(use_colour=False).format(record(peer=text))
    assert len(line.splitlines()) == 1
    assert "\033" not in line
    assert line.endswith(f"peer={text!r}")


def test_every_severity_reaches_the_standard_logging(caplog: pytest.LogCaptureFixture) -> None:
    log = event_log("test-severity")
    with caplog.at_level(logging.DEBUG, logger="toska.test-severity"):
        log.debug("one", n=1)
        log.info("two")
        log.warning("three")
        log.error("four")
        try:
            raise ValueError("why")
        except ValueError:
            log.exception("five")
    assert [(made.levelname, made.getMessage()) for made in caplog.records] == [
        ("DEBUG", "one"),
        ("INFO", "two"),
        ("WARNING", "three"),
        ("ERROR", "four"),
        ("ERROR", "five"),
    ]
    assert caplog.records[0].__dict__["fields"] == {"n": 1}
    assert caplog.records[-1].exc_info is not None


def test_a_percent_sign_in_an_event_is_no_format(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, logger="toska.test-percent"):
        event_log("test-percent").info("100%s")
    assert caplog.records[0].getMessage() == "100%s"
