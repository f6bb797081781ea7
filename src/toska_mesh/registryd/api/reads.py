"""Blocking queries: wait until a resource's index moves on, then answer; the same answer is made once.

Consul: "Blocking queries". A resource is described by what it is called, which topics may change it, and how to get its
index and body; the body is kept with its index, so that a thousand watchers woken at once share one serialisation.
"""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from random import Random

from toska_mesh.registryd.api.http import JSON, Blocking, Reply
from toska_mesh.registryd.changes import Topic
from toska_mesh.registryd.watches import Watches

_CACHE_BYTES = 32 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class Resource:
    """Something that can be read. `body` gives None when there is nothing (404)."""

    key: tuple[object, ...]
    topics: tuple[Topic, ...]
    index: Callable[[], int]
    body: Callable[[], bytes | None]
    content_type: str = JSON
    headers: tuple[tuple[str, str], ...] = ()
    tells_consistency: bool = True
    """Catalog and health say how consistent the answer is; keys and sessions do not."""


class Reads:
    """Answers reads. One event loop."""

    def __init__(self, watches: Watches, rng: Random) -> None:
        self._watches = watches
        self._rng = rng
        self._kept: dict[tuple[object, ...], tuple[int, bytes | None]] = {}
        self._kept_bytes = 0

    async def answer(self, resource: Resource, blocking: Blocking) -> Reply:
        if blocking.index:
            await self._until_above(resource, blocking)
        index = resource.index()
        body = self._body(resource, index)
        headers = {
            "X-Consul-Index": str(max(index, 1)),  # 0 would make the next query not block at all
            "X-Consul-KnownLeader": "true",
            "X-Consul-LastContact": "0",
        }
        if resource.tells_consistency:
            headers["X-Consul-Effective-Consistency"] = blocking.consistency
        if body is None:
            return Reply(404, b"", "", headers)
        return Reply(200, body, resource.content_type, headers | dict(resource.headers))

    async def _until_above(self, resource: Resource, blocking: Blocking) -> None:
        jitter = self._rng.random() * blocking.wait_seconds / 16
        deadline = asyncio.get_running_loop().time() + blocking.wait_seconds + jitter
        while max(resource.index(), 1) <= blocking.index:
            if not await self._watches.wait(resource.topics, deadline):
                return

    def _body(self, resource: Resource, index: int) -> bytes | None:
        kept = self._kept.get(resource.key)
        if kept is not None and kept[0] == index:
            return kept[1]
        body = resource.body()
        if kept is not None:
            self._drop(resource.key)
        size = len(body or b"")
        if size <= _CACHE_BYTES // 2:
            self._kept[resource.key] = (index, body)
            self._kept_bytes += size + 256
            while self._kept_bytes > _CACHE_BYTES:
                self._drop(next(iter(self._kept)))
        return body

    def _drop(self, key: tuple[object, ...]) -> None:
        _, body = self._kept.pop(key)
        self._kept_bytes -= len(body or b"") + 256
