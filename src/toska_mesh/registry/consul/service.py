"""One service's instances as they change, for who cares about no other."""

import asyncio
import random
from collections.abc import AsyncGenerator, Callable

from toska_mesh.errors import RegistryUnavailableError
from toska_mesh.model import Instance, ServiceName
from toska_mesh.registry.consul.client import ConsulApi, segment
from toska_mesh.registry.consul.codec import service_reading
from toska_mesh.registry.consul.polling import Backoff, BlockingQuery


class ConsulServiceFollower:
    """One blocking query. One `updates` per object."""

    def __init__(
        self,
        api: ConsulApi,
        service: ServiceName,
        *,
        rng: random.Random | None = None,
        on_trouble: Callable[[str], None] = lambda reason: None,
    ) -> None:
        """`on_trouble` gets the reason whenever the registry does not answer, and `""` when it does."""
        self._service = service
        self._query = BlockingQuery(api, f"/v1/health/service/{segment(service)}", wait_seconds=60.0)
        self._backoff = Backoff(rng or random.Random(), base_seconds=0.1, longest_seconds=1.0)
        self._on_trouble = on_trouble

    async def updates(self) -> AsyncGenerator[tuple[Instance, ...], None]:
        """The instances now, and again at every change. An outage is waited out; raises RegistryError when refused."""
        while True:
            try:
                poll = await self._query.next()
            except RegistryUnavailableError as error:
                self._on_trouble(str(error))
                await asyncio.sleep(self._backoff.failed(error))
                continue
            self._backoff.succeeded()
            self._on_trouble("")
            if poll.is_new:
                yield service_reading(self._service, poll.body).instances
