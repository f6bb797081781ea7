"""What `toska up` shows: short lines for people, nothing lost, nothing forged."""

import json
from datetime import UTC, datetime

import pytest

from toska_mesh.cli.supervisor import Died, Happening, Killed, Line, Refused, Started, Stopped
from toska_mesh.cli.view import View, parse

NOON = datetime(2026, 1, 1, 12, 0, 0, tzinfo=UTC)


class Screen:
    def __init__(self, use_colour: bool = False, as_json: bool = False) -> None:
        self.written = b""
        self.view = View(
            self.write, ["gateway", "hello-1"], use_colour=use_colour, as_json=as_json, zone=UTC, utcnow=lambda: NOON
        )

    def write(self, block: bytes) -> None:
        self.written += block

    def lines(self, *happenings: Happening) -> list[str]:
        for happening in happenings:
            self.view.show(happening)
        return self.written.decode().splitlines()


def logged(msg: str = "ready", level: str = "info", **fields: object) -> str:
    return json.dumps(
        {"time": "2026-01-01T12:34:56.789+00:00", "level": level, "msg": msg, "logger": "toska.x"} | fields
    )


def test_a_log_line_becomes_prefix_time_event_and_fields() -> None:
    assert Screen().lines(Line("gateway", logged(port=5000, service="hello"))) == [
        "gateway │ 12:34:56 ready port=5000 service=hello"
    ]


def test_prefixes_have_one_width() -> None:
    lines = Screen().lines(Line("gateway", "a"), Line("hello-1", "b"), Started("gateway", 7))
    assert [line.index("│") for line in lines] == [8, 8, 8]


@pytest.mark.parametrize("text", ["plain words", "{not json", '{"no": "msg"}', "[1]", ""])
def test_what_is_no_log_line_is_shown_as_it_came(text: str) -> None:
    assert Screen().lines(Line("gateway", text, is_error=True)) == [f"gateway │ {text}"]


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        pytest.param("a b", "'a b'", id="spaces"),
        pytest.param("", "''", id="empty"),
        pytest.param("x\n\033[2Jforged", "'x\\n\\x1b[2Jforged'", id="control characters"),
        pytest.param({"a": 1}, '{"a":1}', id="nested"),
        pytest.param(["a b", "c"], "['a b', c]", id="list"),
        pytest.param("x" * 500, "x" * 79 + "…", id="long"),
    ],
)
def test_values_stay_on_one_line(value: object, shown: str) -> None:
    (line,) = Screen().lines(Line("gateway", logged(field=value)))
    assert line.endswith(f"ready field={shown}")


@pytest.mark.parametrize("value", [None, [], {}])
def test_what_says_nothing_is_left_out(value: object) -> None:
    (line,) = Screen().lines(Line("gateway", logged(field=value, port=1)))
    assert line.endswith("ready port=1")


def test_a_request_is_told_in_a_few_words() -> None:
    fields = {
        "method": "GET",
        "path": "/api/hello/hello",
        "status": 200,
        "duration_ms": 3.0,
        "instance": "hello-1",
        "attempts": 1,
        "outcome": "ok",
        "request_id": "589649da",
    }
    (line,) = Screen().lines(Line("gateway", logged("request", **fields)))
    assert line.endswith("│ 12:34:56 request GET /api/hello/hello 200 3.0 ms from hello-1")


def test_a_request_that_was_not_usual_says_more() -> None:
    fields = {
        "method": "GET",
        "path": "/x",
        "status": 502,
        "duration_ms": 9,
        "attempts": 3,
        "outcome": "upstream reset",
    }
    (line,) = Screen().lines(Line("gateway", logged("request", **fields)))
    assert line.endswith("request GET /x 502 9 ms attempts=3 outcome='upstream reset'")


def test_an_event_that_no_broker_got_is_told_in_a_few_words() -> None:
    body = json.dumps(
        {
            "eventId": "84ed841a-ca92-464d-a496-dc9ba7737f1b",
            "serviceId": "hello-1",
            "serviceName": "hello",
            "previousStatus": "Unknown",
            "currentStatus": "Unhealthy",
            "probeType": None,
        }
    )
    assert Screen().lines(Line("gateway", logged("event", type="ServiceHealthChangedEvent", body=body))) == [
        "gateway │ 12:34:56 event type=ServiceHealthChangedEvent service=hello instance=hello-1 previous=Unknown"
        " current=Unhealthy"
    ]


@pytest.mark.parametrize("body", ["no JSON", "[1]"])
def test_a_body_that_is_none_is_shown_as_it_came(body: str) -> None:
    assert Screen().lines(Line("gateway", logged("event", body=body)))[0].startswith("gateway │ 12:34:56 event body=")


def test_raw_control_characters_are_spelt_out() -> None:
    assert Screen().lines(Line("gateway", "\033[2Jgone")) == ["gateway │ \\x1b[2Jgone"]


def test_an_exception_follows_its_line() -> None:
    lines = Screen().lines(Line("gateway", logged("failed", "error", exception="Traceback\nValueError: x")))
    assert lines == ["gateway │ 12:34:56 failed", "gateway │     Traceback", "gateway │     ValueError: x"]


@pytest.mark.parametrize(
    ("happening", "words"),
    [
        pytest.param(Started("gateway", 7), "gateway started (pid 7)", id="start"),
        pytest.param(Started("gateway", 8, is_restart=True), "gateway started again (pid 8)", id="restart"),
        pytest.param(
            Died("gateway", "killed by SIGKILL", 0.5),
            "gateway died (killed by SIGKILL); it is started again in 0.5 s",
            id="death",
        ),
        pytest.param(Stopped("gateway", "exit code 0", 0.25), "gateway stopped (exit code 0, 0.2 s)", id="stop"),
        pytest.param(Killed("gateway", 10.01), "gateway did not stop within 10 s and is killed", id="kill"),
        pytest.param(Refused("gateway"), "gateway refused its configuration, see its words above", id="refusal"),
    ],
)
def test_what_happens_to_processes_is_told_in_words(happening: Happening, words: str) -> None:
    assert Screen().lines(happening) == [f"toska   │ 12:00:00 {words}"]


def test_colours_only_when_asked_for() -> None:
    happenings = [Line("gateway", logged("bad", "error", a="b")), Line("gateway", "x", is_error=True), Started("a", 1)]
    assert "\033[" not in "".join(Screen().lines(*happenings))
    assert "\033[31m" in "".join(Screen(use_colour=True).lines(*happenings))


def test_each_process_has_its_own_colour() -> None:
    one, two = Screen(use_colour=True).lines(Line("gateway", "x"), Line("hello-1", "x"))
    assert one.split("gateway")[0] != two.split("hello-1")[0]


def test_json_passes_through_untouched_with_our_own_lines_as_json() -> None:
    text = logged(port=5000)
    lines = Screen(as_json=True).lines(Line("gateway", text), Died("gateway", "exit code 1", 0.5))
    assert lines[0] == text
    assert json.loads(lines[1]) == {
        "time": "2026-01-01T12:00:00.000+00:00",
        "level": "warning",
        "msg": "process_died",
        "logger": "toska",
        "process": "gateway",
        "how": "exit code 1",
        "delay_seconds": 0.5,
    }


def test_the_table_shows_every_url_and_the_last_words() -> None:
    screen = Screen()
    screen.view.show_table("Ready", [("gateway", "http://localhost:5000"), ("metrics", "http://x")], ["try: curl y"])
    text = screen.written.decode()
    assert "http://localhost:5000" in text
    assert "metrics" in text
    assert text.rstrip().endswith("try: curl y")
    assert "\033" not in text


def test_machines_get_no_table() -> None:
    screen = Screen(as_json=True)
    screen.view.show_table("Ready", [("a", "b")], ["c"])
    assert screen.written == b""


def test_a_time_that_is_none_is_left_out() -> None:
    event = parse('{"msg": "x", "time": "yesterday", "level": 5}')
    assert event is not None
    assert event.moment is None
    assert Screen().lines(Line("gateway", '{"msg": "x", "time": 5}')) == ["gateway │ x"]
