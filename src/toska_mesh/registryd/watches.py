"""Who waits for what: the blocked queries, by topic. State owned by one event loop.

Waking only ends the waiting; the query then looks at its index itself. A storm of changes within one turn of the loop
wakes a query once.
"""

import asyncio
from collections.abc import Iterable

from toska_mesh.registryd.changes import Topic

_UNDER = "kv under"
"""The kind of topic that means every key with a prefix."""


class Watches:
    def __init__(self) -> None:
        self._waiting: dict[Topic, set[asyncio.Future[None]]] = {}
        self._prefixes: set[str] = set()  # those of the topics "kv under"
        self._is_closing = False
        self.count = 0

    @property
    def is_closing(self) -> bool:
        return self._is_closing

    def wake(self, topics: Iterable[Topic]) -> None:
        """End the waiting of everybody on these topics; a key's topic also means the prefixes above it."""
        for topic in topics:
            self._wake(topic)
            if topic[0] == "kv":
                for prefix in [prefix for prefix in self._prefixes if topic[1].startswith(prefix)]:
                    self._wake((_UNDER, prefix))

    def _wake(self, topic: Topic) -> None:
        for future in self._waiting.get(topic, ()):
            if not future.done():
                future.set_result(None)
        self._forget(topic)

    def _forget(self, topic: Topic) -> None:
        self._waiting.pop(topic, None)
        if topic[0] == _UNDER:
            self._prefixes.discard(topic[1])

    async def wait(self, topics: tuple[Topic, ...], deadline: float) -> bool:
        """Until one of the topics is woken (True), or the deadline on the loop's clock, or the end (False)."""
        if self._is_closing:
            return False
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        for topic in topics:
            self._waiting.setdefault(topic, set()).add(future)
            if topic[0] == _UNDER:
                self._prefixes.add(topic[1])
        self.count += 1
        try:
            async with asyncio.timeout_at(deadline):
                await future
        except TimeoutError:
            return False
        finally:
            self.count -= 1
            for topic in topics:
                waiting = self._waiting.get(topic)
                if waiting is not None:
                    waiting.discard(future)
                    if not waiting:
                        self._forget(topic)
        return not self._is_closing

    def close(self) -> None:
        """Let everybody go, now and from now on: the daemon stops."""
        self._is_closing = True
        for topic in list(self._waiting):
            self._wake(topic)
