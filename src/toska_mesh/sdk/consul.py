"""`Enrolment` straight to Consul (or `toska-registry`), for meshes that run without a discovery.

The layout in the registry is the one that discovery writes, so nobody can tell the difference. What discovery would
have done besides is done here: an address that means "where I call from" is found out, because Consul refuses it.
"""

import asyncio
import ipaddress
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from urllib.parse import urlsplit

from toska_mesh.errors import InstanceNotFoundError, RegistryError, RegistryUnavailableError
from toska_mesh.model import HealthStatus, InstanceId, ServiceName, rules
from toska_mesh.registry.api import Registration
from toska_mesh.registry.consul import ConsulClient, ConsulGatewayBarrier, ConsulOptions, ConsulRegistry
from toska_mesh.registry.consul.codec import parse_json
from toska_mesh.sdk.enrolment import Applied, Member
from toska_mesh.sdk.options import ConnectOptions

_ANSWER_SECONDS = 0.1
"""Kept back from a deadline, so that the barrier's report is not lost with it."""


def consul_options(options: ConnectOptions) -> ConsulOptions:
    return ConsulOptions(
        address=options.consul_address,
        token=options.consul_token,
        token_file=options.consul_token_file,
        ca_file=options.consul_ca_file,
        client_cert=options.consul_client_cert,
        client_key=options.consul_client_key,
        # One instance has little to say; the connections of a large service add up on its agent.
        pool_size=4,
    )


@asynccontextmanager
async def open_consul_enrolment(options: ConnectOptions) -> AsyncIterator["ConsulEnrolment"]:
    """An enrolment with connections of its own, closed at the end. Raises ConfigError for files that cannot be used."""
    async with ConsulClient(consul_options(options)) as client:
        yield ConsulEnrolment(client)


class ConsulEnrolment:
    """See `Enrolment`. The client belongs to the caller."""

    def __init__(self, client: ConsulClient) -> None:
        self._client = client
        self._registry = ConsulRegistry(client)
        self._barrier = ConsulGatewayBarrier(client)

    async def register(self, member: Member, deadline: float) -> InstanceId:
        try:
            async with asyncio.timeout_at(deadline):
                address = await self._address_of(member, deadline)
        except TimeoutError as exc:
            raise RegistryUnavailableError(f"{self._client.address} was not found in time") from exc
        await self._registry.register(
            Registration(
                service=member.service,
                id=member.id,
                address=address,
                port=member.port,
                metadata=member.metadata,
                ttl_seconds=member.ttl_seconds,
            ),
            deadline,
        )
        return member.id

    async def report(self, instance_id: InstanceId, status: HealthStatus, output: str, deadline: float) -> bool:
        try:
            await self._registry.report_health(instance_id, status, rules.shorten_output(output), deadline)
        except InstanceNotFoundError:
            return False
        return True

    async def deregister(self, instance_id: InstanceId, deadline: float) -> bool:
        try:
            await self._registry.deregister(instance_id, deadline)
        except InstanceNotFoundError:
            return False
        return True

    async def wait_applied(self, service: ServiceName, deadline: float) -> Applied:
        left = max(0.0, deadline - asyncio.get_running_loop().time())
        report = await self._barrier.wait_applied(service, deadline - min(_ANSWER_SECONDS, left / 4))
        names = tuple(gateway.name for gateway in report.gateways)
        if report.is_applied:
            return Applied(True, gateways=names)
        missing = tuple(gateway.name for gateway in report.gateways if gateway.applied_index < report.index)
        return Applied(False, report.reason, names, missing)

    async def _address_of(self, member: Member, deadline: float) -> str:
        """The address to register: the one asked for, or where we are as the agent sees it."""
        host = member.address.strip()
        ip = rules.parse_ip(host)
        if host and (ip is None or not ip.is_unspecified):
            return host if ip is None else str(ip)
        local = await self._local_address()
        if local is not None and not ipaddress.ip_address(local).is_loopback:
            return local
        # The agent is on this machine, so what it tells others about the machine holds for us too.
        answer = await self._client.call("GET", "/v1/agent/self", deadline=deadline)
        agent = parse_json(answer.body, "agent/self")
        address = agent.get("Member", {}).get("Addr") if isinstance(agent, dict) else None
        if not isinstance(address, str) or not address:
            raise RegistryError(
                "the Consul agent does not say its address; set MESH_SERVICE_ADVERTISED_ADDRESS to one others reach"
            )
        return address

    async def _local_address(self) -> str | None:
        """Our end of the way to the agent: a datagram socket knows it without sending anything."""
        parts = urlsplit(self._client.address)
        try:
            transport, _ = await asyncio.get_running_loop().create_datagram_endpoint(
                asyncio.DatagramProtocol, remote_addr=(parts.hostname or "localhost", parts.port or 8500)
            )
        except OSError:
            return None
        try:
            return str(transport.get_extra_info("sockname")[0]).partition("%")[0]
        finally:
            transport.close()
