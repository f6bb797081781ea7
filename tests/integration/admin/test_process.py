"""Daemons as processes: start, signals, exit codes and the one line that says what is wrong."""

import asyncio
import json
import os
import signal
import socket
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from tests.support.ports import free_port

DAEMON = """
import asyncio
from toska_mesh.admin import AdminServer, Health, run_daemon
from toska_mesh.errors import ConfigError
from toska_mesh.settings import DaemonSettings, setting
from toska_mesh.telemetry import event_log, new_metrics_registry

class S(DaemonSettings):
    env_prefixes = ("SAMPLE_",)
    port: int = setting("SAMPLE_PORT", 7000, "Port.", ge=1, le=65535)
    mode: str = setting("SAMPLE_MODE", "serve", "What to do.")

async def fail(error):
    raise error

async def run(settings, stop):
    if settings.mode == "break":
        raise RuntimeError("broken inside")
    if settings.mode == "break-in-task":
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(fail(ConfigError("SAMPLE_X is wrong")))
    async with AdminServer("127.0.0.1", settings.port, variable="SAMPLE_PORT", health=Health(),
                           metrics=new_metrics_registry("sample")):
        event_log("sample").info("ready", port=settings.port)
        await stop.wait()

run_daemon("toska-sample", S, run, "a sample.")
"""


@pytest.fixture
def script(tmp_path: Path) -> Path:
    path = tmp_path / "daemon.py"
    path.write_text(DAEMON)
    return path


@asynccontextmanager
async def started(script: Path, **environ: str) -> AsyncIterator[asyncio.subprocess.Process]:
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        str(script),
        env={**os.environ, **environ},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        yield process
    finally:
        if process.returncode is None:
            process.kill()
        await process.communicate()


async def ended(process: asyncio.subprocess.Process) -> tuple[int, str, str]:
    async with asyncio.timeout(20):
        out, err = await process.communicate()
    assert process.returncode is not None
    return process.returncode, out.decode(), err.decode()


async def first_event(process: asyncio.subprocess.Process) -> dict[str, object]:
    assert process.stdout is not None
    async with asyncio.timeout(20):
        return json.loads(await process.stdout.readline())  # type: ignore[no-any-return]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=lambda number: number.name)
async def test_a_signal_stops_it_with_exit_code_0(script: Path, number: signal.Signals) -> None:
    async with started(script, SAMPLE_PORT=str(free_port())) as process:
        assert (await first_event(process))["msg"] == "ready"
        process.send_signal(number)
        code, out, err = await ended(process)
    assert (code, err) == (0, "")
    assert [json.loads(line)["msg"] for line in out.splitlines()] == ["stop_requested", "stopped"]


async def test_a_taken_port_is_one_line_with_the_variable(script: Path) -> None:
    port = free_port()
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", port))
        holder.listen()
        async with started(script, SAMPLE_PORT=str(port)) as process:
            code, out, err = await ended(process)
    assert code == 2
    assert err == f"toska-sample: port {port} is in use by another program; stop it or set SAMPLE_PORT to a free port\n"
    assert out == ""


async def test_a_configuration_error_inside_a_task_is_one_line_too(script: Path) -> None:
    async with started(script, SAMPLE_MODE="break-in-task") as process:
        assert await ended(process) == (2, "", "toska-sample: SAMPLE_X is wrong\n")


async def test_a_bug_ends_it_with_exit_code_1_and_its_traceback_in_the_log(script: Path) -> None:
    async with started(script, SAMPLE_MODE="break") as process:
        code, out, _ = await ended(process)
    assert code == 1
    entry = json.loads(out.splitlines()[-1])
    assert entry["msg"] == "daemon_failed"
    assert entry["error"] == "RuntimeError: broken inside"
    assert "Traceback" in entry["exception"]


async def test_logs_can_be_for_people(script: Path) -> None:
    async with started(script, SAMPLE_PORT=str(free_port()), TOSKA_LOG_FORMAT="console") as process:
        assert process.stdout is not None
        async with asyncio.timeout(20):
            line = (await process.stdout.readline()).decode()
        process.send_signal(signal.SIGTERM)
        await ended(process)
    assert " info    ready port=" in line
    assert "\033" not in line


@pytest.mark.parametrize("argument", ["--check", "--help", "--version"])
async def test_a_reader_that_has_seen_enough_gets_no_traceback(script: Path, argument: str) -> None:
    reader, writer = os.pipe()
    os.close(reader)  # as `| head -1` does, only sooner
    try:
        process = await asyncio.create_subprocess_exec(
            sys.executable, str(script), argument, stdout=writer, stderr=asyncio.subprocess.PIPE
        )
    finally:
        os.close(writer)
    async with asyncio.timeout(20):
        _, errors = await process.communicate()
    assert (process.returncode, errors) == (128 + signal.SIGPIPE, b"")
