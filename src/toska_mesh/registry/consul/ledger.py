"""Which fences a gateway has met, and which of them it has passed. Pure.

One ledger for one life of the registry's indexes: after a loss of the registry's memory another one begins.
"""

from collections.abc import Mapping
from types import MappingProxyType

from toska_mesh.model import ServiceName
from toska_mesh.registry.consul.gateways import GatewayState


class FenceLedger:
    """A fence is an index in the registry's order of writes; a later one of the same service stands for the earlier."""

    def __init__(self) -> None:
        self._met: dict[ServiceName, int] = {}
        self._passed: dict[ServiceName, int] = {}
        self._highest = 0

    def meet(self, fences: Mapping[ServiceName, int]) -> list[ServiceName]:
        """Take the whole list as it is now; give the services of which something is not passed yet."""
        for service in [name for name in self._met if name not in fences and self.is_past(name)]:
            del self._met[service]
            self._passed.pop(service, None)
        for service, index in fences.items():
            self._met[service] = max(index, self._met.get(service, 0))
            self._highest = max(self._highest, index)
        return [name for name in self._met if not self.is_past(name)]

    def newest(self, service: ServiceName) -> int:
        """Of the fences met; ask before reading the service, and `pass_` with the answer after it."""
        return self._met.get(service, 0)

    def pass_(self, service: ServiceName, index: int) -> None:
        self._passed[service] = max(index, self._passed.get(service, 0))

    def is_past(self, service: ServiceName) -> bool:
        return self._passed.get(service, 0) >= self._met.get(service, 0)

    def state(self, name: str) -> GatewayState:
        """What to tell the waiters."""
        behind = {service: self._passed.get(service, 0) for service in self._met if not self.is_past(service)}
        return GatewayState(name, self._highest, MappingProxyType(behind))
