"""Finds registrations that changed without any check changing: other metadata, another port, no check at all.

Such a change moves the index of `catalog/services` but not its content, so nobody says which service it was. A sweep
reads `catalog/node/<node>` of every node (one, on one machine) and compares the ModifyIndex of each instance with the
table. If there are more nodes than services, reading all services is cheaper and does the same.
"""

import asyncio
from collections import deque
from dataclasses import dataclass

from toska_mesh.errors import RegistryError, RegistryUnavailableError
from toska_mesh.model import ServiceName
from toska_mesh.registry.consul.client import ConsulApi, segment
from toska_mesh.registry.consul.codec import parse_json
from toska_mesh.registry.consul.difference import PieceSet, ServiceMark, changed_services
from toska_mesh.registry.consul.table import CatalogTable

_PATIENCE_SECONDS = 0.01
"""A move of the catalog's index and the change of a check that explains it arrive on two connections."""
_LAZY_SECONDS = 10.0
"""An explained move may hide an unexplained one of the same moment, so a sweep follows it too, but not at once."""
_REST_FACTOR = 4.0
"""A sweep is followed by four times its duration of rest: at most a fifth of the time goes into sweeping."""


@dataclass(frozen=True, slots=True)
class Found:
    """Outcome of one sweep."""

    services: frozenset[ServiceName]
    started_at: float
    is_complete: bool
    """Everything was compared, not only what changed since the sweep before."""


class Sweeper:
    """Decides when to sweep, and does it. Owned by the follower."""

    def __init__(self, api: ConsulApi, table: CatalogTable, call_seconds: float, concurrent_reads: int) -> None:
        self._api = api
        self._table = table
        self._call_seconds = call_seconds
        self._reads = asyncio.Semaphore(concurrent_reads)
        self._nodes: dict[str, PieceSet] = {}
        self._moved_at: float | None = None
        self._unexplained: tuple[int, float] | None = None
        self._explained: deque[tuple[int, int]] = deque(maxlen=16)
        self._rests_until = float("-inf")
        self._verified_at = float("-inf")
        self._news = asyncio.Event()

    def checks_moved(self, low: int, high: int) -> None:
        """Some check changed between these indexes: that explains a move of the catalog to an index among them."""
        self._explained.append((low, high))

    def catalog_moved(self, index: int, now: float, *, is_explained: bool) -> None:
        """The index of `catalog/services` moved; `is_explained` when its content did too."""
        if self._moved_at is None:
            self._moved_at = now
        if not is_explained:
            self._unexplained = (index, now)
        self._news.set()

    def forget(self) -> None:
        """Compare everything the next time."""
        self._nodes = {}

    def try_again(self, now: float) -> None:
        """A sweep failed: another one is due at once."""
        self._moved_at, self._unexplained = now, (0, now)
        self._news.set()

    async def wait(self, verify_seconds: float) -> None:
        """Until a sweep is due: shortly after a move nobody explained, `verify_seconds` after the last full one."""
        loop = asyncio.get_running_loop()
        if self._verified_at < 0:
            self._verified_at = loop.time()  # the first load reads everything by itself
        while True:
            self._news.clear()
            verify_at = self._verified_at + verify_seconds
            due_at = self._due_at()
            try:
                async with asyncio.timeout_at(verify_at if due_at is None else min(due_at, verify_at)):
                    await self._news.wait()
            except TimeoutError:
                if loop.time() >= verify_at:
                    self.forget()
                    return
                if self._due_at() == due_at:
                    return

    def _due_at(self) -> float | None:
        if self._moved_at is None:
            return None
        due_at = self._moved_at + _LAZY_SECONDS
        if self._unexplained is not None:
            index, moved_at = self._unexplained
            if not any(low < index <= high for low, high in self._explained):
                due_at = min(due_at, moved_at + _PATIENCE_SECONDS)
        return max(due_at, self._rests_until)

    async def sweep(self) -> Found:
        """Compare the nodes with the table. Raises RegistryError, after which the next sweep compares everything."""
        loop = asyncio.get_running_loop()
        started_at = loop.time()
        self._moved_at = self._unexplained = None
        is_complete = not self._nodes
        try:
            nodes = await self._node_names()
            if not nodes or len(nodes) > len(self._table.shown) + 1:
                self._nodes = {}
                services, is_complete = frozenset(self._table.shown), True
            else:
                services = await self._compare(nodes, is_complete)
        except BaseException:
            self.forget()  # what some nodes answered is known now and would not be reported again
            raise
        ended_at = loop.time()
        self._rests_until = ended_at + _REST_FACTOR * (ended_at - started_at)
        if is_complete:
            self._verified_at = ended_at
        return Found(services, started_at, is_complete)

    async def _node_names(self) -> set[str]:
        answer = parse_json((await self._get("/v1/catalog/nodes")), "catalog/nodes")
        if not isinstance(answer, list) or not all(isinstance(node, dict) and "Node" in node for node in answer):
            raise RegistryError("the registry's answer to catalog/nodes is no list of nodes")
        return {str(node["Node"]) for node in answer}

    async def _compare(self, nodes: set[str], is_complete: bool) -> frozenset[ServiceName]:
        found: set[ServiceName] = set()
        seen: set[ServiceMark] = set()
        for gone in set(self._nodes) - nodes:
            del self._nodes[gone]
            found |= self._table.services_on(gone)
        failures: list[RegistryError] = []

        async def compare(node: str) -> None:
            try:
                added, removed = await self._compare_node(node)
            except RegistryError as error:
                failures.append(error)
            else:
                seen.update(added)
                found.update(ServiceName(mark.service) for mark in added if not self._table.knows(mark))
                found.update(ServiceName(mark.service) for mark in removed if self._table.knows(mark))

        async with asyncio.TaskGroup() as tasks:
            for node in sorted(nodes):
                tasks.create_task(compare(node), name=f"sweep {node}")
        if failures:
            raise failures[0]
        if is_complete:  # with nothing to compare with, what is gone can only be told from the table
            found |= self._table.services_beyond(seen)
        return frozenset(found)

    async def _compare_node(self, node: str) -> tuple[set[ServiceMark], set[ServiceMark]]:
        async with self._reads:
            body = await self._get(f"/v1/catalog/node/{segment(node)}")
            return await changed_services(self._nodes.setdefault(node, PieceSet()), node, body)

    async def _get(self, path: str) -> bytes:
        answer = await self._api.call("GET", path, limit_seconds=self._call_seconds)
        if answer.status != 200:
            raise RegistryUnavailableError(f"the registry answered {answer.status} to {path}")
        return answer.body
