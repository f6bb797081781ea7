from aiohttp import web

from toska_mesh.sdk import serve


async def hello(request: web.Request) -> web.Response:
    return web.json_response({"message": "Hello from the mesh"})


serve([web.get("/hello", hello)], name="hello")
