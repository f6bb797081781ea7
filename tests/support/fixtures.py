"""Fixtures that hand out real servers, for the conftest of each folder that may use them.

`consul` and `rabbitmq` live for the whole run and are shared: use names of your own in them and do not stop them.
The factories start a server for one test, which may do to it what it likes.
"""

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import pytest
from tests.support.servers import ConsulServer, DaemonProcess, RabbitMQServer, RegistryServer

__all__ = ["consul", "consul_factory", "daemon_factory", "rabbitmq", "rabbitmq_factory", "registry_factory"]


@pytest.fixture(scope="session")
def consul() -> Iterator[ConsulServer]:
    """A development agent, shared."""
    with ConsulServer() as server:
        yield server


@pytest.fixture(scope="session")
def rabbitmq() -> Iterator[RabbitMQServer]:
    """A broker, shared."""
    with RabbitMQServer() as server:
        yield server


@pytest.fixture
def consul_factory() -> Iterator[Callable[..., ConsulServer]]:
    """`consul_factory(persistent=False, **config)`: a Consul of your own, started."""
    with ExitStack() as stack:
        yield lambda *args, **kwargs: stack.enter_context(ConsulServer(*args, **kwargs))


@pytest.fixture
def rabbitmq_factory() -> Iterator[Callable[[], RabbitMQServer]]:
    """A broker of your own, started; takes some ten seconds."""
    with ExitStack() as stack:
        yield lambda: stack.enter_context(RabbitMQServer())


@pytest.fixture
def registry_factory() -> Iterator[Callable[..., RegistryServer]]:
    """`registry_factory(**env)`: our embedded registry, started."""
    with ExitStack() as stack:
        yield lambda **env: stack.enter_context(RegistryServer(**env))


@pytest.fixture
def daemon_factory() -> Iterator[Callable[..., DaemonProcess]]:
    """`daemon_factory(program, env, ready_url)`: one of our daemons, started."""
    with ExitStack() as stack:

        def start(*args: Any, **kwargs: Any) -> DaemonProcess:
            return stack.enter_context(DaemonProcess(*args, **kwargs))

        yield start
