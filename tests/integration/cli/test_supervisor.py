"""The supervisor with small stand-in children: real processes, pipes and signals."""

import asyncio
import os
import signal
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest
from tests.support.wait import eventually

from toska_mesh.cli import supervisor as module
from toska_mesh.cli.supervisor import Died, Happening, Killed, Line, ProcessSpec, Refused, Started, Stopped, Supervisor

POLITE = """
import signal, sys, time
def leave(*_):
    print("leaving", flush=True)
    sys.exit(0)
signal.signal(signal.SIGTERM, leave)
print("up", flush=True)
while True:
    time.sleep(60)
"""
DEAF = POLITE.replace("sys.exit(0)", "return")


class Seen(list[Happening]):
    def texts(self, process: str) -> list[str]:
        return [item.text for item in self if isinstance(item, Line) and item.process == process]

    def of(self, kind: type[Happening]) -> list[str]:
        return [item.process for item in self if isinstance(item, kind)]

    def pid(self, process: str) -> int:
        return [item.pid for item in self if isinstance(item, Started) and item.process == process][-1]


def script(name: str, code: str, stop_seconds: float = 10.0, **environ: str) -> ProcessSpec:
    return ProcessSpec(name, ["-c", code], {**os.environ, **environ}, stop_seconds)


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


async def test_children_are_stopped_in_reverse_order_of_starting() -> None:
    seen = Seen()
    async with Supervisor(seen.append) as supervisor:
        supervisor.start([script("registry", POLITE)])
        await eventually(lambda: seen.texts("registry") == ["up"])
        supervisor.start([script("gateway", POLITE), script("discovery", POLITE)])
        await eventually(lambda: seen.texts("gateway") + seen.texts("discovery") == ["up", "up"])
    stopped = [item for item in seen if isinstance(item, Stopped)]
    assert {item.process for item in stopped[:2]} == {"gateway", "discovery"}
    assert stopped[2].process == "registry"
    assert {item.how for item in stopped} == {"exit code 0"}
    assert not any(is_alive(item.pid) for item in seen if isinstance(item, Started))


async def test_an_order_of_stopping_can_be_given() -> None:
    seen = Seen()
    async with Supervisor(seen.append) as supervisor:
        supervisor.start([script("a", POLITE), script("b", POLITE), script("c", POLITE)])
        await eventually(lambda: len(seen.of(Line)) == 3)
        await supervisor.stop([["b"], ["c"], ["a"]])
        assert seen.of(Stopped) == ["b", "c", "a"]


async def test_both_outputs_are_passed_on_line_by_line() -> None:
    seen = Seen()
    code = "import sys; print('to out'); print('to err', file=sys.stderr); print('ünï', end='', flush=True); input()"
    async with Supervisor(seen.append) as supervisor:
        supervisor.start([script("a", code, PYTHONIOENCODING="utf-8")])
        await eventually(lambda: len(seen.texts("a")) >= 3)
    assert Line("a", "to out") in seen
    assert Line("a", "to err", is_error=True) in seen
    assert Line("a", "ünï") in seen


async def test_an_endless_line_is_cut_and_the_next_one_is_whole() -> None:
    seen = Seen()
    code = "import sys,time; sys.stdout.write('x' * 5_000_000 + '\\nnext\\n'); sys.stdout.flush(); time.sleep(60)"
    async with Supervisor(seen.append) as supervisor:
        supervisor.start([script("a", code)])
        await eventually(lambda: "next" in seen.texts("a"))
    first, second = seen.texts("a")
    assert len(first) == module.MAX_LINE_BYTES
    assert second == "next"


async def test_a_child_that_dies_is_said_and_started_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "FIRST_DELAY_SECONDS", 0.05)
    seen = Seen()
    async with Supervisor(seen.append) as supervisor:
        supervisor.start([script("a", POLITE)])
        await eventually(lambda: seen.texts("a") == ["up"])
        first = seen.pid("a")
        os.kill(first, signal.SIGKILL)
        await eventually(lambda: seen.texts("a") == ["up", "up"])
        assert seen.pid("a") != first
    assert Died("a", "killed by SIGKILL", 0.05) in seen
    assert [item.is_restart for item in seen if isinstance(item, Started)] == [False, True]


async def test_a_child_that_keeps_dying_is_started_less_and_less_often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "FIRST_DELAY_SECONDS", 0.02)
    seen = Seen()
    async with Supervisor(seen.append) as supervisor:
        supervisor.start([script("a", "raise SystemExit(3)")])
        await eventually(lambda: len(seen.of(Died)) == 4)
    died = [item for item in seen if isinstance(item, Died)]
    assert [item.delay_seconds for item in died[:4]] == [0.02, 0.04, 0.08, 0.16]
    assert {item.how for item in died} == {"exit code 3"}


async def test_a_stop_does_not_wait_for_a_restart_that_is_due(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "FIRST_DELAY_SECONDS", 300.0)
    monkeypatch.setattr(module, "LONGEST_DELAY_SECONDS", 300.0)
    seen = Seen()
    async with asyncio.timeout(20), Supervisor(seen.append) as supervisor:
        supervisor.start([script("a", "raise SystemExit(3)")])
        await eventually(lambda: seen.of(Died) == ["a"])
    assert len(seen.of(Started)) == 1


async def test_a_child_that_refuses_its_configuration_is_not_started_again() -> None:
    seen = Seen()
    async with Supervisor(seen.append) as supervisor:
        supervisor.start([script("a", "import sys; print('GATEWAY_X is wrong', file=sys.stderr); sys.exit(2)")])
        await eventually(lambda: seen.of(Refused) == ["a"])
    assert Line("a", "GATEWAY_X is wrong", is_error=True) in seen
    assert len(seen.of(Started)) == 1


async def test_a_child_that_ignores_sigterm_is_killed_and_said() -> None:
    seen = Seen()
    async with Supervisor(seen.append) as supervisor:
        supervisor.start([script("a", DEAF, stop_seconds=0.3)])
        await eventually(lambda: seen.texts("a") == ["up"])
    assert seen.of(Killed) == ["a"]
    assert [item.how for item in seen if isinstance(item, Stopped)] == ["killed by SIGKILL"]


async def test_kill_ends_everything_at_once_and_starts_nothing_again() -> None:
    seen = Seen()
    async with Supervisor(seen.append) as supervisor:
        supervisor.start([script("a", DEAF, stop_seconds=300), script("b", DEAF, stop_seconds=300)])
        await eventually(lambda: len(seen.of(Line)) == 2)
        async with asyncio.timeout(20), asyncio.TaskGroup() as tasks:
            tasks.create_task(supervisor.stop())
            await asyncio.sleep(0.1)
            supervisor.kill()
    assert len(seen.of(Started)) == 2
    assert not any(is_alive(item.pid) for item in seen if isinstance(item, Started))


async def test_what_a_killed_child_had_started_goes_with_it() -> None:
    seen = Seen()
    code = (
        "import subprocess, sys, time;"
        "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(300)']);"
        "print(child.pid, flush=True); time.sleep(300)"
    )
    async with Supervisor(seen.append) as supervisor:
        supervisor.start([script("a", code)])
        await eventually(lambda: seen.texts("a"))
        grandchild = int(seen.texts("a")[0])
        assert is_alive(grandchild)
        os.kill(seen.pid("a"), signal.SIGKILL)
        await eventually(lambda: not is_alive(grandchild))


async def test_a_program_that_cannot_be_started_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "/no/such/python")
    seen = Seen()
    async with Supervisor(seen.append) as supervisor:
        supervisor.start([script("a", POLITE)])
        await eventually(lambda: seen.of(Died) == ["a"])
    assert "cannot be started" in next(item.how for item in seen if isinstance(item, Died))


async def test_children_stop_by_themselves_when_the_parent_is_killed(tmp_path: Path) -> None:
    (tmp_path / "polite_child.py").write_text(
        "import os, signal, sys, time\n"
        "def leave(*_):\n"
        f"    open({str(tmp_path / 'left')!r}, 'w').close()\n"
        "    sys.exit(0)\n"
        "def main():\n"
        "    signal.signal(signal.SIGTERM, leave)\n"
        "    print(os.getpid(), flush=True)\n"
        "    while True:\n"
        "        time.sleep(60)\n"
    )
    parent_code = (
        "import asyncio, os\n"
        "from toska_mesh.cli.supervisor import *\n"
        "async def main():\n"
        "    show = lambda happening: print(getattr(happening, 'text', ''), flush=True)\n"
        "    async with Supervisor(show) as supervisor:\n"
        "        command = ['-m', 'toska_mesh.cli.child', 'polite_child']\n"
        "        supervisor.start([ProcessSpec('a', command, dict(os.environ))])\n"
        "        await asyncio.Event().wait()\n"
        "asyncio.run(main())\n"
    )
    parent = await asyncio.create_subprocess_exec(
        sys.executable,
        "-c",
        parent_code,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), *sys.path])},
        stdout=asyncio.subprocess.PIPE,
    )
    assert parent.stdout is not None
    async with asyncio.timeout(30):
        while not (line := (await parent.stdout.readline()).strip()):
            pass
    child = int(line)
    assert is_alive(child)
    parent.kill()
    await parent.wait()
    await eventually(lambda: not is_alive(child))
    assert (tmp_path / "left").exists()


async def test_waiting_for_readiness_tells_what_is_late_and_goes_on() -> None:
    answers: dict[str, list[str]] = {"a": ["", ""], "b": ["no route", "no route", "no table", ""]}
    told: list[Mapping[str, str]] = []

    async def ask(name: str) -> str:
        return answers[name].pop(0)

    probes = {name: lambda name=name: ask(name) for name in answers}
    async with asyncio.timeout(20):
        await module.until_ready(probes, every_seconds=0.01, on_late=told.append, late_after_seconds=0.0)
    assert told == [{"b": "no route"}, {"b": "no table"}]
    assert answers == {"a": [""], "b": []}
