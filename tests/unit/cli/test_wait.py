"""What `toska wait` waits for, in the registry's words and in ours."""

import asyncio

import pytest
from click.testing import CliRunner
from tests.unit.router.build import draining, instance

from toska_mesh.cli.app import main
from toska_mesh.cli.wait import Progress, Wanted
from toska_mesh.model import HealthStatus, Instance

D, U = HealthStatus.DEGRADED, HealthStatus.UNHEALTHY
V1 = instance("a", version="v1")
V2 = instance("b", version="v2")


@pytest.mark.parametrize(
    ("wanted", "instances", "missing"),
    [
        pytest.param(Wanted(), [V1], "", id="one in use"),
        pytest.param(Wanted(), [], "0 of 1 instances that get requests (none is registered)", id="nobody"),
        pytest.param(
            Wanted(), [instance("a", U)], "0 of 1 instances that get requests (a: Unhealthy)", id="nobody healthy"
        ),
        pytest.param(Wanted(), [instance("a", D)], "", id="degraded ones get requests when there are no better"),
        pytest.param(
            Wanted(count=2),
            [instance("a"), instance("b", D)],
            "1 of 2 instances that get requests (a: Healthy, b: Degraded)",
            id="and none when there are",
        ),
        pytest.param(
            Wanted(), [instance("a", is_member=False)], "0 of 1 instances that get requests (a: Healthy)", id="stranger"
        ),
        pytest.param(Wanted(expose_all=True), [instance("a", is_member=False)], "", id="all are exposed"),
        pytest.param(Wanted(version="v2"), [V1, V2], "", id="version"),
        pytest.param(
            Wanted(version="v2", count=2),
            [V1, V2, instance("c", D, version="v2"), draining("d")],
            "1 of 2 healthy instances of version v2 "
            "(a of version v1: Healthy, b of version v2: Healthy, c of version v2: Degraded, d: draining)",
            id="too few of the version",
        ),
        pytest.param(
            Wanted(version="v3"),
            [instance(id) for id in "abcdefg"],
            "0 of 1 healthy instances of version v3 "
            "(a: Healthy, b: Healthy, c: Healthy, d: Healthy, e: Healthy and 2 more)",
            id="many",
        ),
        pytest.param(
            Wanted(version="v2", is_only_version=True),
            [V1, V2],
            "other versions still get requests: a of version v1: Healthy",
            id="another version",
        ),
        pytest.param(
            Wanted(version="v2", is_only_version=True),
            [instance("a", D, version="v1", output="draining"), V2],
            "",
            id="another version that drains",
        ),
        pytest.param(Wanted(gone="a"), [V2], "", id="gone"),
        pytest.param(Wanted(gone="a"), [], "", id="gone, the last one"),
        pytest.param(Wanted(gone="a"), [draining("a"), V2], "", id="draining, and another is there"),
        pytest.param(
            Wanted(gone="a"),
            [draining("a")],
            "a is draining, and gets requests as long as there is nobody better",
            id="draining, the last one",
        ),
        pytest.param(
            Wanted(gone="a"), [V1, V2], "a of version v1: Healthy is registered and not draining", id="still here"
        ),
        pytest.param(
            Wanted(version="v2", gone="a"),
            [V1],
            "a of version v1: Healthy is registered and not draining; "
            "0 of 1 healthy instances of version v2 (a of version v1: Healthy)",
            id="all that is missing is told",
        ),
    ],
)
def test_what_is_missing_is_told(wanted: Wanted, instances: list[Instance], missing: str) -> None:
    assert wanted.missing(instances) == missing


@pytest.mark.parametrize(
    ("wanted", "instances", "words"),
    [
        pytest.param(Wanted(), [V1, V2], "2 instances in use", id="in use"),
        pytest.param(Wanted(version="v2"), [V1, V2], "1 healthy instance of version v2", id="version"),
        pytest.param(
            Wanted(version="v2", is_only_version=True), [V2], "only 1 healthy instance of version v2", id="only"
        ),
        pytest.param(Wanted(gone="a"), [V2], "a is not registered", id="gone"),
        pytest.param(Wanted(gone="a"), [draining("a"), V2], "a is draining", id="draining"),
    ],
)
def test_what_is_true_is_told(wanted: Wanted, instances: list[Instance], words: str) -> None:
    assert wanted.missing(instances) == ""
    assert wanted.met(instances) == words


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        pytest.param([], "Missing argument", id="no service"),
        pytest.param(["con sul"], "SERVICE 'con sul' is not", id="no name"),
        pytest.param(["consul"], "registry's own name", id="the registry itself"),
        pytest.param(["orders", "--only"], "--version; give both", id="only without version"),
        pytest.param(["orders", "--gone", "a", "--count", "2"], "--count is about", id="count of what is gone"),
        pytest.param(["orders", "--count", "0"], "0 is not in the range", id="none"),
        pytest.param(["orders", "--timeout", "0"], "0", id="no time"),
        pytest.param(["orders", "--timeout", "nan"], "nan", id="no number"),
    ],
)
def test_wrong_usage_is_told_with_exit_code_2(arguments: list[str], words: str) -> None:
    result = CliRunner().invoke(main, ["wait", *arguments])
    assert result.exit_code == 2
    assert words in result.output


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("CONSUL_ADDRESS", "ftp://registry"),
        ("CONSUL_ADDRESS", "nonsense"),
        ("CONSUL_ADDRESS", "http://no..host:8500"),
        ("CONSUL_ADRESS", "x"),
        ("CONSUL_CACERT", "/no.pem"),
        ("REGISTRY_PORT", "many"),
    ],
)
def test_wrong_settings_are_told_with_exit_code_2(variable: str, value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(variable, value)
    result = CliRunner().invoke(main, ["wait", "orders"])
    assert result.exit_code == 2
    assert variable in result.output
    assert "Traceback" not in result.output


async def test_what_is_missing_for_a_while_is_told_and_again_when_it_changes() -> None:
    told: list[tuple[float, str]] = []
    loop = asyncio.get_running_loop()
    progress = Progress(lambda words: told.append((loop.time(), words)), settle_seconds=2)
    async with asyncio.TaskGroup() as tasks:
        telling = tasks.create_task(progress.run())
        progress.note("registry")
        await asyncio.sleep(1)
        progress.note("a")
        await asyncio.sleep(9)
        progress.note("b")
        progress.note("a")
        await asyncio.sleep(10)
        for number in range(50):
            progress.note(f"c{number}")
            await asyncio.sleep(0.1)
        await asyncio.sleep(100)
        telling.cancel()
    assert [(round(at, 3), words) for at, words in told] == [(2, "a"), (22, "c19"), (24, "c39"), (26, "c49")]


async def test_what_is_over_in_a_moment_is_not_told() -> None:
    told: list[str] = []
    progress = Progress(told.append)
    async with asyncio.TaskGroup() as tasks:
        telling = tasks.create_task(progress.run())
        progress.note("registry")
        await asyncio.sleep(1.9)
        telling.cancel()
    assert told == []
