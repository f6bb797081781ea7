"""The broker that runs in a container obeys like the one that runs as a process; the engine here is a stand-in."""

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.support import provision
from tests.support.servers import RabbitMQServer
from tests.support.wait import eventually_now

STAND_IN = Path(provision.__file__).with_name("fake_docker.py")


@pytest.fixture
def engine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder in which the stand-in keeps its containers and volumes."""
    client = tmp_path / "bin" / "docker"
    client.parent.mkdir()
    client.write_text(f'#!/bin/sh\nexec "{sys.executable}" "{STAND_IN}" "$@"\n')
    client.chmod(0o755)
    state = tmp_path / "engine"
    state.mkdir()
    monkeypatch.setenv("PATH", f"{client.parent}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("TOSKA_FAKE_DOCKER", str(state))
    monkeypatch.setattr(provision, "rabbitmq", lambda: provision.Binary(Path("docker"), image="rabbitmq:any"))
    return state


@pytest.fixture
def broker(engine: Path) -> Iterator[RabbitMQServer]:
    with RabbitMQServer() as broker:
        yield broker


def starts_on_this_volume(engine: Path) -> int:
    (volume,) = [path for path in engine.iterdir() if path.name.count("-") == 2]
    return int(volume.read_text())


def test_a_volume_survives_a_stop_and_a_kill_but_not_a_wipe(broker: RabbitMQServer, engine: Path) -> None:
    assert broker.stop() == 0
    broker.start()
    broker.kill()
    broker.start()
    assert starts_on_this_volume(engine) == 3
    broker.wipe_and_restart()
    assert starts_on_this_volume(engine) == 1


def test_a_frozen_container_does_not_greet_until_it_is_resumed(broker: RabbitMQServer) -> None:
    broker.pause()
    with pytest.raises(TimeoutError):
        broker.is_ready()
    broker.resume()
    eventually_now(broker.is_ready)


def test_a_container_left_frozen_is_still_cleaned_up(engine: Path) -> None:
    with RabbitMQServer() as broker:
        broker.pause()
    assert not broker.is_running
    assert list(engine.iterdir()) == []
