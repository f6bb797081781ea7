"""The API on aiohttp: reads a request's body within its limit, hands it over, writes the answer."""

import asyncio
from collections import Counter

from aiohttp import web

from toska_mesh.registryd.api import Api
from toska_mesh.registryd.api.http import TEXT, Reply

_BODY_SECONDS = 30.0


class ApiServer:
    """The routes to hang into the daemon's HTTP server, and how many answers of each status it gave."""

    def __init__(self, api: Api) -> None:
        self._api = api
        self.answers: Counter[int] = Counter()

    def routes(self) -> list[web.RouteDef]:
        return [web.route("*", "/v1/{rest:.*}", self._serve)]

    async def _serve(self, request: web.Request) -> web.StreamResponse:
        # The target as sent: whether a slash was written as %2F matters to keys.
        reply = await self._reply(request, request.raw_path)
        self.answers[reply.status] += 1
        response = web.Response(status=reply.status, body=reply.body, headers=reply.headers)
        if reply.content_type:
            response.headers["Content-Type"] = reply.content_type
        if reply.headers.get("Connection") == "close":
            response.force_close()
        return response

    async def _reply(self, request: web.Request, target: str) -> Reply:
        body = b""
        if request.can_read_body:
            limit = self._api.body_limit(request.method, target)
            length = request.content_length
            if length is not None and length > limit:
                return self._api.too_large(target, length)
            try:
                async with asyncio.timeout(_BODY_SECONDS):
                    body = await _read(request, limit)
            except TimeoutError:
                return Reply(408, b"the request's body did not arrive in time", TEXT, {"Connection": "close"})
            if len(body) > limit:
                return self._api.too_large(target, len(body))
        return await self._api.answer(request.method, target, _token(request), body)


async def _read(request: web.Request, limit: int) -> bytes:
    """The body, or a little more than `limit` of it."""
    body = bytearray()
    while len(body) <= limit:
        chunk = await request.content.readany()
        if not chunk:
            break
        body += chunk
    return bytes(body)


def _token(request: web.Request) -> str | None:
    """Consul's two headers; the query parameter goes before both and is looked at by the API."""
    token = request.headers.get("X-Consul-Token")
    if token:
        return token
    scheme, _, value = request.headers.get("Authorization", "").partition(" ")
    return value.strip() if scheme.lower() == "bearer" else None
