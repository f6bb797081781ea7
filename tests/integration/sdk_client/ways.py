"""The same service asked in two ways: through the gateway, and by the SDK's client in this process."""

import asyncio
from collections.abc import Iterator
from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import Any, Protocol

from tests.integration.faults.mesh import Mesh as FaultyMesh
from tests.support.load import Client as GatewayClient

from toska_mesh.errors import (
    CircuitOpenError,
    NoInstanceError,
    UpstreamConnectError,
    UpstreamError,
    UpstreamTimeoutError,
)
from toska_mesh.resilience import BreakerPolicy, RetryPolicy
from toska_mesh.sdk.client import CallOptions
from toska_mesh.sdk.mesh import Mesh
from toska_mesh.sdk.options import ConnectOptions

STATUS_OF = {
    NoInstanceError: 503,
    CircuitOpenError: 503,
    UpstreamConnectError: 502,
    UpstreamTimeoutError: 504,
}
"""What the gateway answers where the client raises."""


@dataclass(frozen=True)
class Limits:
    """What both are told."""

    retries: int = 3
    base_ms: int = 10
    threshold: int = 1000
    open_seconds: float = 20.0
    try_seconds: float = 30.0
    total_seconds: float = 90.0

    def environment(self) -> dict[str, object]:
        return {
            "GATEWAY_RETRY_COUNT": self.retries,
            "GATEWAY_RETRY_BASE_MS": self.base_ms,
            "GATEWAY_RETRY_JITTER_MS": 1,
            "GATEWAY_BREAKER_FAILURE_THRESHOLD": self.threshold,
            "GATEWAY_BREAKER_OPEN_SECONDS": self.open_seconds,
            "GATEWAY_RESPONSE_TIMEOUT_SECONDS": self.try_seconds,
            "GATEWAY_TOTAL_TIMEOUT_SECONDS": self.total_seconds,
            "GATEWAY_SLOW_START_SECONDS": 0,
        }

    def call_options(self) -> CallOptions:
        return CallOptions(
            timeout_seconds=self.total_seconds,
            try_timeout_seconds=self.try_seconds,
            retries=self.retries,
            retry=RetryPolicy(base_seconds=self.base_ms / 1000, jitter_seconds=0.001),
            breaker=BreakerPolicy(self.threshold, self.open_seconds),
            slow_start_seconds=0.0,
        )


@dataclass(frozen=True)
class Got:
    """What came of one request, as the gateway's status says it."""

    status: int
    instance: str = ""
    body: bytes = b""


class Way(Protocol):
    """One of the two."""

    async def request(
        self, method: str, path: str = "/", body: bytes = b"", headers: dict[str, str] | None = None
    ) -> Got: ...

    def instances(self) -> dict[str, dict[str, Any]]:
        """By id: `breaker`, `isSuspect`, `isEligible`, `breakerFailures`, `inFlight`."""

    @property
    def is_stale(self) -> bool: ...


class GatewayWay:
    """Over HTTP to a gateway."""

    def __init__(self, mesh: FaultyMesh, limits: Limits) -> None:
        self._mesh = mesh
        mesh.start(**limits.environment())

    async def request(
        self, method: str, path: str = "/", body: bytes = b"", headers: dict[str, str] | None = None
    ) -> Got:
        client = GatewayClient(self._mesh.port)
        try:
            answer = await client.request(method, f"{self._mesh.path}{path}", body, headers=headers)
        except (EOFError, OSError):
            return Got(0)
        finally:
            client.close()
        return Got(answer.status, answer.instance, answer.body)

    def instances(self) -> dict[str, dict[str, Any]]:
        return self._mesh.instances()

    @property
    def is_stale(self) -> bool:
        return "stale" in str(self._mesh.ready())


class ClientWay:
    """The SDK's client, straight to the instances."""

    def __init__(self, mesh: Mesh, service: str) -> None:
        self.mesh = mesh
        self._service = service
        self.client = mesh.client(service)

    async def request(
        self, method: str, path: str = "/", body: bytes = b"", headers: dict[str, str] | None = None
    ) -> Got:
        try:
            answer = await self.client.request(method, path, data=body or None, headers=headers)
        except tuple(STATUS_OF) as error:
            return Got(STATUS_OF[type(error)], error.instance, str(error).encode())
        try:
            return Got(answer.status, answer.headers.get("X-Instance", ""), await answer.read())
        except UpstreamError:
            return Got(0)

    def instances(self) -> dict[str, dict[str, Any]]:
        rows = self.mesh.explain(self._service)["instances"]
        return {
            row["id"]: {
                "breaker": row["breaker"],
                "breakerFailures": row["breaker_failures"],
                "isSuspect": row["suspect"],
                "isEligible": row["eligible"],
                "inFlight": row["in_flight"],
                "why": row["why"],
            }
            for row in rows
        }

    @property
    def is_stale(self) -> bool:
        return self.mesh.stale_seconds > 0


WAYS = ("gateway", "client")


class Ways:
    """Opens one way to the service of a faulty mesh; closed by the fixture."""

    def __init__(self, name: str, mesh: FaultyMesh, stack: AsyncExitStack) -> None:
        self.name = name
        self._faulty = mesh
        self._stack = stack

    async def open(self, limits: Limits | None = None) -> Way:
        limits = limits or Limits()
        if self.name == "gateway":
            return await asyncio.to_thread(GatewayWay, self._faulty, limits)
        options = ConnectOptions(provider="consul", consul_address=self._faulty.registry.url)
        mesh = await self._stack.enter_async_context(Mesh(options, calls=limits.call_options()))
        way = ClientWay(mesh, self._faulty.service)
        async with asyncio.timeout(10):
            while not self._faulty._registered <= set(way.instances()):
                await mesh.known(self._faulty.service)
                await asyncio.sleep(0.02)
        return way


def numbered() -> Iterator[dict[str, str]]:
    """Headers that count executions."""
    number = 0
    while True:
        yield {"X-Execution": f"n{number}"}
        number += 1
