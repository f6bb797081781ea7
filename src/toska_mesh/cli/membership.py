"""How a service joins the mesh with nothing but the gRPC contract: register, beat, leave.

The sample service uses it; it is also the shortest complete example of what any client has to do. It trusts nothing to
last: discovery may be late, away or restarted, the registry may forget us; every call has a deadline.
"""

import asyncio
import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

import grpc
import jwt

from toska_mesh.pb import discovery_pb2 as pb
from toska_mesh.pb.discovery_pb2_grpc import DiscoveryRegistryStub
from toska_mesh.telemetry import event_log

log = event_log("sample")

CALL_SECONDS = 5.0
LEAVE_SECONDS = 2.0
FIRST_WAIT_SECONDS, LONGEST_WAIT_SECONDS = 0.1, 5.0
TOKEN_MINUTES = 10
TOKEN_PARTY = "ToskaMesh.Services"  # noqa: S105  # a name, no secret
"""Issuer and audience of service tokens across the mesh family."""
_CLAIM = "http://schemas.xmlsoap.org/ws/2005/05/identity/claims/"

CHANNEL_OPTIONS = (
    # We wait between tries ourselves; the channel must not add its own seconds on top.
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 1000),
)


@dataclass(frozen=True, slots=True)
class Member:
    """What is registered. The TTL of the check is made from `interval_seconds` by discovery."""

    service: str
    instance_id: str
    address: str
    port: int
    interval_seconds: int = 10
    health_path: str = "/health"

    @property
    def beat_seconds(self) -> float:
        """A third of the TTL (interval + 5 s, at least 10 s): two beats may get lost."""
        return max(10, self.interval_seconds + 5) / 3

    def request(self) -> pb.RegisterServiceRequest:
        return pb.RegisterServiceRequest(
            serviceName=self.service,
            serviceId=self.instance_id,
            address=self.address,
            port=self.port,
            metadata={
                "scheme": "http",
                "health_check_endpoint": self.health_path,
                "lb_strategy": "RoundRobin",
                "weight": "1",
            },
            healthCheck=pb.HealthCheckConfig(endpoint=self.health_path, intervalSeconds=self.interval_seconds),
        )


def wait_seconds(failures: int, rng: random.Random) -> float:
    """Before the next try, after so many failures in a row (1 = the first): doubling, bounded, with jitter."""
    longest = min(LONGEST_WAIT_SECONDS, FIRST_WAIT_SECONDS * 2 ** min(failures - 1, 10))
    return rng.uniform(longest / 2, longest)


def service_token(member: Member, secret: str, now: datetime) -> str:
    """The mesh family's service-to-service token (HS256), with the claims its validators ask for."""
    claims: Mapping[str, object] = {
        f"{_CLAIM}nameidentifier": member.service,
        f"{_CLAIM}name": member.service,
        "service_id": member.service,
        "role": "Service",
        "sub": member.service,
        "iss": TOKEN_PARTY,
        "aud": TOKEN_PARTY,
        "iat": int(now.timestamp()),
        "exp": int((now + timedelta(minutes=TOKEN_MINUTES)).timestamp()),
    }
    return jwt.encode(dict(claims), secret, algorithm="HS256")


class Membership:
    """Keeps one instance registered. Lives on one event loop; the channel belongs to the caller."""

    def __init__(
        self,
        channel: grpc.aio.Channel,
        member: Member,
        secret: str = "",
        rng: random.Random | None = None,
        utcnow: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self._discovery = DiscoveryRegistryStub(channel)  # type: ignore[no-untyped-call]  # generated
        self._member = member
        self._secret = secret
        self._rng = rng or random.Random()
        self._utcnow = utcnow
        self.is_registered = False

    async def keep(self) -> None:
        """Register, beat, and register again whenever a beat is refused. Until cancelled."""
        while True:
            await self._register()
            await self._beat_until_refused()
            self.is_registered = False

    async def leave(self) -> None:
        """Say that we are going, then go. Bounded; whatever fails, the TTL does the rest."""
        try:
            async with asyncio.timeout(LEAVE_SECONDS):
                await self._report(pb.HEALTH_STATUS_DEGRADED, "stopping")
                request = pb.DeregisterServiceRequest(serviceId=self._member.instance_id)
                answer = await self._discovery.Deregister(request, timeout=LEAVE_SECONDS, metadata=self._metadata())
        except (grpc.aio.AioRpcError, TimeoutError) as exc:
            log.warning("deregistration_failed", instance=self._member.instance_id, reason=reason_of(exc))
        else:
            log.info("deregistered", instance=self._member.instance_id, removed=answer.removed)
        self.is_registered = False

    async def _register(self) -> None:
        failures = 0
        told = ""
        while True:
            try:
                answer = await self._discovery.Register(
                    self._member.request(), timeout=CALL_SECONDS, metadata=self._metadata()
                )
                reason = "" if answer.success else answer.errorMessage
            except grpc.aio.AioRpcError as exc:
                reason = reason_of(exc)
            else:
                if answer.success:
                    break
            failures += 1
            if reason != told:
                told = reason
                log.warning("waiting_for_discovery", instance=self._member.instance_id, reason=reason)
            await asyncio.sleep(wait_seconds(failures, self._rng))
        self.is_registered = True
        log.info(
            "registered",
            service=self._member.service,
            instance=self._member.instance_id,
            address=self._member.address,
            port=self._member.port,
        )

    async def _beat_until_refused(self) -> None:
        failures = 0
        while True:
            pause = wait_seconds(failures, self._rng) if failures else self._member.beat_seconds
            await asyncio.sleep(pause)
            try:
                is_known = await self._report(pb.HEALTH_STATUS_HEALTHY, "serving")
            except grpc.aio.AioRpcError as exc:
                failures += 1
                if failures == 1:
                    log.warning("beat_failed", instance=self._member.instance_id, reason=reason_of(exc))
                continue
            failures = 0
            if not is_known:
                log.warning("beat_refused", instance=self._member.instance_id)
                return

    async def _report(self, status: pb.HealthStatus, output: str) -> bool:
        request = pb.ReportHealthRequest(serviceId=self._member.instance_id, status=status, output=output)
        answer = await self._discovery.ReportHealth(request, timeout=CALL_SECONDS, metadata=self._metadata())
        return bool(answer.success)

    def _metadata(self) -> tuple[tuple[str, str], ...]:
        if not self._secret:
            return ()
        return (("authorization", f"Bearer {service_token(self._member, self._secret, self._utcnow())}"),)


def reason_of(exc: BaseException) -> str:
    """`UNAVAILABLE: failed to connect …`, or the exception's own name."""
    if isinstance(exc, grpc.aio.AioRpcError):
        return f"{exc.code().name}: {exc.details()}"
    return type(exc).__name__
