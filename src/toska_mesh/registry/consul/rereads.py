"""Who waits for a reading of which service, and from when on a reading will do. Bookkeeping of the follower."""

import asyncio
from collections.abc import Container, Iterable, Mapping

from toska_mesh.model import ServiceName

_Waiting = list[asyncio.Future[int]]


class Rereads:
    """A wait goes three ways: asked, being read (by a reading that began after it was asked), read and to be shown."""

    def __init__(self) -> None:
        self._asked: dict[ServiceName, _Waiting] = {}
        self._read: dict[ServiceName, _Waiting] = {}

    async def ask(self, service: ServiceName) -> int:
        """Wait for a reading that begins from now on; give the version of the catalog that shows it."""
        wait: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        self._asked.setdefault(service, []).append(wait)
        return await wait

    def begin(self, services: Iterable[ServiceName]) -> Mapping[ServiceName, _Waiting]:
        """These are going to be read: give the waits that the readings are for."""
        return {service: self._asked.pop(service) for service in services if service in self._asked}

    def end(self, begun: Mapping[ServiceName, _Waiting], readings: Container[ServiceName]) -> None:
        """Take back what `begin` gave. A service that could not be read has to be read again."""
        for service, waits in begun.items():
            (self._read if service in readings else self._asked).setdefault(service, []).extend(waits)

    def answer(self, version: int, held: Container[ServiceName]) -> None:
        """All that was read is in this version, except what is held back of some services."""
        for service in [service for service in self._read if service not in held]:
            for wait in self._read.pop(service):
                if not wait.done():
                    wait.set_result(version)
