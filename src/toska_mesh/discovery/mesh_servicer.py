"""The gRPC edge of `toskamesh.mesh.Mesh`, discovery's own service beside the family's contract.

A stream sends what `watch` says is due, and a sign of life while nothing is. It ends by itself after about an hour,
with status OK: the client comes back at once, and its token is looked at again. Both calls are long, so together they
may take half of the calls that the server allows (`app`): a registration always finds room.
"""

import asyncio
import random
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import grpc

from toska_mesh.discovery.auth import Gatekeeper, PermissionDeniedError, UnauthenticatedError
from toska_mesh.discovery.call import ANSWER_SECONDS, deadline_of
from toska_mesh.discovery.metrics import DiscoveryMetrics
from toska_mesh.discovery.servicer import Context, call_of, outcome_of, status_of
from toska_mesh.discovery.validation import check_service_name
from toska_mesh.discovery.watch import DrainingError, LimitReachedError, Update, Watcher, WatchHub
from toska_mesh.errors import MeshError
from toska_mesh.model import ServiceName
from toska_mesh.pb import mesh_pb2 as pb
from toska_mesh.registry.api import BarrierReport, GatewayBarrier, UnknownServiceError

SERVICE_NAME = "toskamesh.mesh.Mesh"

BEAT_SECONDS = 10.0
"""A stream without news sends an empty update that often, so that a client notices a discovery that froze."""

STREAM_SECONDS = 3600.0
REST_SECONDS_PER_BYTE = 4e-9
"""Twice what sending costs. A stream rests for what telling a service again cost all streams together, so that a storm
of changes in a huge service is told now and then, instead of being all that discovery does."""

MAX_WAIT_SECONDS = 600.0
"""A drain may take minutes, and "not applied" ends it: a wait may be as long. It costs a place among the waits."""

ANSWER_SECONDS_PER_WAIT = 0.002
"""Kept back of a wait for each of those that are open: many that end together are answered one after another."""

_SURE_PART = 0.99
"""Of the time that a caller seems to have: gRPC sends timeouts with three digits, rounded up."""
_LONGEST_REST_SECONDS = 5.0
_SHORTEST_REST_SECONDS = 0.001


class MeshServicer:
    """Translates between messages, the hub and the barrier. `drain` ends what is open."""

    def __init__(
        self,
        hub: WatchHub,
        barrier: GatewayBarrier,
        gatekeeper: Gatekeeper,
        metrics: DiscoveryMetrics,
        max_waits: int,
        rng: random.Random | None = None,
    ) -> None:
        self._hub = hub
        self._barrier = barrier
        self._gatekeeper = gatekeeper
        self._metrics = metrics
        self._max_waits = max_waits
        self._rng = rng or random.Random()
        self._waits: set[asyncio.Timeout] = set()
        self._is_draining = False
        metrics.watch_streams.set_function(lambda: hub.watcher_count)
        metrics.watch_names.set_function(lambda: hub.name_count)

    def handlers(self) -> "grpc.GenericRpcHandler[Any, Any]":
        """For the server. The generated ones would encode each stream's updates anew; ours are bytes already."""
        methods = {
            "Watch": grpc.stream_stream_rpc_method_handler(
                self.Watch, request_deserializer=pb.WatchRequest.FromString, response_serializer=None
            ),
            "WaitApplied": grpc.unary_unary_rpc_method_handler(
                self.WaitApplied,
                request_deserializer=pb.WaitAppliedRequest.FromString,
                response_serializer=pb.WaitAppliedResponse.SerializeToString,
            ),
        }
        return grpc.method_handlers_generic_handler(SERVICE_NAME, methods)

    def drain(self) -> None:
        """End streams and waits with UNAVAILABLE, now: their callers go on with another discovery."""
        self._is_draining = True
        self._hub.drain()
        now = asyncio.get_running_loop().time()
        for wait in self._waits:
            wait.reschedule(now)

    async def Watch(self, requests: AsyncIterator[pb.WatchRequest], context: Context) -> None:  # noqa: N802
        async def watch() -> None:
            call_of(context, self._gatekeeper, asyncio.get_running_loop().time())
            with self._hub.open() as watcher:
                await self._serve(watcher, requests, context)

        await self._answer("Watch", context, watch)

    async def WaitApplied(  # noqa: N802
        self, request: pb.WaitAppliedRequest, context: Context
    ) -> pb.WaitAppliedResponse:
        answer = pb.WaitAppliedResponse()

        async def wait() -> None:
            now = asyncio.get_running_loop().time()
            call_of(context, self._gatekeeper, now)
            check_service_name(request.serviceName)
            deadline = deadline_of(
                now,
                _seconds_left(context),
                longest_seconds=MAX_WAIT_SECONDS,
                kept_back_seconds=ANSWER_SECONDS + ANSWER_SECONDS_PER_WAIT * len(self._waits),
            )
            report = await self._wait(ServiceName(request.serviceName), deadline)
            answer.CopyFrom(_response_to(report))

        await self._answer("WaitApplied", context, wait)
        return answer

    async def _answer(self, method: str, context: Context, do: Callable[[], Awaitable[None]]) -> None:
        """Run one call; its failures become a status."""
        outcome = "error"
        try:
            try:
                await do()
            except MeshError:
                _check_caller(context)
                raise
            _check_caller(context)
            outcome = "ok"
        except MeshError as exc:
            outcome = _outcome_of(exc)
            await context.abort(_status_of(exc), str(exc))
        except asyncio.CancelledError:
            outcome = "cancelled"
            raise
        finally:
            self._metrics.calls.labels("grpc", method, outcome).inc()

    # --- Watch --------------------------------------------------------------------------------------------------------

    async def _serve(self, watcher: Watcher, requests: AsyncIterator[pb.WatchRequest], context: Context) -> None:
        async with asyncio.TaskGroup() as tasks:
            reading = tasks.create_task(_read_names(watcher, requests), name="watch: read names")
            try:
                await self._send(watcher, context)
            finally:
                reading.cancel()
        if watcher.ended_by is not None:
            raise watcher.ended_by

    async def _send(self, watcher: Watcher, context: Context) -> None:
        loop = asyncio.get_running_loop()
        until = loop.time() + STREAM_SECONDS * self._rng.uniform(0.8, 1.2)
        while watcher.ended_by is None and loop.time() < until:
            update = watcher.take(loop.time())
            if update is None:
                try:
                    async with asyncio.timeout(BEAT_SECONDS):
                        await watcher.news()
                    continue
                except TimeoutError:
                    update = Update(self._hub.staleness(loop.time()), 0)
            try:
                # Without a deadline: gRPC gives no way to end a stream whose client does not read, not even with an
                # error. It holds this one message, and its place among the streams that may be open.
                await context.write(update.data)
            except grpc.aio.InternalError:
                return  # the client is gone, and its cancellation is on the way
            self._metrics.watch_updates.inc()
            self._metrics.watch_bytes.inc(len(update.data))
            rest = update.again_bytes * REST_SECONDS_PER_BYTE
            if rest > _SHORTEST_REST_SECONDS:
                await watcher.rest(min(rest, _LONGEST_REST_SECONDS))

    # --- WaitApplied --------------------------------------------------------------------------------------------------

    async def _wait(self, service: ServiceName, deadline: float) -> BarrierReport:
        if self._is_draining:
            raise DrainingError("this discovery is stopping; ask another one")
        if len(self._waits) >= self._max_waits:
            raise LimitReachedError(f"{self._max_waits} calls wait for the gateways, as many as this discovery keeps")
        wait = asyncio.timeout(None)
        try:
            async with wait:
                self._waits.add(wait)
                return await self._barrier.wait_applied(service, deadline)
        except TimeoutError as exc:
            raise DrainingError("this discovery is stopping; ask another one") from exc
        finally:
            self._waits.discard(wait)


def _check_caller(context: Context) -> None:
    """End a call as if its caller had cancelled it, when the time it gave is over: no answer would reach it."""
    left = _seconds_left(context)
    if left is not None and left <= 0:
        raise asyncio.CancelledError


def _seconds_left(context: Context) -> float | None:
    """Until the caller's deadline; None when there is none, which the stubs do not know."""
    seconds: float | None = context.time_remaining()
    return None if seconds is None else seconds * _SURE_PART


async def _read_names(watcher: Watcher, requests: AsyncIterator[pb.WatchRequest]) -> None:
    """Until the client has named all that it wants; it may go on listening after that."""
    try:
        async for request in requests:
            watcher.add(request.serviceNames)
    except MeshError as exc:
        watcher.end(exc)


def _response_to(report: BarrierReport) -> pb.WaitAppliedResponse:
    return pb.WaitAppliedResponse(
        applied=report.is_applied,
        index=report.index,
        gateways=[pb.GatewayState(name=one.name, appliedIndex=one.applied_index) for one in report.gateways],
        reason="" if report.is_applied else report.reason,
    )


def _status_of(exc: MeshError) -> grpc.StatusCode:
    match exc:
        case DrainingError():
            return grpc.StatusCode.UNAVAILABLE
        case LimitReachedError():
            return grpc.StatusCode.RESOURCE_EXHAUSTED
        case UnauthenticatedError():
            return grpc.StatusCode.UNAUTHENTICATED
        case PermissionDeniedError():
            return grpc.StatusCode.PERMISSION_DENIED
        case UnknownServiceError():
            return grpc.StatusCode.FAILED_PRECONDITION  # to ask again soon would not help
        case _:
            return status_of(exc)


def _outcome_of(exc: MeshError) -> str:
    if isinstance(exc, UnauthenticatedError | PermissionDeniedError):
        return "denied"
    return "unavailable" if isinstance(exc, DrainingError) else outcome_of(exc)
