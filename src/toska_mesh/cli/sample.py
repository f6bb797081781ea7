"""`hello`: the small HTTP service that `toska up` runs twice, so that a fresh mesh has something to route to.

A user of the SDK like any other: GET `/hello` says which instance answered, POST `/echo` sends the body back as it
arrives; health, registration and leaving are the SDK's.
"""

import asyncio
from typing import ClassVar

from aiohttp import web
from pydantic import SecretStr, model_validator

from toska_mesh.admin import json_response, run_daemon
from toska_mesh.errors import ConfigError
from toska_mesh.sdk.options import ConnectOptions, InvalidOptionError, ServiceOptions
from toska_mesh.sdk.service import MeshService
from toska_mesh.settings import DaemonSettings, setting

_VARIABLES = {
    "name": "HELLO_SERVICE",
    "id": "HELLO_INSTANCE_ID",
    "advertised_address": "HELLO_ADVERTISE",
    "discovery_address": "HELLO_DISCOVERY",
    "auth_secret": "MESH_SERVICE_AUTH_SECRET",
}
"""Where the options come from whose values the SDK may refuse."""


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
    drain_seconds: float = setting(
        "HELLO_DRAIN_SECONDS", 8.0, "Longest time for leaving, until the port is closed, in seconds.", ge=0, le=3600
    )
    discovery: str = setting("HELLO_DISCOVERY", "localhost:8080", "`host:port` of discovery's gRPC server.")
    service_auth_secret: SecretStr = setting(
        "MESH_SERVICE_AUTH_SECRET", SecretStr(""), "HS256 secret of the service token; empty = no token is sent."
    )

    @model_validator(mode="after")
    def _check_options(self) -> "SampleSettings":
        try:
            self.options()
        except InvalidOptionError as exc:
            raise ValueError(f"{_VARIABLES.get(exc.option, exc.option)}: {exc.problem}") from exc
        return self

    def options(self) -> ServiceOptions:
        """The same for the SDK."""
        return ServiceOptions(
            name=self.service,
            id=self.instance_id,
            host=self.host,
            port=self.port,
            advertised_address=self.advertise,
            health_interval_seconds=self.interval_seconds,
            drain_seconds=self.drain_seconds,
            connect=ConnectOptions(
                discovery_address=self.discovery, auth_secret=self.service_auth_secret.get_secret_value()
            ),
        )


def make_app(instance_id: str) -> web.Application:
    """The service itself, without the mesh."""

    async def hello(request: web.Request) -> web.StreamResponse:
        return json_response({"message": f"Hello from {instance_id}", "instance": instance_id})

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
    app.router.add_post("/echo", echo)
    return app


async def run(settings: SampleSettings, stop: asyncio.Event) -> None:
    """Serve and stay in the mesh until `stop`; then leave it before the port closes."""
    options = settings.options().resolved()
    try:
        async with MeshService(make_app(options.id), options) as service:
            await service.run_until(stop)
    except ConfigError as exc:
        # The SDK speaks of its own variables; here the port is set by ours.
        raise ConfigError(str(exc).replace("MESH_SERVICE_PORT", "HELLO_PORT")) from exc


def main() -> None:
    run_daemon("toska-sample", SampleSettings, run, "a small HTTP service that joins the mesh.")


if __name__ == "__main__":
    main()
