"""The gRPC probe: `grpc.health.v1.Health/Check` for the whole server (grpc.io: "GRPC Health Checking Protocol").

A channel per probe, without grpc's own reconnecting, retrying, proxies and shared subchannels, so that each probe says
what is true now. Channels are heavy, so a semaphore bounds them apart from the other probes.
"""

import asyncio
import ipaddress
from typing import Any

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from toska_mesh.healthmonitor.probes.result import printable
from toska_mesh.healthmonitor.targets import ProbePlan
from toska_mesh.healthmonitor.verdict import Outcome, ProbeResult

MAX_CHANNELS = 64
MAX_MESSAGE_BYTES = 64 * 1024

_CONNECTED_CODES = frozenset(
    (grpc.StatusCode.UNIMPLEMENTED, grpc.StatusCode.NOT_FOUND, grpc.StatusCode.UNAUTHENTICATED,
     grpc.StatusCode.PERMISSION_DENIED, grpc.StatusCode.INTERNAL, grpc.StatusCode.RESOURCE_EXHAUSTED)
)  # fmt: skip


class GrpcProber:
    """Makes gRPC probes, at most `MAX_CHANNELS` at once. `root_certificates` None means grpc's own list."""

    def __init__(self, root_certificates: bytes | None = None) -> None:
        self._channels = asyncio.Semaphore(MAX_CHANNELS)
        self._root_certificates = root_certificates

    async def probe(self, plan: ProbePlan, address: str, deadline: float) -> ProbeResult:
        """Ask `address` (an IP address) until `deadline` (the loop's clock)."""
        try:
            async with asyncio.timeout_at(deadline):
                await self._channels.acquire()
        except TimeoutError:
            return ProbeResult(Outcome.INCONCLUSIVE, "the monitor could not probe: too many gRPC probes at once")
        try:
            return await self._check(plan, address, deadline)
        finally:
            self._channels.release()

    async def _check(self, plan: ProbePlan, address: str, deadline: float) -> ProbeResult:
        channel = self._open(plan, address)
        remaining = max(0.0, deadline - asyncio.get_running_loop().time())
        try:
            async with asyncio.timeout(remaining + 0.5):  # grpc keeps the deadline itself; this guards against grpc
                answer = await health_pb2_grpc.HealthStub(channel).Check(
                    health_pb2.HealthCheckRequest(service=""), timeout=remaining
                )
        except grpc.aio.AioRpcError as exc:
            return _from_rpc_error(exc)
        except TimeoutError:
            return ProbeResult(Outcome.TIMEOUT, "no answer in time")
        finally:
            await channel.close(None)
        word = health_pb2.HealthCheckResponse.ServingStatus.Name(answer.status)
        outcome = Outcome.SUCCESS if answer.status == health_pb2.HealthCheckResponse.SERVING else Outcome.FAILURE
        return ProbeResult(outcome, f"gRPC {word}", is_connected=True)

    def _open(self, plan: ProbePlan, address: str) -> grpc.aio.Channel:
        is_ipv6 = ipaddress.ip_address(address).version == 6
        target = f"ipv6:[{address}]:{plan.port}" if is_ipv6 else f"ipv4:{address}:{plan.port}"
        options: list[tuple[str, Any]] = [
            ("grpc.default_authority", plan.authority),
            ("grpc.enable_retries", 0),
            ("grpc.enable_http_proxy", 0),
            ("grpc.use_local_subchannel_pool", 1),
            ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
            ("grpc.max_metadata_size", 16 * 1024),
        ]
        if not plan.tls:
            return grpc.aio.insecure_channel(target, options=options)
        credentials = grpc.ssl_channel_credentials(self._root_certificates)
        return grpc.aio.secure_channel(target, credentials, options=options)


def _from_rpc_error(exc: grpc.aio.AioRpcError) -> ProbeResult:
    code = exc.code()
    if code is grpc.StatusCode.DEADLINE_EXCEEDED:
        return ProbeResult(Outcome.TIMEOUT, "no answer in time")
    words = "no health service" if code is grpc.StatusCode.UNIMPLEMENTED else printable(exc.details() or "")
    return ProbeResult(Outcome.FAILURE, f"gRPC {code.name}: {words}", is_connected=code in _CONNECTED_CODES)
