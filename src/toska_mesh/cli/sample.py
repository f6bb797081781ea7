"""`hello`: the small HTTP service that `toska up` runs twice, so that a fresh mesh has something to route to.

It uses nothing of the control plane but the gRPC contract (`membership.py`): GET `/hello` says which instance answered,
POST `/echo` sends the body back as it arrives, `/health` is what the health monitor probes.
"""

import asyncio
import contextlib
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import ClassVar

import grpc
from aiohttp import web
from pydantic import SecretStr

from toska_mesh.admin import json_response, port_in_use, run_daemon
from toska_mesh.admin.server import Handler
from toska_mesh.cli.membership import CHANNEL_OPTIONS, Member, Membership
from toska_mesh.settings import DaemonSettings, setting
from toska_mesh.telemetry import event_log

log = event_log("sample")

NOTICE_SECONDS = 0.5
"""Between deregistering and closing the port: the gateways hear of it meanwhile."""
IN_FLIGHT_SECONDS = 5.0


class SampleSettings(DaemonSettings):
    """Settings of the sample service."""

    env_prefixes: ClassVar[tuple[str, ...]] = ("HELLO_",)

    service: str = setting("HELLO_SERVICE", "hello", "Name to register under.")
    instance_id: str = setting("HELLO_INSTANCE_ID", "", "Id to register under; empty = the name and a random suffix.")
    host: str = setting("HELLO_HOST", "127.0.0.1", "Address the port is bound to.")
    port: int = setting("HELLO_PORT", 0, "Port; 0 = any free one.", ge=0, le=65535)
    advertise: str = setting(
        "HELLO_ADVERTISE", "", "Address to register; empty = the bind address, `0.0.0.0` = what discovery sees."
    )
    interval_seconds: int = setting(
        "HELLO_INTERVAL_SECONDS", 10, "Health check interval to register; the TTL is 5 s longer.", ge=1, le=3600
    )
    discovery: str = setting("HELLO_DISCOVERY", "localhost:8080", "`host:port` of discovery's gRPC server.")
    service_auth_secret: SecretStr = setting(
        "MESH_SERVICE_AUTH_SECRET", SecretStr(""), "HS256 secret of the service token; empty = no token is sent."
    )


def make_app(instance_id: str) -> web.Application:
    """The service itself, without the mesh."""

    async def hello(request: web.Request) -> web.StreamResponse:
        return json_response({"message": f"Hello from {instance_id}", "instance": instance_id})

    async def health(request: web.Request) -> web.StreamResponse:
        return json_response({"status": "Healthy"})

    async def echo(request: web.Request) -> web.StreamResponse:
        answer = web.StreamResponse(headers={"X-Instance": instance_id})
        answer.content_type = request.content_type
        await answer.prepare(request)
        async for block in request.content.iter_any():
            await answer.write(block)
        await answer.write_eof()
        return answer

    app = web.Application()
    app.router.add_get("/", hello)
    app.router.add_get("/hello", hello)
    app.router.add_get("/health", health)
    app.router.add_post("/echo", echo)
    return app


@asynccontextmanager
async def serving(app: web.Application, host: str, port: int) -> AsyncIterator[int]:
    """Serve `app`; gives the bound port. Leaving takes no new connections and waits for requests in flight.

    The wait is ours, up to IN_FLIGHT_SECONDS: aiohttp's own shutdown stops reading the bodies that still arrive.
    """
    in_flight = _InFlight()
    app.middlewares.append(in_flight.count)
    runner = web.AppRunner(app, access_log=None, handle_signals=False, shutdown_timeout=0.1)
    await runner.setup()
    try:
        site = web.TCPSite(runner, host, port, reuse_address=True)
        try:
            await site.start()
        except OSError as exc:
            raise port_in_use(port, "HELLO_PORT", exc, host) from exc
        yield int(runner.addresses[0][1])
        await site.stop()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(IN_FLIGHT_SECONDS):
                await in_flight.is_empty.wait()
    finally:
        await runner.cleanup()


class _InFlight:
    """Counts requests from their head to the end of their answer. One event loop."""

    def __init__(self) -> None:
        self._requests = 0
        self.is_empty = asyncio.Event()
        self.is_empty.set()

    @web.middleware
    async def count(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        self._requests += 1
        self.is_empty.clear()
        try:
            return await handler(request)
        finally:
            self._requests -= 1
            if not self._requests:
                self.is_empty.set()


async def run(settings: SampleSettings, stop: asyncio.Event) -> None:
    """Serve and stay registered until `stop`; then leave the mesh before the port closes."""
    instance_id = settings.instance_id or f"{settings.service}-{uuid.uuid4().hex[:8]}"
    async with (
        serving(make_app(instance_id), settings.host, settings.port) as port,
        grpc.aio.insecure_channel(settings.discovery, options=CHANNEL_OPTIONS) as channel,
    ):
        log.info("serving", service=settings.service, instance=instance_id, host=settings.host, port=port)
        member = Member(
            settings.service, instance_id, settings.advertise or settings.host, port, settings.interval_seconds
        )
        membership = Membership(channel, member, settings.service_auth_secret.get_secret_value())
        async with asyncio.TaskGroup() as tasks:
            keeper = tasks.create_task(membership.keep(), name=f"keep {instance_id} registered")
            await stop.wait()
            keeper.cancel()
        await membership.leave()
        await asyncio.sleep(NOTICE_SECONDS)


def main() -> None:
    run_daemon("toska-sample", SampleSettings, run, "a small HTTP service that joins the mesh.")


if __name__ == "__main__":
    main()
