"""The registry apart from its process: the state, the API over it, and the passing of its time.

What differs between the daemon and a registry inside a test is handed in: where rows are kept, which clock counts, and
who carries the HTTP.
"""

import asyncio
import uuid
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from random import Random
from typing import Never

import orjson

from toska_mesh.registryd.api import Api
from toska_mesh.registryd.api.endpoint import Backend
from toska_mesh.registryd.api.reads import Reads
from toska_mesh.registryd.changes import RowKey
from toska_mesh.registryd.node import Node
from toska_mesh.registryd.render import Pieces
from toska_mesh.registryd.state import Expired, State, Stored
from toska_mesh.registryd.watches import Watches
from toska_mesh.telemetry import event_log

log = event_log("registry")

_LONGEST_NAP_SECONDS = 0.25
_STALL_SECONDS = 1.0
"""Being this late means that the process itself was stopped, not that a service failed to beat."""


@dataclass(frozen=True, slots=True)
class Engine:
    """The parts of one registry. `watches.close()` lets the blocked queries go: the registry stops."""

    state: State
    api: Api
    watches: Watches

    @classmethod
    def build(
        cls,
        stored: Stored,
        node: Node,
        clock: Callable[[], float],
        persist: Callable[[Mapping[RowKey, bytes | None], int], None],
        durable: Callable[[], Awaitable[None]],
        *,
        token: str = "",
        rng: Random | None = None,
        new_id: Callable[[], uuid.UUID] = uuid.uuid4,
    ) -> "Engine":
        """`clock`: seconds, monotonic. `persist` takes the rows of each command, `durable` ends when they are kept."""
        rng = rng or Random()
        watches = Watches()
        state = State(stored, clock(), persist, watches.wake, rng)
        backend = Backend(
            state=state,
            node=node,
            node_index=stored.index,
            reads=Reads(watches, rng),
            pieces=Pieces(state, node, orjson.dumps(node.as_listed(stored.index))),
            watches=watches,
            clock=clock,
            durable=durable,
        )
        return cls(state, Api(backend, token, new_id), watches)


async def keep_time(state: State, clock: Callable[[], float], on_expired: Callable[[Expired], None]) -> Never:
    """Let things expire at their time. After a stall everything gets the stall's length as grace."""
    while True:
        started = clock()
        due = state.deadlines.next_at()
        nap = _LONGEST_NAP_SECONDS if due is None else min(max(due - started, 0.0), _LONGEST_NAP_SECONDS)
        await asyncio.sleep(nap)
        late = clock() - started - nap
        if late > _STALL_SECONDS:
            log.warning("stalled", seconds=round(late, 3))
            state.deadlines.postpone(late)
        expired = state.expire(clock())
        on_expired(expired)
        for check_id in expired.checks:
            log.info("check_expired", check=check_id)
        for service_id in expired.reaped_services:
            log.info("service_reaped", instance=service_id, reason="critical for longer than its grace period")
        for session_id in expired.sessions:
            log.info("session_expired", session=session_id)
