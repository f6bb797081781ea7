"""One instance's stay in the mesh, whatever serves its HTTP: from an open port to the last gateway that has heard.

The one place that ties membership, leaving and the app's health together; hosts and middlewares only say when.
"""

import asyncio
import importlib
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from random import Random

from prometheus_client import REGISTRY, CollectorRegistry

from toska_mesh.model import HealthStatus
from toska_mesh.sdk.checks import Checks
from toska_mesh.sdk.discovery import DiscoveryEnrolment, open_channel
from toska_mesh.sdk.endpoints import Edge
from toska_mesh.sdk.enrolment import Enrolment
from toska_mesh.sdk.leaving import LeaveReport, Leaving
from toska_mesh.sdk.membership import Membership
from toska_mesh.sdk.options import ServiceOptions
from toska_mesh.sdk.tokens import ServiceToken
from toska_mesh.telemetry import event_log

log = event_log("sdk")

SHUT_DOWN = "shutting down"
"""What the other SDKs of the family say too."""

CLOSING_SECONDS = 2.5
"""Of the time for leaving, what is kept for closing: to end what has outlived all waiting. Whoever sent SIGTERM may
send SIGKILL when that time is over (Kubernetes after 30 s, our default)."""

OpenEnrolment = Callable[[ServiceOptions], AbstractAsyncContextManager[Enrolment]]


@asynccontextmanager
async def open_enrolment(options: ServiceOptions) -> AsyncIterator[Enrolment]:
    """The enrolment that the options ask for, closed at the end."""
    connect = options.connect
    if connect.provider == "consul":
        consul = importlib.import_module("toska_mesh.sdk.consul")  # its weight is for those who use it
        async with consul.open_consul_enrolment(connect) as enrolment:
            yield enrolment
        return
    async with open_channel(connect) as channel:
        yield DiscoveryEnrolment(channel, ServiceToken(connect, options.name), connect.discovery_address)


class Stay:
    """Owned by the service; `run` once, in a task. One event loop."""

    def __init__(
        self,
        options: ServiceOptions,
        *,
        metrics_registry: CollectorRegistry | None = REGISTRY,
        open_enrolment: OpenEnrolment = open_enrolment,
        rng: Random | None = None,
    ) -> None:
        self.options = options.resolved()
        self.checks = Checks()
        self.edge = Edge(
            self.options.name, self.options.id, self.options.health_endpoint, self.checks, metrics_registry
        )
        self.edge.is_registered = self.is_registered
        self.hurry = asyncio.Event()
        """Set to leave at once."""
        self.report: LeaveReport | None = None
        """How leaving went, once it has; None as well for one that was not to be registered."""
        self._open_enrolment = open_enrolment
        self._rng = rng or Random()
        self._membership: Membership | None = None
        self._has_joined = asyncio.Event()
        self._is_leaving = asyncio.Event()
        self._reason = SHUT_DOWN
        self._ends = float("inf")

    def is_registered(self) -> bool:
        """Whether the mesh knows us, as far as we know."""
        return self._membership is not None and self._membership.is_registered

    @property
    def why_not_registered(self) -> str:
        """For people; empty when it is registered."""
        if self._membership is not None:
            return self._membership.why_not
        return "it has not begun to" if self.options.register else "it is not to be"

    @property
    def instance_id(self) -> str:
        return self.options.id if self._membership is None else self._membership.instance_id

    @property
    def seconds_left(self) -> float:
        """Of the time that leaving may take."""
        return max(0.0, min(self._ends - asyncio.get_running_loop().time(), self.options.drain_seconds))

    async def registered(self) -> None:
        """Wait until the mesh has acknowledged the registration; at once for one that is not to be registered."""
        if self.options.register:
            await self._has_joined.wait()
            if self._membership is not None:
                await self._membership.registered()

    def ask_to_leave(self, reason: str = SHUT_DOWN) -> None:
        """Begin to leave. Asking again changes nothing."""
        if not self._is_leaving.is_set():
            self._ends = asyncio.get_running_loop().time() + self.options.drain_seconds
            self._reason = reason
            self.edge.is_draining = True
            self._is_leaving.set()

    async def asked_to_leave(self) -> None:
        """Wait until somebody has asked."""
        await self._is_leaving.wait()

    async def run(self, port: int) -> None:
        """Register the port, which accepts connections already; stay until asked to leave; leave.

        Returns when nobody sends new requests any more, or when the time for making sure of that is over.

        Raises ConfigError when the options for reaching the mesh cannot work; a mesh that is away is no error.
        """
        if self.options.register:
            await self._run_registered(port)
            return
        await self._is_leaving.wait()
        with suppress(TimeoutError):
            async with asyncio.timeout(self.options.drain_seconds / 2):
                await self._idle()

    async def _run_registered(self, port: int) -> None:
        options = self.options
        async with self._open_enrolment(options) as enrolment, asyncio.TaskGroup() as tasks:
            member = options.member(port)
            membership = Membership(enrolment, member, self._health, heartbeat=options.heartbeat, rng=self._rng)
            keeper = tasks.create_task(membership.keep(), name=f"keep {options.id} in the mesh")
            self._membership = membership
            self._has_joined.set()
            await self._is_leaving.wait()
            leaving = Leaving(
                membership,
                self._reason,
                drain_seconds=max(0.0, self.seconds_left - min(CLOSING_SECONDS, options.drain_seconds / 4)),
                notice_seconds=options.notice_seconds,
                idle=self._idle,
                asked_at=lambda: self.edge.in_flight.begun_at,
                hurry=self.hurry,
                rng=self._rng,
            )
            self.report = await leaving.run()
            keeper.cancel()

    async def _health(self) -> tuple[HealthStatus, str]:
        return await self.checks.reported()

    async def _idle(self) -> None:
        await self.edge.in_flight.idle()
