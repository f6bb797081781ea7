"""Which `Enrolment` the options ask for. What each needs is loaded only when it is the one."""

import importlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from toska_mesh.sdk.enrolment import Enrolment
from toska_mesh.sdk.options import ConnectOptions

if TYPE_CHECKING:
    import grpc


@asynccontextmanager
async def open_enrolment(
    options: ConnectOptions, service: str, channel: "grpc.aio.Channel | None" = None
) -> AsyncIterator[Enrolment]:
    """The enrolment for one service, closed at the end. `service` is whom its token speaks for.

    `channel` is one to discovery that the caller has anyway, and keeps. Raises ConfigError for files for TLS or
    tokens that cannot be used; whether anybody answers shows with the first call.
    """
    if options.provider == "consul":
        consul = importlib.import_module("toska_mesh.sdk.consul")
        async with consul.open_consul_enrolment(options) as enrolment:
            yield enrolment
        return
    discovery = importlib.import_module("toska_mesh.sdk.discovery")
    tokens = importlib.import_module("toska_mesh.sdk.tokens")
    token = tokens.ServiceToken(options, service)
    if channel is not None:
        yield discovery.DiscoveryEnrolment(channel, token)
        return
    async with discovery.open_channel(options) as own:
        yield discovery.DiscoveryEnrolment(own, token)
