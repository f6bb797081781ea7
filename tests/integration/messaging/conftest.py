"""A broker that the tests of this folder may stop, freeze and misconfigure."""

from collections.abc import Iterator

import pytest
from tests.support.servers import RabbitMQServer


@pytest.fixture(scope="module")
def own_broker() -> Iterator[RabbitMQServer]:
    """Not shared beyond one module; every test leaves it running."""
    with RabbitMQServer() as server:
        yield server
