"""Health checks of a service: how they are asked, what counts as well, how often."""

import asyncio
import threading
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any

import pytest
from tests.support.virtual_loop import VirtualLoop

from toska_mesh.errors import ConfigError
from toska_mesh.model import HealthStatus
from toska_mesh.sdk.checks import CheckResult, Checks, HealthCheck

HEALTHY, DEGRADED, UNHEALTHY = HealthStatus.HEALTHY, HealthStatus.DEGRADED, HealthStatus.UNHEALTHY


def saying(verdict: Any) -> Callable[[], Awaitable[Any]]:
    async def check() -> Any:
        return verdict

    return check


async def status_of(check: HealthCheck) -> HealthStatus:
    checks = Checks()
    checks.add("it", check)
    return (await checks.report()).status


async def test_a_service_without_checks_is_healthy() -> None:
    report = await Checks().report()
    assert report.status is HEALTHY
    assert report.body() == {"status": "Healthy", "duration": 0.0, "checks": []}


@pytest.mark.parametrize(
    ("verdict", "status"),
    [
        pytest.param(True, HEALTHY, id="true"),
        pytest.param(None, HEALTHY, id="nothing"),
        pytest.param(False, UNHEALTHY, id="false"),
        pytest.param(DEGRADED, DEGRADED, id="a status"),
        pytest.param("degraded: lags 12 s", DEGRADED, id="a word and a description"),
        pytest.param("Healthy", HEALTHY, id="a word"),
        pytest.param(CheckResult(UNHEALTHY, "gone"), UNHEALTHY, id="a result"),
        pytest.param("connection refused", UNHEALTHY, id="words that are no status"),
        pytest.param(HealthStatus.UNKNOWN, UNHEALTHY, id="a status that says nothing"),
        pytest.param(7, UNHEALTHY, id="a number"),
    ],
)
async def test_what_a_check_returns_is_read(verdict: Any, status: HealthStatus) -> None:
    assert await status_of(saying(verdict)) is status


async def test_a_check_that_raises_is_unhealthy_and_says_with_what() -> None:
    checks = Checks()

    async def check() -> None:
        raise ConnectionError("refused")

    checks.add("database", check)
    report = await checks.report()
    assert report.status is UNHEALTHY
    assert report.checks[0].exception == "ConnectionError: refused"
    assert report.output == "database: ConnectionError: refused"


async def test_the_worst_check_decides_and_the_body_is_that_of_the_family() -> None:
    checks = Checks()

    async def slow() -> CheckResult:
        await asyncio.sleep(0.0123456)
        return CheckResult(DEGRADED, "lags", {"seconds": 12})

    checks.add("replica", slow)
    checks.add("cache", saying(True))
    report = await checks.report()
    assert report.body() == {
        "status": "Degraded",
        "duration": 12.346,
        "checks": [
            {
                "name": "replica",
                "status": "Degraded",
                "duration": 12.346,
                "description": "lags",
                "exception": None,
                "data": {"seconds": 12},
            },
            {
                "name": "cache",
                "status": "Healthy",
                "duration": 0.0,
                "description": None,
                "exception": None,
                "data": {},
            },
        ],
    }
    assert await checks.reported() == (DEGRADED, "replica: lags")


async def test_checks_run_at_the_same_time_each_under_its_own_timeout() -> None:
    loop = asyncio.get_running_loop()
    checks = Checks()

    async def take(seconds: float) -> bool:
        await asyncio.sleep(seconds)
        return True

    checks.add("quick", partial(take, 1), timeout_seconds=2)
    checks.add("slow", partial(take, 100), timeout_seconds=3)
    report = await checks.report()
    assert [check.status for check in report.checks] == ["Healthy", "Unhealthy"]
    assert report.checks[1].description == "no answer within 3 s"
    assert loop.time() == 3


async def test_a_timeout_of_the_checks_own_is_told_as_its_exception() -> None:
    checks = Checks()

    async def check() -> None:
        raise TimeoutError("the database's")

    checks.add("database", check)
    assert (await checks.report()).checks[0].exception == "TimeoutError: the database's"


async def test_a_storm_of_probes_runs_a_check_once_per_moment() -> None:
    loop = asyncio.get_running_loop()
    runs: list[float] = []

    async def check() -> None:
        runs.append(loop.time())
        await asyncio.sleep(0.5)

    checks = Checks(keep_seconds=1.0)
    checks.add("database", check)
    async with asyncio.TaskGroup() as tasks:
        for _ in range(100):
            tasks.create_task(checks.report())
    assert runs == [0.0]
    await asyncio.sleep(0.9)
    await checks.report()
    assert runs == [0.0]
    await asyncio.sleep(0.2)
    await checks.report()
    assert len(runs) == 2


async def test_a_prober_that_leaves_does_not_spoil_the_answer_for_the_others() -> None:
    async def check() -> None:
        await asyncio.sleep(1)

    checks = Checks()
    checks.add("database", check)
    async with asyncio.TaskGroup() as tasks:
        first = tasks.create_task(checks.report())
        await asyncio.sleep(0.5)
        second = tasks.create_task(checks.report())
        await asyncio.sleep(0)
        first.cancel()
    assert second.result().status is HEALTHY


async def test_a_plain_function_runs_in_a_thread_and_does_not_block_the_loop() -> None:
    threads: list[threading.Thread] = []

    def check() -> bool:
        threads.append(threading.current_thread())
        return True

    checks = Checks()
    checks.add("disk", check)
    loop = asyncio.get_running_loop()
    assert isinstance(loop, VirtualLoop)
    with loop.outside():
        assert (await checks.report()).status is HEALTHY
    assert threads[0] is not threading.main_thread()
    assert threads[0].daemon, "a hanging check must not hold up the end of the process"


async def test_a_function_that_hangs_is_not_started_again_before_it_has_ended() -> None:
    loop = asyncio.get_running_loop()
    assert isinstance(loop, VirtualLoop)
    release = threading.Event()
    starts: list[None] = []

    def check() -> None:
        starts.append(None)
        release.wait(20)

    checks = Checks(keep_seconds=0)
    checks.add("disk", check, timeout_seconds=2)
    assert (await checks.report()).checks[0].description == "no answer within 2 s"
    assert (await checks.report()).checks[0].description == "the run before has not ended yet"
    assert len(starts) == 1
    with loop.outside():
        release.set()
        while (await checks.report()).status is not HEALTHY:
            await asyncio.sleep(0)
    assert len(starts) == 2


async def test_only_the_checks_with_the_tag_are_asked() -> None:
    checks = Checks()
    checks.add("database", saying(False))
    checks.add("deadlock", saying(True), tags=("live",))
    assert (await checks.report("live")).status is HEALTHY
    assert [check.name for check in (await checks.report("ready")).checks] == ["database"]
    assert len((await checks.report()).checks) == 2


@pytest.mark.parametrize(
    ("name", "check", "timeout", "words"),
    [
        pytest.param("", saying(True), 1, "name of its own", id="no name"),
        pytest.param("taken", saying(True), 1, "name of its own", id="a name twice"),
        pytest.param("new", "select 1", 1, "cannot be called", id="no function"),
        pytest.param("new", saying(True), 0, "above 0", id="no time"),
    ],
)
def test_a_check_that_cannot_be_is_refused(name: str, check: Any, timeout: float, words: str) -> None:
    checks = Checks()
    checks.add("taken", saying(True))
    with pytest.raises(ConfigError, match=words):
        checks.add(name, check, timeout_seconds=timeout)
