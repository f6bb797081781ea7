"""Tests against real sockets and servers run on the loop that the daemons use."""

from asyncio import AbstractEventLoop
from collections.abc import Callable, Mapping

import pytest
import uvloop
from tests.support.fixtures import (
    consul,
    consul_factory,
    daemon_factory,
    rabbitmq,
    rabbitmq_factory,
    registry_factory,
)

__all__ = ["consul", "consul_factory", "daemon_factory", "rabbitmq", "rabbitmq_factory", "registry_factory"]


def pytest_asyncio_loop_factories(
    config: pytest.Config, item: pytest.Item
) -> Mapping[str, Callable[[], AbstractEventLoop]]:
    return {"uvloop": uvloop.new_event_loop}
