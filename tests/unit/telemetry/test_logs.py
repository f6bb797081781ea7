"""How an event becomes a line."""

import json
import logging
import sys
from collections.abc import Iterator
from logging.handlers import QueueHandler
from queue import SimpleQueue

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
        ("DEBUG", "one n=1"),
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


class _Lines(logging.Handler):
    """What a formatter that is not ours makes of a record."""

    def __init__(self, form: str) -> None:
        super().__init__()
        self.setFormatter(logging.Formatter(form))
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(self.format(record))


@pytest.fixture
def foreign() -> Iterator[_Lines]:
    logger, handler = logging.getLogger("toska.test-foreign"), _Lines("%(filename)s %(funcName)s %(message)s")
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    yield handler
    logger.removeHandler(handler)


def test_a_formatter_that_is_not_ours_shows_the_fields_and_who_logged(foreign: _Lines) -> None:
    log = event_log("test-foreign")
    log.info("serving", service="orders", port=1234)
    log.warning("breaker_changed", reason="too many\nfailures")
    log.error("50%s", share="50%")
    log.info("stopped")
    assert foreign.lines == [
        "test_logs.py test_a_formatter_that_is_not_ours_shows_the_fields_and_who_logged " + words
        for words in (
            "serving service=orders port=1234",
            "breaker_changed reason='too many\\nfailures'",
            "50%s share=50%",
            "stopped",
        )
    ]


def test_an_exception_names_its_caller_too(foreign: _Lines) -> None:
    try:
        raise ValueError("why")
    except ValueError:
        event_log("test-foreign").exception("failed", item=1)
    assert foreign.lines[0].startswith("test_logs.py test_an_exception_names_its_caller_too failed item=1\nTraceback")


def test_fields_become_text_only_when_somebody_reads_it() -> None:
    class Costly:
        def __str__(self) -> str:
            raise AssertionError("nobody asked")

    logger = logging.getLogger("toska.test-lazy")
    records: list[logging.LogRecord] = []
    handler = logging.NullHandler()
    handler.handle = records.append  # type: ignore[assignment,method-assign]
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    logger.propagate = False  # pytest's own handler does read it
    event_log("test-lazy").debug("ticked", value=Costly())
    event_log("test-lazy").info("changed", value=Costly())
    logger.propagate = True
    logger.removeHandler(handler)
    assert len(records) == 1
    with pytest.raises(AssertionError, match="nobody asked"):
        records[0].getMessage()


def test_our_own_formatters_keep_event_and_fields_apart(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, logger="toska.test-apart"):
        event_log("test-apart").info("serving", service="orders")
    (made,) = caplog.records
    line = json.loads(JsonFormatter().format(made))
    assert (line["msg"], line["service"]) == ("serving", "orders")
    assert ConsoleFormatter(use_colour=False).format(made).endswith(" serving service=orders")
    # A program's queue handler writes the message down before ours sees the record.
    prepared = QueueHandler(SimpleQueue()).prepare(made)
    assert json.loads(JsonFormatter().format(prepared))["msg"] == "serving"


def test_the_lines_of_others_stay_as_they_are() -> None:
    made = logging.LogRecord("aiohttp", logging.INFO, __file__, 1, "%s of %d", ("one", 2), None)
    made.event = "something of theirs"
    assert json.loads(JsonFormatter().format(made))["msg"] == "one of 2"
