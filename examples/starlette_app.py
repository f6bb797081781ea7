"""A stream of lines in Starlette under granian. Needs `pip install starlette 'toska-mesh[granian]'`."""

import asyncio
from collections.abc import AsyncIterator

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import StreamingResponse
from starlette.routing import Route

from toska_mesh.sdk import serve


async def lines(count: int) -> AsyncIterator[str]:
    for number in range(count):
        yield f"{number}\n"
        await asyncio.sleep(0.1)


async def count(request: Request) -> StreamingResponse:
    upto = int(request.path_params["upto"])
    return StreamingResponse(lines(min(upto, 1000)), media_type="text/plain")


app = Starlette(routes=[Route("/count/{upto:int}", count)])

if __name__ == "__main__":
    serve(app, name="counter", server="granian")
