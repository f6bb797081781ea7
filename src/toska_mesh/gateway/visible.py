"""The gateway as others see it in the registry: its name there, and what it takes to have applied a change.

Applied means in use: the service was read anew, the catalog with that reading was published, the route table that the
proxy asks is built from it, and no connection is being opened any more for a request that chose its instance before. A
request that was sent before that moment is in flight, not late.
"""

import asyncio
import os
import random
import socket
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from typing import Never

from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from toska_mesh.gateway.proxy import Proxy
from toska_mesh.gateway.routing import Routing
from toska_mesh.guard import Guarded
from toska_mesh.model import ServiceName
from toska_mesh.registry.consul import ConsulFollower, ConsulGatewayPresence
from toska_mesh.registry.consul.client import ConsulApi
from toska_mesh.router import Service

MAX_ANNOUNCING_SECONDS = 1.0
"""How long a start waits for the registry before it reads (or does without it, from the table on disk)."""

_DIAL_PAUSE_SECONDS = 0.002


def presence(api: ConsulApi, proxy: Proxy, follower: ConsulFollower, routing: Routing) -> ConsulGatewayPresence:
    """This process, to be seen by whoever waits for gateways."""

    async def apply(service: ServiceName) -> None:
        await routing.in_use(await follower.reread(service))
        if proxy.table is not None and (routed := proxy.table.service(service)) is not None:
            await dials_over(routed)

    def describe() -> Mapping[str, object]:
        table = proxy.table
        return {
            "tableVersion": table.version if table is not None else 0,
            "at": datetime.now(UTC).isoformat(timespec="milliseconds"),
        }

    # Workers share a host, a restarted one may get the number of its forerunner, containers often share both.
    name = f"{socket.gethostname()}-{os.getpid()}-{random.SystemRandom().getrandbits(32):08x}"
    return ConsulGatewayPresence(api, name, apply, describe=describe)


async def dials_over(service: Service) -> None:
    """Wait for requests that chose an instance when it was still eligible and are about to be sent to it.

    A dial has a deadline of its own, so this ends.
    """
    left_out = [standing.target for standing in service.everything if not standing.is_eligible]
    waiting = [(target, request) for target in left_out if isinstance(target, Guarded) for request in target.waiting]
    while any(request.is_dialling and request in target.waiting for target, request in waiting):  # noqa: ASYNC110
        await asyncio.sleep(_DIAL_PAUSE_SECONDS)  # rare; the data path has nobody to tell


async def follow_when_seen(presence: ConsulGatewayPresence, follower: ConsulFollower, routing: Routing) -> Never:
    """Follow the catalog, but be seen first.

    A gateway that read its table and showed itself a moment later could hold what somebody, who did not see it, takes
    for gone everywhere.
    """
    try:
        async with asyncio.timeout(MAX_ANNOUNCING_SECONDS):
            await presence.announced.wait()
    except TimeoutError:
        pass
    await follower.follow(routing.catalog)


class AppliedIndex(Collector):
    """`toska_gateway_applied_index`."""

    def __init__(self, presence: ConsulGatewayPresence) -> None:
        self._presence = presence

    def collect(self) -> Iterator[GaugeMetricFamily]:
        yield GaugeMetricFamily(
            "toska_gateway_applied_index",
            "Index of the registry up to which all that was waited for is applied; 0 while nothing was, "
            "or while the registry does not know this gateway.",
            value=self._presence.applied_index,
        )
