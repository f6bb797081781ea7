"""`GATEWAY_WORKERS`: several processes behind one port, replaced without a failed request."""

import asyncio
import contextlib
import errno
import os
import signal
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
from tests.integration.gateway.daemons import Gateway, hello, start
from tests.support.servers import RegistryServer, http_get
from tests.support.wait import eventually

from toska_mesh.admin import Health
from toska_mesh.gateway import workers
from toska_mesh.gateway.settings import GatewaySettings
from toska_mesh.settings import load

__all__ = ["hello", "start"]


async def test_a_new_generation_takes_over_without_a_failed_request(start: Callable[..., Gateway]) -> None:
    gateway = await asyncio.to_thread(start)
    await eventually(lambda: len(gateway.serving()) == 2)
    before = {worker["pid"] for worker in gateway.serving()}
    stop = asyncio.Event()
    async with asyncio.TaskGroup() as tasks:
        load = tasks.create_task(gateway.load(stop))
        await asyncio.sleep(0.3)
        os.kill(gateway.daemon.pid, signal.SIGHUP)
        await eventually(
            lambda: (
                len(gateway.admin("/workers")) == 2 and before.isdisjoint(worker["pid"] for worker in gateway.serving())
            ),
            30,
        )
        stop.set()
    assert set(load.result()) == {"200"}
    gateway.daemon.assert_clean_exit()


@pytest.mark.parametrize("generation", [1, 2], ids=["an old one", "a new one"])
async def test_a_worker_that_dies_while_they_are_replaced_changes_nothing(
    start: Callable[..., Gateway], generation: int
) -> None:
    gateway = await asyncio.to_thread(start)
    await eventually(lambda: len(gateway.serving()) == 2)
    os.kill(gateway.daemon.pid, signal.SIGHUP)

    def victims() -> list[int]:
        workers = gateway.admin("/workers")
        if not any(worker["generation"] == 2 for worker in workers):
            return []
        return [worker["pid"] for worker in workers if worker["generation"] == generation and not worker["isLeaving"]]

    pid = (await eventually(victims, 10))[0]
    os.kill(pid, signal.SIGKILL)

    def is_settled() -> bool:
        workers = gateway.admin("/workers")
        return sorted(worker["worker"] for worker in workers) == [1, 2] and all(
            worker["generation"] == 2 and worker["isReady"] and not worker["isLeaving"] for worker in workers
        )

    await eventually(is_settled, 30)
    await eventually(lambda: any(died["pid"] == pid for died in gateway.daemon.events("worker_died")))
    await asyncio.sleep(1.0)  # longer than the pause before a worker's next life
    assert is_settled()
    assert not gateway.daemon.events("new_workers_not_ready")
    gateway.daemon.assert_clean_exit()


async def test_new_workers_that_do_not_come_up_leave_the_old_ones_in_place(
    hello: RegistryServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A setting went bad since the start, and an old worker dies while the new ones try."""
    environment = {
        "CONSUL_ADDRESS": hello.url,
        "GATEWAY_HOST": "127.0.0.1",
        "GATEWAY_PORT": "0",
        "GATEWAY_WORKERS": "2",
        "GATEWAY_DRAIN_SECONDS": "1",
    }
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(workers, "READY_SECONDS", 2.0)
    async with asyncio.TaskGroup() as tasks:
        supervisor = workers.Supervisor(load(GatewaySettings, environment).settings, tasks, tmp_path, Health())
        try:
            await supervisor.start()
            watching = tasks.create_task(supervisor.watch())

            def serving() -> set[tuple[int, int]]:
                return {(worker.generation, worker.number) for worker in supervisor.workers if worker.is_ready}

            await eventually(lambda: serving() == {(1, 1), (1, 2)}, 20)
            first, second = supervisor.workers
            monkeypatch.setenv("GATEWAY_RETRY_COUNT", "many")
            replacing = tasks.create_task(supervisor.replace())
            await eventually(lambda: len(supervisor.workers) == 4)
            first.process.kill()
            await replacing
            monkeypatch.delenv("GATEWAY_RETRY_COUNT")
            await eventually(lambda: serving() == {(1, 1), (1, 2)} and len(supervisor.workers) == 2, 30)
            assert second in supervisor.workers
            assert first not in supervisor.workers

            monkeypatch.setattr(workers, "READY_SECONDS", 30.0)
            await supervisor.replace()
            await eventually(lambda: serving() == {(3, 1), (3, 2)} and len(supervisor.workers) == 2, 20)
            await supervisor.stop()
            assert not supervisor.workers
            watching.cancel()
        except BaseException:
            for worker in supervisor.workers:  # else the loop would wait for them when it closes
                worker.process.kill()
            raise


async def test_a_stop_does_not_wait_for_a_replacement(start: Callable[..., Gateway]) -> None:
    gateway = await asyncio.to_thread(start)
    await eventually(lambda: len(gateway.serving()) == 2)
    os.kill(gateway.daemon.pid, signal.SIGHUP)
    await eventually(lambda: len(gateway.admin("/workers")) > 2)
    await asyncio.to_thread(gateway.daemon.assert_clean_exit)


async def test_one_worker_says_that_it_cannot_be_replaced_and_serves_on(start: Callable[..., Gateway]) -> None:
    gateway = await asyncio.to_thread(start, GATEWAY_WORKERS="1")
    os.kill(gateway.daemon.pid, signal.SIGHUP)
    await eventually(lambda: gateway.daemon.events("one_worker_cannot_be_replaced"))
    (said,) = gateway.daemon.events("one_worker_cannot_be_replaced")
    assert said["level"] == "warning"
    assert "GATEWAY_WORKERS" in said["remedy"]
    answer = await asyncio.to_thread(http_get, f"http://127.0.0.1:{gateway.port}/api/hello/x")
    assert answer == (200, b"hello")
    gateway.daemon.assert_clean_exit()


async def test_a_dead_worker_is_replaced(start: Callable[..., Gateway]) -> None:
    gateway = await asyncio.to_thread(start)
    await eventually(lambda: len(gateway.serving()) == 2)
    victim = gateway.serving()[0]["pid"]
    os.kill(victim, signal.SIGKILL)
    await eventually(
        lambda: len(gateway.serving()) == 2 and victim not in {worker["pid"] for worker in gateway.serving()}, 20
    )
    (died,) = gateway.daemon.events("worker_died")
    assert died["pid"] == victim


async def test_a_limit_holds_across_workers(start: Callable[..., Gateway]) -> None:
    window = 600
    gateway = await asyncio.to_thread(
        start,
        GATEWAY_RATE_LIMIT_ENABLED="true",
        GATEWAY_RATE_LIMIT_PERMITS="200",
        GATEWAY_RATE_LIMIT_WINDOW_SECONDS=str(window),
    )
    await eventually(lambda: len(gateway.serving()) == 2)
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    began = loop.time()
    async with asyncio.TaskGroup() as tasks:
        load = tasks.create_task(gateway.load(stop))
        await asyncio.sleep(1.0)
        stop.set()
    seen = load.result()
    refilled = (loop.time() - began) * 200 / window
    assert 200 <= seen["200"] <= (200 + refilled) * 1.05 + 1
    assert seen["429"] > 0


async def test_one_metrics_page_and_one_view_of_instances_for_all(start: Callable[..., Gateway]) -> None:
    gateway = await asyncio.to_thread(start)
    await eventually(lambda: len(gateway.serving()) == 2)
    stop = asyncio.Event()
    async with asyncio.TaskGroup() as tasks:
        load = tasks.create_task(gateway.load(stop))
        await asyncio.sleep(0.5)
        stop.set()
    text = http_get(f"http://127.0.0.1:{gateway.admin_port}/metrics")[1].decode()
    (line,) = [line for line in text.splitlines() if line.startswith('toska_gateway_requests_total{service="hello"')]
    assert float(line.split()[-1]) == load.result()["200"]
    (instance,) = gateway.admin("/instances")
    assert instance["id"] == "hello-1"
    assert instance["breakers"] == ["closed", "closed"]
    assert [route["service"] for route in gateway.admin("/routes")["routes"]] == ["hello"]


async def test_the_end_of_the_supervisor_is_the_end_of_its_workers(start: Callable[..., Gateway]) -> None:
    gateway = await asyncio.to_thread(start)
    await eventually(lambda: len(gateway.serving()) == 2)
    pids = [worker["pid"] for worker in gateway.serving()]
    os.kill(gateway.daemon.pid, signal.SIGKILL)

    def are_gone() -> bool:
        return not any(is_alive(pid) for pid in pids)

    await eventually(are_gone, 20)


def is_alive(pid: int) -> bool:
    try:
        with open(f"/proc/{pid}/stat") as stat:
            return stat.read().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


async def test_a_worker_that_has_ended_gives_no_answer_to_one_who_asks_too_late(tmp_path: Path) -> None:
    process = await asyncio.create_subprocess_exec("true")
    worker = workers.Worker(1, 1, str(tmp_path / "worker.sock"), process, 0.0)
    assert await worker.ask("/health/ready") == (0, "")
    await worker.session.close()
    assert await worker.ask("/health/ready") == (0, "")
    await process.wait()


@contextlib.asynccontextmanager
async def supervised(registry: RegistryServer, folder: Path, **more: str) -> AsyncIterator[workers.Supervisor]:
    """A supervisor of two workers in this process, so that a test can take things away from it."""
    environment = {
        "CONSUL_ADDRESS": registry.url,
        "GATEWAY_HOST": "127.0.0.1",
        "GATEWAY_PORT": "0",
        "GATEWAY_WORKERS": "2",
        "GATEWAY_DRAIN_SECONDS": "1",
        "GATEWAY_RATE_LIMIT_ENABLED": "false",
        **more,
    }
    with pytest.MonkeyPatch.context() as patched:
        for name, value in environment.items():
            patched.setenv(name, value)
        async with asyncio.TaskGroup() as tasks:
            supervisor = workers.Supervisor(load(GatewaySettings, environment).settings, tasks, folder, Health())
            try:
                await supervisor.start()
                watching = tasks.create_task(supervisor.watch())
                yield supervisor
                await supervisor.stop()
                watching.cancel()
            except BaseException:
                supervisor._stopping.set()
                for worker in supervisor.workers:  # else the loop would wait for them when it closes
                    worker.process.kill()
                raise


def ready(supervisor: workers.Supervisor) -> set[tuple[int, int]]:
    """Generation and number of the workers that are."""
    return {(worker.generation, worker.number) for worker in supervisor.workers if worker.is_ready}


class Forks:
    """Stands in for `asyncio.create_subprocess_exec`; there may be no memory for a process."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.have_room = True
        self.refused = 0
        self._fork = asyncio.create_subprocess_exec
        monkeypatch.setattr(asyncio, "create_subprocess_exec", self)
        monkeypatch.setattr(workers, "FIRST_PAUSE_SECONDS", 0.05)

    async def __call__(self, *arguments: Any, **options: Any) -> asyncio.subprocess.Process:
        if not self.have_room:
            self.refused += 1
            raise OSError(errno.ENOMEM, "Cannot allocate memory")
        return await self._fork(*arguments, **options)


async def test_a_worker_for_which_there_is_no_room_is_started_when_there_is(
    hello: RegistryServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    forks = Forks(monkeypatch)
    forks.have_room = False
    async with supervised(hello, tmp_path) as supervisor:
        await eventually(lambda: forks.refused >= 4)
        forks.have_room = True
        await eventually(lambda: ready(supervisor) == {(1, 1), (1, 2)}, 20)

        forks.have_room, forks.refused = False, 0
        first, second = supervisor.workers
        first.process.kill()
        await eventually(lambda: forks.refused >= 3)
        assert supervisor.workers == [second]
        forks.have_room = True
        await eventually(lambda: ready(supervisor) == {(1, 1), (1, 2)}, 20)
        assert second in supervisor.workers


async def test_new_workers_for_which_there_is_no_room_leave_the_old_ones_in_place(
    hello: RegistryServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    forks = Forks(monkeypatch)
    async with supervised(hello, tmp_path) as supervisor:
        await eventually(lambda: ready(supervisor) == {(1, 1), (1, 2)}, 20)
        old = set(supervisor.workers)
        forks.have_room = False
        monkeypatch.setattr(workers, "READY_SECONDS", 0.5)
        await supervisor.replace()
        assert forks.refused >= 4
        assert set(supervisor.workers) == old
        assert not any(worker.is_leaving for worker in old)
        await eventually(lambda: not supervisor._being_started)

        forks.have_room = True
        monkeypatch.setattr(workers, "READY_SECONDS", 30.0)
        await supervisor.replace()
        await eventually(lambda: ready(supervisor) == {(3, 1), (3, 2)} and len(supervisor.workers) == 2, 20)

        forks.have_room = False  # and a stop does not wait for room
        supervisor.workers[0].process.kill()
        await eventually(lambda: supervisor._being_started)


@pytest.mark.parametrize("page", ["500 Internal Server Error", "[]", '{"status": "Healthy"}', '{"checks": [1]}'])
async def test_an_answer_that_is_no_report_does_not_end_the_watch(
    hello: RegistryServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, page: str
) -> None:
    ask = workers.Worker.ask
    given = []

    async def answer(worker: workers.Worker, path: str) -> tuple[int, str]:
        if len(given) < 3:
            given.append(worker)
            return 500, page
        return await ask(worker, path)

    monkeypatch.setattr(workers.Worker, "ask", answer)
    async with supervised(hello, tmp_path) as supervisor:
        await eventually(lambda: ready(supervisor) == {(1, 1), (1, 2)}, 20)
        assert len(given) == 3


async def test_a_worker_whose_loop_stands_still_is_replaced_and_a_draining_one_is_not(
    hello: RegistryServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(workers, "PULSE_SECONDS", 0.05)
    monkeypatch.setattr(workers, "SILENT_SECONDS", 2.0)
    async with supervised(hello, tmp_path, GATEWAY_DRAIN_SECONDS="600") as supervisor:
        await eventually(lambda: ready(supervisor) == {(1, 1), (1, 2)}, 20)
        hung, other = supervisor.workers
        os.kill(hung.process.pid, signal.SIGSTOP)
        await eventually(lambda: hung not in supervisor.workers, 20)
        assert hung.process.returncode == -signal.SIGKILL
        await eventually(lambda: ready(supervisor) == {(1, 1), (1, 2)}, 20)
        assert other in supervisor.workers

        os.kill(other.process.pid, signal.SIGSTOP)
        await asyncio.sleep(1.0)  # somebody had a look at it
        os.kill(other.process.pid, signal.SIGCONT)
        _, writer = await asyncio.open_connection("127.0.0.1", supervisor.port)
        writer.write(b"GET /")
        before = list(supervisor.workers)
        await eventually(lambda: all(worker.is_ready for worker in before))
        for worker in before:
            worker.process.send_signal(signal.SIGTERM)
        await asyncio.sleep(5.0)  # longer than one may be silent
        codes = {worker.process.returncode for worker in before}
        assert codes == {None, 0}, "the one that has the client drains, the other has ended by itself"
        writer.close()
