"""A discovery as the Go control plane's is: the contract and nothing else, every failure in-band, no memory of its own.

It runs inside the test, so that the test can look at what it was told and take things away from it.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import grpc

from toska_mesh.pb import discovery_pb2 as pb
from toska_mesh.pb.discovery_pb2_grpc import DiscoveryRegistryServicer, add_DiscoveryRegistryServicer_to_server

_LABELS = {1: "Healthy", 2: "Unhealthy", 3: "Degraded"}


class GoDiscovery(DiscoveryRegistryServicer):
    """Registered instances, and everything that was said, in order."""

    def __init__(self) -> None:
        self.registered: dict[str, pb.RegisterServiceRequest] = {}
        self.health: dict[str, tuple[str, str]] = {}
        self.reports: list[pb.ReportHealthRequest] = []
        self.order: list[str] = []
        self.metadata: list[dict[str, str]] = []
        self.is_open = asyncio.Event()
        self.is_open.set()
        """Cleared: calls get no answer."""
        self.is_registry_away = False
        """Commands fail in-band, without a word of why; lookups fail with status UNKNOWN."""
        self.port = 0

    @property
    def target(self) -> str:
        return f"127.0.0.1:{self.port}"

    def forget(self, instance_id: str) -> None:
        """What a reaping registry does."""
        self.registered.pop(instance_id, None)

    async def _heard(self, method: str, context: grpc.aio.ServicerContext) -> None:  # type: ignore[type-arg]
        self.order.append(method)
        self.metadata.append({key: str(value) for key, value in context.invocation_metadata() or ()})
        await self.is_open.wait()

    async def Register(
        self, request: pb.RegisterServiceRequest, context: grpc.aio.ServicerContext
    ) -> pb.RegisterServiceResponse:
        await self._heard("Register", context)
        if self.is_registry_away:
            return pb.RegisterServiceResponse(success=False, errorMessage="dial tcp: connection refused")
        if any("." in key for key in request.metadata):  # as Consul refuses it
            return pb.RegisterServiceResponse(success=False, errorMessage="Unexpected response code: 400 (Invalid key)")
        peer = context.peer().split(":")[1]
        asked = pb.RegisterServiceRequest()
        asked.CopyFrom(request)
        asked.address = peer if request.address in ("", "0.0.0.0") else request.address
        self.registered[request.serviceId] = asked
        self.health[request.serviceId] = ("Healthy", "Service registered")
        return pb.RegisterServiceResponse(success=True, serviceId=request.serviceId)

    async def ReportHealth(
        self, request: pb.ReportHealthRequest, context: grpc.aio.ServicerContext
    ) -> pb.ReportHealthResponse:
        await self._heard("ReportHealth", context)
        self.reports.append(request)
        if self.is_registry_away or request.serviceId not in self.registered:
            return pb.ReportHealthResponse(success=False)
        self.health[request.serviceId] = (_LABELS[request.status], request.output)
        return pb.ReportHealthResponse(success=True)

    async def Deregister(
        self, request: pb.DeregisterServiceRequest, context: grpc.aio.ServicerContext
    ) -> pb.DeregisterServiceResponse:
        await self._heard("Deregister", context)
        if self.is_registry_away:
            return pb.DeregisterServiceResponse(removed=False)
        return pb.DeregisterServiceResponse(removed=self.registered.pop(request.serviceId, None) is not None)

    async def GetInstances(
        self, request: pb.GetInstancesRequest, context: grpc.aio.ServicerContext
    ) -> pb.GetInstancesResponse:
        await self._heard("GetInstances", context)
        if self.is_registry_away:
            await context.abort(grpc.StatusCode.UNKNOWN, "dial tcp: connection refused")
        found = [
            pb.ServiceInstance(serviceName=one.serviceName, serviceId=key, address=one.address, port=one.port)
            for key, one in self.registered.items()
            if one.serviceName == request.serviceName
        ]
        return pb.GetInstancesResponse(instances=found)


@asynccontextmanager
async def go_discovery(port: int = 0, credentials: grpc.ServerCredentials | None = None) -> AsyncIterator[GoDiscovery]:
    """Listening on loopback, with TLS when there are credentials for it."""
    server = grpc.aio.server(options=(("grpc.so_reuseport", 0),))
    servicer = GoDiscovery()
    add_DiscoveryRegistryServicer_to_server(servicer, server)  # type: ignore[no-untyped-call]
    address = f"127.0.0.1:{port}"
    servicer.port = server.add_secure_port(address, credentials) if credentials else server.add_insecure_port(address)
    await server.start()
    try:
        yield servicer
    finally:
        servicer.is_open.set()
        await server.stop(None)
