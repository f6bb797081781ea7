"""Where the log of a service goes when the program has not said: our lines are of no use if nobody can see them.

Levels and formats are the daemons' (`TOSKA_LOG_LEVEL`, `TOSKA_LOG_FORMAT`); a program with logging of its own keeps it.
"""

import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from toska_mesh.errors import ConfigError
from toska_mesh.telemetry.logs import ConsoleFormatter, JsonFormatter, set_up_logging

_LEVELS = ("debug", "info", "warning", "error")
_FORMATS = ("json", "console")


@contextmanager
def program_log() -> Iterator[None]:
    """All logs of the process on standard output, which never blocks the loop. Raises ConfigError for a bad word."""
    root = logging.getLogger()
    if root.handlers:
        yield
        return
    level, form = wanted()
    writer = set_up_logging(level, form)
    root.setLevel(level.upper())  # the app's own lines too
    try:
        yield
    finally:
        root.handlers.clear()
        writer.close()


def own_log() -> None:
    """Our lines alone, on standard error, where neither the program nor its server gave them an outlet."""
    logger = logging.getLogger("toska")
    if logger.hasHandlers():
        return
    level, form = wanted()
    handler = logging.StreamHandler()
    handler.setFormatter(JsonFormatter() if form == "json" else ConsoleFormatter(sys.stderr.isatty()))
    logger.addHandler(handler)
    logger.setLevel(level.upper())


def wanted() -> tuple[str, str]:
    """Level and format that the environment asks for. Raises ConfigError for a word that is none."""
    is_seen = sys.stdout is not None and sys.stdout.isatty()
    return (
        _choice("TOSKA_LOG_LEVEL", "info", _LEVELS),
        _choice("TOSKA_LOG_FORMAT", "console" if is_seen else "json", _FORMATS),
    )


def _choice(variable: str, default: str, words: tuple[str, ...]) -> str:
    word = os.environ.get(variable, "").strip().lower() or default
    if word not in words:
        raise ConfigError(f"{variable}={word!r} is not one of {', '.join(words)}")
    return word
