"""`toska up`: carry out a plan. Checks ports and folders, starts stage after stage, shows what happens, stops in order.

Exit codes: 0 after a stop that was asked for, 1 when the machine does not allow it, 2 for a wrong configuration,
130 when a second Ctrl-C ended everything hard.
"""

import asyncio
import contextlib
import errno
import fcntl
import os
import signal
import socket
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from pathlib import Path

import aiohttp

from toska_mesh.cli.plan import Plan, PortUse
from toska_mesh.cli.supervisor import Died, Happening, Line, Refused, Supervisor, until_ready
from toska_mesh.cli.view import View, parse
from toska_mesh.errors import ConfigError

PROBE_SECONDS = 2.0
LATE_SECONDS = 8.0
HARD_EXIT_CODE = 130
_LOCK_NAME = "up.lock"
_NOT_YET = frozenset({404, 502, 503, 504})
"""What a gateway answers while the sample's route is on its way."""


def check_ports(ports: Sequence[PortUse], folder: Path) -> None:
    """Raises ConfigError that names every port that cannot be opened, with its variable, and the mesh that has them."""
    problems = [problem for use in ports if (problem := _problem_with(use))]
    if problems:
        problems += [other] if (other := other_mesh(folder)) else []
        raise ConfigError("\n".join(problems))


def _problem_with(use: PortUse) -> str:
    try:
        found = socket.getaddrinfo(use.host or None, use.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        family, kind, protocol, _, address = found[0]
        with socket.socket(family, kind, protocol) as probe:
            # As the servers do it: a port whose last connections are still in TIME_WAIT is free.
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
            probe.listen()
    except socket.gaierror:
        return f"the bind address {use.host!r} for port {use.port} ({use.variable}) is not known on this machine"
    except OSError as exc:
        if exc.errno == errno.EADDRINUSE:
            return f"port {use.port} is in use by another program; stop it or set {use.variable} to a free port"
        if exc.errno == errno.EACCES:
            return f"port {use.port} may not be opened by this user; set {use.variable} to a port above 1023"
        return f"port {use.port} ({use.variable}) cannot be opened on {use.host}: {exc.strerror}"
    return ""


@contextlib.contextmanager
def data_dir_lock(folder: Path, others: Sequence[Path]) -> Iterator[None]:
    """Make the folders and keep a second mesh out of them; the kernel lets go however this process ends."""
    lock = folder / _LOCK_NAME
    try:
        for made in (folder, *others):
            made.mkdir(parents=True, exist_ok=True, mode=0o700)
        handle = os.open(lock, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
    except OSError as exc:
        raise ConfigError(
            f"the data folder {folder} cannot be used: {exc.strerror}; choose another --data-dir"
        ) from exc
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as exc:
            raise ConfigError(
                f"the data folder {folder} is in use by another `toska up` (pid {_owner(handle)}); stop it or choose"
                " another --data-dir"
            ) from exc
        os.ftruncate(handle, 0)
        os.pwrite(handle, f"{os.getpid()}\n".encode(), 0)
        yield
    finally:
        os.close(handle)


def other_mesh(folder: Path) -> str:
    """A line about another `toska up` with this data folder, or "" when there is none."""
    try:
        handle = os.open(folder / _LOCK_NAME, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return ""
    try:
        fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError:
        return f"another `toska up` is running (pid {_owner(handle)})"
    else:
        return ""
    finally:
        os.close(handle)


def _owner(handle: int) -> str:
    return os.pread(handle, 20, 0).decode("ascii", "replace").strip()


class Up:
    """One run. Owns the two requests people can make (stop, stop at once) and what became ready."""

    def __init__(self, plan: Plan, view: View) -> None:
        self._plan = plan
        self._view = view
        self._stop = asyncio.Event()
        self._joined: set[str] = set()
        self._exit_code = 0

    async def run(self) -> int:
        """Until a signal asks to stop, or a child refuses its configuration. Gives the exit code."""
        async with (
            aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=PROBE_SECONDS)) as client,
            Supervisor(self._take) as supervisor,
        ):
            with self._signals(supervisor):
                for stage in self._plan.stages:
                    supervisor.start(stage)
                    probes = {spec.name: self._probe(client, spec.name) for spec in stage}
                    if not await self._reach(probes):
                        break
                else:
                    if await self._reach(self._end_to_end(client)):
                        self._announce()
                        await self._stop.wait()
                await supervisor.stop(self._plan.stop_order)
        return self._exit_code

    def _take(self, happening: Happening) -> None:
        self._view.show(happening)
        match happening:
            case Line(process, text) if process in self._plan.samples:
                event = parse(text)
                if event is not None and event.name == "registered":
                    self._joined.add(process)
            case Died(process):
                self._joined.discard(process)
            case Refused():
                self._exit_code = 2
                self._stop.set()
            case _:
                pass

    @contextlib.contextmanager
    def _signals(self, supervisor: Supervisor) -> Iterator[None]:
        loop = asyncio.get_running_loop()
        numbers = [signal.SIGINT, signal.SIGTERM]
        if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:  # `nohup toska up` outlives its terminal
            numbers.append(signal.SIGHUP)

        def ask(name: str) -> None:
            if self._stop.is_set():
                self._exit_code = HARD_EXIT_CODE
                self._view.say(f"{name} again: ending everything at once", "warning", event="kill_requested")
                supervisor.kill()
                return
            self._view.say(f"{name}: stopping, once more to stop at once", event="stop_requested", signal=name)
            self._stop.set()

        for number in numbers:
            loop.add_signal_handler(number, ask, number.name)
        try:
            yield
        finally:
            for number in numbers:
                loop.remove_signal_handler(number)

    async def _reach(self, probes: Mapping[str, Callable[[], Awaitable[str]]]) -> bool:
        """Wait until all probes are content; False when a stop was asked for first."""
        async with asyncio.TaskGroup() as tasks:
            ready = tasks.create_task(until_ready(probes, on_late=self._say_late, late_after_seconds=LATE_SECONDS))
            stopping = tasks.create_task(self._stop.wait())
            await asyncio.wait((ready, stopping), return_when=asyncio.FIRST_COMPLETED)
            is_ready = ready.done() and not self._stop.is_set()
            ready.cancel()
            stopping.cancel()
        return is_ready

    def _say_late(self, reasons: Mapping[str, str]) -> None:
        for name, reason in reasons.items():
            self._view.say(f"{name} is not ready: {reason}", "warning", event="not_ready", process=name, reason=reason)

    def _probe(self, client: aiohttp.ClientSession, name: str) -> Callable[[], Awaitable[str]]:
        async def has_joined() -> str:
            return "" if name in self._joined else "it has not registered yet"

        async def answers_ready() -> str:
            return await reason_not_ready(client, url)

        url = self._plan.ready_urls.get(name, "")
        return answers_ready if url else has_joined

    def _end_to_end(self, client: aiohttp.ClientSession) -> Mapping[str, Callable[[], Awaitable[str]]]:
        url = self._plan.try_url

        async def routed() -> str:
            try:
                async with client.get(url, ssl=False) as answer:
                    return f"{url} answers {answer.status}" if answer.status in _NOT_YET else ""
            except (aiohttp.ClientError, TimeoutError) as exc:
                return f"{url} does not answer ({type(exc).__name__})"

        return {"the route to hello": routed} if url else {}

    def _announce(self) -> None:
        links = self._plan.links
        self._view.say(
            "ready", event="mesh_ready", **{name.replace(", ", "_").replace(" ", "_"): u for name, u in links}
        )
        words = []
        if self._plan.exports:
            words += ["For services and commands in other terminals:", *map("  {}".format, self._plan.exports), ""]
        if self._plan.try_line:
            words.append(f"Try it:  {self._plan.try_line}")
        self._view.show_table("The mesh is ready", links, [*words, "Ctrl-C stops everything."])


async def reason_not_ready(client: aiohttp.ClientSession, url: str) -> str:
    """Ask a `/health/ready` path: "" when ready, else what its checks say."""
    try:
        async with client.get(url) as answer:
            if answer.status == 200:
                return ""
            body = await answer.json(content_type=None)
    except (aiohttp.ClientConnectionError, TimeoutError):
        return f"{url} does not answer"
    except (aiohttp.ClientError, ValueError) as exc:
        return f"{url} answers something else ({type(exc).__name__})"
    checks = body.get("checks") if isinstance(body, dict) else None
    reasons = [
        f"{check.get('name')}: {check.get('description') or check.get('status')}"
        for check in (checks if isinstance(checks, list) else [])
        if isinstance(check, dict) and check.get("status") != "Healthy"
    ]
    return "; ".join(reasons) or f"{url} answers {answer.status}"
