"""The same small app in every way that a service may be written, and the servers that carry them."""

import asyncio
from typing import Any

from aiohttp import web
from fastapi import FastAPI, Request
from starlette.applications import Starlette
from starlette.requests import Request as StarletteRequest
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from toska_mesh.sdk.context import current

KINDS = {"aiohttp": "uvicorn", "fastapi": "uvicorn", "starlette": "granian"}
"""Which app is carried by which server; aiohttp brings its own."""


def make_app(kind: str) -> Any:
    return {"aiohttp": aiohttp_app, "fastapi": fastapi_app, "starlette": starlette_app}[kind]()


def aiohttp_app() -> web.Application:
    async def hello(request: web.Request) -> web.Response:
        return web.json_response({"request_id": _request_id()})

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


def fastapi_app() -> FastAPI:
    app = FastAPI()

    @app.get("/hello")
    async def hello() -> dict[str, str]:
        return {"request_id": _request_id()}

    @app.get("/slow")
    async def slow(seconds: float) -> dict[str, bool]:
        await asyncio.sleep(seconds)
        return {"slept": True}

    @app.post("/echo")
    async def echo(request: Request) -> Response:
        return Response(await request.body())

    return app


def starlette_app() -> Starlette:
    async def hello(request: StarletteRequest) -> Response:
        return JSONResponse({"request_id": _request_id()})

    async def slow(request: StarletteRequest) -> Response:
        await asyncio.sleep(float(request.query_params["seconds"]))
        return JSONResponse({"slept": True})

    async def echo(request: StarletteRequest) -> Response:
        return Response(await request.body())

    return Starlette(routes=[Route("/hello", hello), Route("/slow", slow), Route("/echo", echo, methods=["POST"])])


def _request_id() -> str:
    context = current()
    return context.request_id if context is not None else ""
