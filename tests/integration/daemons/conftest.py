"""Every daemon in turn, as a user starts it: a process with variables."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack

import pytest
from tests.integration.daemons.daemons import ALL, NOBODY, Daemon, Running


@pytest.fixture(params=ALL, ids=str)
def daemon(request: pytest.FixtureRequest) -> Daemon:
    return request.param


@pytest.fixture
def make() -> Iterator[Callable[..., Running]]:
    """`make(daemon, registry_url, **env)`: a daemon that is not started yet and will be gone after the test."""
    with ExitStack() as stack:

        def build(daemon: Daemon, registry_url: str = NOBODY, **env: str) -> Running:
            running = Running(daemon, registry_url, **env)
            stack.callback(running.close)
            return running

        yield build
