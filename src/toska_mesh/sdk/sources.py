"""Where a mesh client's knowledge comes from: discovery's stream, or the registry itself.

Both fill the same two values, catalog and verdicts; the client does not care which. They differ in what is followed:
discovery is asked for the services that somebody wants, the registry's follower knows them all.
"""

import asyncio
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Never, Protocol

import grpc

from toska_mesh.aio import Latest
from toska_mesh.model import CatalogSnapshot, ServiceName, Verdicts
from toska_mesh.registry.consul import ConsulClient, ConsulFollower, ConsulVerdictFollower, FollowerOptions
from toska_mesh.registry.consul.client import ConsulApi
from toska_mesh.sdk.consul import consul_options
from toska_mesh.sdk.discovery import open_channel
from toska_mesh.sdk.follow import DiscoveryFollower
from toska_mesh.sdk.options import ConnectOptions
from toska_mesh.sdk.tokens import ServiceToken

_FOLLOW = FollowerOptions(pause_seconds=0.1, concurrent_reads=4)
"""A service follows the whole registry for a few other services: it need not hear of each change by itself."""

_CONNECTIONS = 8
"""Three are taken by questions that wait for news, one now and then by a look whether the registry is there."""


class Source(Protocol):
    """Follows services. One `follow` per object."""

    async def follow(self, catalog: Latest[CatalogSnapshot], verdicts: Latest[Verdicts]) -> Never:
        """Run until cancelled; an outage leaves what is known, marked stale."""

    def want(self, service: ServiceName) -> None:
        """Follow this one too."""

    async def known(self, service: ServiceName) -> None:
        """Want it, and wait until its first state has been published. The deadline is the caller's."""

    @property
    def trouble(self) -> str:
        """Why the newest state is not to be had, for people; empty while it is."""


class ConsulSource:
    """`Source` straight from Consul or `toska-registry`."""

    def __init__(self, api: ConsulApi, rng: random.Random | None = None) -> None:
        self._followers = (
            ConsulFollower(api, _FOLLOW, rng=rng, on_trouble=self._note),
            ConsulVerdictFollower(api, rng=rng),
        )
        self._catalog = Latest[CatalogSnapshot]()
        self._has_catalog = asyncio.Event()
        self._trouble = ""

    @property
    def trouble(self) -> str:
        return self._trouble

    def _note(self, reason: str) -> None:
        self._trouble = reason

    def want(self, service: ServiceName) -> None:
        """Everything is followed."""

    async def known(self, service: ServiceName) -> None:
        await self._has_catalog.wait()

    async def follow(self, catalog: Latest[CatalogSnapshot], verdicts: Latest[Verdicts]) -> Never:
        """See `Source`."""
        follow_catalog, follow_verdicts = self._followers
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(follow_catalog.follow(catalog), name="follow catalog")
            tasks.create_task(follow_verdicts.follow(verdicts), name="follow verdicts")
            async for snapshot in catalog.updates():
                self._has_catalog.set()
                if not snapshot.is_stale:
                    self._trouble = ""
        raise AssertionError("updates never end")


@asynccontextmanager
async def open_source(
    options: ConnectOptions, token: ServiceToken, channel: grpc.aio.Channel | None = None
) -> AsyncIterator[Source]:
    """What the options ask for, with connections of its own; those to discovery may be shared (`channel`)."""
    if options.provider == "consul":
        async with ConsulClient(replace(consul_options(options), pool_size=_CONNECTIONS)) as client:
            yield ConsulSource(client)
    elif channel is not None:
        yield DiscoveryFollower(channel, token.call_metadata)
    else:
        async with open_channel(options) as own:
            yield DiscoveryFollower(own, token.call_metadata)
