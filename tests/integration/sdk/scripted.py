"""The other side of a stay, in the test's own process: it remembers the order of things and can be held up."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

from toska_mesh.errors import RegistryUnavailableError
from toska_mesh.model import HealthStatus, InstanceId, ServiceName
from toska_mesh.sdk.enrolment import Applied, Enrolment, Member
from toska_mesh.sdk.options import ServiceOptions


class Recorder:
    """An enrolment that notes what it is told."""

    def __init__(self) -> None:
        self.order: list[str] = []
        self.members: list[Member] = []
        self.said: list[tuple[HealthStatus, str]] = []
        self.is_away = False
        self.may_leave = asyncio.Event()
        """While it is not set, the gateways have not applied what they were told."""
        self.may_leave.set()
        self.on_register: Callable[[Member], Awaitable[None]] | None = None

    async def register(self, member: Member, deadline: float) -> InstanceId:
        self._note("register")
        if self.on_register is not None:
            await self.on_register(member)
        self.members.append(member)
        return member.id

    async def report(self, instance_id: InstanceId, status: HealthStatus, output: str, deadline: float) -> bool:
        self._note("report")
        self.said.append((status, output))
        return True

    async def deregister(self, instance_id: InstanceId, deadline: float) -> bool:
        self._note("deregister")
        return True

    async def wait_applied(self, service: ServiceName, deadline: float) -> Applied:
        self._note("wait_applied")
        await self.may_leave.wait()
        return Applied(True, gateways=("gateway-1",))

    @asynccontextmanager
    async def open(self, options: ServiceOptions) -> AsyncIterator[Enrolment]:
        yield self

    def _note(self, name: str) -> None:
        if self.is_away:
            raise RegistryUnavailableError("away")
        self.order.append(name)
