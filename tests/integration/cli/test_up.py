"""`toska up` as a user runs it: the real daemons on free ports, a signal, a death, a taken port."""

import asyncio
import contextlib
import itertools
import json
import os
import re
import signal
import socket
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import aiohttp
import pytest
from tests.support.ports import free_port
from tests.support.servers import ConsulServer, RabbitMQServer
from tests.support.wait import eventually

PORTS = (
    "GATEWAY_PORT",
    "GATEWAY_ADMIN_PORT",
    "DISCOVERY_PORT",
    "DISCOVERY_HTTP_PORT",
    "HEALTHMONITOR_PORT",
    "REGISTRY_PORT",
)
READY_SECONDS = 60.0
DAEMONS = ("registry", "discovery", "healthmonitor", "gateway")
SAMPLES = ("hello-1", "hello-2")


class Mesh:
    """A running `toska up` and everything it has written."""

    def __init__(self, process: asyncio.subprocess.Process, environ: dict[str, str]) -> None:
        self.process = process
        self.environ = environ
        self.lines: list[str] = []

    async def read(self) -> None:
        assert self.process.stdout is not None
        while line := await self.process.stdout.readline():
            self.lines.append(line.decode().rstrip("\n"))

    @property
    def text(self) -> str:
        return "\n".join(self.lines)

    async def says(self, words: str, seconds: float = READY_SECONDS) -> None:
        def has_said() -> bool:
            assert self.process.returncode is None or words in self.text, self.text
            return words in self.text

        await eventually(has_said, seconds, what=f"{words!r} in the log")

    def pid(self, name: str) -> int:
        return int(re.findall(rf"{name} started(?: again)? \(pid (\d+)\)", self.text)[-1])

    def pids(self) -> list[int]:
        return [int(pid) for pid in re.findall(r" started(?: again)? \(pid (\d+)\)", self.text)]

    def url(self, variable: str, path: str = "") -> str:
        return f"http://127.0.0.1:{self.environ[variable]}{path}"

    async def ended(self, seconds: float = 40) -> int:
        async with asyncio.timeout(seconds):
            return await self.process.wait()


def environment(tmp_path: Path, **more: str) -> dict[str, str]:
    ours = ("GATEWAY_", "DISCOVERY_", "HEALTHMONITOR_", "REGISTRY_", "CONSUL_", "RABBITMQ_", "HELLO_", "TOSKA_")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(ours)}
    return kept | {name: str(free_port()) for name in PORTS} | {"XDG_STATE_HOME": str(tmp_path)} | more


@asynccontextmanager
async def up(environ: dict[str, str], *arguments: str) -> AsyncIterator[Mesh]:
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        *("-m", "toska_mesh.cli.app", "up", *arguments),
        env=environ,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    mesh = Mesh(process, environ)
    async with asyncio.TaskGroup() as tasks:
        reader = tasks.create_task(mesh.read(), name="read the log")
        try:
            yield mesh
        finally:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            await process.wait()
            await eventually(lambda: not any(is_alive(pid) for pid in mesh.pids()), 30, what="no child is left")
            # The children have the log's pipe too: it ends with the last thread of the last of them.
            async with asyncio.timeout(10):
                await reader


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


async def get(url: str) -> tuple[int, bytes]:
    timeout = aiohttp.ClientTimeout(total=5)
    async with aiohttp.ClientSession(timeout=timeout) as client, client.get(url) as answer:
        return answer.status, await answer.read()


async def toska(environ: dict[str, str], *arguments: str, code: int = 0) -> str:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "toska_mesh.cli.app", *arguments),
        env=environ,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    async with asyncio.timeout(20):
        out, _ = await process.communicate()
    assert process.returncode == code
    return out.decode()


async def hello(mesh: Mesh) -> str:
    status, body = await get(mesh.url("GATEWAY_PORT", "/api/hello/hello"))
    assert status == 200, body
    return str(json.loads(body)["instance"])


async def test_a_mesh_comes_up_answers_survives_a_death_and_stops_in_order(tmp_path: Path) -> None:
    # Polling counts against the limit of 100 requests a minute.
    environ = environment(tmp_path, GATEWAY_RATE_LIMIT_ENABLED="false")
    async with up(environ, "--data-dir", str(tmp_path / "data")) as mesh:
        await mesh.says("The mesh is ready")
        await mesh.says(f"Try it:  curl http://localhost:{environ['GATEWAY_PORT']}/api/hello/hello")
        assert f"export MESH_DISCOVERY_ADDRESS=localhost:{environ['DISCOVERY_PORT']}" in mesh.text
        assert f"export CONSUL_ADDRESS=http://localhost:{environ['REGISTRY_PORT']}" in mesh.text
        for variable in PORTS:
            assert f":{environ[variable]}" in mesh.text
        assert "\033" not in mesh.text  # a pipe is no terminal

        answers = [await hello(mesh) for _ in range(6)]
        assert set(answers) == set(SAMPLES)
        assert all(one != other for one, other in itertools.pairwise(answers))

        assert {"hello", "/api/hello/"} <= set((await toska(environ, "routes")).split())
        assert {*SAMPLES, "Healthy"} <= set((await toska(environ, "instances")).split())
        assert {*SAMPLES, "Healthy"} <= set((await toska(environ, "instances", "hello")).split())
        assert "/api/hello/" in await toska(environ, "routes", "hello")
        assert "answered 404: there is no service 'a b'" in await toska(environ, "routes", "a b", code=1)

        victim = mesh.pid("hello-1")
        os.kill(victim, signal.SIGKILL)
        await mesh.says("hello-1 died (killed by SIGKILL); it is started again in 0.5 s", 10)
        for _ in range(10):
            await hello(mesh)  # the other one answers meanwhile
        await mesh.says("hello-1 started again", 20)

        async def both_answer() -> bool:
            return {await hello(mesh) for _ in range(4)} == set(SAMPLES)

        await eventually(both_answer, 20, every_seconds=0.2)

        mesh.process.send_signal(signal.SIGINT)
        assert await mesh.ended() == 0
        await eventually(lambda: "registry stopped" in mesh.text)
        stopped = [line.split("│ ")[1].split()[1] for line in mesh.lines if re.search(r"stopped \(exit code 0", line)]
        assert set(stopped[:2]) == set(SAMPLES)
        assert stopped[2:] == ["gateway", "discovery", "healthmonitor", "registry"]
        assert all((tmp_path / "data" / name).is_dir() for name in DAEMONS)


async def test_a_daemon_that_is_killed_comes_back_and_requests_go_on(tmp_path: Path) -> None:
    async with up(environment(tmp_path)) as mesh:
        await mesh.says("The mesh is ready")
        for name in ("registry", "discovery"):
            os.kill(mesh.pid(name), signal.SIGKILL)
            await mesh.says(f"{name} died (killed by SIGKILL)", 10)
            for _ in range(5):
                await hello(mesh)
            await mesh.says(f"{name} started again", 20)
        for path in (("REGISTRY_PORT", "/health/ready"), ("DISCOVERY_HTTP_PORT", "/health/ready")):
            url = mesh.url(*path)

            async def is_ready(url: str = url) -> bool:
                return (await get(url))[0] == 200

            await eventually(is_ready, 20)
        await hello(mesh)
        mesh.process.send_signal(signal.SIGTERM)
        assert await mesh.ended() == 0


async def test_a_second_ctrl_c_ends_everything_at_once(tmp_path: Path) -> None:
    async with up(environment(tmp_path, GATEWAY_DRAIN_SECONDS="60"), "--no-samples") as mesh:
        await mesh.says("The mesh is ready")
        assert "hello-1" not in mesh.text
        os.kill(mesh.pid("gateway"), signal.SIGSTOP)  # cannot stop by itself any more
        mesh.process.send_signal(signal.SIGINT)
        await mesh.says("once more to stop at once", 10)
        mesh.process.send_signal(signal.SIGINT)
        assert await mesh.ended(20) == 130


async def test_nothing_outlives_a_killed_parent(tmp_path: Path) -> None:
    async with up(environment(tmp_path)) as mesh:
        await mesh.says("The mesh is ready")
        assert all(is_alive(pid) for pid in mesh.pids())
        mesh.process.kill()
        await mesh.ended()
        await eventually(lambda: not any(is_alive(pid) for pid in mesh.pids()), 30)


async def test_json_logs_pass_through(tmp_path: Path) -> None:
    async with up(environment(tmp_path), "--log-format", "json", "--no-samples") as mesh:
        await mesh.says('"mesh_ready"')
        mesh.process.send_signal(signal.SIGTERM)
        assert await mesh.ended() == 0
        events = [json.loads(line) for line in mesh.lines]
    (ready,) = [event for event in events if event["msg"] == "mesh_ready"]
    assert ready["gateway"] == f"http://localhost:{mesh.environ['GATEWAY_PORT']}"
    assert {event["logger"] for event in events} > {"toska"}
    for event in events:  # for the clean-up of `up`, which reads words
        if event["msg"] == "process_started":
            assert not is_alive(event["pid"])


async def test_a_taken_port_is_told_before_anything_is_started(tmp_path: Path) -> None:
    environ = environment(tmp_path)
    with socket.socket() as first, socket.socket() as second:
        for holder, variable in ((first, "DISCOVERY_PORT"), (second, "REGISTRY_PORT")):
            holder.bind(("127.0.0.1", int(environ[variable])))
            holder.listen()
        async with up(environ, "--data-dir", str(tmp_path / "data")) as mesh:
            assert await mesh.ended() == 2
            await eventually(lambda: len(mesh.lines) == 2)
    for variable in ("DISCOVERY_PORT", "REGISTRY_PORT"):
        assert (
            f"toska up: port {environ[variable]} is in use by another program; stop it or set {variable} to a free port"
        ) in mesh.lines
    assert not (tmp_path / "data").exists()


@pytest.mark.parametrize(
    ("more", "words"),
    [
        pytest.param({"GATEWAY_PROT": "1"}, "GATEWAY_PROT is not a setting; did you mean GATEWAY_PORT?", id="unknown"),
        pytest.param({"DISCOVERY_PORT": "x"}, "DISCOVERY_PORT='x' is wrong", id="unparsable"),
        pytest.param({"CONSUL_ADDRESS": "ftp://x"}, "CONSUL_ADDRESS='ftp://x' should be an http://", id="Consul"),
        pytest.param({"CONSUL_ADDRESS": "http://no..host"}, "no host 'no..host' is known here", id="no host"),
        pytest.param({"RABBITMQ_URL": "http://x"}, "RABBITMQ_URL should begin with amqp://", id="RabbitMQ"),
    ],
)
async def test_a_wrong_setting_is_told_before_anything_is_started(
    tmp_path: Path, more: dict[str, str], words: str
) -> None:
    async with up(environment(tmp_path, **more)) as mesh:
        assert await mesh.ended() == 2
        await eventually(lambda: words in mesh.text)
    assert mesh.pids() == []


async def test_a_second_mesh_on_the_same_data_folder_is_refused(tmp_path: Path) -> None:
    data = ("--no-samples", "--data-dir", str(tmp_path / "data"))
    async with up(environment(tmp_path), *data) as first:
        await first.says("registry started")
        async with up(environment(tmp_path), *data) as second:
            assert await second.ended() == 2
            await eventually(lambda: f"in use by another `toska up` (pid {first.process.pid})" in second.text)
        first.process.send_signal(signal.SIGTERM)  # still starting, perhaps: that must not matter
        assert await first.ended() == 0


async def test_a_registry_that_is_away_is_named_and_a_stop_still_works(tmp_path: Path) -> None:
    async with up(environment(tmp_path), "--consul", f"http://127.0.0.1:{free_port()}") as mesh:
        await mesh.says("discovery is not ready:")
        assert "The mesh is ready" not in mesh.text
        assert "registry started" not in mesh.text
        mesh.process.send_signal(signal.SIGINT)
        assert await mesh.ended() == 0


async def test_the_same_mesh_runs_on_consul_and_rabbitmq(
    tmp_path: Path, consul: ConsulServer, rabbitmq: RabbitMQServer
) -> None:
    environ = environment(tmp_path, CONSUL_ADDRESS=consul.url, RABBITMQ_URL=rabbitmq.url)
    async with up(environ) as mesh:
        await mesh.says("The mesh is ready")
        assert {await hello(mesh) for _ in range(6)} == set(SAMPLES)
        assert "registry started" not in mesh.text
        _, services = await get(f"{consul.url}/v1/catalog/service/hello")
        assert {entry["ServiceID"] for entry in json.loads(services)} == set(SAMPLES)
        mesh.process.send_signal(signal.SIGTERM)
        assert await mesh.ended() == 0
        _, services = await get(f"{consul.url}/v1/catalog/service/hello")
        assert json.loads(services) == []
