"""An instance for a protocol that the mesh does not speak: the caller connects, and says how it went.

    with await mesh.pick("cache", key="user-7") as picked:
        reader, writer = await asyncio.open_connection(picked.host, picked.port)

Leaving the block well is a success of the instance, an OSError, EOFError or TimeoutError a failure for its breaker; any
other exception, and being cancelled, says nothing about it.
"""

import asyncio
from collections.abc import Callable
from typing import Final, Self

from toska_mesh.guard import PROBE_SECONDS, Guard, Guarded
from toska_mesh.model import Endpoint, Instance
from toska_mesh.resilience import Outcome

_FAULTS: Final = (OSError, EOFError, TimeoutError)


class Picked:
    """One instance, chosen and admitted by its breaker. Use it with `with`; it counts as load inside the block."""

    def __init__(self, target: Guarded, guard: Guard[Guarded], clock: Callable[[], float]) -> None:
        self._target = target
        self._guard = guard
        self._clock = clock
        self._permit = target.circuit.epoch
        self._is_open = False

    @property
    def instance(self) -> Instance:
        """Who was chosen."""
        return self._target.instance

    @property
    def endpoint(self) -> Endpoint:
        """Where it is."""
        return self._target.instance.endpoint

    @property
    def host(self) -> str:
        """A DNS name or an address."""
        return self.endpoint.host

    @property
    def port(self) -> int:
        """Its own port; further ones are in the metadata."""
        return self.endpoint.port

    def succeeded(self) -> None:
        """For callers without a `with`: it served well."""
        self._settle(Outcome.SUCCESS)

    def failed(self) -> None:
        """For callers without a `with`: it did not serve."""
        self._settle(Outcome.FAILURE)

    def _settle(self, outcome: Outcome) -> None:
        if outcome is Outcome.FAILURE or not self._target.circuit.is_clean:
            self._guard.settle(self._target, self._permit, outcome, self._clock())

    def __enter__(self) -> Self:
        self._target.in_flight += 1
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._target.in_flight -= 1
        if kind is None:
            self._settle(Outcome.SUCCESS)
        else:
            self._settle(Outcome.FAILURE if issubclass(kind, _FAULTS) else Outcome.CANCELLED)

    def __repr__(self) -> str:
        return f"<Picked {self.instance.id} at {self.endpoint.authority}>"


class TcpProber:
    """`Prober` for anything: whether the port takes a connection."""

    async def probe(self, target: Guarded) -> bool:
        """See `Prober`."""
        endpoint = target.instance.endpoint
        transport = None
        try:
            async with asyncio.timeout(PROBE_SECONDS):
                loop = asyncio.get_running_loop()
                transport, _ = await loop.create_connection(asyncio.Protocol, endpoint.host, endpoint.port)
                return True
        except (OSError, TimeoutError, UnicodeError):
            return False
        finally:
            if transport is not None:
                transport.abort()
