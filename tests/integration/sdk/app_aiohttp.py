"""In aiohttp."""

import asyncio

from aiohttp import web
from tests.integration.sdk.apps import request_id


def make_app() -> web.Application:
    async def hello(request: web.Request) -> web.Response:
        return web.json_response({"request_id": request_id()})

    async def slow(request: web.Request) -> web.Response:
        await asyncio.sleep(float(request.query["seconds"]))
        return web.json_response({"slept": True})

    async def echo(request: web.Request) -> web.StreamResponse:
        answer = web.StreamResponse()
        await answer.prepare(request)
        async for block in request.content.iter_any():
            await answer.write(block)
        return answer

    app = web.Application()
    app.add_routes([web.get("/hello", hello), web.get("/slow", slow), web.post("/echo", echo)])
    return app
