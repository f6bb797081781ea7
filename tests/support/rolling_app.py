"""A service for rolling restarts: `python -m tests.support.rolling_app aiohttp|asgi`. Name, port, discovery by MESH_*.

GET answers after `?ms=` milliseconds; POST answers once the whole body has arrived, 422 if its SHA-256 is not the one
that the header `X-Expected` announced.
"""

import asyncio
import hashlib
import json
import sys
from collections.abc import Awaitable, Callable
from typing import Any
from urllib.parse import parse_qs

from aiohttp import web

from toska_mesh.sdk import serve


def aiohttp_app() -> web.Application:
    async def get(request: web.Request) -> web.Response:
        await asyncio.sleep(int(request.query.get("ms", "0")) / 1000)
        return web.json_response({"ok": True})

    async def post(request: web.Request) -> web.Response:
        is_whole = hashlib.sha256(await request.read()).hexdigest() == request.headers["X-Expected"]
        return web.json_response({"ok": is_whole}, status=200 if is_whole else 422)

    app = web.Application()
    app.router.add_get("/work", get)
    app.router.add_post("/work", post)
    return app


async def asgi_app(
    scope: dict[str, Any],
    receive: Callable[[], Awaitable[dict[str, Any]]],
    send: Callable[[dict[str, Any]], Awaitable[None]],
) -> None:
    if scope["type"] == "lifespan":
        await receive()
        await send({"type": "lifespan.startup.complete"})
        await receive()
        await send({"type": "lifespan.shutdown.complete"})
        return
    if scope["method"] == "GET":
        wanted = parse_qs(scope["query_string"].decode()).get("ms", ["0"])[0]
        await asyncio.sleep(int(wanted) / 1000)
        is_whole = True
    else:
        digest = hashlib.sha256()
        more = True
        while more:
            message = await receive()
            digest.update(message.get("body", b""))
            more = message.get("more_body", False)
        is_whole = digest.hexdigest().encode() == dict(scope["headers"])[b"x-expected"]
    body = json.dumps({"ok": is_whole}).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": 200 if is_whole else 422, "headers": headers})
    await send({"type": "http.response.body", "body": body})


if __name__ == "__main__":
    serve(aiohttp_app() if sys.argv[1] == "aiohttp" else asgi_app)
