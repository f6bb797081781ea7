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

    async def talk(request: web.Request) -> web.WebSocketResponse:
        websocket = web.WebSocketResponse()
        await websocket.prepare(request)
        async for message in websocket:
            await websocket.send_str(message.data)
        return websocket

    app = web.Application()
    app.add_routes([web.get("/hello", hello), web.get("/slow", slow), web.post("/echo", echo), web.get("/talk", talk)])
    return app
