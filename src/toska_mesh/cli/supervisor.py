"""The shell of `toska up`: starts processes in order, restarts what dies, stops everything in reverse.

What to run is a plan (`plan.py`), what people see is a view (`view.py`); here are only processes, pipes and signals.
Every child leads its own session, so a Ctrl-C of the terminal reaches this process alone and the order of stopping is
ours. A child never outlives this process: `child.py` says how.
"""

import asyncio
import contextlib
import os
import signal
import sys
from asyncio.subprocess import PIPE
from asyncio.subprocess import Process as OsProcess
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from types import TracebackType

from toska_mesh.cli.child import LIFELINE_VARIABLE

CONFIGURATION_EXIT_CODE = 2
"""What a daemon answers to wrong settings (`admin/process.py`): starting it again would not help."""

MAX_LINE_BYTES = 64 * 1024
KILL_SECONDS = 5.0
"""How long a killed process may take to vanish (an uninterruptible disk wait)."""
FIRST_DELAY_SECONDS, LONGEST_DELAY_SECONDS = 0.5, 15.0
STEADY_SECONDS = 30.0
"""A child that ran for so long has recovered: its next failure is a first one."""


@dataclass(frozen=True, slots=True)
class ProcessSpec:
    """One child: `command` is appended to the interpreter, `environ` is its whole environment."""

    name: str
    command: Sequence[str]
    environ: Mapping[str, str]
    stop_seconds: float = 10.0
    """From SIGTERM to SIGKILL."""


@dataclass(frozen=True, slots=True)
class Line:
    """What a child wrote; `is_error` for its standard error."""

    process: str
    text: str
    is_error: bool = False


@dataclass(frozen=True, slots=True)
class Started:
    process: str
    pid: int
    is_restart: bool = False


@dataclass(frozen=True, slots=True)
class Died:
    """A child ended though nobody asked it to; it is started again after `delay_seconds`."""

    process: str
    how: str
    delay_seconds: float


@dataclass(frozen=True, slots=True)
class Stopped:
    process: str
    how: str
    seconds: float


@dataclass(frozen=True, slots=True)
class Killed:
    """It did not stop in time."""

    process: str
    waited_seconds: float


@dataclass(frozen=True, slots=True)
class Refused:
    """A child found its configuration wrong at its first start; its own words are among the lines. Not restarted."""

    process: str


Happening = Line | Started | Died | Stopped | Killed | Refused


def restart_delay_seconds(failures: int) -> float:
    """Waiting time after so many failures in a row (1 = the first): doubling, bounded."""
    return float(min(LONGEST_DELAY_SECONDS, FIRST_DELAY_SECONDS * 2 ** min(failures - 1, 10)))


def describe_exit(code: int) -> str:
    """`exit code 3`, or the signal's name."""
    if code >= 0:
        return f"exit code {code}"
    try:
        return f"killed by {signal.Signals(-code).name}"
    except ValueError:
        return f"killed by signal {-code}"


@dataclass(slots=True)
class _Child:
    spec: ProcessSpec
    process: OsProcess | None = None
    stopping: asyncio.Event = field(default_factory=asyncio.Event)
    gone: asyncio.Event = field(default_factory=asyncio.Event)
    """Set for good once the child has ended and will not be started again."""


class Supervisor:
    """Owns the children. `report` is called on the loop with everything that happens, and must not block.

    An async context manager: leaving it stops what still runs, in reverse order of starting, and waits for it.
    """

    def __init__(self, report: Callable[[Happening], None]) -> None:
        self._report = report
        self._children: dict[str, _Child] = {}
        self._stages: list[tuple[str, ...]] = []
        self._lifeline, self._lifeline_writer = os.pipe()  # neither end is inheritable unless passed on
        self._tasks = asyncio.TaskGroup()

    async def __aenter__(self) -> "Supervisor":
        await self._tasks.__aenter__()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            await self.stop()
        finally:
            self.kill()
            try:
                await self._tasks.__aexit__(kind, exc, trace)
            finally:
                os.close(self._lifeline)
                os.close(self._lifeline_writer)

    def start(self, stage: Sequence[ProcessSpec]) -> None:
        """Start the processes of one stage together; they are stopped together too, before earlier stages."""
        self._stages.append(tuple(spec.name for spec in stage))
        for spec in stage:
            child = self._children[spec.name] = _Child(spec)
            self._tasks.create_task(self._keep(child), name=f"keep {spec.name}")

    async def stop(self, order: Sequence[Sequence[str]] | None = None) -> None:
        """Stop group after group: SIGTERM, then SIGKILL after the process's own `stop_seconds`.

        Without `order`, whatever is left goes in reverse order of starting.
        """
        for child in self._children.values():
            child.stopping.set()  # from here on nothing is started again, whichever group it is in
        for group in order if order is not None else list(reversed(self._stages)):
            async with asyncio.TaskGroup() as tasks:
                for child in (self._children[name] for name in group if name in self._children):
                    if not child.gone.is_set():
                        tasks.create_task(self._stop(child), name=f"stop {child.spec.name}")

    def kill(self) -> None:
        """End everything at once."""
        for child in self._children.values():
            child.stopping.set()
            _kill_group(child.process)

    async def _stop(self, child: _Child) -> None:
        loop = asyncio.get_running_loop()
        began = loop.time()
        _terminate(child.process)
        try:
            async with asyncio.timeout(child.spec.stop_seconds):
                await child.gone.wait()
        except TimeoutError:
            self._report(Killed(child.spec.name, loop.time() - began))
            _kill_group(child.process)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(KILL_SECONDS):
                    await child.gone.wait()
        code = child.process.returncode if child.process is not None else 0
        how = "still there" if code is None else describe_exit(code)
        self._report(Stopped(child.spec.name, how, loop.time() - began))

    async def _keep(self, child: _Child) -> None:
        loop = asyncio.get_running_loop()
        failures = starts = 0
        try:
            while not child.stopping.is_set():
                began = loop.time()
                starts += 1
                code, how = await self._run_once(child, is_restart=starts > 1)
                if child.stopping.is_set():
                    return
                if starts == 1 and code == CONFIGURATION_EXIT_CODE:
                    self._report(Refused(child.spec.name))
                    return
                failures = 1 if loop.time() - began >= STEADY_SECONDS else failures + 1
                delay = restart_delay_seconds(failures)
                self._report(Died(child.spec.name, how, delay))
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(delay):
                        await child.stopping.wait()
        finally:
            child.gone.set()

    async def _run_once(self, child: _Child, is_restart: bool) -> tuple[int, str]:
        try:
            process = child.process = await self._spawn(child.spec)
        except OSError as exc:  # no memory, too many processes or files: may pass
            return 1, f"cannot be started: {exc}"
        self._report(Started(child.spec.name, process.pid, is_restart))
        if child.stopping.is_set():  # asked while it was being started
            _terminate(process)
        assert process.stdout is not None  # noqa: S101  # both are pipes, see _spawn
        assert process.stderr is not None  # noqa: S101
        try:
            async with asyncio.TaskGroup() as tasks:
                readers = [
                    tasks.create_task(self._pass_on(process.stdout, child.spec.name, is_error=False)),
                    tasks.create_task(self._pass_on(process.stderr, child.spec.name, is_error=True)),
                ]
                code = await process.wait()
                # Whoever it left behind (workers of a killed gateway) must not hold its ports and pipes.
                _signal_group(process.pid, signal.SIGKILL)
                _, unfinished = await asyncio.wait(readers, timeout=1.0)
                for reader in unfinished:
                    reader.cancel()
        finally:
            _kill_group(process)
        return code, describe_exit(code)

    async def _spawn(self, spec: ProcessSpec) -> OsProcess:
        return await asyncio.create_subprocess_exec(
            sys.executable,
            *spec.command,
            env={**spec.environ, LIFELINE_VARIABLE: str(self._lifeline)},
            stdin=asyncio.subprocess.DEVNULL,
            stdout=PIPE,
            stderr=PIPE,
            pass_fds=(self._lifeline,),
            start_new_session=True,
        )

    async def _pass_on(self, stream: asyncio.StreamReader, name: str, is_error: bool) -> None:
        async for text in lines(stream):
            self._report(Line(name, text, is_error))


async def lines(stream: asyncio.StreamReader) -> AsyncIterator[str]:
    """Lines of any length; what is beyond MAX_LINE_BYTES of one line is left out."""
    rest = b""
    is_overlong = False
    while block := await stream.read(65536):
        *whole, rest = (rest + block).split(b"\n")
        for line in whole:
            if not is_overlong:
                yield _decode(line)
            is_overlong = False
        if len(rest) > MAX_LINE_BYTES:
            if not is_overlong:
                yield _decode(rest)
            rest, is_overlong = b"", True
    if rest and not is_overlong:
        yield _decode(rest)


def _decode(line: bytes) -> str:
    return line[:MAX_LINE_BYTES].decode("utf-8", "replace").rstrip("\r")


def _terminate(process: OsProcess | None) -> None:
    if process is not None and process.returncode is None:
        with contextlib.suppress(ProcessLookupError):
            process.terminate()


def _kill_group(process: OsProcess | None) -> None:
    if process is not None and process.returncode is None:
        _signal_group(process.pid, signal.SIGKILL)


def _signal_group(pid: int, number: signal.Signals) -> None:
    """To the child and everything it started: its session is its process group."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, number)


async def until_ready(
    probes: Mapping[str, Callable[[], Awaitable[str]]],
    every_seconds: float = 0.1,
    on_late: Callable[[Mapping[str, str]], None] | None = None,
    late_after_seconds: float = 20.0,
) -> None:
    """Ask every probe until it answers "" (ready); another answer says why not.

    After `late_after_seconds`, and whenever the reasons change from then on, `on_late` gets them; the wait goes on.
    """
    loop = asyncio.get_running_loop()
    late_at = loop.time() + late_after_seconds
    waiting = dict(probes)
    told: Mapping[str, str] = {}
    while True:
        reasons = {name: reason for name, probe in waiting.items() if (reason := await probe())}
        waiting = {name: waiting[name] for name in reasons}
        if not waiting:
            return
        if on_late is not None and loop.time() >= late_at and reasons != told:
            told = reasons
            on_late(reasons)
        await asyncio.sleep(every_seconds)
