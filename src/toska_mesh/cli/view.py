"""What people see of `toska up`: one short line per event, a prefix per process, a table of URLs.

Turns happenings into text; knows nothing of processes. Children log JSON lines (`telemetry/logs.py`); what is not JSON
is shown as it came. Colours only when asked for, so a pipe or a file gets plain text.
"""

import io
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, tzinfo

import click
import orjson
from rich.console import Console
from rich.table import Table

from toska_mesh.cli.supervisor import Died, Happening, Killed, Line, Refused, Started, Stopped

OWN_NAME = "toska"
_PROCESS_COLOURS = ("cyan", "magenta", "green", "blue", "bright_cyan", "bright_magenta", "bright_green", "bright_blue")
_LEVEL_COLOURS = {"warning": "yellow", "error": "red", "critical": "red"}
_LONGEST_VALUE = 80
_ACCESS_EVENT = "request"
_UNSENT_EVENT = "event"
_BODY_FIELDS = {
    "serviceName": "service",
    "serviceId": "instance",
    "previousStatus": "previous",
    "currentStatus": "current",
    "reason": "reason",
}
"""What tells one event from the next, and the words our other lines have for it."""
_NOT_FIELDS = frozenset({"time", "level", "msg", "logger", "exception"})


@dataclass(frozen=True, slots=True)
class Event:
    """One log line of a child, understood."""

    name: str
    level: str = "info"
    moment: datetime | None = None
    fields: Mapping[str, object] | None = None
    exception: str = ""


def parse(text: str) -> Event | None:
    """The event of a JSON log line, or None for anything else."""
    if not text.startswith("{"):
        return None
    try:
        entry = orjson.loads(text)
    except orjson.JSONDecodeError:
        return None
    if not isinstance(entry, dict) or not isinstance(entry.get("msg"), str):
        return None
    try:
        moment = datetime.fromisoformat(str(entry.get("time")))
    except ValueError:
        moment = None
    fields = {key: value for key, value in entry.items() if key not in _NOT_FIELDS}
    exception = entry.get("exception")
    return Event(
        entry["msg"],
        str(entry.get("level", "info")),
        moment,
        fields,
        exception if isinstance(exception, str) else "",
    )


def _is_worth_showing(value: object) -> bool:
    return value is not None and value != [] and value != {}


def _one_word(value: object) -> str:
    """Quoted when it has spaces or anything unprintable: a peer's text must not forge lines or move the cursor."""
    if isinstance(value, list):
        return f"[{', '.join(_one_word(item) for item in value)}]"
    text = value if isinstance(value, str) else orjson.dumps(value, default=str).decode()
    if len(text) > _LONGEST_VALUE:
        text = f"{text[: _LONGEST_VALUE - 1]}…"
    return text if text and text.isprintable() and " " not in text else repr(text)


def _request_words(fields: Mapping[str, object]) -> str:
    """A line of the gateway's access log, as short as it can be; `--log-format json` has all of it."""
    words = [f"{fields.get('method')} {_one_word(fields.get('path'))} {fields.get('status')}"]
    words.append(f"{fields.get('duration_ms')} ms")
    if fields.get("instance"):
        words.append(f"from {_one_word(fields['instance'])}")
    words += [
        f"{key}={_one_word(fields[key])}"
        for key, usual in (("attempts", 1), ("outcome", "ok"))
        if key in fields and _is_worth_showing(fields[key]) and fields[key] != usual
    ]
    return " ".join(words)


def _event_fields(fields: Mapping[str, object]) -> Mapping[str, object]:
    """An event that no broker got: what it says instead of its whole body; `--log-format json` has all of it."""
    try:
        body = orjson.loads(str(fields.get("body")))
    except orjson.JSONDecodeError:
        return fields
    if not isinstance(body, dict):
        return fields
    told = {word: body[key] for key, word in _BODY_FIELDS.items() if body.get(key)}
    return {key: value for key, value in fields.items() if key != "body"} | told


class View:
    """Writes to `write`; a line never blocks nor fails, that is the writer's matter."""

    def __init__(
        self,
        write: Callable[[bytes], object],
        names: Sequence[str],
        *,
        use_colour: bool,
        as_json: bool = False,
        width: int = 100,
        zone: tzinfo | None = None,
        utcnow: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self._write = write
        self._use_colour = use_colour
        self._as_json = as_json
        self._width = width
        self._zone = zone
        self._utcnow = utcnow
        self._name_width = max(len(name) for name in (*names, OWN_NAME))
        self._colours = {name: _PROCESS_COLOURS[at % len(_PROCESS_COLOURS)] for at, name in enumerate(names)}

    def show(self, happening: Happening) -> None:
        match happening:
            case Line(process, text, is_error):
                self._show_line(process, text, is_error)
            case Started(process, pid, is_restart):
                again = " again" if is_restart else ""
                self.say(f"{process} started{again} (pid {pid})", event="process_started", process=process, pid=pid)
            case Died(process, how, delay_seconds):
                self.say(
                    f"{process} died ({how}); it is started again in {delay_seconds:g} s",
                    "warning",
                    event="process_died",
                    process=process,
                    how=how,
                    delay_seconds=delay_seconds,
                )
            case Refused(process):
                self.say(
                    f"{process} refused its configuration, see its words above",
                    "error",
                    event="process_refused",
                    process=process,
                )
            case Stopped(process, how, seconds):
                self.say(
                    f"{process} stopped ({how}, {seconds:.1f} s)", event="process_stopped", process=process, how=how
                )
            case Killed(process, waited_seconds):
                self.say(
                    f"{process} did not stop within {waited_seconds:.0f} s and is killed",
                    "warning",
                    event="process_killed",
                    process=process,
                )

    def say(self, text: str, level: str = "info", *, event: str, **fields: object) -> None:
        """Something of our own: `text` for people, `event` with its fields for machines."""
        now = self._utcnow()
        if self._as_json:
            entry = {"time": now.isoformat(timespec="milliseconds"), "level": level, "msg": event, "logger": OWN_NAME}
            self._write(orjson.dumps({**entry, **fields}, default=str) + b"\n")
        else:
            self._put(OWN_NAME, self._at(now) + self._paint(text, _LEVEL_COLOURS.get(level), bold=True))

    def show_table(self, title: str, rows: Iterable[tuple[str, str]], last_words: Sequence[str]) -> None:
        """A table with two columns, and lines below it. For people only."""
        if self._as_json:
            return
        table = Table(title=title, title_justify="left", show_header=False, padding=(0, 1))
        table.add_column(style="bold")
        table.add_column(style="cyan", overflow="fold")
        for row in rows:
            table.add_row(*row)
        text = render(table, self._use_colour, self._width)
        self._write(f"\n{text}".encode())
        for line in last_words:
            self._write(f"{line}\n".encode())
        self._write(b"\n")

    def _show_line(self, process: str, text: str, is_error: bool) -> None:
        if self._as_json:
            self._write(text.encode("utf-8", "backslashreplace") + b"\n")
            return
        event = parse(text)
        if event is None:
            shown = "".join(char if char.isprintable() or char == "\t" else repr(char)[1:-1] for char in text)
            self._put(process, self._paint(shown, "red" if is_error else None))
            return
        colour = _LEVEL_COLOURS.get(event.level)
        words = [self._paint(event.name, colour, bold=colour is not None, dim=event.level == "debug")]
        if event.name == _ACCESS_EVENT and event.fields and "method" in event.fields:
            words.append(_request_words(event.fields))
        else:
            fields = event.fields or {}
            if event.name == _UNSENT_EVENT and "body" in fields:
                fields = _event_fields(fields)
            words += [
                f"{self._paint(f'{key}=', None, dim=True)}{_one_word(value)}"
                for key, value in fields.items()
                if _is_worth_showing(value)
            ]
        self._put(process, self._at(event.moment) + " ".join(words))
        for line in event.exception.splitlines():
            self._put(process, self._paint(f"    {line}", "red"))

    def _put(self, process: str, text: str) -> None:
        prefix = self._paint(f"{process:<{self._name_width}} │", self._colours.get(process), bold=process == OWN_NAME)
        self._write(f"{prefix} {text}\n".encode("utf-8", "backslashreplace"))

    def _at(self, moment: datetime | None) -> str:
        return "" if moment is None else self._paint(f"{moment.astimezone(self._zone):%H:%M:%S} ", None, dim=True)

    def _paint(self, text: str, colour: str | None, bold: bool = False, dim: bool = False) -> str:
        if not self._use_colour:
            return text
        return click.style(text, fg=colour, bold=bold or None, dim=dim or None)


def render(table: Table, use_colour: bool, width: int) -> str:
    """A table as text; box drawing always, colours only when asked for."""
    out = io.StringIO()
    console = Console(
        file=out,
        force_terminal=use_colour,
        color_system="standard" if use_colour else None,
        width=width,
        legacy_windows=False,
    )
    console.print(table)
    return out.getvalue()
