"""Apps that join under somebody else's server: `uvicorn tests.integration.sdk.joined_apps:wrapped`, and so on."""

import sys

from aiohttp import web
from tests.integration.sdk.apps import aiohttp_app, fastapi_app

from toska_mesh.sdk.middleware import MeshMiddleware
from toska_mesh.sdk.serving import join

wrapped = join(fastapi_app(), drain_seconds=20)

inside = fastapi_app()
inside.add_middleware(MeshMiddleware, drain_seconds=20)

if __name__ == "__main__":
    web.run_app(join(aiohttp_app(), drain_seconds=20), host="127.0.0.1", port=int(sys.argv[1]), print=None)
