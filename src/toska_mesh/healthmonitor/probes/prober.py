"""One probe from plan to result: resolves names, checks where they lead, picks the kind, keeps the deadline."""

import asyncio
import ipaddress
import socket
import ssl
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import TYPE_CHECKING, Protocol

from toska_mesh.healthmonitor.probes.http import build_request, probe_http
from toska_mesh.healthmonitor.probes.resolve import Resolver
from toska_mesh.healthmonitor.probes.tcp import probe_tcp
from toska_mesh.healthmonitor.targets import ProbeKind, ProbePlan, object_to
from toska_mesh.healthmonitor.verdict import Outcome, ProbeResult

if TYPE_CHECKING:
    from toska_mesh.healthmonitor.probes.grpc import GrpcProber

MAX_ADDRESSES = 4
"""How many addresses of one name a probe tries."""

STALL_SECONDS = 0.5
"""A timeout noticed this much too late was the monitor's own sleep (stopped process, starved loop)."""


class Prober(Protocol):
    """What the monitor asks for. Never raises for anything an instance or the network does."""

    async def probe(self, plan: ProbePlan) -> ProbeResult: ...


@dataclass(frozen=True, slots=True)
class ProbePolicy:
    """Timeouts in seconds, from the start of a probe to its status."""

    http_timeout_seconds: float = 5.0
    tcp_timeout_seconds: float = 3.0
    grpc_timeout_seconds: float = 5.0
    headers: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))
    allow_link_local: bool = False
    ca_file: str = ""
    """PEM file whose certificates are trusted instead of the system's; empty means the system's."""
    verify_tls: bool = True

    def timeout_of(self, kind: ProbeKind) -> float:
        match kind:
            case ProbeKind.TCP:
                return self.tcp_timeout_seconds
            case ProbeKind.GRPC:
                return self.grpc_timeout_seconds
            case _:
                return self.http_timeout_seconds


class NetworkProber:
    """The real one. Raises OSError or ssl.SSLError when made with a CA file that cannot be used."""

    def __init__(self, policy: ProbePolicy, resolver: Resolver) -> None:
        self._policy = policy
        self._resolver = resolver
        self._tls = ssl.create_default_context(cafile=policy.ca_file or None)
        if not policy.verify_tls:
            self._tls.check_hostname = False
            self._tls.verify_mode = ssl.CERT_NONE
        self._roots: bytes | None = None
        if policy.ca_file:
            with open(policy.ca_file, "rb") as file:
                self._roots = file.read()
        self._grpc: GrpcProber | None = None

    async def probe(self, plan: ProbePlan) -> ProbeResult:
        loop = asyncio.get_running_loop()
        if plan.kind is ProbeKind.GRPC and self._grpc is None:
            make = await asyncio.to_thread(_load_grpc)
            self._grpc = make(self._roots)  # by each of the first probes that waited: the last one stays
        timeout_seconds = self._policy.timeout_of(plan.kind)
        deadline = loop.time() + timeout_seconds
        if plan.address is not None:
            result = await self._probe_address(plan, str(plan.address), deadline)
        else:
            result = await self._probe_name(plan, deadline)
        if result.outcome is Outcome.TIMEOUT:
            if loop.time() - deadline > STALL_SECONDS:
                return ProbeResult(Outcome.INCONCLUSIVE, "the monitor could not probe: it was stalled itself")
            return ProbeResult(Outcome.TIMEOUT, f"{result.message} ({timeout_seconds:g} s)", result.is_connected)
        return result

    async def _probe_name(self, plan: ProbePlan, deadline: float) -> ProbeResult:
        """Try the name's addresses in turn, each with its share of the time, until one takes the connection."""
        loop = asyncio.get_running_loop()
        try:
            addresses = (await self._resolver.resolve(plan.host, deadline))[:MAX_ADDRESSES]
        except TimeoutError:
            return ProbeResult(Outcome.INCONCLUSIVE, f"the monitor could not probe: no answer about {plan.host} by DNS")
        except socket.gaierror as exc:
            if exc.errno == socket.EAI_AGAIN:
                return ProbeResult(Outcome.INCONCLUSIVE, f"the monitor could not probe: DNS fails for {plan.host} now")
            return ProbeResult(Outcome.FAILURE, f"address {plan.host} does not resolve")
        result = ProbeResult(Outcome.FAILURE, f"address {plan.host} does not resolve")
        for index, address in enumerate(addresses):
            if objection := object_to(ipaddress.ip_address(address), allow_link_local=self._policy.allow_link_local):
                return ProbeResult(Outcome.INCONCLUSIVE, f"Not probed: {plan.host} leads to {objection}")
            share = (deadline - loop.time()) / (len(addresses) - index)
            result = await self._probe_address(plan, address, loop.time() + share)
            if result.is_connected:
                break
        return result

    async def _probe_address(self, plan: ProbePlan, address: str, deadline: float) -> ProbeResult:
        match plan.kind:
            case ProbeKind.HTTP:
                request = build_request(plan, self._policy.headers)
                return await probe_http(plan, address, request, deadline, self._tls)
            case ProbeKind.TCP:
                return await probe_tcp(address, plan.port, deadline)
            case ProbeKind.GRPC:
                if self._grpc is None:
                    raise RuntimeError("gRPC is loaded before its first probe")
                return await self._grpc.probe(plan, address, deadline)
            case ProbeKind.NONE | ProbeKind.CIRCUIT_BREAKER:
                raise ValueError(f"a plan of kind {plan.kind} is not probed")


def _load_grpc() -> "type[GrpcProber]":
    """grpc takes 10 MiB and a tenth of a second, so only a mesh with gRPC probes pays; in a thread, not on the loop."""
    from toska_mesh.healthmonitor.probes.grpc import GrpcProber

    return GrpcProber
