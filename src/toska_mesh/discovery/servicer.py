"""The gRPC edge: `toskamesh.discovery.DiscoveryRegistry`.

Failures of Register, Deregister and ReportHealth are answered in-band with status OK, as the contract wants it; a
token that does not hold is UNAUTHENTICATED or PERMISSION_DENIED; a lookup that the registry cannot answer is
UNAVAILABLE, never an empty list.
"""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

import grpc

from toska_mesh.discovery import convert
from toska_mesh.discovery.address import peer_ip
from toska_mesh.discovery.auth import Gatekeeper, NotOwnerError, PermissionDeniedError, UnauthenticatedError
from toska_mesh.discovery.call import Call, deadline_of
from toska_mesh.discovery.metrics import DiscoveryMetrics
from toska_mesh.discovery.registrar import Lookup, Registrar
from toska_mesh.discovery.validation import InvalidArgumentError
from toska_mesh.errors import MeshError, RegistryUnavailableError
from toska_mesh.model import InstanceId, ServiceName
from toska_mesh.pb import discovery_pb2 as pb
from toska_mesh.pb import discovery_pb2_grpc
from toska_mesh.telemetry import event_log

SERVICE_NAME = "toskamesh.discovery.DiscoveryRegistry"
STALE_KEY = "x-toska-stale"
"""Trailing metadata of a lookup answered from the last known state: why the registry could not be asked."""

UNAVAILABLE_KEY = "x-toska-unavailable"
"""Trailing metadata of an in-band failure that says "not now" rather than "no": why the registry could not be asked."""

_MAX_CORRELATION_CHARS = 256

log = event_log("discovery")

Response = TypeVar("Response")
Context = grpc.aio.ServicerContext[Any, Any]


class DiscoveryServicer(discovery_pb2_grpc.DiscoveryRegistryServicer):
    """Translates between messages and the registrar; holds no state of its own."""

    def __init__(self, registrar: Registrar, gatekeeper: Gatekeeper, metrics: DiscoveryMetrics) -> None:
        self._registrar = registrar
        self._gatekeeper = gatekeeper
        self._metrics = metrics

    async def Register(  # noqa: N802  # the contract's name
        self, request: pb.RegisterServiceRequest, context: Context
    ) -> pb.RegisterServiceResponse:
        async def register(call: Call) -> pb.RegisterServiceResponse:
            instance_id = await self._registrar.register(call, convert.registration_from(request))
            return pb.RegisterServiceResponse(success=True, serviceId=instance_id)

        def refuse(exc: MeshError) -> pb.RegisterServiceResponse:
            return pb.RegisterServiceResponse(success=False, serviceId=request.serviceId, errorMessage=str(exc))

        return await self._answer("Register", context, register, refuse)

    async def Deregister(  # noqa: N802
        self, request: pb.DeregisterServiceRequest, context: Context
    ) -> pb.DeregisterServiceResponse:
        async def deregister(call: Call) -> pb.DeregisterServiceResponse:
            removed = await self._registrar.deregister(call, InstanceId(request.serviceId))
            return pb.DeregisterServiceResponse(removed=removed)

        return await self._answer(
            "Deregister", context, deregister, lambda exc: pb.DeregisterServiceResponse(removed=False)
        )

    async def ReportHealth(  # noqa: N802
        self, request: pb.ReportHealthRequest, context: Context
    ) -> pb.ReportHealthResponse:
        async def report(call: Call) -> pb.ReportHealthResponse:
            known = await self._registrar.report_health(
                call, InstanceId(request.serviceId), request.status, request.output
            )
            return pb.ReportHealthResponse(success=known)

        return await self._answer("ReportHealth", context, report, lambda exc: pb.ReportHealthResponse(success=False))

    async def GetInstances(  # noqa: N802
        self, request: pb.GetInstancesRequest, context: Context
    ) -> pb.GetInstancesResponse:
        async def look_up(call: Call) -> pb.GetInstancesResponse:
            found = await self._registrar.instances(call, ServiceName(request.serviceName))
            _mark_stale(context, found)
            return pb.GetInstancesResponse(
                instances=[
                    convert.instance_to(instance, self._registrar.last_beat(instance.id))
                    for instance in found.instances
                ]
            )

        return await self._answer("GetInstances", context, look_up)

    async def GetServices(  # noqa: N802
        self, request: pb.GetServicesRequest, context: Context
    ) -> pb.GetServicesResponse:
        async def look_up(call: Call) -> pb.GetServicesResponse:
            found = await self._registrar.service_names(call)
            _mark_stale(context, found)
            return pb.GetServicesResponse(serviceNames=found.names)

        return await self._answer("GetServices", context, look_up)

    async def _answer(
        self,
        method: str,
        context: Context,
        do: Callable[[Call], Awaitable[Response]],
        refuse: Callable[[MeshError], Response] | None = None,
    ) -> Response:
        """Run one call; `refuse` makes the in-band answer of methods that have one."""
        loop = asyncio.get_running_loop()
        started = loop.time()
        outcome = "error"
        try:
            answer = await do(call_of(context, self._gatekeeper, started))
            outcome = "ok" if _succeeded(answer) else "refused"
            return answer
        except UnauthenticatedError as exc:
            outcome = "denied"
            await context.abort(grpc.StatusCode.UNAUTHENTICATED, str(exc))
        except PermissionDeniedError as exc:
            outcome = "denied"
            await context.abort(grpc.StatusCode.PERMISSION_DENIED, str(exc))
        except MeshError as exc:
            outcome = outcome_of(exc)
            if refuse is not None:
                if isinstance(exc, RegistryUnavailableError):
                    _mark_unavailable(context, exc)
                log.info("call_refused", method=method, peer=context.peer(), error=str(exc))
                return refuse(exc)
            await context.abort(status_of(exc), str(exc))
        except asyncio.CancelledError:
            outcome = "cancelled"
            raise
        finally:
            self._metrics.count_call("grpc", method, outcome, loop.time() - started)
        raise AssertionError("abort always raises")


def call_of(context: Context, gatekeeper: Gatekeeper, now: float) -> Call:
    """What is known about the caller. Raises UnauthenticatedError and PermissionDeniedError."""
    authorization: str | None = None
    correlation_id: str | None = None
    for key, value in context.invocation_metadata() or ():
        if key == "authorization":
            authorization = _text(value)
        elif key == "x-correlation-id":
            correlation_id = _text(value)[:_MAX_CORRELATION_CHARS] or None
    peer = context.peer()
    return Call(
        deadline=deadline_of(now, context.time_remaining()),
        peer=peer,
        ip=peer_ip(peer),
        identity=gatekeeper.admit(authorization),
        correlation_id=correlation_id,
    )


def status_of(exc: MeshError) -> grpc.StatusCode:
    """What a failure is called in gRPC, tokens aside."""
    if isinstance(exc, InvalidArgumentError):
        return grpc.StatusCode.INVALID_ARGUMENT
    if isinstance(exc, RegistryUnavailableError):
        return grpc.StatusCode.UNAVAILABLE
    return grpc.StatusCode.INTERNAL


def outcome_of(exc: MeshError) -> str:
    """What a failure is called in metrics."""
    if isinstance(exc, NotOwnerError):
        return "denied"
    return "unavailable" if isinstance(exc, RegistryUnavailableError) else "refused"


def _succeeded(answer: object) -> bool:
    return bool(getattr(answer, "success", getattr(answer, "removed", True)))


def _mark_stale(context: Context, found: Lookup) -> None:
    if found.stale_reason:
        context.set_trailing_metadata(((STALE_KEY, _metadata_text(found.stale_reason)),))


def _mark_unavailable(context: Context, exc: RegistryUnavailableError) -> None:
    context.set_trailing_metadata(((UNAVAILABLE_KEY, _metadata_text(str(exc))),))


def _metadata_text(reason: str) -> str:
    text = reason.encode("ascii", "replace").decode()
    return "".join(c if c.isprintable() else " " for c in text)


def _text(value: str | bytes) -> str:
    return value if isinstance(value, str) else value.decode("utf-8", "replace")
