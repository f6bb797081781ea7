"""The embedded registry's settings, and its clock when the wall clock jumps."""

import asyncio
from pathlib import Path

import pytest
from tests.unit.registryd.harness import Disk, add

from toska_mesh.errors import ConfigError
from toska_mesh.registryd.engine import keep_time
from toska_mesh.registryd.settings import RegistrySettings
from toska_mesh.registryd.state import Expired
from toska_mesh.settings import load


def test_the_defaults_serve_this_machine_alone() -> None:
    settings = load(RegistrySettings, {}).settings
    assert (settings.host, settings.port, settings.token.get_secret_value()) == ("127.0.0.1", 8500, "")
    assert settings.data_path.parts[-2:] == ("toska", "registry")


@pytest.mark.parametrize(
    ("variables", "words"),
    [
        ({"REGISTRY_PORT": "0"}, "REGISTRY_PORT"),
        ({"REGISTRY_PORT": "http"}, "REGISTRY_PORT"),
        ({"REGISTRY_PROT": "1"}, "did you mean REGISTRY_PORT"),
    ],
)
def test_a_wrong_setting_is_named(variables: dict[str, str], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        load(RegistrySettings, variables)


@pytest.mark.parametrize(
    ("host", "address"),
    [("127.0.0.1", "127.0.0.1"), ("0.0.0.0", "127.0.0.1"), ("::", "127.0.0.1"), ("10.0.0.5", "10.0.0.5")],
)
def test_an_unroutable_bind_address_is_not_advertised(host: str, address: str) -> None:
    assert load(RegistrySettings, {"REGISTRY_HOST": host}).settings.advertised_address == address


def test_the_data_folder_may_be_a_home_path() -> None:
    assert load(RegistrySettings, {"REGISTRY_DATA_DIR": "~/x"}).settings.data_path == Path("~/x").expanduser()


async def test_time_runs_out_for_those_who_do_not_beat() -> None:
    state = Disk().state()
    add(state, "a", ttl_seconds=30)
    seen: list[tuple[float, Expired]] = []
    loop = asyncio.get_running_loop()
    async with asyncio.TaskGroup() as tasks:
        clock = tasks.create_task(keep_time(state, loop.time, lambda what: seen.append((loop.time(), what))))
        await asyncio.sleep(31)
        clock.cancel()
    assert [(round(at, 3), what.checks) for at, what in seen if what.checks] == [(30.0, ("service:a",))]


async def test_a_stopped_process_blames_nobody_for_its_own_silence() -> None:
    state = Disk().state()
    add(state, "a", ttl_seconds=30)
    loop = asyncio.get_running_loop()
    frozen_for = 0.0

    def clock() -> float:
        return loop.time() + frozen_for

    expired: list[str] = []
    async with asyncio.TaskGroup() as tasks:
        timer = tasks.create_task(keep_time(state, clock, lambda what: expired.extend(what.checks)))
        await asyncio.sleep(10.1)
        frozen_for = 1000.0  # as SIGSTOP and SIGCONT look from inside
        await asyncio.sleep(19)
        assert expired == []
        await asyncio.sleep(2)
        assert expired == ["service:a"]
        timer.cancel()
