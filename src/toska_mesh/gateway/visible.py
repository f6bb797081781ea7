"""The gateway as others see it in the registry: its name there, and what it takes to have applied a change.

Applied means in use: the service was read anew, the catalog with that reading was published, and the route table that
the proxy asks is built from it. A request that was given to an instance before that moment is in flight, not late.
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
from toska_mesh.model import ServiceName
from toska_mesh.registry.consul import ConsulFollower, ConsulGatewayPresence
from toska_mesh.registry.consul.client import ConsulApi

MAX_ANNOUNCING_SECONDS = 1.0
"""How long a start waits for the registry before it reads (or does without it, from the table on disk)."""


def presence(api: ConsulApi, proxy: Proxy, follower: ConsulFollower, routing: Routing) -> ConsulGatewayPresence:
    """This process, to be seen by whoever waits for gateways."""

    async def apply(service: ServiceName) -> None:
        await routing.in_use(await follower.reread(service))

    def describe() -> Mapping[str, object]:
        table = proxy.table
        return {
            "tableVersion": table.version if table is not None else 0,
            "at": datetime.now(UTC).isoformat(timespec="milliseconds"),
        }

    # Workers share a host, a restarted one may get the number of its forerunner, containers often share both.
    name = f"{socket.gethostname()}-{os.getpid()}-{random.SystemRandom().getrandbits(32):08x}"
    return ConsulGatewayPresence(api, name, apply, describe=describe)


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
