"""Keys from a URL: fetched whole, again for an unknown key id, and not more often than that is good for anybody."""

import asyncio
import contextlib
import json
import time
from collections.abc import AsyncIterator
from typing import Any

import jwt
from aiohttp import web
from cryptography.hazmat.primitives.asymmetric import ec
from jwt.algorithms import ECAlgorithm
from tests.integration.gateway.harness import Backend, running_gateway

from toska_mesh.gateway.auth import KeySetFetcher, TokenChecker

FIRST, SECOND = (ec.generate_private_key(ec.SECP256R1()) for _ in range(2))


def today() -> float:
    return time.time()  # noqa: TID251 - PyJWT reads the wall clock itself


class KeyServer:
    """Serves a key set in two parts, slowly enough that a single read does not get both."""

    def __init__(self) -> None:
        self.keys: dict[str, Any] = {"first": FIRST}
        self.fetched = 0
        self.status = 200
        self.body: bytes | None = None
        """Instead of a key set."""

    async def handle(self, request: web.Request) -> web.StreamResponse:
        self.fetched += 1
        keys = [json.loads(ECAlgorithm.to_jwk(key.public_key())) | {"kid": kid} for kid, key in self.keys.items()]
        body = json.dumps({"keys": keys}).encode() if self.body is None else self.body
        response = web.StreamResponse(status=self.status)
        await response.prepare(request)
        await response.write(body[:50])
        await asyncio.sleep(0.05)
        await response.write(body[50:])
        return response


@contextlib.asynccontextmanager
async def serving(server: KeyServer) -> AsyncIterator[str]:
    app = web.Application()
    app.router.add_get("/keys", server.handle)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    try:
        yield f"http://127.0.0.1:{runner.addresses[0][1]}/keys"
    finally:
        await runner.cleanup()


def bearer(key: Any, kid: str) -> str:
    claims = {"exp": today() + 60, "iss": "ToskaMesh.Gateway", "aud": "ToskaMesh.Services"}
    return f"Authorization: Bearer {jwt.encode(claims, key, 'ES256', headers={'kid': kid})}\r\n"


async def test_an_unknown_key_id_is_looked_up_once() -> None:
    server = KeyServer()
    now = 1000.0
    checker = TokenChecker("ToskaMesh.Gateway", "ToskaMesh.Services", {}, today)
    async with serving(server) as url, Backend() as backend:
        fetcher = KeySetFetcher(url, checker, lambda: now)

        def options(tasks: asyncio.TaskGroup) -> dict[str, object]:
            return {"tokens": checker, "key_set": fetcher}

        async with running_gateway(backend, options=options) as gateway:
            many = [gateway.get(headers=bearer(FIRST, "first")) for _ in range(10)]
            async with asyncio.TaskGroup() as clients:
                answers = [clients.create_task(request) for request in many]
            assert [answer.result().status for answer in answers] == [200] * 10
            assert server.fetched == 1

            server.keys = {"second": SECOND}
            assert (await gateway.get(headers=bearer(SECOND, "second"))).status == 401
            assert server.fetched == 1, "just fetched"
            now += 60
            for number in range(20):
                await gateway.get(headers=bearer(SECOND, f"invented-{number}"))
            assert server.fetched == 2
            assert (await gateway.get(headers=bearer(SECOND, "second"))).status == 200
            assert (await gateway.get(headers=bearer(FIRST, "first"))).status == 401, "a key that was withdrawn"
            assert (await gateway.get(headers=bearer(FIRST, "second"))).status == 401, "signed by another"

            now += 60
            server.status = 500
            assert not await fetcher.fetch()
            assert not await fetcher.fetch(), "tried a moment ago, in vain"
            assert (await gateway.get(headers=bearer(SECOND, "second"))).status == 200, "the keys that are there stay"

            server.status = 200
            for body in (b"[]", b"null", b'"x"', b'{"keys": 1}'):
                now += 60
                server.body = body
                assert not await fetcher.fetch(), body
                assert (await gateway.get(headers=bearer(SECOND, "second"))).status == 200, body


async def test_a_client_that_leaves_while_keys_are_fetched() -> None:
    server = KeyServer()
    checker = TokenChecker("ToskaMesh.Gateway", "ToskaMesh.Services", {}, today)
    async with serving(server) as url, Backend() as backend:

        def options(tasks: asyncio.TaskGroup) -> dict[str, object]:
            return {"tokens": checker, "key_set": KeySetFetcher(url, checker, time.monotonic)}

        async with running_gateway(backend, options=options) as gateway:
            client = await gateway.connect()
            client.send(f"GET /api/orders/ HTTP/1.1\r\nHost: a\r\n{bearer(FIRST, 'first')}\r\n".encode())
            await asyncio.sleep(0.02)
            client.reset()
            assert (await gateway.get(headers=bearer(FIRST, "first"))).status == 200
        assert len(backend.requests) == 1
