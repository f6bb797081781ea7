"""The life of a daemon process around its `run`: arguments, settings, logging, event loop, signals, exit codes.

Exit codes: 0 after a clean stop, 1 when something failed at run time, 2 when the configuration is wrong, 141 when the
reader of `--help`, `--check` or `--version` closed its pipe.
"""

import asyncio
import os
import signal
import sys
from collections.abc import Awaitable, Callable
from types import FrameType
from typing import Never, TypeVar

import uvloop

from toska_mesh import __version__
from toska_mesh.errors import ConfigError
from toska_mesh.settings import DaemonSettings, Loaded, load, show, variables_of
from toska_mesh.telemetry.logs import event_log, set_up_logging

S = TypeVar("S", bound=DaemonSettings)
log = event_log("process")


def run_daemon(
    name: str, settings_type: type[S], run: Callable[[S, asyncio.Event], Awaitable[None]], description: str
) -> Never:
    """Run `run(settings, stop)` until it returns; SIGTERM and SIGINT set `stop`. Exits the process."""
    _occupy_standard_files()
    sys.exit(_main(name, settings_type, run, description, sys.argv[1:]))


def _main(
    name: str,
    settings_type: type[S],
    run: Callable[[S, asyncio.Event], Awaitable[None]],
    description: str,
    arguments: list[str],
) -> int:
    match arguments:
        case ["--help" | "-h"]:
            return _print(help_text(name, settings_type, description))
        case ["--version"]:
            return _print(f"{name} {__version__}")
        case [] | ["--check"]:
            pass
        case _:
            print(
                f"{name}: {' '.join(arguments)}: not understood; settings are environment variables, see {name} --help",
                file=sys.stderr,
            )
            return 2
    try:
        loaded = load(settings_type, os.environ)
    except ConfigError as exc:
        _say(name, exc)
        return 2
    if arguments:
        return _print(check_text(loaded))
    return run_to_the_end(name, loaded.settings, run)


def _occupy_standard_files() -> None:
    """Put the null device where the process was started without a standard file.

    Otherwise the first socket or database would become "standard output", and the log would be written into it.
    """
    for descriptor in (0, 1, 2):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest free number


def run_to_the_end(
    name: str,
    settings: S,
    run: Callable[[S, asyncio.Event], Awaitable[None]],
    is_one_of_several: bool = False,
) -> int:
    """Run a daemon whose settings are known; gives the exit code. `is_one_of_several`: others write to its log too."""
    writer = set_up_logging(settings.log_level, settings.log_format, is_one_of_several)
    try:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(_until_stopped(name, settings, run))
    except Exception as exc:
        return _report_failure(name, exc)
    finally:
        writer.close()
    return 0


def _report_failure(name: str, exc: Exception) -> int:
    leaves = _leaves(exc)
    if all(isinstance(leaf, ConfigError) for leaf in leaves):
        for leaf in leaves:
            _say(name, leaf)
        return 2
    log.exception("daemon_failed", process=name, error="; ".join(f"{type(leaf).__name__}: {leaf}" for leaf in leaves))
    return 1


async def _until_stopped(name: str, settings: S, run: Callable[[S, asyncio.Event], Awaitable[None]]) -> None:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()

    def ask_to_stop(signal_name: str) -> None:
        log.info("stop_requested", process=name, signal=signal_name)
        stop.set()

    def on_signal(number: int, frame: FrameType | None) -> None:
        loop.call_soon_threadsafe(ask_to_stop, signal.Signals(number).name)

    # Not the loop's own handlers: taking those away gives a signal its first meaning back, which ends the process, and
    # between that and "ignored" one could arrive. From these to "ignored" it is one step.
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, on_signal)
    try:
        await run(settings, stop)
        log.info("stopped", process=name)
    finally:
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, signal.SIG_IGN)  # the process still has files to close


def help_text(name: str, settings_type: type[DaemonSettings], description: str) -> str:
    """What `--help` prints: every variable with its shape, default and meaning."""
    lines = [
        f"{name} {__version__}: {description}",
        "",
        f"usage: {name} [--help | --version | --check]",
        "  --check   read and check every setting, print each with its origin, and exit",
        "",
        "Settings are environment variables:",
    ]
    for variable in variables_of(settings_type):
        default = f"default {variable.default}" if variable.default else "default: empty"
        also = f" (or {', '.join(variable.also)})" if variable.also else ""
        lines += [f"  {variable.name}{also}", f"      {variable.description} {variable.expected}; {default}".rstrip()]
    return "\n".join(lines)


def check_text(loaded: Loaded[S]) -> str:
    """What `--check` prints: every value with its origin, secrets hidden."""
    variables = list(variables_of(type(loaded.settings)))
    width = max(len(variable.name) for variable in variables)
    lines = []
    for variable in variables:
        value = show(getattr(loaded.settings, variable.field), variable)
        lines.append(f"{variable.name:<{width}}  {value}  [{loaded.origins[variable.name]}]")
    return "\n".join([*lines, "the configuration is valid"])


def _print(text: str) -> int:
    """Print; gives the exit code. A reader that has seen enough (`| head -1`) is no failure to explain."""
    try:
        print(text, flush=True)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # Python flushes once more at the end
        return 128 + signal.SIGPIPE  # what a shell shows of a tool that the signal ended
    return 0


def _say(name: str, exc: BaseException) -> None:
    for line in str(exc).splitlines():
        print(f"{name}: {line}", file=sys.stderr)


def _leaves(exc: BaseException) -> list[BaseException]:
    """The errors themselves, without the groups that task groups wrap them in."""
    if not isinstance(exc, BaseExceptionGroup):
        return [exc]
    return [leaf for part in exc.exceptions for leaf in _leaves(part)]
