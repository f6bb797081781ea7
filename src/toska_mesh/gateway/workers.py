"""`GATEWAY_WORKERS`: several processes behind one port, under one supervisor.

The supervisor owns the listening socket and hands it to its workers, so the kernel's queue of new connections outlives
each of them: a dead worker takes only the requests that it held, and on SIGHUP a new generation of workers takes over
from the same queue before the old one drains. A newly started gateway takes over in the same way (`handover`). It also
serves the one admin port, putting the workers' answers together. It is not in the path of requests.
"""

import asyncio
import contextlib
import os
import signal
import socket
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
import orjson
from aiohttp import web
from prometheus_client.exposition import generate_latest

from toska_mesh.admin import AdminServer, Health, HealthState, json_response
from toska_mesh.errors import ConfigError
from toska_mesh.gateway.adminapi import config_handler, no_table
from toska_mesh.gateway.handover import HandoverError, HandoverServer, Predecessor, Sockets, find_predecessor, listen
from toska_mesh.gateway.listener import addresses, bind, bind_all
from toska_mesh.gateway.merge import MergedMetrics, merge_instances
from toska_mesh.gateway.settings import GatewaySettings
from toska_mesh.gateway.sharedlimit import create_table
from toska_mesh.telemetry import event_log

CHECK = "workers"
POLL_SECONDS = 0.5
READY_SECONDS = 30.0
"""How long a new generation, or a new gateway, may take to become ready before the old one is kept after all."""
MAX_ADDRESSES = 8
"""Of the admin host; more than one for names such as localhost."""

FIRST_PAUSE_SECONDS = 0.5
LONGEST_PAUSE_SECONDS = 10.0
STABLE_SECONDS = 10.0
"""A worker that lived so long is started again at once when it dies."""

EXIT_MARGIN_SECONDS = 5.0

PULSE_SECONDS = 3.0
"""How often a worker is asked for a sign of life."""
SILENT_SECONDS = 15.0
"""How long it may take for that: far longer than a collection of garbage, a new table or a short look in a debugger."""
MAX_SILENCES = 2
"""In a row, then it is replaced. Not one: when a whole container was paused, the clock is ahead of the answer."""

_ASK_TIMEOUT = aiohttp.ClientTimeout(total=3)
_WRONG_CONFIGURATION = 2

log = event_log("gateway.workers")


@dataclass(eq=False)
class Worker:
    """One process and its admin socket."""

    number: int
    generation: int
    socket_path: str
    process: asyncio.subprocess.Process
    started_at: float
    is_ready: bool = False
    is_leaving: bool = False
    checks: Sequence[Mapping[str, Any]] = ()
    """What its `/health/ready` said last."""
    session: aiohttp.ClientSession = field(init=False)

    def __post_init__(self) -> None:
        self.session = aiohttp.ClientSession(connector=aiohttp.UnixConnector(self.socket_path), timeout=_ASK_TIMEOUT)

    async def ask(self, path: str) -> tuple[int, str]:
        """Status and body of one of its admin paths; status 0 when it does not answer."""
        if self.session.closed:
            return 0, ""  # it ended while the one who asks was going through the list
        try:
            async with self.session.get(f"http://worker{path}") as answer:
                return answer.status, await answer.text()
        except (aiohttp.ClientError, TimeoutError, OSError, UnicodeDecodeError):
            return 0, ""

    async def look(self) -> None:
        """Ask whether it is ready, and what its checks say."""
        status, body = await self.ask("/health/ready")
        self.is_ready = status == 200
        try:
            self.checks = orjson.loads(body)["checks"] if status else ()
        except (ValueError, KeyError, TypeError):
            self.checks = ()  # the page of an error
            log.warning("worker_not_understood", worker=self.number, pid=self.process.pid, status=status)

    async def until_hung(self) -> None:
        """Until its event loop stands still: connections to it are made, by the kernel, and nothing is answered.

        Whatever else can be wrong with it, such as too few descriptors here or there, is no reason to end it.
        """
        silences = 0
        while silences < MAX_SILENCES:
            try:
                timeout = aiohttp.ClientTimeout(total=SILENT_SECONDS)
                async with self.session.get("http://worker/health/live", timeout=timeout):
                    silences = 0
            except TimeoutError:
                silences += 1
                continue
            except (aiohttp.ClientError, OSError):
                pass  # not there yet, or ending: others wait for that
            await asyncio.sleep(PULSE_SECONDS)


class Supervisor:
    """Keeps the wanted number of workers alive. Owner of the listening socket and of all worker processes."""

    def __init__(
        self,
        settings: GatewaySettings,
        tasks: asyncio.TaskGroup,
        folder: Path,
        health: Health,
        sockets: Sockets | None = None,
        is_successor: bool = False,
    ) -> None:
        """`sockets`: those of `open_sockets`. `is_successor`: another gateway still serves."""
        self._settings = settings
        self._tasks = tasks
        self._folder = folder
        self._health = health
        self.sockets = sockets or Sockets(listener=[bind(settings)])
        if self.sockets.limit_table is None:
            self.sockets.limit_table = create_table()
        self._socket = self.sockets.listener[0]
        self._limit = self.sockets.limit_table
        self._others_serve = is_successor
        self._has_been_ready = False
        self._lifeline, self._lifeline_end = os.pipe()
        self._generation = 0
        """The one that shall serve: a worker that dies is started again in it."""
        self._newest_generation = 0
        self._being_started: set[tuple[int, int]] = set()
        """Generation and number of workers whose process does not exist yet."""
        self._replacing = asyncio.Lock()
        self._stopping = asyncio.Event()
        self._news = asyncio.Event()
        """Set whenever a worker ended or the readiness of the workers was looked at."""
        self._pauses: dict[int, float] = {}
        """How long a worker that keeps dying waits for its next life, by number."""
        self.workers: list[Worker] = []
        self.port = int(self._socket.getsockname()[1])

    # -- life

    async def start(self) -> None:
        """Begin to start the first generation. Its readiness is told by `watch`."""
        self._generation = self._newest_generation = 1
        self._fill(self._generation)

    async def watch(self) -> None:
        """Until cancelled: know which workers are ready, and say so."""
        while True:
            try:
                for worker in list(self.workers):
                    await worker.look()
                    self._has_been_ready |= worker.is_ready
                self._say_health()
            except Exception:
                log.exception("workers_not_watched")  # no answer of one worker may end the watch over all
            self._news.set()
            await asyncio.sleep(POLL_SECONDS)

    async def until_ready(self, stop: asyncio.Event | None = None) -> bool:
        """Whether all workers became ready in `READY_SECONDS`. A stop ends the wait."""
        stops = [self._stopping] if stop is None else [self._stopping, stop]

        def is_over() -> bool:
            return any(event.is_set() for event in stops)

        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(READY_SECONDS):
                # By number, not by process: one that dies meanwhile is started again in the same generation.
                await self._until(lambda: is_over() or self._ready_numbers(self._generation) == set(self._numbers))
                return not is_over()
        return False

    def predecessor_left(self) -> None:
        """From now on a worker without a table may be the only one there is."""
        self._others_serve = False

    async def replace(self) -> None:
        """A new generation takes over: all of it is ready before the old one is asked to drain."""
        async with self._replacing:
            if self._stopping.is_set():
                return
            before = self._generation
            self._newest_generation += 1
            self._generation = self._newest_generation
            log.info("workers_replaced", generation=self._generation)
            self._fill(self._generation)
            if not await self.until_ready() and not self._stopping.is_set():
                log.error("new_workers_not_ready", seconds=READY_SECONDS, consequence="the old ones are kept")
                self._generation = before
                self._dismiss_other_generations()
                self._fill(before)  # an old one that died meanwhile was not started again
                return
            if not self._stopping.is_set():
                self._dismiss_other_generations()

    async def stop(self) -> None:
        """Drain all workers and wait for them; what does not end in time is killed."""
        self._stopping.set()
        self._news.set()
        self._health.start_draining()
        self._socket.close()  # the workers take what is left in the queue and close theirs
        self._ask_to_leave(self.workers)
        try:
            async with asyncio.timeout(self._settings.drain_seconds + EXIT_MARGIN_SECONDS):
                await self._until(lambda: not self.workers and not self._being_started)
        except TimeoutError:
            for worker in self.workers:
                log.error("worker_killed", worker=worker.number, pid=worker.process.pid)
                with contextlib.suppress(ProcessLookupError):
                    worker.process.kill()
        os.close(self._lifeline_end)

    async def _until(self, is_so: Callable[[], bool]) -> None:
        while not is_so():
            self._news.clear()
            await self._news.wait()

    @property
    def _numbers(self) -> range:
        return range(1, self._settings.worker_count + 1)

    def _of_generation(self, generation: int) -> list[Worker]:
        return [worker for worker in self.workers if worker.generation == generation and not worker.is_leaving]

    def _ready_numbers(self, generation: int) -> set[int]:
        return {worker.number for worker in self._of_generation(generation) if worker.is_ready}

    def _dismiss_other_generations(self) -> None:
        self._ask_to_leave(
            [worker for worker in self.workers if worker.generation != self._generation and not worker.is_leaving]
        )

    def _fill(self, generation: int) -> None:
        """Begin to start those workers of the generation that are not there."""
        for number in self._numbers:
            self._tasks.create_task(
                self._start_if_missing(number, generation), name=f"start worker {generation}.{number}"
            )

    async def _start_if_missing(self, number: int, generation: int) -> None:
        is_there = any(worker.number == number for worker in self._of_generation(generation))
        if is_there or (generation, number) in self._being_started or self._stopping.is_set():
            return
        self._being_started.add((generation, number))
        try:
            worker = await self._spawn_patiently(number, generation)
        finally:
            self._being_started.discard((generation, number))
            self._news.set()
        if worker is None:
            return
        if generation != self._generation or self._stopping.is_set():
            self._ask_to_leave([worker])  # the decision changed while the process was being made

    def _ask_to_leave(self, workers: Sequence[Worker]) -> None:
        for worker in workers:
            worker.is_leaving = True
            with contextlib.suppress(ProcessLookupError):
                worker.process.send_signal(signal.SIGTERM)

    async def _spawn_patiently(self, number: int, generation: int) -> Worker | None:
        """Try until it works; None when nobody wants the worker any more.

        There may be no memory or no room for a process just now, and the workers that are there serve on.
        """
        pause = FIRST_PAUSE_SECONDS
        while not self._stopping.is_set() and generation == self._generation:
            try:
                return await self._spawn(number, generation)
            except OSError as exc:
                log.error(
                    "worker_not_started",
                    worker=number,
                    generation=generation,
                    error=f"{type(exc).__name__}: {exc}",
                    again_in_seconds=pause,
                )
            await self._sleep_unless_stopping(pause)
            pause = min(pause * 2, LONGEST_PAUSE_SECONDS)
        return None

    async def _sleep_unless_stopping(self, seconds: float) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._stopping.wait()

    async def _spawn(self, number: int, generation: int) -> Worker:
        path = str(self._folder / f"worker-{generation}-{number}.sock")
        descriptors = (self._socket.fileno(), self._limit, self._lifeline)
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path)
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-P",
            "-m",
            "toska_mesh.gateway.worker",
            *map(str, descriptors),
            path,
            str(int(self._others_serve or any(worker.is_ready for worker in self.workers))),
            pass_fds=descriptors,
            stdin=asyncio.subprocess.DEVNULL,
        )
        worker = Worker(number, generation, path, process, asyncio.get_running_loop().time())
        self.workers.append(worker)
        log.info("worker_started", worker=number, generation=generation, pid=process.pid)
        self._tasks.create_task(self._mourn(worker), name=f"worker {generation}.{number}")
        return worker

    async def _mourn(self, worker: Worker) -> None:
        """Wait for the end of a worker and replace it, unless it was asked to leave."""
        watching = self._tasks.create_task(
            self._end_if_hung(worker), name=f"feel the pulse of worker {worker.generation}.{worker.number}"
        )
        code = await worker.process.wait()
        watching.cancel()
        self.workers.remove(worker)
        self._news.set()
        await worker.session.close()
        if worker.is_leaving or self._stopping.is_set():
            log.info("worker_left", worker=worker.number, generation=worker.generation, code=code)
            return
        lived = asyncio.get_running_loop().time() - worker.started_at
        if code == _WRONG_CONFIGURATION and not self._has_been_ready:
            raise ConfigError("a worker refused its configuration; its words stand above")
        log.error("worker_died", worker=worker.number, pid=worker.process.pid, code=code, lived_seconds=round(lived, 1))
        pause = 0.0
        if lived < STABLE_SECONDS:
            pause = min(self._pauses.get(worker.number, FIRST_PAUSE_SECONDS / 2) * 2, LONGEST_PAUSE_SECONDS)
        self._pauses[worker.number] = pause
        await self._sleep_unless_stopping(pause)
        await self._start_if_missing(worker.number, self._generation)

    async def _end_if_hung(self, worker: Worker) -> None:
        """A request to leave would not reach it any more. Its end is then met like any other."""
        await worker.until_hung()
        log.error(
            "worker_hung",
            worker=worker.number,
            pid=worker.process.pid,
            silent_seconds=MAX_SILENCES * SILENT_SECONDS,
            consequence="it is killed",
        )
        with contextlib.suppress(ProcessLookupError):
            worker.process.kill()

    def _say_health(self) -> None:
        serving = [worker for worker in self.workers if not worker.is_leaving]
        ready = sum(worker.is_ready for worker in serving)
        state = HealthState.HEALTHY if ready == self._settings.worker_count else HealthState.DEGRADED
        if not ready:
            state = HealthState.UNHEALTHY
        self._health.set(CHECK, state, f"{ready} of {self._settings.worker_count} workers are ready")
        for name, why in sorted(_troubles(serving).items()):
            self._health.set(name, HealthState.DEGRADED if why else HealthState.HEALTHY, why)

    # -- the admin API of all

    def routes(self) -> list[web.RouteDef]:
        """`/metrics`, `/routes`, `/instances`, `/tasks`, `/config`, `/workers`."""
        return [
            web.get("/metrics", self._metrics),
            web.get("/routes", self._of_any),
            web.get("/instances", self._instances),
            web.get("/tasks", self._tasks_of_all),
            web.get("/workers", self._describe),
            web.get("/config", config_handler(self._settings)),
        ]

    async def _ask_all(self, path: str) -> dict[Worker, str]:
        answers: dict[Worker, str] = {}

        async def ask(worker: Worker) -> None:
            status, body = await worker.ask(path)
            if status == 200:
                answers[worker] = body

        async with asyncio.TaskGroup() as tasks:
            for worker in self.workers:
                tasks.create_task(ask(worker), name=f"ask worker {worker.number}")
        return answers

    async def _metrics(self, request: web.Request) -> web.StreamResponse:
        answers = await self._ask_all("/metrics")
        merged = MergedMetrics({f"{worker.generation}.{worker.number}": text for worker, text in answers.items()})
        return web.Response(
            body=generate_latest(merged),
            headers={"Content-Type": "text/plain; version=0.0.4; charset=utf-8"},
        )

    async def _of_any(self, request: web.Request) -> web.StreamResponse:
        for worker in sorted(self.workers, key=lambda worker: (not worker.is_ready, worker.is_leaving)):
            status, body = await worker.ask(request.path_qs)
            if status:
                return web.Response(status=status, text=body, content_type="application/json")
        return no_table()

    async def _instances(self, request: web.Request) -> web.StreamResponse:
        answers = await self._ask_all(request.path_qs)
        if not answers:
            return await self._of_any(request)
        return json_response(merge_instances([orjson.loads(body) for body in answers.values()]))

    async def _tasks_of_all(self, request: web.Request) -> web.StreamResponse:
        answers = await self._ask_all("/tasks")
        own = sorted(task.get_name() for task in asyncio.all_tasks())
        return json_response(
            {"supervisor": own, **{str(worker.number): orjson.loads(body) for worker, body in answers.items()}}
        )

    async def _describe(self, request: web.Request) -> web.StreamResponse:
        now = asyncio.get_running_loop().time()
        return json_response(
            [
                {
                    "worker": worker.number,
                    "generation": worker.generation,
                    "pid": worker.process.pid,
                    "isReady": worker.is_ready,
                    "isLeaving": worker.is_leaving,
                    "ageSeconds": round(now - worker.started_at, 1),
                }
                for worker in self.workers
            ]
        )


def _troubles(workers: Sequence[Worker]) -> dict[str, str]:
    """By check of the workers, what they say when it is not healthy; empty when it is.

    Not more than Degraded here: whether anybody serves is the supervisor's own check.
    """
    troubles: dict[str, str] = {}
    for worker in workers:
        for check in worker.checks:
            is_well = check["status"] == HealthState.HEALTHY.value
            told = "" if is_well else f"worker {worker.number}: {check['description'] or check['status']}"
            troubles[check["name"]] = troubles.get(check["name"]) or told
    troubles.pop("drain", None)
    return troubles


def open_sockets(settings: GatewaySettings, offered: Sockets) -> Sockets:
    """The sockets that the settings want: those that were offered where they fit, else new ones. Closes the others.

    Raises ConfigError for a port that cannot be had.
    """
    wanted = Sockets(limit_table=offered.limit_table)
    try:
        wanted.listener = _fitting(offered.listener, settings.host, settings.port, "GATEWAY_PORT", 1)
        wanted.admin = _fitting(
            offered.admin, settings.admin_host, settings.admin_port, "GATEWAY_ADMIN_PORT", MAX_ADDRESSES
        )
        if settings.handover_path:
            wanted.handover = offered.handover or [listen(settings.handover_path)]
    except BaseException:
        wanted.close()
        offered.limit_table = None
        offered.close()
        raise
    return wanted


def _fitting(offered: Sequence[socket.socket], host: str, port: int, variable: str, count: int) -> list[socket.socket]:
    places = {place[4] for place in addresses(host, port, variable)[:count]}
    taken = {sock.getsockname() if port else (sock.getsockname()[0], 0, *sock.getsockname()[2:]) for sock in offered}
    if offered and taken == places:
        return list(offered)
    for sock in offered:
        sock.close()
    return bind_all(host, port, variable, count)


def refuse_to_replace() -> None:
    """SIGHUP to a gateway that is one process: say what it would take, and go on serving."""
    log.warning(
        "one_worker_cannot_be_replaced",
        consequence="nothing happens; the settings stay as they are",
        remedy="set GATEWAY_HANDOVER_PATH, or GATEWAY_WORKERS above 1, and restart: from then on it can be",
    )


async def supervise(settings: GatewaySettings, stop: asyncio.Event) -> None:
    """Run the workers until `stop` is set, then drain them. SIGHUP replaces them without a failed request.

    With a handover path, take over from the gateway that runs already, and later hand over to the next one.
    Raises HandoverError when there is one that could not be taken over from.
    """
    path = settings.handover_path
    predecessor = await asyncio.to_thread(find_predecessor, path) if path else None
    health = Health(awaited=[CHECK])
    with tempfile.TemporaryDirectory(prefix="toska-gateway-") as folder:
        async with asyncio.TaskGroup() as tasks:
            sockets = open_sockets(settings, predecessor.sockets if predecessor is not None else Sockets())
            supervisor = Supervisor(settings, tasks, Path(folder), health, sockets, predecessor is not None)
            await supervisor.start()
            watching = tasks.create_task(supervisor.watch(), name="watch workers")
            if predecessor is None or await _succeed(predecessor, supervisor, stop):
                await _reign(settings, supervisor, tasks, health, stop)
            watching.cancel()


async def _succeed(predecessor: Predecessor, supervisor: Supervisor, stop: asyncio.Event) -> bool:
    """Wait until our workers are ready, then let the running gateway go. False when we were stopped before that."""
    log.info("taking_over", pid=predecessor.pid, version=predecessor.version)
    if await supervisor.until_ready(stop):
        await predecessor.dismiss()
        supervisor.predecessor_left()
        log.info("took_over", pid=predecessor.pid, version=predecessor.version)
        return True
    predecessor.close()
    await supervisor.stop()
    if stop.is_set():
        return False
    raise HandoverError(
        f"the new workers did not become ready within {READY_SECONDS:g} seconds; the gateway with process id "
        f"{predecessor.pid} goes on"
    )


async def _reign(
    settings: GatewaySettings,
    supervisor: Supervisor,
    tasks: asyncio.TaskGroup,
    health: Health,
    stop: asyncio.Event,
) -> None:
    """Serve the admin port and let others take over, until `stop` is set."""
    loop = asyncio.get_running_loop()
    sockets = supervisor.sockets
    # The server closes what it serves on; the originals are there to be handed over.
    admin = AdminServer(
        settings.admin_host,
        settings.admin_port,
        variable="GATEWAY_ADMIN_PORT",
        health=health,
        metrics=None,
        routes=supervisor.routes(),
        listening=[sock.dup() for sock in sockets.admin],
    )
    has_handed_over = False

    async def step_down() -> None:
        nonlocal has_handed_over
        has_handed_over = True
        await admin.close()
        stop.set()

    async with admin:
        loop.add_signal_handler(signal.SIGHUP, lambda: tasks.create_task(supervisor.replace(), name="replace workers"))
        log.info("workers_serve", port=supervisor.port, workers=settings.worker_count)
        handing_over = None
        if sockets.handover:
            server = HandoverServer(
                sockets.handover[0], lambda: sockets, step_down, READY_SECONDS + EXIT_MARGIN_SECONDS
            )
            handing_over = tasks.create_task(server.run(), name="hand over")
        try:
            await stop.wait()
            await supervisor.stop()
        finally:
            if handing_over is not None:
                handing_over.cancel()
                if not has_handed_over:
                    with contextlib.suppress(OSError):
                        os.unlink(settings.handover_path)
            for sock in (*sockets.admin, *sockets.handover):
                sock.close()
