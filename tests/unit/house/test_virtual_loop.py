"""The test bench itself: the virtual clock and the check for left-over tasks."""

import asyncio
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from tests.support.virtual_loop import run_virtual
from tests.support.wait import eventually


async def test_a_sleep_lands_exactly_on_its_time_and_costs_nothing() -> None:
    loop = asyncio.get_running_loop()
    started = loop.time()
    await asyncio.sleep(86_400)
    assert loop.time() == started + 86_400


async def test_timers_that_are_nearly_at_the_same_time_fire_each_at_its_own() -> None:
    loop = asyncio.get_running_loop()
    fired: list[float] = []

    async def tick() -> None:
        for _ in range(200):
            await asyncio.sleep(0.1)

    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(tick())
        for at in range(1, 20):
            loop.call_at(at, lambda: fired.append(loop.time()))
    assert fired == list(range(1, 20))


async def test_the_clock_goes_on_after_years() -> None:
    loop = asyncio.get_running_loop()
    for _ in range(2):
        await asyncio.sleep(1e8)
        await asyncio.sleep(0.1)
    assert loop.time() > 2e8


async def test_timers_fire_in_the_order_of_the_virtual_clock() -> None:
    order: list[str] = []

    async def note(after_seconds: float, name: str) -> None:
        await asyncio.sleep(after_seconds)
        order.append(name)

    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(note(20, "late"))
        tasks.create_task(note(10, "early"))
    assert order == ["early", "late"]


async def test_a_timeout_ends_a_wait_without_real_time() -> None:
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(3600):
            await asyncio.Event().wait()


def test_a_wait_that_never_ends_fails_at_once() -> None:
    async def hang() -> None:
        await asyncio.Event().wait()

    with pytest.raises(RuntimeError, match="never comes"):
        run_virtual(hang)


async def test_a_thread_is_waited_for_while_the_clock_stands_still() -> None:
    loop = asyncio.get_running_loop()
    may_end = threading.Event()
    threading.Timer(0.02, may_end.set).start()
    before = loop.time()
    assert await asyncio.to_thread(may_end.wait, 10)
    assert loop.time() == before


async def test_eventually_asks_again_until_it_is_true() -> None:
    loop = asyncio.get_running_loop()
    assert await eventually(lambda: loop.time() > 5)


async def test_eventually_says_what_it_saw_last() -> None:
    with pytest.raises(AssertionError, match="last answer: 0"):
        await eventually(lambda: 0, seconds=1)


def test_a_task_left_behind_fails_its_test(tmp_path: Path) -> None:
    repository = Path(__file__).resolve().parents[3]
    folder = tmp_path / "tests"
    folder.mkdir()
    (folder / "conftest.py").write_text((repository / "tests" / "conftest.py").read_text())
    (folder / "test_leak.py").write_text(
        "import asyncio\n\n"
        "async def test_leaks():\n"
        "    global kept\n"
        "    kept = asyncio.get_running_loop().create_task(asyncio.sleep(60), name='forgotten')\n"
    )
    run = subprocess.run(
        [
            sys.executable,
            "-m",
            "pytest",
            "-q",
            "-p",
            "no:cacheprovider",
            "--rootdir",
            str(repository),
            "-c",
            str(repository / "pyproject.toml"),
            str(folder),
        ],
        cwd=repository,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert run.returncode == 1, run.stdout + run.stderr
    assert "tasks left behind: forgotten" in run.stdout
