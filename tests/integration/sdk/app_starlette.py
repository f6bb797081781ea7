"""In Starlette."""

import asyncio

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from tests.integration.sdk.apps import request_id


def make_app() -> Starlette:
    async def hello(request: Request) -> Response:
        return JSONResponse({"request_id": request_id()})

    async def slow(request: Request) -> Response:
        await asyncio.sleep(float(request.query_params["seconds"]))
        return JSONResponse({"slept": True})

    async def echo(request: Request) -> Response:
        return Response(await request.body())

    return Starlette(routes=[Route("/hello", hello), Route("/slow", slow), Route("/echo", echo, methods=["POST"])])
