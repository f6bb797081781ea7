"""In FastAPI."""

import asyncio

from fastapi import FastAPI, Request
from starlette.responses import Response
from tests.integration.sdk.apps import request_id


def make_app() -> FastAPI:
    app = FastAPI()

    @app.get("/hello")
    async def hello() -> dict[str, str]:
        return {"request_id": request_id()}

    @app.get("/slow")
    async def slow(seconds: float) -> dict[str, bool]:
        await asyncio.sleep(seconds)
        return {"slept": True}

    @app.post("/echo")
    async def echo(request: Request) -> Response:
        return Response(await request.body())

    return app
