"""Structured logs: an event name and fields, as JSON lines (or coloured text for people).

`log = event_log("discovery")`, then `log.info("instance_registered", service=..., instance=...)`. Log changes, not
ticks. Keys `time`, `level`, `msg` are those of the mesh family. Programs that import us format logs as they like: to
any other formatter the message is the event with its fields, `instance_registered service=orders`.
"""

import json
import logging
import os
import sys
from collections.abc import Mapping
from datetime import UTC, datetime

import orjson

from toska_mesh.telemetry.lines import LineWriter

_RESERVED = ("time", "level", "msg", "logger")
_COLOURS = {"debug": "\033[2m", "info": "\033[32m", "warning": "\033[33m", "error": "\033[31m", "critical": "\033[31m"}
_RESET = "\033[0m"

_CALLER = 3
"""Frames between `logging` and whoever logs: `_log`, and the method named after the level."""


class EventLog:
    """Logs events with fields through the standard `logging`, so that libraries' logs share the same outlet."""

    def __init__(self, name: str) -> None:
        self._logger = logging.getLogger(f"toska.{name}")

    def debug(self, event: str, **fields: object) -> None:
        self._log(logging.DEBUG, event, fields)

    def info(self, event: str, **fields: object) -> None:
        self._log(logging.INFO, event, fields)

    def warning(self, event: str, **fields: object) -> None:
        self._log(logging.WARNING, event, fields)

    def error(self, event: str, **fields: object) -> None:
        self._log(logging.ERROR, event, fields)

    def exception(self, event: str, **fields: object) -> None:
        """An error with the traceback of the exception being handled."""
        self._log(logging.ERROR, event, fields, exc_info=True)

    def _log(self, level: int, event: str, fields: dict[str, object], exc_info: bool = False) -> None:
        if not self._logger.isEnabledFor(level):
            return
        extra = {"event": event, "fields": fields}
        if fields:
            # The event stays the template, by which error trackers group; the fields become text only if asked to.
            text = event.replace("%", "%%") + " %s"
            self._logger.log(level, text, _Words(fields), extra=extra, exc_info=exc_info, stacklevel=_CALLER)
        else:
            self._logger.log(level, event, extra=extra, exc_info=exc_info, stacklevel=_CALLER)


def event_log(name: str) -> EventLog:
    return EventLog(name)


class JsonFormatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        entry: dict[str, object] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "msg": _event_of(record),
            "logger": record.name,
        }
        for key, value in getattr(record, "fields", {}).items():
            entry[f"{key}_" if key in _RESERVED else key] = value
        if record.exc_info:
            entry["exception"] = self.formatException(record.exc_info)
        try:
            return orjson.dumps(entry, default=str, option=orjson.OPT_NON_STR_KEYS).decode()
        except TypeError:  # lone surrogates from a peer's bytes, integers above 64 bits: rare, and worth a line too
            return json.dumps(entry, default=str)


class ConsoleFormatter(logging.Formatter):
    def __init__(self, use_colour: bool) -> None:
        super().__init__()
        self._use_colour = use_colour

    def format(self, record: logging.LogRecord) -> str:
        level = record.levelname.lower()
        moment = datetime.fromtimestamp(record.created, UTC).strftime("%H:%M:%S.%f")[:-3]
        head = f"{_COLOURS.get(level, '')}{level:<7}{_RESET}" if self._use_colour else f"{level:<7}"
        fields = _Words(getattr(record, "fields", {}))
        text = f"{moment} {head} {_event_of(record)} {fields}".rstrip()
        return f"{text}\n{self.formatException(record.exc_info)}" if record.exc_info else text


class _Words:
    """Fields as one line of text, once somebody wants it."""

    __slots__ = ("_fields",)

    def __init__(self, fields: Mapping[str, object]) -> None:
        self._fields = fields

    def __str__(self) -> str:
        return " ".join(f"{key}={_one_word(value)}" for key, value in self._fields.items())


def _event_of(record: logging.LogRecord) -> str:
    """The event without its fields, which stand elsewhere in our lines; the whole message of anybody else."""
    ours = "event" in record.__dict__ and "fields" in record.__dict__
    return str(record.__dict__["event"]) if ours else record.getMessage()


def _one_word(value: object) -> str:
    """Quoted when it has spaces or anything unprintable: a peer's text must not forge lines or move the cursor."""
    text = str(value)
    return text if text.isprintable() and " " not in text and text else repr(text)


class _LineHandler(logging.Handler):
    def __init__(self, writer: LineWriter) -> None:
        super().__init__()
        self.writer = writer

    def emit(self, record: logging.LogRecord) -> None:
        try:
            self.writer.write(self.format(record).encode("utf-8", "backslashreplace") + b"\n")
        except Exception:
            self.handleError(record)


def set_up_logging(level: str, log_format: str, is_shared: bool = False) -> LineWriter:
    """Send every log to standard output without ever blocking. The caller closes the writer at the very end."""
    writer = LineWriter(_stdout(), is_shared=is_shared)
    handler = _LineHandler(writer)
    handler.setFormatter(JsonFormatter() if log_format == "json" else ConsoleFormatter(os.isatty(_stdout())))
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.WARNING)
    logging.getLogger("toska").setLevel(level.upper())
    return writer


def log_writer() -> LineWriter:
    """The writer that `set_up_logging` made, for those that write whole lines themselves (an access log)."""
    for handler in logging.getLogger().handlers:
        if isinstance(handler, _LineHandler):
            return handler.writer
    return LineWriter(_stdout())


def _stdout() -> int:
    """Standard output's descriptor; Python has no file for it when the process was started without one."""
    return 1 if sys.stdout is None else sys.stdout.fileno()
