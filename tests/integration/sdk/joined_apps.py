"""Apps that join under somebody else's server: `uvicorn tests.integration.sdk.joined_apps:wrapped`, and so on."""

import sys

from tests.integration.sdk.apps import make_app

from toska_mesh.sdk.middleware import MeshMiddleware
from toska_mesh.sdk.serving import join

if __name__ == "__main__":
    from aiohttp import web

    web.run_app(join(make_app("aiohttp"), drain_seconds=20), host="127.0.0.1", port=int(sys.argv[1]), print=None)
else:
    wrapped = join(make_app("fastapi"), drain_seconds=20)

    inside = make_app("fastapi")
    inside.add_middleware(MeshMiddleware, drain_seconds=20)
