"""Unit tests run on the virtual clock: a sleep costs nothing and a hang fails at once. They have no network."""

import socket
from asyncio import AbstractEventLoop
from collections.abc import Callable, Mapping
from typing import Never

import pytest
from tests.support.virtual_loop import VirtualLoop


def pytest_asyncio_loop_factories(
    config: pytest.Config, item: pytest.Item
) -> Mapping[str, Callable[[], AbstractEventLoop]]:
    return {"virtual": VirtualLoop}


@pytest.fixture(autouse=True)
def _no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: socket.socket, *_: object) -> Never:
        raise AssertionError("unit tests have no sockets; tests/integration has")

    for name in ("bind", "connect", "connect_ex"):
        monkeypatch.setattr(socket.socket, name, refuse)
