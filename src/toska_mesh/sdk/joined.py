"""A stay in the mesh for an app that somebody else's server carries: `uvicorn module:app`, `web.run_app`, gunicorn.

What `MeshService` knows, this has to find out: when the server accepts connections and on which port, that it is about
to stop, and whether other workers share the port. One worker per port is registered; the others stand by, take over
when it dies, and close their listeners only after it has left the mesh.
"""

import asyncio
import os
import signal
from collections.abc import Mapping
from contextlib import suppress

from prometheus_client import REGISTRY, CollectorRegistry

from toska_mesh.errors import ConfigError
from toska_mesh.sdk.checks import HealthCheck
from toska_mesh.sdk.interception import Interception, tell_stop_requested
from toska_mesh.sdk.options import ServiceOptions
from toska_mesh.sdk.outlet import own_log, wanted
from toska_mesh.sdk.ports import PortLease, listening_ports, until_open
from toska_mesh.sdk.stay import OpenEnrolment, Stay, open_enrolment
from toska_mesh.telemetry import event_log

log = event_log("sdk")

_STAND_BY_SECONDS = 0.25


class Joined:
    """Owned by the edge that was put around the app. `run` in a task of the app's lifespan; one event loop."""

    def __init__(
        self,
        options: ServiceOptions,
        checks: Mapping[str, HealthCheck] | None = None,
        metrics_registry: CollectorRegistry | None = REGISTRY,
        open_enrolment: OpenEnrolment = open_enrolment,
    ) -> None:
        wanted()  # a mistake in it should show now, not when the server is half started
        self.stay = Stay(options, metrics_registry=metrics_registry, open_enrolment=open_enrolment)
        self.stay.checks.add_all(checks)
        self._open_before = frozenset[int]()
        self._is_joining = False
        """The port is known."""
        self._is_over = asyncio.Event()
        self._interception = Interception(self._hear, self._hurry)

    def prepare(self) -> None:
        """Before the server opens its port."""
        own_log()
        self._open_before = listening_ports()

    async def run(self) -> None:
        """Join when the port is open; leave when asked to, or on a signal, which the server hears afterwards."""
        options = self.stay.options
        try:
            async with asyncio.TaskGroup() as tasks:
                staying = tasks.create_task(self._stay(), name=f"stay of {options.id} in the mesh")
                asked = tasks.create_task(self.stay.asked_to_leave(), name="wait until the end of the stay")
                await asyncio.wait([staying, asked], return_when=asyncio.FIRST_COMPLETED)
                await asyncio.wait([staying], timeout=options.drain_seconds)
                staying.cancel()
                asked.cancel()
        except Exception as exc:
            self._fail(exc)
        finally:
            self._is_over.set()
            self._interception.hand_on()

    async def leave(self) -> None:
        """Leave, if that has not happened yet, and wait for the end of it."""
        if self._is_joining and not self.stay.edge.is_draining:
            log.info(
                "stop_requested", service=self.stay.options.name, reason="the server stops", consequence="draining"
            )
        self.stay.ask_to_leave()
        await self._is_over.wait()

    def _hear(self, signal_name: str) -> None:
        tell_stop_requested(self.stay.options.name, signal_name, is_again=False)
        self.stay.ask_to_leave()

    def _hurry(self, signal_name: str) -> None:
        tell_stop_requested(self.stay.options.name, signal_name, is_again=True)
        self.stay.hurry.set()

    async def _stay(self) -> None:
        options = self.stay.options
        if not options.register:
            await self.stay.run(options.port)
            return
        port = await self._opened_port()
        if port is None:
            log.info("not_joined", service=options.name, reason="the server stopped before it had opened a port")
            return
        self._is_joining = True
        if not self._interception.begin():
            log.warning(
                "signals_not_intercepted",
                service=options.name,
                consequence="the server closes its port before the instance has left the mesh",
                remedy="serve(app), or a server with asyncio's own loop, such as granian --loop asyncio",
            )
        lease = PortLease(port, options.name)
        try:
            if await self._until_ours(lease, port):
                await self.stay.run(port)
            else:
                with suppress(TimeoutError):
                    async with asyncio.timeout(self.stay.seconds_left / 2):
                        await self.stay.edge.in_flight.idle()
        finally:
            lease.release()

    async def _opened_port(self) -> int | None:
        """None: asked to leave before the server had one, as in the app's own tests, or where its port was taken."""
        async with asyncio.TaskGroup() as tasks:
            opening = tasks.create_task(
                until_open(self.stay.options.port, self._open_before), name="wait for the server's port"
            )
            asked = tasks.create_task(self.stay.asked_to_leave(), name="wait until the end of the stay")
            await asyncio.wait([opening, asked], return_when=asyncio.FIRST_COMPLETED)
            opening.cancel()
            asked.cancel()
        return None if opening.cancelled() else opening.result()

    async def _until_ours(self, lease: PortLease, port: int) -> bool:
        """Wait for the lease. False: we were asked to leave, and the one who held it has left."""
        is_told = False
        while not lease.take():
            if not is_told:
                is_told = True
                log.info(
                    "standing_by", service=self.stay.options.name, port=port, reason="another worker is registered"
                )
            await asyncio.sleep(_STAND_BY_SECONDS)
        return not self.stay.edge.is_draining

    def _fail(self, exc: Exception) -> None:
        """Half a service is worse than a restart: the server is asked to stop."""
        leaf: BaseException = exc
        while isinstance(leaf, BaseExceptionGroup) and len(leaf.exceptions) == 1:
            leaf = leaf.exceptions[0]
        if isinstance(leaf, ConfigError):
            log.error("cannot_join", service=self.stay.options.name, reason=str(leaf))
        else:
            log.exception("cannot_join", service=self.stay.options.name)
        self._interception.end()
        os.kill(os.getpid(), signal.SIGTERM)
