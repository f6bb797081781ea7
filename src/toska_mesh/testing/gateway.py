"""The way into a fake mesh from outside: routes by the path as the gateway does.

The same router, retries and breakers, the same statuses for what goes wrong, and it is seen in the registry, so that
whoever leaves waits for it. What the gateway does besides (tokens, rate limits, CORS, a policy for each route) is not
here: that is the gateway's own business, and no service can get it wrong.
"""

import asyncio
from collections.abc import Callable, Mapping
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from random import Random
from typing import Any, Never
from urllib.parse import unquote

import orjson

from toska_mesh.aio import Latest
from toska_mesh.errors import CircuitOpenError, NoInstanceError, UpstreamError, UpstreamTimeoutError
from toska_mesh.model import CatalogSnapshot, ServiceName, Verdicts
from toska_mesh.registry.consul import ConsulClient, ConsulFollower, ConsulGatewayPresence, ConsulVerdictFollower
from toska_mesh.sdk.mesh import Mesh
from toska_mesh.sdk.sources import Source
from toska_mesh.testing.crew import Crew
from toska_mesh.testing.history import Events

PREFIX = "/api/"
_NAME = "gateway"
_HOP_BY_HOP = frozenset({"connection", "keep-alive", "transfer-encoding", "content-length"})

OpenMesh = Callable[[Source], AbstractAsyncContextManager[Mesh]]


@dataclass(frozen=True, slots=True)
class GatewayAnswer:
    """What the caller outside gets. `code` says why, where the gateway answers itself; `instance` who answered."""

    status: int
    body: bytes = b""
    headers: Mapping[str, str] | None = None
    instance: str = ""
    attempts: int = 0
    code: str = ""

    @property
    def text(self) -> str:
        return self.body.decode()

    def json(self) -> Any:
        return orjson.loads(self.body)


class FakeGateway:
    """Starts with its first request, or with `start`. Owned by its `FakeMesh`."""

    def __init__(self, events: Events, crew: Crew, client: ConsulClient, rng: Random, open_mesh: OpenMesh) -> None:
        self._events = events
        self._crew = crew
        self._client = client
        self._rng = rng
        self._open_mesh = open_mesh
        self._mesh: asyncio.Future[Mesh] | None = None

    async def start(self) -> None:
        """Be there: seen in the registry, and with a table if the registry answers."""
        await self._opened()

    async def request(
        self, method: str, path: str, *, data: object = None, json: object = None, headers: Mapping[str, str] = {}
    ) -> GatewayAnswer:
        """Ask as somebody outside would: `/api/<service>/<path of the service>`."""
        mesh = await self._opened()
        answer = await self._answer(mesh, method, path, data, json, headers)
        text = f"{method} {path} -> {answer.status} {answer.instance or answer.code}"
        self._events.add("answer", _NAME, text)
        return answer

    async def get(self, path: str, **options: Any) -> GatewayAnswer:
        """GET; see `request`."""
        return await self.request("GET", path, **options)

    async def post(self, path: str, **options: Any) -> GatewayAnswer:
        """POST; see `request`."""
        return await self.request("POST", path, **options)

    async def _answer(
        self, mesh: Mesh, method: str, path: str, data: object, json: object, headers: Mapping[str, str]
    ) -> GatewayAnswer:
        segment, slash, rest = path.removeprefix(PREFIX).partition("/")
        name = unquote(segment.partition("?")[0])
        if not path.startswith(PREFIX) or not name:
            return _problem(404, "no-such-route", f"paths begin with {PREFIX}<service>")
        query = segment.partition("?")[2]
        target = f"/{rest}" if slash or not query else f"/?{query}"
        try:
            answer = await mesh.client(name).request(
                method, target, data=data, json=json, headers=headers, allow_redirects=False
            )
            body = await answer.read()
        except NoInstanceError as exc:
            is_known = mesh.explain(name)["known"]
            return _problem(503, "no-instance", str(exc)) if is_known else _problem(404, "no-such-route", str(exc))
        except CircuitOpenError as exc:
            return _problem(503, "breaker-open", str(exc))
        except UpstreamTimeoutError as exc:
            return _problem(504, "upstream-timeout", str(exc))
        except UpstreamError as exc:
            return _problem(502, "upstream-failed", str(exc))
        kept = {name: value for name, value in answer.headers.items() if name.lower() not in _HOP_BY_HOP}
        return GatewayAnswer(answer.status, body, kept, answer.mesh_instance.id, answer.attempts)

    async def _opened(self) -> Mesh:
        if self._mesh is None:
            self._mesh = asyncio.get_running_loop().create_future()
            _ = self._crew.start(self._run(self._mesh), "gateway")
        return await asyncio.shield(self._mesh)

    async def _run(self, opened: asyncio.Future[Mesh]) -> Never:
        source = _SeenSource(self._client, self._rng)
        async with self._open_mesh(source) as mesh:
            source.in_use = mesh.known
            await source.announced()
            opened.set_result(mesh)
            await asyncio.Event().wait()
        raise AssertionError("nothing ends this wait but its cancellation")


class _SeenSource:
    """`sdk.sources.Source`: the whole registry, at once, and so that others can wait for it."""

    def __init__(self, client: ConsulClient, rng: Random) -> None:
        self._follower = ConsulFollower(client, rng=rng, on_trouble=self._note)
        self._verdicts = ConsulVerdictFollower(client, rng=rng)
        self._presence = ConsulGatewayPresence(client, f"fake-{_NAME}", self._apply, rng=rng)
        self._has_catalog = asyncio.Event()
        self._trouble = ""
        self.in_use: Callable[[str], Any]

    @property
    def trouble(self) -> str:
        return self._trouble

    def _note(self, reason: str) -> None:
        self._trouble = reason

    async def announced(self) -> None:
        await self._presence.announced.wait()

    def want(self, service: ServiceName) -> None:
        """Everything is followed."""

    async def known(self, service: ServiceName) -> None:
        await self._has_catalog.wait()

    async def _apply(self, service: ServiceName) -> None:
        await self._follower.reread(service)
        await self.in_use(service)

    async def follow(self, catalog: Latest[CatalogSnapshot], verdicts: Latest[Verdicts]) -> Never:
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._presence.run(), name="be seen in the registry")
            tasks.create_task(self._follow_when_seen(catalog), name="follow catalog")
            tasks.create_task(self._verdicts.follow(verdicts), name="follow verdicts")
            async for snapshot in catalog.updates():
                self._has_catalog.set()
                if not snapshot.is_stale:
                    self._trouble = ""
        raise AssertionError("updates never end")

    async def _follow_when_seen(self, catalog: Latest[CatalogSnapshot]) -> Never:
        await self._presence.announced.wait()
        await self._follower.follow(catalog)


def _problem(status: int, code: str, detail: str) -> GatewayAnswer:
    body = {"type": "about:blank", "status": status, "code": code, "detail": detail}
    return GatewayAnswer(status, orjson.dumps(body), {"Content-Type": "application/problem+json"}, code=code)
